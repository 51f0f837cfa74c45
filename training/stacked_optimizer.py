"""
The weights of N runs in one tensor, and their updates at once.

Every run keeps a model of its own and the optimizers of training/optimizer.py: what is written to a checkpoint, read from one, measured and
searched for a NaN is theirs. Their tensors are views of these, a row a run:

    weights, gradients (N, D)   columns: AdamW's groups, then Muon's matrices; each parameter from a multiple of 16 on. The stacked
                                model's parameters (N, ...) and their gradients are views of the same
    first (N, D)                AdamW's first moment, Muon's momentum
    second (N, AdamW's)         AdamW's second moment

So a norm of gradients is a row's, clipping is a factor a row, and an update is some dozens of operations, whatever N and the number of
parameters: a GPU does not wait for launches. The formulas are those of torch.optim.AdamW and torch.optim.Muon (tests/test_stacked.py
compares them). What differs from run to run and step to step is in one small tensor of factors, made on the host.
"""
import math
import warnings
from dataclasses import dataclass

import torch

from training.bf16_products import fast_bf16_products
from training.optimizer import momentum_at
from training.schedule import lr_at

ALIGNED = 16  # numbers: a parameter begins on a boundary of 64 bytes


@dataclass
class Group:
    """A parameter group of an optimizer, in the columns of all runs."""
    columns: slice
    weight_decay: float
    ratios: list  # of each run: its learning rate over the schedule's
    matrices: dict | None  # Muon's: shape -> columns of each matrix


class StackedWeights:

    def __init__(self, model, members, optimizers, configs, device):
        """model: stacked; its parameters are filled here. members: the runs' models, on `device`. optimizers: of each, with the state that
        it goes on from. configs: of each. From here on the members' parameters, and their optimizers' states, are views."""
        self.configs, N = configs, len(members)
        names = {id(p): name for name, p in members[0].named_parameters()}
        self.groups, self.places, self.adam, self.muon, width = [], {}, None, None, 0
        for place, optimizer in enumerate(optimizers[0]):  # AdamW's come first: make_optimizers
            is_muon = isinstance(optimizer, torch.optim.Muon)
            for number, options in enumerate(optimizer.param_groups):
                start, matrices = width, {}
                for p in options["params"]:
                    self.places[names[id(p)]] = slice(width, width + p.numel())
                    matrices.setdefault(tuple(p.shape), []).append(slice(width, width + p.numel()))
                    width += -(-p.numel() // ALIGNED) * ALIGNED
                ratios = [own[place].param_groups[number]["lr_ratio"] for own in optimizers]
                self.groups.append(Group(slice(start, width), options["weight_decay"], ratios, matrices if is_muon else None))
                if is_muon:
                    self.muon = options
                else:
                    self.adam, adam_width = options, width
        kind = dict(dtype=next(members[0].parameters()).dtype, device=device)
        self.weights, self.gradients, self.first = (torch.zeros(N, width, **kind) for _ in range(3))
        self.second = torch.zeros(N, adam_width, **kind)
        self.steps = torch.zeros(N, device=device)  # updates that were made, AdamW's 'step'
        self.taken = 0  # the same on the host: all runs of a stack begin at one step
        for n, (member, own) in enumerate(zip(members, optimizers)):
            self._take(n, member, own)
        # a run's numbers are together, not a parameter's: nothing is slower for it
        warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
        for name, p in model.named_parameters():
            p.data, p.grad = (self._of(tensor, name, p.shape[1:]) for tensor in (self.weights, self.gradients))
        states = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            for n, member in enumerate(members):
                path, _, last = name.rpartition(".")
                own = member.get_submodule(path)._buffers
                if last not in own:  # of the step alone (QK-clip)
                    continue
                if own[last].shape != buffer.shape:  # each run has its own (model_tau.py)
                    buffer[n].copy_(own[last])
                    own[last] = buffer[n]
                elif name in states:  # the same in all (a c that grows)
                    buffer.copy_(own[last])
                    own[last] = buffer

    def _of(self, tensor, name, shape):
        """The columns of a parameter: (N, D) -> (N, *shape); (D,) -> shape."""
        return tensor[..., self.places[name]].unflatten(-1, shape) if len(shape) else tensor[..., self.places[name].start]

    @torch.no_grad()
    def _take(self, n, member, optimizers):
        owner = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        for name, p in member.named_parameters():
            optimizer = owner[id(p)]
            if isinstance(optimizer, torch.optim.Muon):
                views = {"momentum_buffer": self._of(self.first[n], name, p.shape)}
            else:
                views = {"exp_avg": self._of(self.first[n], name, p.shape), "exp_avg_sq": self._of(self.second[n], name, p.shape),
                         "step": self.steps[n]}
            for key, before in optimizer.state[p].items():  # none before the first step
                views[key].copy_(before)
            optimizer.state[p] = views
            view = self._of(self.weights[n], name, p.shape)
            view.copy_(p)
            p.data = view
        self.taken = int(self.steps[n])

    # ------------------------------------------------------------------------------------------------------------------

    def factors(self, step):
        """What the update of step `step` multiplies with: (2 + 2 groups, N), on the CPU. Rows: of AdamW's second moment; Muon's momentum;
        then of each group 1 - lr * weight_decay, and lr (AdamW's over the bias correction of the first moment)."""
        beta1, beta2 = self.adam["betas"]
        made = self.taken + 1
        rows = [[1 / math.sqrt(1 - beta2 ** made)] * len(self.configs), [momentum_at(step, config) for config in self.configs]]
        for group in self.groups:
            rates = [lr_at(step, config) * ratio for config, ratio in zip(self.configs, group.ratios)]
            correction = 1.0 if group.matrices else 1 - beta1 ** made
            rows += [[1 - lr * group.weight_decay for lr in rates], [lr / correction for lr in rates]]
        self.taken = made
        return torch.tensor(rows, dtype=self.weights.dtype)

    @torch.no_grad()
    def clip(self, most, norms):
        """Each run's gradients times min(1, most / norm), as torch.nn.utils.clip_grad_norm_ does."""
        self.gradients.mul_((most / (norms + 1e-6)).clamp(max=1.0).unsqueeze(1))

    @torch.no_grad()
    def norms(self):
        """Of each run's gradients, (N,)."""
        return torch.linalg.vector_norm(self.gradients, dim=1)

    @torch.no_grad()
    def update(self, factors, going):
        """A step of the runs that are `going`, (N,) bool; of the others, whose gradients may be NaN, weights stay. Gradients are 0 then."""
        going = going.unsqueeze(1)
        gradients = self.gradients.masked_fill_(~going, 0.0)
        root, momentum, *rows = factors.unsqueeze(-1)  # (N, 1) each
        rows = [(torch.where(going, decay, 1.0), torch.where(going, lr, 0.0)) for decay, lr in zip(rows[::2], rows[1::2])]
        width = self.second.size(1)
        beta1, beta2 = self.adam["betas"]
        of_adam, first = gradients[:, :width], self.first[:, :width]
        first.lerp_(of_adam, 1 - beta1)
        self.second.mul_(beta2).addcmul_(of_adam, of_adam, value=1 - beta2)
        change = first / (self.second.sqrt().mul_(root).add_(self.adam["eps"]))
        for group, (decay, lr) in zip(self.groups, rows):
            if group.matrices is None:
                self.weights[:, group.columns].mul_(decay).sub_(lr * change[:, group.columns])
            else:
                self._update_matrices(group, *(factor.unsqueeze(-1) for factor in (decay, lr, momentum)))
        self.steps.add_(1)
        gradients.zero_()

    def _update_matrices(self, group, decay, lr, momentum):
        """Muon's step: the matrices of one shape, of all blocks and runs, are orthogonalised together. (N, 1, 1) each."""
        for shape, places in group.matrices.items():
            of = lambda tensor: [tensor[:, place].unflatten(1, shape) for place in places]
            changes = []
            for buffer, gradient in zip(of(self.first), of(self.gradients)):
                buffer.lerp_(gradient, 1 - momentum)
                changes.append(gradient.lerp(buffer, momentum) if self.muon["nesterov"] else buffer)
            changes = orthogonal(torch.cat(changes), self.muon["ns_coefficients"], self.muon["ns_steps"], self.muon["eps"])
            adjusted = lr * (0.2 * math.sqrt(max(shape)) if self.muon["adjust_lr_fn"] == "match_rms_adamw"
                             else math.sqrt(max(1, shape[0] / shape[1])))
            for weight, change in zip(of(self.weights), changes.float().chunk(len(places))):
                weight.mul_(decay).sub_(adjusted * change)


def orthogonal(matrices, coefficients, steps, eps):
    """Newton-Schulz as torch.optim.Muon does it, in bf16, of many matrices at once. (M, out, in) -> the same."""
    a, b, c = coefficients
    x = matrices.bfloat16()
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=eps)
    with fast_bf16_products(x.device.type):
        for _ in range(steps):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
