"""
What passes through a model: its hidden states by layer and, where its blocks are curved, what their maps do on the way.

    embedding   the embeddings, before anything is done to them on their way into the first block
    block0 ...  the residual stream after each block
    ln_f        what the output head reads

The model's own forward pass is run, in float32 and without autocast (the residual stream of every run is float32; a
run's `dtype` is that of its matrix products), and is watched with hooks: nothing of a block is repeated here. What is
curved is decided by what a block can do (CURVED), not by the model's name.

A layer of a curved model is a point of a space with a chart of its own:

    block<i>    the product of balls of block i, one per head or one for the row, with that block's c
    embedding   the same of block 0, after the projection to its ball: plain embeddings may lie outside
    ln_f        an ordinary vector, in no ball

Two kinds of coordinates, never mixed:

    ambient     the row as it is in the model
    tangent     log_0 of the point, per head: tangent vectors at the origin

With dynamic_curvature every token has a c of its own. Its tangent coordinates and its distance to the origin use that
c; between tokens there is no geodesic distance, as they are points of different spaces.

Shapes: B sequences, T tokens, C = n_embd, H heads with a c of their own (1 where the row has one), D = C / H.
"""
import contextlib
import itertools
from typing import NamedTuple

import torch

import geometry
from common.errors import UserError
from model_baseline import previous_token

CURVED = ("heads", "curvature_of", "limit", "project_entry", "tangent", "residual")  # what only a curved block has
AT_EDGE = 0.999  # of the longest row that a block leaves, as in geometry_stats


def is_curved(block):
    """(Of a block with several residual streams the maps are not watched: its rows are taken as they are.)"""
    return all(hasattr(block, name) for name in CURVED) and not getattr(block, "several_streams", False)


def layer_names(model):
    return ["embedding", *(f"block{i}" for i in range(len(model.transformer.h))), "ln_f"]


@torch.no_grad()
def hidden_states(model, idx):
    """Every layer's rows: name -> (B, T, C), for idx (B, T), in the order of layer_names(). Raises UserError for a
    model whose blocks do not pass on one row a token, and for NaN or Inf."""
    def rows_of(out):  # with value_residual a block returns values, too; streams are brought together
        rows = out[0] if isinstance(out, tuple) and model.config.value_residual != "none" else out
        return model.one_row(rows) if isinstance(rows, torch.Tensor) else rows
    blocks = model.transformer.h
    seen, hooks = {"embedding": model.embed(idx)}, []
    for i, block in enumerate(blocks):
        hooks.append(block.register_forward_hook(lambda block, args, out, i=i: seen.update({f"block{i}": rows_of(out)})))
    try:
        seen["ln_f"] = model.transformer.ln_f(model.one_row(model.trunk(idx)))
    finally:
        for hook in hooks:
            hook.remove()
    shape = (*idx.shape, model.config.n_embd)
    for name, rows in seen.items():
        if not isinstance(rows, torch.Tensor) or rows.shape != shape:
            found = tuple(rows.shape) if isinstance(rows, torch.Tensor) else type(rows).__name__
            raise UserError(f"the hidden state {name} of this model is {found}, not one row a token {shape}: it cannot "
                            "be analysed")
        if not torch.isfinite(rows).all():
            raise UserError(f"the hidden state {name} of this model has NaN or Inf; analyse an earlier checkpoint")
    return seen


class Chart(NamedTuple):
    """The space that a layer's rows are points of."""
    block: torch.nn.Module
    c: torch.Tensor  # (), (H, 1), (B, T, 1) or (B, T, H, 1)
    per_token: bool  # dynamic curvature: no two tokens share a space


def charts(model, states):
    """name -> Chart, of the layers that have one. states: of hidden_states()."""
    names, found = layer_names(model), {}
    for i, block in enumerate(model.transformer.h):
        if is_curved(block):
            c = block.curvature_of(states[names[i]]).detach()
            chart = Chart(block, c, c.dim() > 2)
            if i == 0:
                found[names[0]] = chart
            found[names[i + 1]] = chart
    return found


def by_head(block, rows):
    """(B, T, C) -> (B, T, H, D)."""
    heads = block.heads(rows)
    return heads if heads.dim() == 4 else heads.unsqueeze(2)


def scalars(block, values, like):
    """Row scalars as the block has them, () to (B, T, H, 1), for the rows `like` (B, T, H, D) -> (B, T, H, 1)."""
    if values.dim() and block.heads(like.flatten(2)).dim() == 3:
        values = values.unsqueeze(-2)
    return values.expand(*like.shape[:3], 1)


def points(chart, rows):
    """The rows as points of the layer's space, and their c. (B, T, C) -> (B, T, H, D), (B, T, H, 1). Changes nothing
    but an embedding, as the model projects it on its way into the first block."""
    rows = by_head(chart.block, rows)
    c = scalars(chart.block, chart.c, rows)
    return geometry.project(rows, c), c


def tangent_coordinates(chart, rows):
    """log_0 of the points. (B, T, C) -> (B, T, C) float64."""
    x, c = points(chart, rows)
    x, c = x.cpu().double(), c.cpu().double()  # not every device has float64
    return geometry.log_0(x, c).flatten(2)


# ----------------------------------------------------------------------------------------------------------------------
# how the geometry is used. Every quantity is recorded as (layer, name, values (B, T, 1 or H))

def _whole_row(lengths):
    """Length in the product space from the lengths per head. (B, T, H, 1) -> (B, T, 1)."""
    return lengths.square().sum(2).sqrt()


def position(chart, rows, at_entry):
    """Where a layer's points are: name -> (B, T, 1 or H).

    curvature         c, per head
    geodesic_norm     distance to the origin in the product space: sqrt(sum over heads of dist(0, x)^2)
    geodesic_norm_of_heads   the same of each head
    boundary_margin   1 - sqrt(c) |x|, the distance to the ball's edge in radii; NaN where c <= 0: no edge
    edge_share        rows (per head) longer than 0.999 of the longest that the block leaves; with max_distance, than 0.999 of the radius
    max_distance_share  with max_distance: rows (per head) longer than 0.999 of the longest that it allows
    at_entry: the rows are what a block reads, not what it leaves.
    """
    x, c = points(chart, rows)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    geodesic = geometry.dist(torch.zeros_like(x), x, c)
    block = chart.block
    longest = block.longest(chart.c, x.dtype) if at_entry else block.limit(chart.c, x.dtype)
    at_longest, at_edge = ((norm > AT_EDGE * scalars(block, limit, x)).squeeze(-1).float()
                           for limit in (longest, geometry.max_norm(chart.c, x.dtype)))
    bounded = block.config.max_distance is not None
    return {"curvature": c.squeeze(-1),
            "geodesic_norm": _whole_row(geodesic),
            "geodesic_norm_of_heads": geodesic.squeeze(-1),
            "boundary_margin": torch.where(c > 0, 1 - c.clamp(min=0).sqrt() * norm, torch.nan).squeeze(-1),
            "edge_share": at_edge if bounded or at_entry else at_longest,
            **({"max_distance_share": at_longest} if bounded else {})}


def _watched_entry(block, layer, project_entry, record):
    """block.project_entry, recording projected_entry: the share of rows (per head) that it shortens."""

    def watched(x, c):
        out = project_entry(x, c)
        acted = (block.heads(out) != block.heads(x)).any(-1)
        record(layer, "projected_entry", acted.reshape(*x.shape[:2], -1).float())
        return out

    return watched


def _watched_tangent(block, layer, names, record):
    """block.tangent, recording of every sub-layer `s`:

    tangent_norm_s     |u| of the whole row, u = log_r(x): what LayerNorm reads
    tangent_length_s   its length in the metric at r, sqrt(sum over heads of (lambda_r |u|)^2): the distance from r to x
    round_trip_s       |exp_r(log_r x) - x| / |x|, per head, in the dtype of the residual stream
    """
    tangent, calls = block.tangent, itertools.cycle(names)

    def watched(x, r, c):
        u = tangent(x, r, c)
        name = next(calls)
        if r is None:
            r = block.heads(previous_token(x.flatten(2)))
        back = geometry.expmap(r, u, c)
        heads = [by_head(block, rows.flatten(2)) for rows in (x, r, u, back)]
        x_heads, r_heads, u_heads, back_heads = heads
        norm = torch.linalg.vector_norm(u_heads, dim=-1, keepdim=True)
        factor = geometry.conformal_factor(r_heads, scalars(block, c, x_heads))
        error = torch.linalg.vector_norm(back_heads - x_heads, dim=-1)
        length = torch.linalg.vector_norm(x_heads, dim=-1)
        record(layer, f"tangent_norm_{name}", _whole_row(norm))
        record(layer, f"tangent_length_{name}", _whole_row(factor * norm))
        record(layer, f"round_trip_{name}", error / length.clamp(min=torch.finfo(length.dtype).tiny))
        return u

    return watched


def _watched_residual(block, layer, names, record):
    """block.residual, recording of every sub-layer `s`:

    update_norm_s   |v| of the whole row, v the tangent vector that is added
    projected_s     share of rows (per head) for which the projection acted: the block's own map with and without its
                    limit gives different rows
    """
    residual, calls = block.residual, itertools.cycle(names)

    def watched(x, r, v, c, limit):
        out = residual(x, r, v, c, limit)
        name = next(calls)
        acted = (out != residual(x, r, v, c, None)).any(-1)
        shape = (*x.shape[:2], -1)
        record(layer, f"update_norm_{name}", torch.linalg.vector_norm(v.reshape(shape), dim=-1, keepdim=True))
        record(layer, f"projected_{name}", acted.reshape(shape).float())
        return out

    return watched


@contextlib.contextmanager
def watching(model, record):
    """While open, the maps of every curved block report to record(layer, quantity, values) what they do."""
    curved = [(f"block{i}", block) for i, block in enumerate(model.transformer.h) if is_curved(block)]
    try:
        for layer, block in curved:
            names = [name for name, *_ in block.sublayers()]
            block.project_entry = _watched_entry(block, layer, block.project_entry, record)
            block.tangent = _watched_tangent(block, layer, names, record)
            block.residual = _watched_residual(block, layer, names, record)
        yield
    finally:
        for _, block in curved:
            for name in ("project_entry", "tangent", "residual"):
                if name in vars(block):
                    delattr(block, name)  # the class's own method again
