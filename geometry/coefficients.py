"""
Row scalars, all (..., 1) and wide: conformal factors, denominators, the coefficients of the maps and their derivatives.
"""
import math

import torch

from geometry.float32 import norm2_and_complement
from geometry.inductor import _for_cpu_code, _row_sum, _stored, _sum_to
from geometry.limits import SPHERE_CAP
from geometry.rows import _dot, _narrow, _saturate, _wide
from geometry.scalar_functions import _tanc_slope, artanc, tanc
from geometry.transforms import transformed


def _inside(a):
    """A = 1 - c|x|^2 with a floor: rows outside the ball, where the formulas mean nothing, still give numbers."""
    return a.clamp(min=torch.finfo(a.dtype).eps)


def _norm2_and_a(x, c):
    """(|x|^2, A = 1 - c|x|^2) by operations that autograd differentiates; the floor is up to the caller."""
    if c.dtype == torch.float32:
        return norm2_and_complement(x, c)
    xx = _dot(x, x)
    return xx, 1 - c * xx


def _row_denominator(a, b, e, rows2, ww):
    """N or M (_denominator) in float32. For c > 0 A B + c|w|^2 is a sum of positive numbers, which keeps its digits. On the
    sphere, near antipodes, it cancels, and the row is asked: w + (c|w|^2/A) x (for M: d - (c|d|^2/A) x) has the squared norm
    rows2 = N |w|^2/A^2."""
    ab = a * b
    cancels = e < -0.5 * ab
    by_row = a * (a * (rows2 / torch.where(cancels, ww, 1.0)))
    return torch.maximum(torch.where(cancels, by_row, ab + e), torch.finfo(ab.dtype).eps ** 1.5 * ab)


def _denominator(a, b, cx, cy, e):
    """N with |x (+) y|^2 = |w|^2/N for w = y + x, or M with |-x (+) y|^2 = |w|^2/M for w = y - x:
    N = A B + c|w|^2 = (A + c<x,w>)^2 + c^2 (|x|^2|w|^2 - <x,w>^2), A = 1 - c|x|^2, B = 1 - c|y|^2,
    in a form that is exactly 1 at x = 0. It is 0 only for antipodes on the sphere; the floor is its rounding error.
    cx, cy, e: c|x|^2, c|y|^2, c|w|^2."""
    n = torch.addcmul(a * (1 + (e - cy)), cx, e)
    return torch.maximum(n, torch.finfo(n.dtype).eps * a * b)


# The coefficients of the maps, k(z), as their derivatives in closed form need them: the wide dtype holds them exactly enough
# near z = 0 without a power series. Where autograd is to differentiate them, the analytic functions above take their place.

def _root(z):
    return torch.sqrt(z.abs().clamp(min=torch.finfo(z.dtype).tiny))


def _cap(stored):
    """The half-angle on the sphere at which points of this storage dtype stop."""
    return 0.5 * math.pi - SPHERE_CAP[stored]


def _exp_coefficient(z, stored):
    """k(z) with exp_0(v) = k(c|v|^2) v, and 1 - z k^2 = 1 - c|exp_0(v)|^2: tanc, stopped on the sphere at SPHERE_CAP
    before the pole."""
    cap = _cap(stored)
    if _second_order():
        bounded = z.clamp(min=-cap * cap)
        beyond = bounded != z
        k = tanc(bounded)
        return k * torch.sqrt(torch.where(beyond, bounded, 1.0) / torch.where(beyond, z, 1.0)), 1 - bounded * (k * k)
    s = _root(z)
    f = torch.where(z < 0, torch.tan(s.clamp(max=cap)), torch.tanh(s))
    if z.dtype == torch.float64:
        return f / s, 1 - torch.copysign(f * f, z)
    e = torch.exp(-2 * s)  # 1 - tanh^2 without a difference
    return f / s, torch.where(z < 0, 1 + f * f, 4 * e / (1 + e).square())


def _beyond(z, stored):
    """Where exp_0 is stopped: there z k^2 is a constant."""
    return z < -_cap(stored) ** 2


def _exp_slope(z, k, rest, stored):
    """dk/dz and d rest/dz of _exp_coefficient."""
    rest = torch.where(_beyond(z, stored), 0.0, rest)
    return _tanc_slope(z, k, rest), -k * rest


def _log_coefficient(z, one_minus_z):
    """artanc z, given 1 - z without cancellation; artanh r = log1p(2 r (1 + r)/(1 - r^2))/2 has none either."""
    if _second_order():
        return artanc(z, one_minus_z)
    r = _root(z)
    return torch.where(z < 0, torch.atan(r), 0.5 * torch.log1p(2 * torch.addcmul(r, r, r) / one_minus_z)) / r


def _wide_c(c, *rows, wide=None):
    """c (or a limit) in the wide dtype (of the scalars that a forward pass has kept, in its backward pass), one for every row in
    compiled code: loops over rows with one c per head use n_head of the lanes of a register."""
    wide = wide or _wide(*rows)
    c = c if c.dtype == wide else _saturate(c, wide)
    if c.dim() and _for_cpu_code(rows[0]):
        c = _stored(c.expand(torch.broadcast_shapes(c.shape, *((*row.shape[:-1], 1) for row in rows))).contiguous())
    return c


def _wide_norm2(a):
    """|a|^2 in the wide dtype, (..., 1)."""
    wide = _wide(a)
    if _second_order() or torch.compiler.is_compiling():
        a = a.to(wide)
        return _row_sum(a * a)
    return torch.linalg.vector_norm(a, dim=-1, keepdim=True, dtype=wide).square()  # without the squares in memory


def _wide_distance2(x, y, sign):
    """|y + sign x|^2 in the wide dtype, (..., 1): on the sphere the sum of points that are nearly antipodal needs all of its
    digits. In eager code one wide copy of a row is made and worked on in place, here and in _wide_dot."""
    wide = _wide(x, y)
    w = y.to(wide)
    if w is y or _second_order() or torch.compiler.is_compiling() or x.shape != y.shape:
        return _wide_norm2(w + sign * x.to(wide))
    return _wide_norm2(w.add_(x, alpha=sign))


def _wide_dot(a, b):
    """<a, b> in the wide dtype, (..., 1)."""
    wide = _wide(a, b)
    products = a.to(wide)
    if products is a or _second_order() or torch.compiler.is_compiling() or a.shape != b.shape:
        return _row_sum(products * b.to(wide))
    return products.mul_(b).sum(-1, keepdim=True)


def _coefficient(k, row):
    """A wide row scalar for a row."""
    return _stored(_narrow(k, row.dtype))


def _dot_with(g, v, vv):
    """<g, v> of the cotangent and a tangent vector with |v|^2 = vv, which may be longer than the square root of the
    largest number."""
    scale = torch.rsqrt(vv.clamp(min=1.0))
    return _row_sum(g * (_coefficient(scale, v) * v)).to(vv.dtype) / scale


def _second_order():
    """Are these operations recorded? In the functions below that is where a backward is to be differentiated again
    (create_graph=True), or a transform of torch.func is at work; an autograd.Function's own forward and backward run unrecorded."""
    return (torch.is_grad_enabled() or transformed()) and not torch.compiler.is_compiling()


def _sqrt(a):
    """The square root of what is not negative. Where autograd is to differentiate it its slope at 0, which is infinite, is 0."""
    if not _second_order():
        return torch.sqrt(a)
    positive = a > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, a, 1.0)), 0.0)


def _through_autograd(f, g, inputs, needed):
    """Gradients of f(*inputs)[0] by operations that are recorded. Here the chain rule's terms are added as they come, so that
    with create_graph=True the gradient of c has fewer digits where steps are short, or far out on the sphere."""
    inputs = [i.view_as(i) if isinstance(i, torch.Tensor) else i for i in inputs]
    wanted = [i for i, need in zip(inputs, needed) if need]
    grads = iter(torch.autograd.grad(f(*inputs)[0], wanted, g, create_graph=True, allow_unused=True))
    return tuple(next(grads) if need else None for need in needed)


def _gradient(grad, like):
    """The gradient of a broadcast input, in its dtype and shape."""
    return _narrow(_sum_to(grad, like.shape), like.dtype, True)


def _almost_0(a):
    """A divisor in place of 0, the inverse of which is finite with room to spare."""
    return torch.finfo(a.dtype).tiny ** 0.5
