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
    stability/<block>/add_by_r      |d (x (+) exp_r(v)) / dr|; of residual 'transport', where it is 0 in flat space, too
    stability/<block>/midpoint_by_x |d r_t / d (x_0 ... x_{t-1})| where r is a gyro-midpoint, by that of the weighted mean, |weights|
    stability/embeddings/exp_by_x   |d exp_0(e) / de|, of use_embedding_curvature

which are operator norms (largest singular values), the largest of some ROWS rows of the two sub-layers (of midpoints: at TIMES places of
every sequence), 1 in flat space; and

    stability/<block>/log_grad_norm        |dL / d log_r(x)|
    stability/<block>/add_grad_norm        |dL / d (x (+) exp_0(v))|
    stability/<block>/midpoint_grad_norm   |dL / dr|, where r is a gyro-midpoint
    stability/embeddings/exp_grad_norm     |dL / d exp_0(e)|

the L2 norms of the gradient of the loss L of those tokens by all that a map gives, for every token and both sub-layers together.
"""
import contextlib

import torch

from model import midpoint_weights
from model_baseline import previous_token
from training.optimizer import group_of

ROWS, TIMES = 64, 4
MIDPOINTS = ("mean", "window", "ema")  # references that are gyro-midpoints


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


def norm_of_midpoints(rows, by, weights):
    """The largest singular value of d rows_t / d by over |weights_t|, the largest of TIMES places t, of rows (B, T, H, D) that depend on
    all rows of `by` (the same shape) in their sequence and head. weights: (T, T)."""
    found = [0.0]
    for t in torch.linspace(1, rows.size(1) - 1, min(TIMES, rows.size(1) - 1)).long().tolist():
        columns = [torch.autograd.grad(rows[:, t, :, k].sum(), by, retain_graph=True)[0] for k in range(rows.size(-1))]
        jacobian = torch.stack(columns).permute(1, 3, 0, 2, 4).flatten(3)  # (B, H, D of rows, T D of by)
        found.append((torch.linalg.matrix_norm(jacobian.double(), ord=2).max() / weights[t].norm()).item())
    return max(found)


def four(rows):
    """(B, T, H, D) of rows with or without heads."""
    return rows if rows.dim() == 4 else rows.unsqueeze(2)


def watched_maps(model):
    """The maps that act on one row a token: (place, kind, module, name of its method) each."""
    if getattr(model, "embedding_curvature", None) is not None:
        yield "embeddings", "exp", model, "embedded"
    for i, block in enumerate(model.transformer.h):
        if not all(hasattr(block, name) for name in ("tangent", "residual", "heads")) or getattr(block, "several_streams", False):
            continue
        yield f"block{i}", "log", block, "tangent"
        yield f"block{i}", "add", block, "residual"
        if block.config.reference in MIDPOINTS:
            yield f"block{i}", "midpoint", block, "reference"


@contextlib.contextmanager
def replaced(model, maps, by):
    """The model in evaluation, with other maps: by(place, kind, module, method) in place of each."""
    training = model.training
    model.eval()
    try:
        for place, kind, module, name in maps:
            setattr(module, name, by(place, kind, module, getattr(module, name)))
        yield
    finally:
        for *_, module, name in maps:
            vars(module).pop(name, None)
        model.train(training)


def leaf(rows):
    return rows.detach().requires_grad_()


def map_norms(model, idx):
    """Operator norms of the maps of every curved block, and of the embeddings', on these tokens (B, T). -> name -> number"""
    found = {}

    def log(block, old, x, r, c):
        point, reference = leaf(x), leaf(r if r is not None else block.heads(previous_token(x.flatten(2))))
        out = old(point, reference, c.detach())
        yield "log_by_x", operator_norm(out, point, some(x))
        if block.config.reference != "origin":
            yield "log_by_r", operator_norm(out, reference, some(x))

    def add(block, old, x, r, v, c, limit):
        point, update, reference = leaf(x.float()), leaf(v.float()), r if r is None else leaf(r)
        out = old(point, reference, update, c.detach(), limit)
        yield "add_by_x", operator_norm(out, point, some(x))
        yield "add_by_v", operator_norm(out, update, some(x))
        if block.config.residual != "origin":
            yield "add_by_r", operator_norm(out, reference, some(x))

    def midpoint(block, old, x, c, state, name):
        points, weights = leaf(four(block.heads(x))), midpoint_weights(block.config, x.size(1), x.size(1), x.device)
        yield "midpoint_by_x", norm_of_midpoints(four(old(points.flatten(2), c.detach(), state, name)), points, weights)

    def exp(model, old, rows):
        vectors = leaf(rows)
        yield "exp_by_x", operator_norm(old(vectors), vectors, some(rows))

    kinds = dict(log=log, add=add, midpoint=midpoint, exp=exp)

    def by(place, kind, module, old):
        def watched(*args):
            with torch.enable_grad():
                for name, value in kinds[kind](module, old, *args):
                    key = f"stability/{place}/{name}"
                    found[key] = max(found.get(key, 0.0), value)
            return old(*args)
        return watched

    maps = list(watched_maps(model))
    if maps:
        with replaced(model, maps, by), torch.no_grad():
            model.trunk(idx)
    return found


def gradient_norms(model, idx):
    """L2 norms of the gradient of the loss of these tokens (B, T) by what the same maps give. -> name -> number"""
    given = {}

    def by(place, kind, module, old):
        def watched(*args):
            out = old(*args)
            given.setdefault(f"stability/{place}/{kind}_grad_norm", []).append(out)
            return out
        return watched

    maps = list(watched_maps(model))
    if not maps:
        return {}
    with replaced(model, maps, by), torch.enable_grad():
        loss = model(idx[:, :-1].contiguous(), idx[:, 1:].contiguous())[1]
        places = [(key, out) for key, outs in given.items() for out in outs]
        gradients = torch.autograd.grad(loss, [out for _, out in places])
    found = {key: [g for (of, _), g in zip(places, gradients) if of == key] for key in given}
    return {key: torch.nn.utils.get_total_norm(parts).item() for key, parts in found.items()}
