"""
log_stability: what a step does to each part of a model, and how much the maps of a curved block magnify. For metrics.jsonl.

    stability/<part>/grad_norm      L2 norm of the part's gradients, before clipping
    stability/<part>/update_ratio   |change of the weights in this step| / |weights|

A part is a block, 'embeddings', 'curvature' (learned c and what predicts it) or 'rest'. And at evaluations, of a block whose rows are
points,

    stability/<block>/log_by_x      |d log_r(x) / dx|
    stability/<block>/log_by_r      |d log_r(x) / dr|; not where r is the origin
    stability/<block>/add_by_x      |d (x (+) exp_0(v)) / dx|, with the projection into the ball; of any `residual`
    stability/<block>/add_by_v      |d (x (+) exp_0(v)) / dv|

which are operator norms (largest singular values), the largest of some ROWS rows of the two sub-layers, 1 in flat space; and

    stability/<block>/log_grad_norm   |dL / d log_r(x)|
    stability/<block>/add_grad_norm   |dL / d (x (+) exp_0(v))|

the L2 norms of the gradient of the loss L of those tokens by all that a map gives, for every token and both sub-layers together.
"""
import contextlib

import torch

from model_baseline import previous_token
from training.optimizer import group_of

ROWS = 64


def part_of(name, p):
    kind = group_of(name, p)
    if kind == "curvature":
        return "curvature"
    if name.startswith("transformer.h."):
        return f"block{name.split('.')[2]}"
    return "embeddings" if kind == "embeddings" else "rest"


class Watch:
    """Of one step: gradients() once they are whole, weights() before the update, numbers() after it."""

    def __init__(self, model):
        self.parts = {}  # name -> parameters
        for name, p in model.named_parameters():
            if p.requires_grad:
                self.parts.setdefault(part_of(name, p), []).append(p)
        self.found = {}

    @torch.no_grad()
    def gradients(self):
        for part, parameters in self.parts.items():
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            self.found[f"stability/{part}/grad_norm"] = norm.item()
        self.before = {part: [p.detach().clone() for p in parameters] for part, parameters in self.parts.items()}

    @torch.no_grad()
    def numbers(self):
        for part, parameters in self.parts.items():
            before = self.before[part]
            change = torch.nn.utils.get_total_norm([p - old for p, old in zip(parameters, before)])
            size = torch.nn.utils.get_total_norm(before)
            self.found[f"stability/{part}/update_ratio"] = (change / size.clamp(min=1e-30)).item()
        self.before = None
        return self.found


def operator_norm(rows, by, where):
    """The largest singular value of d rows / d by, of the rows `where` (a mask), the largest of them. rows, by: (..., D), where a row
    depends on its own row of `by` alone."""
    columns = [torch.autograd.grad(rows[..., k].sum(), by, retain_graph=True)[0][where] for k in range(rows.size(-1))]
    return torch.linalg.matrix_norm(torch.stack(columns, -2).double(), ord=2).max().item()


def some(rows):
    """A mask (...) of ROWS rows of (..., D), spread evenly."""
    count = rows[..., 0].numel()
    where = torch.zeros(count, dtype=torch.bool, device=rows.device)
    where[torch.linspace(0, count - 1, min(count, ROWS), device=rows.device).long()] = True
    return where.view(rows.shape[:-1])


def is_watched(block):
    """Has it maps that act on one row a token?"""
    return all(hasattr(block, name) for name in ("tangent", "residual", "heads")) and not getattr(block, "several_streams", False)


def map_norms(model, idx):
    """Operator norms of the maps of every curved block on these tokens (B, T). -> name -> number"""
    found = {}

    def note(i, name, value):
        key = f"stability/block{i}/{name}"
        found[key] = max(found.get(key, 0.0), value)

    def tangent(i, block, old):
        def watched(x, r, c):
            with torch.enable_grad():
                known = r if r is not None else block.heads(previous_token(x.flatten(2)))
                point, reference = (each.detach().requires_grad_() for each in (x, known))
                out = old(point, reference, c.detach())
                note(i, "log_by_x", operator_norm(out, point, some(x)))
                if block.config.reference != "origin":
                    note(i, "log_by_r", operator_norm(out, reference, some(x)))
            return old(x, r, c)
        return watched

    def residual(i, old):
        def watched(x, r, v, c, limit):
            with torch.enable_grad():
                point, update = (each.detach().float().requires_grad_() for each in (x, v))
                out = old(point, r, update, c.detach(), limit)
                note(i, "add_by_x", operator_norm(out, point, some(x)))
                note(i, "add_by_v", operator_norm(out, update, some(x)))
            return old(x, r, v, c, limit)
        return watched

    watched = [(i, block) for i, block in enumerate(model.transformer.h) if is_watched(block)]
    if not watched:
        return found
    with replaced(model, [(block, tangent(i, block, block.tangent), residual(i, block.residual)) for i, block in watched]), torch.no_grad():
        model.trunk(idx)
    return found


@contextlib.contextmanager
def replaced(model, blocks):
    """The model in evaluation, with other maps. blocks: (block, its tangent, its residual) each."""
    training = model.training
    model.eval()
    try:
        for block, tangent, residual in blocks:
            block.tangent, block.residual = tangent, residual
        yield
    finally:
        for block, *_ in blocks:
            for name in ("tangent", "residual"):
                vars(block).pop(name, None)
        model.train(training)


def gradient_norms(model, idx):
    """L2 norms of the gradient of the loss of these tokens (B, T) by what the maps of every curved block give. -> name -> number"""
    given = {}

    def kept(key, old):
        def watched(*args):
            out = old(*args)
            given.setdefault(key, []).append(out)
            return out
        return watched

    blocks = [(block, kept(f"stability/block{i}/log_grad_norm", block.tangent), kept(f"stability/block{i}/add_grad_norm", block.residual))
              for i, block in enumerate(model.transformer.h) if is_watched(block)]
    if not blocks:
        return {}
    with replaced(model, blocks), torch.enable_grad():
        loss = model(idx[:, :-1].contiguous(), idx[:, 1:].contiguous())[1]
        places = [(key, out) for key, outs in given.items() for out in outs]
        gradients = torch.autograd.grad(loss, [out for _, out in places])
    found = {key: [g for (of, _), g in zip(places, gradients) if of == key] for key in given}
    return {key: torch.nn.utils.get_total_norm(parts).item() for key, parts in found.items()}
