"""
The language-model head: a logit for each row h (B, T, C), after the last LayerNorm, and each token's vector w_v (V, C), d = <h, w_v>.

    euclidean         d
    stereographic     |w|/(2 sqrt c) asinh(2 sqrt c <x, w/|w|>/(1 - c|x|^2)),  x = exp_0(h)
    lorentz           |w|/sqrt c     asinh(sqrt c <X, (0, w/|w|)>_L),          X = (sqrt(1/c + |h|^2), h)
    lorentz_product   <X - O, W - O>_L,                                        W = (sqrt(1/c + |w|^2), w),  O = (1/sqrt c, 0)

stereographic: |w|/2 times the signed distance of x to the hyperplane through the origin with normal w: Ganea et al. 2018 (section 3.1), in
the form of Shimizu et al. 2021 (r = 0), divided by the 4 that these have at c = 0 (their lambda_0^2). In terms of h it is
|w|/(2 sqrt c) asinh(sinh(2 sqrt c|h|) cos(h, w)): |w||h| in the direction of w, as without curvature, and for c > 0 further from 0 than d
elsewhere.
lorentz: |w| times such a distance in the hyperboloid model, where h is not mapped but is the space-like part of the point: Bdeir et al.
2024 (LorentzMLR), and the head of the published comparisons with GPTs. It is |w|/sqrt c asinh(sqrt c |h| cos(h, w)), the logarithm of d
where d is large. With X = exp_O(2 h) it would be twice 'stereographic': the two models are isometric.
lorentz_product: the Lorentz product of two points (Chen et al. 2022, Fully Hyperbolic Neural Networks; -2 <X, W>_L is their squared
distance up to a constant), seen from the origin: d - c g(h) g(w), g(y) = |y|^2/(1 + sqrt(1 + c|y|^2)). The plain <X, W>_L is this less
g(h) + g(w) + 1/c. Of these softmax sees g(w), a bias by the length of w that a Euclidean head does not have.

All are d at c = 0. The hyperplanes go through the origin, the one choice of points along w for which that holds. With `offset` each goes
through exp_0(r_v w_v/|w_v|), r_v learned from 0, as published heads have it (at c = 0: d - r_v|w_v|, and so for the two heads without
hyperplanes). For c < 0 'stereographic' is on the sphere; the hyperboloid's heads take c > 0, and of a learned number its size.
No tensor of (B, T, V, C) is made: beside the one matrix product there are numbers for each row and each token.
"""
import math

import torch
import torch.nn as nn
from torch.nn import functional as F

from geometry.rows import _finite_cast, as_curvature
from stereographic.hyperplanes import hyperplanes, norm2, offset_products, row_coefficients

HEADS = ("euclidean", "stereographic", "lorentz", "lorentz_product")


def lift(yy, c):
    """g = |y|^2/(1 + sqrt(1 + c|y|^2)): (sqrt(1/c + |y|^2) - 1/sqrt c)/sqrt c, how far a point is above the origin."""
    return yy / (1 + torch.sqrt(1 + c * yy))


def logits(kind, h, weight, c=None, offset=None):
    """h: (..., C); weight: (V, C); c: (), none for 'euclidean'; offset: (V,) or none -> (..., V), in the dtype of a matrix product."""
    d = F.linear(h, weight)
    if kind == "euclidean" and offset is None:
        return d
    exact = d.to(torch.promote_types(d.dtype, torch.float32))  # autocast's products have 16 bits
    hh, ww = norm2(h), norm2(weight).squeeze(-1)
    norm = torch.sqrt(ww.clamp(min=torch.finfo(ww.dtype).tiny))
    if c is not None:
        c = _finite_cast(as_curvature(c, hh.dtype, hh.device), hh.dtype)  # its gradient saturates
    if kind in ("stereographic", "lorentz"):
        if kind == "stereographic":
            (a, t), k = row_coefficients(hh, c, exact.dtype), 4 * c
        else:
            k = size(c)
            a, t = torch.ones_like(hh), torch.sqrt(1 + k * hh)
        if offset is not None:
            exact = offset_products(exact, a, t, norm, offset.to(hh.dtype), k)
        return hyperplanes(exact, a, ww, k).to(d.dtype)
    if kind == "lorentz_product":
        c = size(c)
        rows, tokens = (c * lift(hh, c)).to(exact.dtype), lift(ww, c).to(exact.dtype)
        with torch.autocast(h.device.type, enabled=False):
            exact = torch.addmm(exact.flatten(0, -2), rows.view(-1, 1), tokens.view(1, -1), alpha=-1).view(d.shape)
    if offset is not None:
        exact = exact - (offset * norm).to(exact.dtype)
    return exact.to(d.dtype)


def size(c):
    """|c|, for a learned one that steps over 0; abs() has no slope there."""
    return torch.where(c < 0, -c, c)


class Head(nn.Module):
    """In the place of nn.Linear as lm_head: rows (..., C) -> logits (..., V), times a scale. Learned is c C, some 1 where curvature
    matters: rows are sqrt(C) long, and an optimizer's steps are of one size."""

    def __init__(self, kind, vocab_size, width, curvature, learned_curvature, scale, learned_scale, offset):
        super().__init__()
        self.kind, self.fixed_scale, self.width = kind, scale, width
        self.weight = nn.Parameter(torch.empty(vocab_size, width))
        self.offset = nn.Parameter(torch.zeros(vocab_size)) if offset else None
        self.log_scale = nn.Parameter(torch.full((1,), math.log(scale))) if learned_scale else None  # (1,): FSDP2 takes no scalars
        c = None if kind == "euclidean" else torch.tensor(float(curvature) * width)
        if c is not None and learned_curvature:
            self.curvature = nn.Parameter(c)
        else:
            self.register_buffer("curvature", c, persistent=False)  # it is the config's number, not a state

    def c(self):
        return None if self.curvature is None else self.curvature / self.width

    def forward(self, h):
        return self.scaled(logits(self.kind, h, self.weight, self.c(), self.offset), self.log_scale)

    def scaled(self, found, log_scale):
        if log_scale is not None:
            return found * log_scale.exp().to(found.dtype)
        return found if self.fixed_scale == 1 else found * self.fixed_scale
