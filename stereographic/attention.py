"""
Attention by geodesic distance, of one head with curvature c:

    q, k, v = exp_0(q), exp_0(k), exp_0(v)                        points
    weights_ij = softmax_{j <= i}(-beta (d(q_i, k_j)/2)^2)        d(x, y)/2 = |y - x| at c = 0
    y_i = log_0(gyro-midpoint of v_j with weights_ij)

Scores by distance and values averaged by a midpoint: Gulcehre et al. 2019, Hyperbolic Attention Networks (which takes -beta d);
the midpoint in stereographic coordinates: Bachmann et al. 2020, and Cho et al. 2023, Curve Your Attention, whose scores are not distances
but inner products of tangent vectors. The square is taken here so that the twin at c = 0 is -beta|q - k|^2 with the mean of values: with
beta = 1/(2 sqrt(hs)) that is dot-product attention less |k|^2/(2 sqrt(hs)), a bias against long keys that softmax keeps (|q|^2 drops out).

The distance. (d/2)^2 = s F(c s)^2, s = |y - x|^2/((1 - c|x|^2)(1 - c|y|^2)), F(z) = asinh(sqrt z)/sqrt z. |y - x|^2 is summed from
differences (torch.cdist, which makes no tensor of all pairs and coordinates): the rounding of |x|^2 + |y|^2 - 2<x,y> would be magnified by
1/A^2. Time and memory are T^2 a head, as in attention that is not fused.
"""
import torch
from torch.nn import functional as F

import geometry
from geometry.coefficients import _second_order, _through_autograd
from geometry.transforms import apply
from stereographic.hyperplanes import arsinc, arsinc_slope, arsinc_written_out, chunks, inverse_root
from stereographic.layers import point

LONGEST = 1e8  # of a query, a key or a value as a tangent vector: longer ones are shortened, so that squares fit float32


class _HalfDistance2(torch.autograd.Function):
    """s F(c s)^2, s = |y - x|^2/(a b). x: (G, T, D), y: (G, S, D); a: (G, T, 1), b: (G, 1, S); c: (G, 1, 1). Of (G, T, S), s and the result
    are kept."""

    @staticmethod
    def forward(ctx, x, y, a, b, c):
        parts = [_HalfDistance2.values(*(t[i] for t in (x, y, a, b, c))) for i in chunks(len(x), x.size(1) * y.size(1), x.device)]
        s, out = (torch.cat(each) if len(parts) > 1 else each[0] for each in zip(*parts))
        ctx.save_for_backward(x, y, a, b, c, s, out)
        return out

    @staticmethod
    def values(x, y, a, b, c):
        s = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() / (a * b)
        return s, s * arsinc(c * s).square()

    @staticmethod
    def backward(ctx, g):
        if _second_order():
            return _through_autograd(lambda *inputs: [_written_out(*inputs)], g, ctx.saved_tensors[:5], ctx.needs_input_grad)
        saved, by_curvature = (g, *ctx.saved_tensors), ctx.needs_input_grad[4]
        parts = [_HalfDistance2.gradients(*(t[i] for t in saved), by_curvature) for i in chunks(len(g), g[0].numel(), g.device)]
        return tuple(None if each[0] is None else torch.cat(each) if len(parts) > 1 else each[0] for each in zip(*parts))

    @staticmethod
    def gradients(g, x, y, a, b, c, s, out, by_curvature):
        z, grad_c = c * s, None
        together = s == 0
        f, p = torch.sqrt(torch.where(together, 1.0, out / torch.where(together, 1.0, s))), inverse_root(z)
        by_s = g * f * p  # since 2 z F' = P - F
        if by_curvature:
            grad_c = (2 * g * (s * f) * (s * arsinc_slope(z, f, p))).sum((-2, -1), keepdim=True)
        by_log, by_gap2 = by_s * s, by_s / (a * b)
        grad_x = 2 * (by_gap2.sum(-1, keepdim=True) * x - by_gap2 @ y)
        grad_y = 2 * (by_gap2.sum(-2).unsqueeze(-1) * y - by_gap2.mT @ x)
        return grad_x, grad_y, -by_log.sum(-1, keepdim=True) / a, -by_log.sum(-2, keepdim=True) / b, grad_c


def _written_out(x, y, a, b, c):
    """s F(c s)^2, by operations that autograd differentiates any number of times. Makes (G, T, S, D)."""
    s = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1) / (a * b)
    return s * arsinc_written_out(c * s).square()


def half_distance2(x, y, c):
    """(d(x_i, y_j)/2)^2 of all pairs. x: points (..., T, D), y: (..., S, D), float32 or float64; c: tensor, broadcasts against (..., 1, 1)
    -> (..., T, S). At c = 0: |y_j - x_i|^2."""
    lead = x.shape[:-2]
    a, b = (2 / geometry.conformal_factor(points, c) for points in (x, y))  # 1 - c|x|^2
    inputs = x, y, a, b.mT, c.to(x.dtype).expand(*lead, 1, 1)
    found = apply(_HalfDistance2, _written_out, *(t.reshape(-1, *t.shape[-2:]) for t in inputs))
    return found.reshape(*lead, x.size(-2), y.size(-2))


def shortened(v):
    """v, at most LONGEST long."""
    with torch.no_grad():
        length = torch.linalg.vector_norm(v, float("inf"), dim=-1, keepdim=True)
        shrink = torch.where(length > LONGEST, LONGEST / length, 1.0)
    return v * shrink


def points(*tangent, c):
    return tuple(point(shortened(t.to(torch.promote_types(t.dtype, torch.float32))), c) for t in tangent)


def later_than(T, S, device):
    """Which of S keys come after each of the last T positions. -> (T, S)"""
    return torch.ones(T, S, dtype=torch.bool, device=device).triu(S - T + 1)


def for_heads(c):
    """c, (), (nh, 1) or with more dimensions, to broadcast against (B, nh, T, hs)."""
    return c if c.dim() > 2 else c.view(*c.shape, *[1] * (3 - c.dim()))


def statistics(q, k, v, c, beta):
    """What attend() does with these, in numbers: name -> number."""
    c, T = for_heads(c), q.size(-2)
    y = attend(q, k, v, c, beta).float()
    q, k, v = points(q, k, v, c=c)
    scores = beta.view(-1, 1, 1) * half_distance2(q, k, c)
    unit = torch.where(c == 0, 1.0, c.abs().sqrt())
    return {"beta": beta.mean().item(), "score": scores[..., ~later_than(T, T, q.device)].mean().item(),
            "value_norm": (unit * v.norm(dim=-1, keepdim=True)).mean().item(),
            "midpoint_norm": (unit * point(y, c).norm(dim=-1, keepdim=True)).mean().item()}


def attend(q, k, v, c, beta, dropout=0.0):
    """Causal attention of the last T of S positions. q: (B, nh, T, hs), k, v: (B, nh, S, hs): tangent vectors at the origin; c: () or
    (nh, 1), or as it broadcasts against these; beta: (nh,), or likewise -> tangent vectors (B, nh, T, hs) in q's dtype. Dropped weights
    leave the others' shares as they are."""
    stored, T, S = q.dtype, q.size(-2), k.size(-2)
    c, beta = for_heads(c), beta if beta.dim() > 1 else beta.view(-1, 1, 1)
    with torch.autocast(q.device.type, enabled=False):  # 16 bits are too few for a distance
        q, k, v = points(q, k, v, c=c)
        scores = -beta * half_distance2(q, k, c)
        weights = F.dropout(torch.softmax(scores.masked_fill(later_than(T, S, q.device), -float("inf")), -1), dropout)
        return geometry.log_0(geometry.project(geometry.gyromidpoint(v, weights, c), c), c).to(stored)
