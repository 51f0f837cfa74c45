"""
torch.optim.Muon, fast on any CPU; and on several processes.

There each matrix is orthogonalised by one process, which sends its change to the others:

    G, M       gradient and momentum of a matrix, whole, on the process that owns it
    change     -lr adjust(shape) NewtonSchulz(M): torch.optim.Muon's step from a matrix of zeros
    W          (1 - lr weight_decay) W + change, in shards where W is

Newton-Schulz is some 15 products of a matrix with itself. With torch.optim.Muon alone every process would do it for all matrices, and keep
all momentum: neither would get less with more processes. Here both do. Sent are the changes, as many numbers as weights, and under FSDP2
the gradients, too. (A matrix as the unit that is dealt out: Liu et al. 2025, arXiv 2502.16982, and Jordan's modded-nanogpt.)
"""
import torch
import torch.distributed as dist

from training.bf16_products import fast_bf16_products
from training.shards import full, in_shards, placed_like


def deal_out(shapes, processes):
    """The owner of each matrix: the largest first, to whoever has the least work. -> a list of ranks, the same on each process."""
    cost = [min(shape) ** 2 * max(shape) for shape in shapes]  # of Newton-Schulz, up to a factor
    work, owners = [0] * processes, [0] * len(shapes)
    for place in sorted(range(len(shapes)), key=lambda place: -cost[place]):
        owners[place] = min(range(processes), key=work.__getitem__)
        work[owners[place]] += cost[place]
    return owners


class Muon(torch.optim.Muon):
    """torch.optim.Muon, whose bf16 products are fast on a CPU without bf16 instructions, too."""

    def step(self, closure=None):
        kinds = {p.device.type for group in self.param_groups for p in group["params"]}
        with fast_bf16_products("cpu" if kinds == {"cpu"} else "none"):
            return super().step(closure)


class DistributedMuon(torch.optim.Muon):
    """In the place of torch.optim.Muon, with its options. Every process calls its methods, in the same order. `state` stays empty:
    checkpoints take whole_state() and give take_state()."""

    def __init__(self, groups, rank, processes, **options):
        super().__init__(groups, **options)
        params = [p for group in self.param_groups for p in group["params"]]
        self.owners = dict(zip(params, deal_out([p.shape for p in params], processes)))
        self.changes = {p: torch.nn.Parameter(torch.empty(0, 0, dtype=p.dtype, device=p.device))  # (filled in a step)
                        for p, owner in self.owners.items() if owner == rank}
        self.own = Muon([dict(params=[self.changes[p] for p in group["params"] if p in self.changes])
                         for group in self.param_groups])  # (its settings are those of the step)
        self.begun = False  # is there momentum?

    def _empty(self, p):
        return torch.empty(p.shape, dtype=p.dtype, device=p.device)

    @torch.no_grad()
    def step(self, closure=None):
        if any(p.grad is None for p in self.owners):  # on all processes alike
            raise RuntimeError("a matrix has no gradient")
        for p in self.owners:
            gradient = full(p.grad)
            if p in self.changes:
                self.changes[p].data, self.changes[p].grad = torch.zeros_like(gradient, memory_format=torch.contiguous_format), gradient
        for group, own in zip(self.param_groups, self.own.param_groups):
            own.update({key: value for key, value in group.items() if key != "params"}, weight_decay=0.0)
        self.own.step()
        self.begun = True
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(self._sent(p))

    def _sent(self, p):
        """The change of p, on all processes, placed as p is."""
        own = self.changes.get(p)
        change = self._empty(p) if own is None else own.data
        if own is not None:  # room that is not needed until the next step
            own.data, own.grad = change.new_empty(0, 0), None
        if in_shards(p):
            return placed_like(change, p, source=self.owners[p])
        dist.broadcast(change, self.owners[p])
        return change

    @torch.no_grad()
    def whole_state(self, p):
        """What torch.optim.Muon keeps of p, on all processes."""
        if not self.begun:
            return {}
        own = self.changes.get(p)
        momentum = self._empty(p) if own is None else self.own.state[own]["momentum_buffer"].clone(memory_format=torch.contiguous_format)
        dist.broadcast(momentum, self.owners[p])
        return {"momentum_buffer": momentum}

    def take_state(self, p, values):
        """The other way round. values: whole tensors, the same on all processes."""
        self.begun = True
        if p in self.changes:
            self.own.state[self.changes[p]] = {key: value.to(p.device) for key, value in values.items()}
