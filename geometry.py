"""
Stereographic geometry of constant curvature in plain PyTorch: the reference that every other implementation is
checked against. Traceable by torch.compile (fullgraph), no host synchronisation, differentiable twice.

Convention. `c` is minus the sectional curvature, kappa = -c:
    c > 0  hyperbolic, the Poincare ball of radius 1/sqrt(c)        (Ganea, Becigneul, Hofmann 2018)
    c = 0  Euclidean
    c < 0  spherical, the stereographic projection of the sphere    (Bachmann, Becigneul, Ganea 2020)
Nothing is special about c = 0: every function is analytic in c there, so a learned curvature can change its sign.

Shapes. Points and tangent vectors are rows (..., D). `c` is a float or a tensor that broadcasts against (..., 1):
a scalar, one per head ((n_head, 1) for rows (..., n_head, head_size)) or one per token ((B, T, 1)).

Dtypes. float32, bfloat16, float16, float64. Rows of the first three are computed in float32 (the last step of expmap and
mobius_add in float64, so that a float32 result is rounded once) and cast back at the end.
Dot products and the differences of nearly equal numbers that are made of them (A, M, N below) are float64, which costs
little beside reading the rows; they and the coefficients that follow from them are one number a row; a c that is given as
a Python number is not rounded to float32 first. (Apple's mps has no float64: there they are float32, and results within
1e-3 of the boundary lose digits.)

Form. Textbooks write these operations with the Gram entries x.x, x.y, y.y, which cancel catastrophically for points
near each other or near the boundary. Here w = y + x or w = y - x is formed first, and every result is
beta (w + rho x): three squared norms (x.x, y.y, w.w), two row coefficients, one read of each row and one write
(tests/test_geometry.py compares both forms with 60 digits). The denominators are A B + c|w|^2: for c > 0 a sum of positive
numbers. Derivatives of the maps that models use are in closed form.

Domain. Points are inside the ball: project() puts them there, and the limit of a sum keeps them there. Any finite tangent
vector is accepted; on the sphere the exponential map stops just before the antipode (SPHERE_CAP). The antipode of the
origin is at infinity in this chart; sums that meet it give large but finite rows. For such inputs no result and no derivative is NaN or Inf (floors under A,
M and N; casts saturate).

References
    Ungar 2008, Analytic Hyperbolic Geometry and Albert Einstein's Special Theory of Relativity (gyrations)
    Ganea, Becigneul, Hofmann 2018, Hyperbolic Neural Networks, arXiv:1805.09112
    Bachmann, Becigneul, Ganea 2020, Constant Curvature Graph Convolutional Networks, arXiv:1911.05076
    Kochurov, Karimov, Kozlukov 2020, Geoopt: Riemannian Optimization in PyTorch, arXiv:2005.02819
"""
import math

import torch
from torch.nn import functional as F

# How far inside the ball project() keeps a row, relative to the radius. It must change the number in the dtype in
# which the row is stored (bfloat16(1 - 1e-5) is 1.0) and outlast the rounding of D components: at least one
# finfo.eps in 16 bits; in 32 and 64 bits more, so that what is computed from rows at the edge, which magnifies their
# rounding by 1/(1 - c|x|^2), keeps its digits.
BALL_MARGIN = {torch.float64: 2.0 ** -20, torch.float32: 2.0 ** -14, torch.float16: 2.0 ** -9,
               torch.bfloat16: 2.0 ** -7}

# What rounding can add to the norm of a shortened row, relatively; less than the margin. (float32: the factor by which a
# row of length 1e38 is shortened is a subnormal number with few bits.)
ROUNDING = {torch.float64: 2.0 ** -50, torch.float32: 2.0 ** -16, torch.float16: 2.0 ** -10, torch.bfloat16: 2.0 ** -8}

# On the sphere a half-angle this close to pi/2 (the antipode, where tan has its pole) is as far as points go.
SPHERE_CAP = {torch.float64: 2.0 ** -26, torch.float32: 2.0 ** -11, torch.float16: 2.0 ** -5,
              torch.bfloat16: 2.0 ** -4}

# How long a point may be where the ball is larger than that or space is flat: sums of two still fit the dtype, and cubes, of
# which the gradient of c is made, fit float64.
POINT_LIMIT = {torch.float64: 1e100, torch.float32: 1e30, torch.bfloat16: 1e30, torch.float16: 3e4}

SERIES_BELOW = 0.05  # |z| under which tanc and artanc are summed as a power series
# enough terms that the remainder at |z| = SERIES_BELOW is below half an ulp of the dtype, also in the derivative
TANC_TERMS = {torch.float32: 7, torch.float64: 13}
ARTANC_TERMS = {torch.float32: 8, torch.float64: 15}

# The same for derivatives in closed form, differences divided by 2 z: |z| under which they are a power series instead, and
# its number of terms. float64 loses 1e-16/1e-4 there and the series leaves out 1e-4 cubed: 1e-12.
SLOPE_SERIES = {torch.float32: (SERIES_BELOW, 7), torch.float64: (1e-4, 3)}


def _tanc_coefficients(n):
    """First n coefficients of tanh(sqrt z)/sqrt z as a power series in z, from y' = 1 - y^2 term by term."""
    a = [1.0]
    for k in range(1, n):
        # tanh s = sum_k a_k s^(2k+1), and (2k+1) a_k is minus the coefficient of s^(2k) in tanh^2
        a.append(-sum(a[i] * a[k - 1 - i] for i in range(k)) / (2 * k + 1))
    return a


_TANC = _tanc_coefficients(max(TANC_TERMS.values()))
_ARTANC = [1.0 / (2 * k + 1) for k in range(max(ARTANC_TERMS.values()))]


def _horner(z, coefficients):
    total = coefficients[-1] * z + coefficients[-2]
    for a in coefficients[-3::-1]:
        total = total * z + a
    return total


def _branches(z):
    """The three regimes of z with inputs that are safe in the regimes that are not taken: their values are thrown
    away by `where`, but a NaN or Inf gradient there would survive being multiplied by zero."""
    small = z.abs() < SERIES_BELOW
    series_z = torch.where(small, z, 0.0)
    root = torch.sqrt(torch.where(small, 1.0, z.abs()))
    return small, series_z, root


def tanc(z):
    """tanh(sqrt z)/sqrt z for z > 0, tan(sqrt -z)/sqrt -z for z < 0, analytic through tanc(0) = 1.

    z: float32 or float64, any shape, z > -(pi/2)^2 (the pole of tan). With z = c s^2, sqrt|c| s tanc(z) is the
    stereographic radius at half-distance sqrt|c| s.
    """
    small, series_z, s = _branches(z)
    tan = torch.tan(torch.where(z < 0, s, 0.5))
    series = _horner(series_z, _TANC[:TANC_TERMS[z.dtype]])
    return torch.where(small, series, torch.where(z < 0, tan, torch.tanh(s)) / s)


def artanc(z, one_minus_z=None):
    """artanh(sqrt z)/sqrt z for z > 0, arctan(sqrt -z)/sqrt -z for z < 0, analytic through artanc(0) = 1.

    z: float32 or float64, any shape, z < 1. one_minus_z: 1 - z where the caller can compute it without cancellation;
    artanh r = log1p r - log(1 - r^2)/2 then needs no clamp near r = 1.
    """
    small, series_z, r = _branches(z)
    if one_minus_z is None:
        one_minus_z = 1 - z
    tiny = torch.finfo(z.dtype).tiny
    artanh = torch.log1p(r) - 0.5 * torch.log(torch.where(z > 0, one_minus_z, 1.0).clamp(min=tiny))
    arctan = torch.atan(r)
    series = _horner(series_z, _ARTANC[:ARTANC_TERMS[z.dtype]])
    return torch.where(small, series, torch.where(z < 0, arctan, artanh) / r)


def _slope(z, numerator, coefficients):
    """numerator/(2 z), or the derivative of the power series where z is small. z: wide."""
    below, terms = SLOPE_SERIES[z.dtype]
    size = z.abs()
    series = _horner(z.clamp(-below, below), [k * a for k, a in enumerate(coefficients[:terms + 1])][1:])
    return torch.where(size < below, series, 0.5 * numerator / torch.copysign(size.clamp(min=below), z))


def _tanc_slope(z, k, b):
    """d tanc/dz = (b - k)/(2 z) with k = tanc(z), b = 1 - z k^2."""
    return _slope(z, b - k, _TANC)


def _artanc_slope(z, one_minus_z, k):
    """d artanc/dz = (1/(1 - z) - k)/(2 z) with k = artanc(z)."""
    return _slope(z, 1 / one_minus_z - k, _ARTANC)


# ----------------------------------------------------------------------------------------------------------------------
# dtypes

class _FiniteCast(torch.autograd.Function):
    """Cast that saturates at the largest finite number of the target instead of overflowing, in both directions."""

    @staticmethod
    def forward(ctx, row, dtype, is_gradient=False):
        ctx.dtype = row.dtype
        return _saturate(row, dtype, is_gradient)

    @staticmethod
    def backward(ctx, grad):
        return _FiniteCast.apply(grad, ctx.dtype, True), None, None


def _saturate(row, dtype, is_gradient=False):
    """Gradients in float32, those of c, which several operations add, at a 1024th: so many can be added and stay finite."""
    bound = torch.finfo(dtype).max / (1024 if is_gradient and dtype == torch.float32 else 1)
    return row.to(dtype) if bound >= torch.finfo(row.dtype).max else row.clamp(-bound, bound).to(dtype)


def _cast(row, dtype):
    if row.dtype == dtype:
        return row
    if torch.float16 in (row.dtype, dtype):  # its range ends at 65,504; the others share float32's or exceed it
        return _FiniteCast.apply(row, dtype)
    return row.to(dtype)


def _wide(row):
    """The dtype of dot products and row coefficients."""
    return torch.float32 if row.device.type == "mps" else torch.float64


def _prepare(c, *rows, per_row=True):
    """c as a tensor of the wide dtype, the dtype in which to store the result, and the rows in that of the arithmetic.
    per_row=False where c goes with other rows than these."""
    stored = rows[0].dtype
    for row in rows[1:]:
        stored = torch.promote_types(stored, row.dtype)
    if stored not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(f"rows must be float32, bfloat16, float16 or float64, not {stored}")
    wide, compute = _wide(rows[0]), torch.promote_types(stored, torch.float32)
    if not isinstance(c, torch.Tensor):
        c = torch.full((), c, dtype=wide, device=rows[0].device)
    c = c if c.dtype == wide else _FiniteCast.apply(c, wide)
    if per_row and c.dim() and _for_cpu_code(rows[0]):
        shape = torch.broadcast_shapes(c.shape, *((*row.shape[:-1], 1) for row in rows))
        c = _EveryRow.apply(c, shape)
    return c, stored, *(_cast(row, compute) for row in rows)


# ----------------------------------------------------------------------------------------------------------------------
# rows -> row scalars -> rows. All differentiable twice: each backward is made of functions that have one.

def _dot(a, b):
    """Row-wise dot product in the wide dtype, (..., D) x (..., D) -> (..., 1)."""
    return _Norm2.apply(a) if a is b else _Dot.apply(a, b)


def _scale(k, row):
    """k * row for a wide row scalar k (..., 1), in the row's dtype."""
    return _Scale.apply(k, row)


def _sum_to(grad, shape):
    return grad if grad.shape == shape else grad.sum_to_size(shape)


# The next four change nothing but the code that Inductor makes for a CPU, where they were found by reading it.

def _for_cpu_code(tensor):
    return torch.compiler.is_compiling() and tensor.device.type == "cpu"


def _stored(k):
    """k, written to memory where the compiler would fuse its formula into the loops that read it, once for every element
    of a row instead of once a row: a strided view can only be taken of memory."""
    return k.as_strided(k.shape, k.stride()) if _for_cpu_code(k) else k


_AVX512 = bool(torch.cpu.get_capabilities().get("avx512_f"))


def _row_sum(products):
    """Sum over the last dimension, (..., D) -> (..., 1). What takes the time in compiled float64 code is the end of each
    row, across the lanes of a vector register; so 8 sums of D/8 numbers are made first. With AVX-512 that pays for short
    rows only, and where their terms are written out (fewer than 8): Inductor counts a loop over 8 lanes of a register of 16
    as none, and starts its threads anew for every row."""
    size = products.size(-1)
    if not _for_cpu_code(products) or products.dtype != torch.float64:
        return products.sum(-1, keepdim=True)
    if size % 8 or (_AVX512 and size > 64):
        return _stored(products.sum(-1, keepdim=True))
    if _AVX512 and size == 64:
        products = products.unflatten(-1, (2, 32)).sum(-2)
    lanes = _stored(products.unflatten(-1, (-1, 8)).sum(-2))
    return _stored(lanes.unflatten(-1, (2, 4)).sum(-2).sum(-1, keepdim=True))


class _EveryRow(torch.autograd.Function):
    """c, one for every row: compiled loops over rows with one c per head use n_head of the lanes of a register."""

    @staticmethod
    def forward(ctx, c, shape):
        ctx.shape = c.shape
        return _stored(c.expand(shape).contiguous())

    @staticmethod
    def backward(ctx, g):
        return _sum_to(g, ctx.shape), None


class _Dot(torch.autograd.Function):

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        wide = _wide(a)
        return _row_sum(a.to(wide) * b.to(wide))

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return _sum_to(_scale(g, b), a.shape), _sum_to(_scale(g, a), b.shape)


class _Norm2(torch.autograd.Function):

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return _row_sum(a.to(_wide(a)).square())

    @staticmethod
    def backward(ctx, g):
        a, = ctx.saved_tensors
        return _scale(2 * g, a)


class _Scale(torch.autograd.Function):

    @staticmethod
    def forward(ctx, k, row):
        ctx.save_for_backward(k, row)
        return _stored(k.to(row.dtype)) * row

    @staticmethod
    def backward(ctx, g):
        k, row = ctx.saved_tensors
        return _sum_to(_dot(g, row), k.shape), _sum_to(_scale(k, g), row.shape)


class _Gram(torch.autograd.Function):
    """(x.x, x.w, w.w) with w = y + sign x taken in the wide dtype. 2 x (..., D) -> 3 x (..., 1), wide."""

    @staticmethod
    def forward(ctx, x, y, sign):
        ctx.save_for_backward(x, y)
        ctx.sign = sign
        x, y = x.to(_wide(x)), y.to(_wide(x))
        w = y + sign * x
        return tuple(_row_sum(a * b) for a, b in ((x, x), (x, w), (w, w)))

    @staticmethod
    def backward(ctx, g_xx, g_xw, g_ww):
        x, y = ctx.saved_tensors
        w = y + ctx.sign * x
        grad_w = _scale(g_xw, x) + _scale(2 * g_ww, w)
        grad_x = _scale(2 * g_xx, x) + _scale(g_xw, w) + ctx.sign * grad_w
        return _sum_to(grad_x, x.shape), _sum_to(grad_w, y.shape), None


# ----------------------------------------------------------------------------------------------------------------------
# row scalars, all (..., 1) and wide

def _inside(a):
    """A = 1 - c|x|^2 with a floor: rows outside the ball, where the formulas mean nothing, still give numbers."""
    return a.clamp(min=torch.finfo(a.dtype).eps)


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
    return f / s, 1 - torch.copysign(f * f, z)


def _exp_slope(z, k, rest, stored):
    """dk/dz and d rest/dz of _exp_coefficient. Beyond the cap z k^2 is a constant."""
    rest = torch.where(z < -_cap(stored) ** 2, 0.0, rest)
    return _tanc_slope(z, k, rest), -k * rest


def _log_coefficient(z, one_minus_z):
    """artanc z, given 1 - z without cancellation; artanh r = log1p(2 r (1 + r)/(1 - r^2))/2 has none either."""
    if _second_order():
        return artanc(z, one_minus_z)
    r = _root(z)
    return torch.where(z < 0, torch.atan(r), 0.5 * torch.log1p(2 * torch.addcmul(r, r, r) / one_minus_z)) / r


def _limited(v, limit):
    """v, shortened where a component is over the limit. The shortening counts as a constant in the derivatives."""
    with torch.no_grad():
        length = torch.linalg.vector_norm(v, float("inf"), dim=-1, keepdim=True)
        shrink = torch.where(length > limit, limit / length, 1.0)
    return v * shrink


def _squarable(v):
    """float64 rows have no wider dtype for their squares: over 1e90 they are shortened."""
    return _limited(v, 1e90) if v.dtype == torch.float64 else v


# ----------------------------------------------------------------------------------------------------------------------
# Maps with their derivatives in closed form. Each is a function _xxx(rows, c, ...) -> (result, row scalars to keep) of
# plain operations, and _xxx_backward, written for the row scalars so that the rows are read once for two dot products and
# once for the result. Where a derivative is itself to be differentiated, autograd goes through _xxx instead.
#
# The dot products with the cotangent are taken in float32 and what is made of them in float64: they enter linearly, so
# their rounding error is scaled by the same coefficients, which cancel, as they are themselves.

def _tensors(x, c, limit=None):
    """Numbers as tensors beside the rows x."""
    dtype = _wide(x)
    c = c if isinstance(c, torch.Tensor) else torch.full((), c, dtype=dtype, device=x.device)
    if limit is None or isinstance(limit, torch.Tensor):
        return c, limit
    return c, torch.full((), limit, dtype=dtype, device=x.device)


def fits(c, x):
    """Does c broadcast against the rows x without making more of them?"""
    return c.dim() <= x.dim() and all(size in (1, own) for size, own in zip(reversed(c.shape), (1, *reversed(x.shape[:-1]))))


def spread(rows, *scalars):
    """The rows, in the shape that they and c (and a limit) broadcast to where one of these makes more rows of them."""
    scalars = [c for c in scalars if isinstance(c, torch.Tensor)]
    if all(fits(c, row) for c in scalars for row in rows):
        return rows
    lead = torch.broadcast_shapes(*((*row.shape[:-1], 1) for row in rows), *(c.shape for c in scalars))[:-1]
    return tuple(row.expand(*lead, row.size(-1)) for row in rows)


def _other(y, x):
    """y where it is another tensor than x: torch.compile refuses the same one twice."""
    return y.view(y.shape) if y is x else y


def _row_dtypes(*rows):
    """(dtype in which to store the result, dtype of the arithmetic)"""
    stored = rows[0].dtype
    for row in rows[1:]:
        stored = torch.promote_types(stored, row.dtype)
    if stored not in BALL_MARGIN:
        raise TypeError(f"rows must be float32, bfloat16, float16 or float64, not {stored}")
    return stored, torch.promote_types(stored, torch.float32)


def _wide_c(c, *rows):
    """c (or a limit) in the wide dtype, one for every row in compiled code: loops over rows with one c per head use n_head
    of the lanes of a register."""
    wide = _wide(rows[0])
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
    wide = _wide(x)
    w = y.to(wide)
    if w is y or _second_order() or torch.compiler.is_compiling() or x.shape != y.shape:
        return _wide_norm2(w + sign * x.to(wide))
    return _wide_norm2(w.add_(x, alpha=sign))


def _wide_dot(a, b):
    """<a, b> in the wide dtype, (..., 1)."""
    wide = _wide(a)
    products = a.to(wide)
    if products is a or _second_order() or torch.compiler.is_compiling() or a.shape != b.shape:
        return _row_sum(products * b.to(wide))
    return products.mul_(b).sum(-1, keepdim=True)


def _narrow(row, dtype, is_gradient=False):
    """Saturating where the range is smaller."""
    if row.dtype == dtype:
        return row
    return _saturate(row, dtype, is_gradient)


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
    (create_graph=True); an autograd.Function's own forward and backward run unrecorded."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


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


def _log(x, y, c):
    stored, dtype = _row_dtypes(x, y)
    x, y, c = x.to(dtype), y.to(dtype), _wide_c(c, x, y)
    norms = _wide_norm2(x), _wide_norm2(y), _wide_distance2(x, y, -1)
    out, k = _log_rows(x, y, c, *norms)
    return _narrow(out, stored), (*norms, k)


def _log_scalars(c, xx, yy, dd):
    cx, cy, e = c * xx, c * yy, c * dd
    a, b = _inside(1 - cx), _inside(1 - cy)
    return a, b, e, _denominator(a, b, cx, cy, e)


def _log_rows(x, y, c, xx, yy, dd):
    """The factored form beta (d + rho x) rounds once where d and rho x nearly cancel, which is for antipodes."""
    a, b, e, m = _log_scalars(c, xx, yy, dd)
    k = _log_coefficient(e / m, a * b / m)
    return _coefficient(a * k * a / m, x) * torch.addcmul(y - x, _coefficient(-e / a, x), x), k


def _log_backward(g, x, y, c, xx, yy, dd, k):
    """(grad_x, grad_y, gradient of c for each row). With E = c|d|^2, z = E/M, K = artanc z, kappa = A K/M the result is
    kappa (A d - E x), and M = A B + E."""
    a, b, e, m = _log_scalars(c, xx, yy, dd)
    d = y - x
    gx, gd = _row_sum(g * x).to(a.dtype), _row_sum(g * d).to(a.dtype)
    z, one_minus_z = e / m, a * b / m
    kappa = a * k / m
    psi = a * gd - e * gx  # <g, A d - E x>
    by_z = a * psi / m * _artanc_slope(z, one_minus_z, k)
    by_m = -(by_z * z + kappa * psi) / m
    by_e = by_z / m + by_m - kappa * gx
    by_a = k * psi / m + kappa * gd + by_m * b
    by_b = by_m * a
    along_d = d.mul_(_coefficient(2 * c * by_e, x))
    grad_x = (_coefficient(-kappa * (a + e), x) * g).sub_(along_d).addcmul_(_coefficient(-2 * c * by_a, x), x)
    grad_y = along_d.addcmul_(_coefficient(kappa * a, x), g).addcmul_(_coefficient(-2 * c * by_b, x), y)
    return grad_x, grad_y, _stored(dd * by_e - xx * by_a - yy * by_b)


class _Log(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, y, c):
        out, scalars = _log(x, y, c)
        ctx.save_for_backward(x, y, c, *scalars)
        return out

    @staticmethod
    def backward(ctx, g):
        x, y, c, *scalars = ctx.saved_tensors
        if _second_order():
            return _through_autograd(_log, g, (x, y, c), ctx.needs_input_grad)
        dtype = _row_dtypes(x, y)[1]
        grads = _log_backward(g.to(dtype), x.to(dtype), y.to(dtype), _wide_c(c, x, y), *scalars)
        return tuple(_gradient(grad, like) for grad, like in zip(grads, (x, y, c)))


def _shifted(x, steps=1):
    """x_{t-steps} in place of x_t, zeros where there is none; t is dimension 1."""
    if not torch.compiler.is_compiling():
        return F.pad(x, (0, 0) * (x.dim() - 2) + (steps, -steps))
    # torch.compile keeps a padded copy for the backward pass; rows that are picked are picked again
    T = x.size(1)
    t = torch.arange(T, device=x.device) - steps
    exists = ((t >= 0) & (t < T)).view(-1, *[1] * (x.dim() - 2))
    return torch.where(exists, x.index_select(1, t.clamp(0, T - 1)), 0.0)


def _log_previous(x, c):
    stored, dtype = _row_dtypes(x)
    x, c = x.to(dtype), _wide_c(c, x)
    r = _shifted(x)
    xx, dd = _wide_norm2(x), _wide_distance2(r, x, -1)
    out, k = _log_rows(r, x, c, _stored(_shifted(xx)), xx, dd)
    return _narrow(out, stored), (xx, dd, k)


class _LogPrevious(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, c):
        out, scalars = _log_previous(x, c)
        ctx.save_for_backward(x, c, *scalars)
        return out

    @staticmethod
    def backward(ctx, g):
        stored_x, c, xx, dd, k = ctx.saved_tensors
        if _second_order():
            return _through_autograd(_log_previous, g, (stored_x, c), ctx.needs_input_grad)
        dtype = _row_dtypes(stored_x)[1]
        x = stored_x.to(dtype)
        grad_r, grad_x, grad_c = _log_backward(g.to(dtype), _shifted(x), x, _wide_c(c, x), _stored(_shifted(xx)), xx,
                                               dd, k)
        grad_x = grad_x + _shifted(grad_r, -1)
        return _gradient(grad_x, stored_x), _gradient(grad_c, c)


def _sum(x, v, c, limit, kind):
    """x (+) y with y = v ('add') or y = h k(c h^2|v|^2) v, h = 1/A ('exp') or 1 ('exp_0'), at most `limit` long."""
    stored, dtype = _row_dtypes(x, v)
    x, v, c = x.to(dtype), v.to(dtype), _wide_c(c, x, v)
    xx, vv = _wide_norm2(x), _wide_norm2(v)
    xv = ww = k = rest = None
    if kind == "add":
        ww = _wide_distance2(x, v, 1)
    else:
        h = 1 / _inside(1 - c * xx) if kind == "exp" else 1
        k, rest = _exp_coefficient(c * (h * h * vv), stored)
        xv = _wide_dot(x, v)
        if x.dtype == c.dtype:  # no dtype is wide enough for |w|^2 from the other three
            ww = _wide_norm2(x + _coefficient(h * k, x) * v)
    scalars = xx, vv, xv, ww, k, rest
    a, s, j, _, _, ww, _, n = _sum_scalars(c, *scalars, kind)
    shrink = 1.0
    if limit is not None:
        outside, shrink = _shrink(_wide_c(limit, x, v), xx, vv, a, s, j, ww, n, x.dtype, stored, kind)
    if kind != "exp_0":
        # Where the terms nearly cancel, what float32 rounds in them is magnified, up to 1e4 times for rows at 0.999 of the
        # radius. The sum that models take in their default residual does without: it is the time of a step.
        x, v = x.to(_wide(x)), v.to(_wide(x))
    # in place where that saves a row: not in compiled code, and torch 2.11 gives a result that is made so gradients of 0
    add, scale = (torch.addcmul, torch.mul) if torch.compiler.is_compiling() else (torch.Tensor.addcmul_, torch.Tensor.mul_)
    if kind == "add":
        out = scale(add(x + v, _coefficient(c * ww / a, x), x), _coefficient(shrink * a / n, x))
    else:
        out = add(_coefficient(shrink * s / n, x) * x, _coefficient(shrink * a * j / n, x), v)
    return _narrow(out, stored), scalars


def _sum_scalars(c, xx, vv, xv, ww, k, rest, kind):
    """A, S = A + c|w|^2, j, <x,y>, |y|^2, |w|^2, B and N of the sum x (+) y, y = j v, w = x + y. xv or ww: <x,v> or |w|^2, what
    was taken of the rows."""
    cx = c * xx
    a = _inside(1 - cx)
    if kind == "add":
        cy, t = c * vv, c * ww
        b = _inside(1 - cy)
        return a, a + t, 1.0, 0.5 * (ww - xx - vv), vv, ww, b, _denominator(a, b, cx, cy, t)
    j = k / a if kind == "exp" else k
    xy, yy = j * xv, j * (j * vv)
    if ww is None:
        ww = (xx + (2 * xy + yy)).clamp(min=0)
    # S and N are sums of positive numbers for c > 0; for c < 0, where they are differences, the textbook's form loses less
    spherical, ab, t, cy = c < 0, a * rest, c * ww, c * yy
    u, cxcy = 1 + 2 * c * xy, cx * cy
    s = torch.where(spherical, u + cy, a + t)
    n = torch.where(spherical, u + cxcy, ab + t)
    floor = torch.finfo(n.dtype).eps * torch.where(spherical, 1 + cxcy, ab)
    return a, s, j, xy, yy, ww, rest, torch.maximum(n, floor)


def _shrink(limit, xx, vv, a, s, j, ww, n, computed, stored, kind):
    """Where the norm of the sum, sqrt(|w|^2/N), is over the limit, and the factor that makes it the limit. Rows a
    rounding error longer than that count as inside, so that shortening twice is the same as shortening once."""
    norm = torch.sqrt(ww / n)
    if kind == "exp_0":
        # the row is S/N x + A j/N v in float32; what rounding may add where they nearly cancel is counted in, so that no row is
        # left outside the ball
        norm = norm + 2 * torch.finfo(computed).eps * (s.abs() * torch.sqrt(xx) + a * j * torch.sqrt(vv)) / n
    factor = limit / norm.clamp(min=_almost_0(norm))
    outside = factor < 1 / (1 + ROUNDING[stored])
    return outside, torch.where(outside, factor, 1.0)


def _almost_0(a):
    """A divisor in place of 0, the inverse of which is finite with room to spare."""
    return torch.finfo(a.dtype).tiny ** 0.5


def _sum_backward(g, x, v, c, limit, kind, stored, xx, vv, xv, ww, k, rest):
    """(grad_x, grad_v, gradients of c and of the limit for each row). With y = j v the sum is (S x + A y)/N, S = A + t. What
    cancels in the chain rule's terms has been cancelled by hand, for the gradient of c, which is of the order of |v| (of |v|^2
    for exp_x) and would hold the rounding of |x|:

        N - S = -c A |y|^2      N - A B = c|w|^2      N - S B = c^2 |w|^2 |y|^2      |w|^2 - |x|^2 B = 2<x,y> + |y|^2 + c|x|^2|y|^2
    """
    a, s, j, xy, yy, ww, b, n = _sum_scalars(c, xx, vv, xv, ww, k, rest, kind)
    cyy = c * yy
    cxxyy = xx * cyy
    p, q = s / n, a * j / n
    gx, gv = _row_sum(g * x).to(a.dtype), _dot_with(g, v, vv)
    if limit is not None:
        outside, shrink = _shrink(limit, xx, vv, a, s, j, ww, n, x.dtype, stored, kind)
        p, q, gx, gv = shrink * p, shrink * q, shrink * gx, shrink * gv
    gy = j * gv
    along = torch.addcmul(gx * s, gy, a) / n  # <g, result>
    e = torch.addcmul(gy, cyy, gx) / n  # the gradient by t is -A e/N, by A it is t e/N
    by_limit, half, over_ww = None, 0.0, 0.0
    if limit is not None:  # the factor is limit sqrt(N/|w|^2)
        half = torch.where(outside, 0.5 * along, 0.0)
        over_ww = half / ww.clamp(min=_almost_0(ww))
        by_limit = 2 * half / limit
    f = -2 * (c * e + b * over_ww) / n
    twice_by_ww, twice_by_xx = a * f, s * f  # the second through w and A
    by_b = a * (half - along) / n
    if kind == "exp":  # h = 1/A: -|x|^2 <g,y>/N and more is cancelled by what comes through h
        by_c = over_ww * xy * (2 * xy + yy + cxxyy) - over_ww * xx * (yy * b) - e * (xy + cxxyy)
        by_c = torch.addcmul(2 * by_c, yy, gx) / n
    else:
        by_c = half * (xy + cxxyy) - a * xy * e - cxxyy * along
        by_c = torch.addcmul(2 * by_c - xx * gy, yy, gx) / n
    if kind == "add":
        by_xv, twice_by_vv = twice_by_ww, twice_by_ww - 2 * c * by_b
    else:
        h = 1 / a if kind == "exp" else 1.0
        hhvv, hhc = h * h * vv, h * h * c
        hby_j = h * (gv * a / n + (xv + j * vv) * twice_by_ww)
        slope, slope_rest = _exp_slope(c * hhvv, k, rest, stored)
        by_z = hby_j * slope + by_b * slope_rest
        by_xv, twice_by_vv = j * twice_by_ww, j * j * twice_by_ww + 2 * hhc * by_z
        by_c_by_z = hhvv * slope * (hby_j - 2 * by_b * k * (c * hhvv))
        if kind == "exp":
            twice_by_xx = twice_by_xx + 2 * c * h * (k * hby_j + 2 * c * hhvv * by_z)
            by_c_by_z = by_c_by_z * h * (1 + c * xx)
        by_c = by_c + by_c_by_z
    between = _coefficient(by_xv, x)
    grad_x = (_coefficient(p, x) * g).addcmul_(_coefficient(twice_by_xx, x), x).addcmul_(between, v)
    grad_v = (_coefficient(q, x) * g).addcmul_(_coefficient(twice_by_vv, x), v).addcmul_(between, x)
    return grad_x, grad_v, _stored(by_c), by_limit


class _Sum(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, v, c, limit, kind):
        out, scalars = _sum(x, v, c, limit, kind)
        ctx.kind, ctx.limited = kind, limit is not None
        ctx.save_for_backward(x, v, c, c if limit is None else limit, *scalars)
        return out

    @staticmethod
    def backward(ctx, g):
        x, v, c, limit, *scalars = ctx.saved_tensors
        limit = limit if ctx.limited else None
        if _second_order():
            return _through_autograd(_sum, g, (x, v, c, limit, ctx.kind), ctx.needs_input_grad)
        stored, dtype = _row_dtypes(x, v)
        grad_x, grad_v, grad_c, grad_limit = _sum_backward(
            g.to(dtype), x.to(dtype), v.to(dtype), _wide_c(c, x, v), None if limit is None else _wide_c(limit, x, v),
            ctx.kind, stored, *scalars)
        return (_gradient(grad_x, x), _gradient(grad_v, v), _gradient(grad_c, c),
                None if limit is None else _gradient(grad_limit, limit), None)


def _radial(v, c, kind):
    """k v with k = k(c|v|^2) of exp_0 ('exp') or log_0 ('log')."""
    stored, dtype = _row_dtypes(v)
    v, c = v.to(dtype), _wide_c(c, v)
    vv = _wide_norm2(v)
    z = c * vv
    k = _exp_coefficient(z, stored)[0] if kind == "exp" else _log_coefficient(z, _inside(1 - z))
    return _narrow(_coefficient(k, v) * v, stored), (vv, k)


class _Radial(torch.autograd.Function):

    @staticmethod
    def forward(ctx, v, c, kind):
        out, scalars = _radial(v, c, kind)
        ctx.kind = kind
        ctx.save_for_backward(v, c, *scalars)
        return out

    @staticmethod
    def backward(ctx, g):
        stored_v, c, vv, k = ctx.saved_tensors
        if _second_order():
            return _through_autograd(_radial, g, (stored_v, c, ctx.kind), ctx.needs_input_grad)
        stored, dtype = _row_dtypes(stored_v)
        v, wide_c = stored_v.to(dtype), _wide_c(c, stored_v)
        g, z = g.to(dtype), wide_c * vv
        slope = (_exp_slope(z, k, 1 - z * k * k, stored)[0] if ctx.kind == "exp" else
                 _artanc_slope(z, _inside(1 - z), k))
        by_z = slope * _dot_with(g, v, vv)
        grad_v = torch.addcmul(_coefficient(k, v) * g, _coefficient(2 * wide_c * by_z, v), v)
        return _gradient(grad_v, stored_v), _gradient(_stored(vv * by_z), c), None


# ----------------------------------------------------------------------------------------------------------------------
# the operations

def conformal_factor(x, c):
    """lambda_x = 2/(1 - c|x|^2): tangent vectors at x have length lambda_x |v|. (..., D) -> (..., 1), float32 (float64 for
    float64 rows)."""
    c, _, x = _prepare(c, x)
    return (2 / _inside(1 - c * _dot(x, x))).to(x.dtype)


def mobius_add(x, y, c, limit=None):
    """x (+) y = ( c|s|^2 x + A s ) / N,  s = x + y,  A = 1 - c|x|^2,  N = (A + c<x,s>)^2 + c^2 (|x|^2|s|^2 - <x,s>^2).

    Ungar 2008; Ganea et al. 2018, eq. 1, in the sum form. x, y: points (..., D) -> (..., D). At c = 0: x + y.
    Neither commutative nor associative: -x (+) (x (+) y) = y.
    limit: a norm, broadcasts as c does; a longer result is shortened to it. With max_norm(c, dtype) this is project()
    of the result without reading it again.
    """
    x, y = spread((x, y), c, limit)
    return _Sum.apply(x, _other(y, x), *_tensors(x, c, limit), "add")


def expmap(x, v, c, limit=None):
    """exp_x(v) = x (+) u,  u = h tanc(c h^2 |v|^2) v,  h = 1/(1 - c|x|^2) = lambda_x/2.

    Ganea et al. 2018, lemma 2. x: points, v: tangent vectors at x, (..., D) -> points (..., D). At c = 0: x + v.
    limit: see mobius_add.
    """
    x, v = spread((x, v), c, limit)
    return _Sum.apply(x, _other(_squarable(v), x), *_tensors(x, c, limit), "exp")


def add_exp_0(x, v, c, limit=None):
    """x (+) exp_0(v) in one step. x: points, v: tangent vectors at the origin, (..., D) -> points. At c = 0: x + v.
    limit: see mobius_add."""
    x, v = spread((x, v), c, limit)
    return _Sum.apply(x, _other(_squarable(v), x), *_tensors(x, c, limit), "exp_0")


def add_exp(x, r, v, c, limit=None):
    """x (+) exp_r(v). x, r: points, v: tangent vectors at r, (..., D) -> points. At c = 0: x + r + v.
    limit: see mobius_add; exp_r(v) is shortened to it as well."""
    return mobius_add(x, expmap(r, v, c, limit), c, limit)


def logmap(x, y, c):
    """log_x(y) = A artanc(c|d|^2/M) (-x (+) y),  -x (+) y = ( -c|d|^2 x + A d ) / M,  d = y - x,  A = 1 - c|x|^2,
    M = (A - c<x,d>)^2 + c^2 (|x|^2|d|^2 - <x,d>^2); 1 - c|-x (+) y|^2 = A (1 - c|y|^2)/M goes to artanh.

    Ganea et al. 2018, lemma 2: the inverse of expmap. x, y: points (..., D) -> tangent vectors at x. At c = 0: y - x.
    """
    x, y = spread((x, y), c)
    return _Log.apply(x, _other(y, x), _tensors(x, c)[0])


def log_previous(x, c):
    """log_r(x) with r_t = x_{t-1}, the origin at t = 0: logmap(previous_token(x), x, c) without making r.
    x: points (B, T, ..., D), t in dimension 1 -> tangent vectors at r."""
    return _LogPrevious.apply(x, _tensors(x, c)[0])


def exp_0(v, c):
    """exp_0(v) = tanc(c|v|^2) v: expmap at the origin. v: (..., D) -> points (..., D). At c = 0: v."""
    v, = spread((v,), c)
    return _Radial.apply(_squarable(v), _tensors(v, c)[0], "exp")


def log_0(x, c):
    """log_0(x) = artanc(c|x|^2) x: logmap at the origin. x: points (..., D) -> tangent vectors. At c = 0: x."""
    x, = spread((x,), c)
    return _Radial.apply(x, _tensors(x, c)[0], "log")


def dist(x, y, c):
    """Geodesic distance 2 |d|/sqrt(M) artanc(c|d|^2/M), see logmap. (..., D) -> (..., 1), float32 (float64 for float64
    rows). At c = 0 it is 2|y - x|, the limit of the family (lambda = 2 at the origin). At x = y, where the distance has a kink,
    the gradient is taken as 0; rows nearer than 1e-30 (float64: 1e-150) count as equal: 1/|d| would not fit."""
    c, _, x, y = _prepare(c, x, y)
    xx, xd, dd = _Gram.apply(x, y, -1)
    cx, cy, e = c * xx, c * (xx + 2 * xd + dd), c * dd
    a, b = _inside(1 - cx), _inside(1 - cy)
    m = _denominator(a, b, cx, cy, e)
    apart = dd > (1e-300 if x.dtype == torch.float64 else 1e-60 if dd.dtype == torch.float64 else 1e-37)
    length = torch.where(apart, torch.sqrt(torch.where(apart, dd, 1.0)), 0.0)
    k = artanc(e / m, a * b / m)
    return (2 * length / torch.sqrt(m) * k).to(x.dtype)


def _rotatable(v):
    """Tangent vectors short enough that they can be turned, and scaled by a ratio of conformal factors, without
    overflow, in the gradients too."""
    return _limited(v, 1e90 if v.dtype == torch.float64 else 1e15)


def _gyrate(x, y, v, c):
    """gyr[y, -x] v and the row scalars A = 1 - c|x|^2, B = 1 - c|y|^2. With d = y - x, p = <x,v>, q = <d,v>, e = <x,d>:
    v + (2/M) [ (-c A p + c^2 (2 e p - |x|^2 q)) d + (c A q - c^2 |d|^2 p) x ],
    the closed form of Ungar 2008 written in the difference, so that it is v + O(|d|) term by term."""
    xx, e, dd = _Gram.apply(x, y, -1)
    cx, cy = c * xx, c * (xx + 2 * e + dd)
    a, b = 1 - cx, 1 - cy
    m = _denominator(a, _inside(b), cx, cy, c * dd)
    d = y - x
    p, q = _dot(x, v), _dot(d, v)
    along_d = 2 * (c * e) * (c * p) - cx * (c * q) - a * (c * p)
    along_x = a * (c * q) - (c * dd) * (c * p)
    return v + _scale(2 * along_d / m, d) + _scale(2 * along_x / m, x), a, b


def gyration(x, y, v, c):
    """gyr[x, y] v = -(x (+) y) (+) (x (+) (y (+) v)), the rotation by which (+) fails to associate, in closed form
    (Ungar 2008): no D x D matrix. x, y: points, v: any rows, (..., D) -> (..., D); |gyr[x, y] v| = |v|."""
    c, stored, x, y, v = _prepare(c, x, y, v)
    return _cast(_gyrate(-y, x, _rotatable(v), c)[0], stored)


def transport(x, y, v, c):
    """Parallel transport of v along the geodesic from x to y: (lambda_x/lambda_y) gyr[y, -x] v.

    Ganea et al. 2018, theorem 4 (general base points: Kochurov et al. 2020). x, y: points, v: tangent vectors at x,
    (..., D) -> tangent vectors at y. An isometry: lambda_y |out| = lambda_x |v|. At c = 0: v.
    """
    c, stored, x, y, v = _prepare(c, x, y, v)
    rotated, a, b = _gyrate(x, y, _rotatable(v), c)
    return _cast(_scale(_inside(b) / _inside(a), rotated), stored)


def max_norm(c, dtype):
    """The largest norm that project() leaves to a row of this storage dtype: (1 - margin)/sqrt(c) for c > 0,
    cot(cap)/sqrt(-c) for c < 0, and at most POINT_LIMIT, also at c = 0. c: tensor, any shape -> the same shape, wide."""
    c = c if c.dtype == _wide(c) else _FiniteCast.apply(c, _wide(c))
    radius = torch.rsqrt(c.abs().clamp(min=torch.finfo(c.dtype).tiny))
    sphere = radius / math.tan(SPHERE_CAP[dtype])
    return torch.where(c > 0, (1 - BALL_MARGIN[dtype]) * radius, sphere).clamp(max=POINT_LIMIT[dtype])


def project(x, c, limit=None):
    """The row, shortened to max_norm(c, x.dtype) where it is longer; rows inside are unchanged bit for bit.
    (..., D) -> points (..., D). The margin is that of the dtype in which the row is stored. limit: max_norm(c, x.dtype), for
    whoever has it."""
    c, stored, x = _prepare(c, x)
    x = _squarable(x)
    norm2 = _dot(x, x)
    bound = max_norm(c, stored) if limit is None else limit.to(norm2.dtype)
    # shortened rows come out a rounding error longer than bound; they count as inside, so that projecting twice is the
    # same as projecting once
    outside = norm2 > (bound * (1 + ROUNDING[stored])).square()
    shrink = torch.where(outside, bound, 1.0) * torch.rsqrt(torch.where(outside, norm2, 1.0))
    return _cast(_scale(shrink, x), stored)


def gyromidpoint(x, weights, c):
    """Weighted gyro-midpoints of n points: the ambient (hyperboloid or sphere) mean, put back on the surface.
    m = n/(d + sqrt(d^2 - c|n|^2)),  n = sum w lambda x,  d = sum w (lambda - 1)   (Ungar 2008; Bachmann et al. 2020,
    definition 3.1, with the half-step of their 1/2 (x) folded in). At c = 0: the weighted mean.

    x: points (..., n, D); weights: (..., m, n), non-negative with a positive sum in each row, or all 0, which gives
    the origin; c: broadcasts against (..., 1, 1), one for all n points -> (..., m, D). If weights is lower triangular
    the result is causal.
    """
    c, stored, x = _prepare(c, x, per_row=False)
    a = _inside(1 - c * _dot(x, x))
    with torch.autocast(x.device.type, enabled=False):  # autocast would take these products in 16 bits
        n = weights.to(x.dtype) @ _scale(2 / a, x)
        d = weights.to(a.dtype) @ ((2 - a) / a)
        total = weights.to(a.dtype).sum(-1, keepdim=True)
    # for c > 0 the ambient points are unit timelike vectors, whose sum is at least as long as the weights (reversed
    # triangle inequality); that floor keeps the midpoint inside the ball however n and d were rounded. (A rounding error below
    # it is left: the sum of identical points is at it, and has derivatives there.)
    floor, square = torch.where(c > 0, total.square(), 0.0), d.square() - c * _dot(n, n)
    length = torch.sqrt(torch.where(square < (1 - 1e-6) * floor, floor, square).clamp(min=torch.finfo(d.dtype).tiny))
    return _cast(_scale(1 / (d + length).clamp(min=torch.finfo(x.dtype).eps), n), stored)
