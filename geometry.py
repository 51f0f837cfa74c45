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

Dtypes. float32, bfloat16, float16, float64. Rows of the first three are computed in float32 and cast back at the end.
Dot products and the differences of nearly equal numbers that are made of them (A, M, N below) are float64, which costs
little beside reading the rows; they and the coefficients that follow from them are one number a row. (Apple's mps has
no float64: there they are float32, and results within 1e-3 of the boundary lose digits.)

Form. Textbooks write these operations with the Gram entries x.x, x.y, y.y, which cancel catastrophically for points
near each other or near the boundary. Here w = y + x or w = y - x is formed first, and every result is
beta (w + rho x): three dot products (x.x, x.w, w.w), two row coefficients, one read of each row and one write
(tests/test_geometry.py compares both forms with 60 digits).

Domain. Points are inside the ball: project() puts them there. Any finite tangent vector is accepted; on the sphere the
exponential map stops just before the antipode (SPHERE_CAP). The antipode of the origin is at infinity in this chart;
sums that meet it give large but finite rows. For such inputs no result and no derivative is NaN or Inf (floors under A,
M and N; casts saturate).

References
    Ungar 2008, Analytic Hyperbolic Geometry and Albert Einstein's Special Theory of Relativity (gyrations)
    Ganea, Becigneul, Hofmann 2018, Hyperbolic Neural Networks, arXiv:1805.09112
    Bachmann, Becigneul, Ganea 2020, Constant Curvature Graph Convolutional Networks, arXiv:1911.05076
    Kochurov, Karimov, Kozlukov 2020, Geoopt: Riemannian Optimization in PyTorch, arXiv:2005.02819
"""
import math

import torch

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

# How long a point may be where the ball is larger than that or space is flat: sums of two still fit the dtype.
POINT_LIMIT = {torch.float64: 1e150, torch.float32: 1e30, torch.bfloat16: 1e30, torch.float16: 3e4}

# tanh is 1 in every dtype from here on: larger arguments of the exponential map only shorten the row
SATURATED = 32.0 ** 2

SERIES_BELOW = 0.05  # |z| under which tanc and artanc are summed as a power series
# enough terms that the remainder at |z| = SERIES_BELOW is below half an ulp of the dtype, also in the derivative
TANC_TERMS = {torch.float32: 7, torch.float64: 13}
ARTANC_TERMS = {torch.float32: 8, torch.float64: 15}


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
    total = torch.full_like(z, coefficients[-1])
    for a in reversed(coefficients[:-1]):
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
    tanh = torch.tanh(s)
    tan = torch.tan(torch.where(z < 0, s, 0.5))
    series = _horner(series_z, _TANC[:TANC_TERMS[z.dtype]])
    return torch.where(small, series, torch.where(z < 0, tan, tanh) / s)


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


# ----------------------------------------------------------------------------------------------------------------------
# dtypes

class _FiniteCast(torch.autograd.Function):
    """Cast that saturates at the largest finite number of the target instead of overflowing, in both directions."""

    @staticmethod
    def forward(ctx, row, dtype):
        ctx.dtype = row.dtype
        return _saturate(row, dtype)

    @staticmethod
    def backward(ctx, grad):
        return _FiniteCast.apply(grad, ctx.dtype), None


def _saturate(row, dtype):
    bound = min(torch.finfo(row.dtype).max, torch.finfo(dtype).max)
    return row.clamp(-bound, bound).to(dtype)


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
        c = torch.full((), c, dtype=compute, device=rows[0].device)
    c = c if c.dtype == wide else _FiniteCast.apply(c, wide)
    if per_row and c.dim() and torch.compiler.is_compiling():
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


# The next three change nothing but the code that Inductor makes for a CPU, where they were found by reading it.

def _stored(k):
    """k, written to memory where the compiler would fuse its formula into the loops that read it, once for every element
    of a row instead of once a row: a strided view can only be taken of memory."""
    return k.as_strided(k.shape, k.stride()) if torch.compiler.is_compiling() else k


def _row_sum(products):
    """Sum over the last dimension, (..., D) -> (..., 1). What takes the time in compiled float64 code is the end of each
    row, across the lanes of a vector register; so 8 sums of D/8 numbers are made first."""
    if not torch.compiler.is_compiling() or products.dtype != torch.float64 or products.size(-1) % 8:
        return products.sum(-1, keepdim=True)
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


class _Combine(torch.autograd.Function):
    """beta (w + rho x) with w = y + sign x. The factored form rounds once where w and rho x nearly cancel, which is for
    antipodes on the sphere. beta, rho: (..., 1), wide; x, y: (..., D) -> (..., D)."""

    @staticmethod
    def forward(ctx, beta, rho, x, y, sign):
        ctx.save_for_backward(beta, rho, x, y)
        ctx.sign = sign
        return _stored(beta.to(x.dtype)) * (y + sign * x + _stored(rho.to(x.dtype)) * x)

    @staticmethod
    def backward(ctx, g):
        beta, rho, x, y = ctx.saved_tensors
        gx, gw = _dot(g, x), _dot(g, y + ctx.sign * x)
        grad_x = _scale(beta * (rho + ctx.sign), g)
        grad_y = _scale(beta, g)
        return (_sum_to(gw + rho * gx, beta.shape), _sum_to(beta * gx, rho.shape),
                _sum_to(grad_x, x.shape), _sum_to(grad_y, y.shape), None)


# ----------------------------------------------------------------------------------------------------------------------
# row scalars, all (..., 1) and wide

def _inside(a):
    """A = 1 - c|x|^2 with a floor: rows outside the ball, where the formulas mean nothing, still give numbers."""
    return a.clamp(min=torch.finfo(a.dtype).eps)


def _denominator(a, c, xx, xw, ww):
    """(A + c<x,w>)^2 + c^2 (|x|^2|w|^2 - <x,w>^2): N for w = y + x, M (with -c in place of c) for w = y - x. It is 0 only
    for antipodes on the sphere; the floor is the square of the rounding error of the first term."""
    n = (a + c * xw).square() + (c * xx) * (c * ww) - (c * xw).square()
    return torch.maximum(n, (torch.finfo(a.dtype).eps * (1 + a)).square())


def _exp_coefficient(z, row_dtype, stored):
    """k(z) with exp_0(v) = k(c|v|^2) v: tanc, stopped on the sphere at SPHERE_CAP before the pole. The transcendental
    part is in the dtype of the rows: z has no cancellation left in it."""
    cap = (0.5 * math.pi - SPHERE_CAP[stored]) ** 2
    bounded = z.clamp(-cap, SATURATED)
    beyond = bounded != z
    shrink = torch.sqrt(torch.where(beyond, bounded, 1.0) / torch.where(beyond, z, 1.0))
    return _FiniteCast.apply(tanc(_FiniteCast.apply(bounded, row_dtype)), z.dtype) * shrink


def _artanc(z, one_minus_z, row_dtype):
    k = artanc(_FiniteCast.apply(z, row_dtype), _FiniteCast.apply(one_minus_z, row_dtype))
    return _FiniteCast.apply(k, z.dtype)


def _add(x, y, c):
    """x (+) y for rows and c that are prepared."""
    xx, xw, ww = _Gram.apply(x, y, 1)
    a = 1 - c * xx
    n = _denominator(a, c, xx, xw, ww)
    return _Combine.apply(a / n, c * ww / _inside(a), x, y, 1)


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
# the operations

def conformal_factor(x, c):
    """lambda_x = 2/(1 - c|x|^2): tangent vectors at x have length lambda_x |v|. (..., D) -> (..., 1), float32 (float64 for
    float64 rows)."""
    c, _, x = _prepare(c, x)
    return (2 / _inside(1 - c * _dot(x, x))).to(x.dtype)


def mobius_add(x, y, c):
    """x (+) y = ( c|s|^2 x + A s ) / N,  s = x + y,  A = 1 - c|x|^2,  N = (A + c<x,s>)^2 + c^2 (|x|^2|s|^2 - <x,s>^2).

    Ungar 2008; Ganea et al. 2018, eq. 1, in the sum form. x, y: points (..., D) -> (..., D). At c = 0: x + y.
    Neither commutative nor associative: -x (+) (x (+) y) = y.
    """
    c, stored, x, y = _prepare(c, x, y)
    return _cast(_add(x, y, c), stored)


def expmap(x, v, c):
    """exp_x(v) = x (+) u,  u = h tanc(c h^2 |v|^2) v,  h = 1/(1 - c|x|^2) = lambda_x/2.

    Ganea et al. 2018, lemma 2. x: points, v: tangent vectors at x, (..., D) -> points (..., D). At c = 0: x + v.
    """
    c, stored, x, v = _prepare(c, x, v)
    v = _squarable(v)
    h = 1 / _inside(1 - c * _dot(x, x))
    k = _exp_coefficient(c * h.square() * _dot(v, v), v.dtype, stored)
    return _cast(_add(x, _scale(h * k, v), c), stored)


def logmap(x, y, c):
    """log_x(y) = A artanc(c|d|^2/M) (-x (+) y),  -x (+) y = ( -c|d|^2 x + A d ) / M,  d = y - x,  A = 1 - c|x|^2,
    M = (A - c<x,d>)^2 + c^2 (|x|^2|d|^2 - <x,d>^2); 1 - c|-x (+) y|^2 = A (1 - c|y|^2)/M goes to artanh.

    Ganea et al. 2018, lemma 2: the inverse of expmap. x, y: points (..., D) -> tangent vectors at x. At c = 0: y - x.
    """
    c, stored, x, y = _prepare(c, x, y)
    xx, xd, dd = _Gram.apply(x, y, -1)
    a, b = 1 - c * xx, 1 - c * (xx + 2 * xd + dd)
    m = _denominator(a, -c, xx, xd, dd)
    k = _artanc(c * dd / m, _inside(a) * _inside(b) / m, x.dtype)
    return _cast(_Combine.apply(a * k * a / m, -c * dd / _inside(a), x, y, -1), stored)


def exp_0(v, c):
    """exp_0(v) = tanc(c|v|^2) v: expmap at the origin. v: (..., D) -> points (..., D). At c = 0: v."""
    c, stored, v = _prepare(c, v)
    v = _squarable(v)
    return _cast(_scale(_exp_coefficient(c * _dot(v, v), v.dtype, stored), v), stored)


def log_0(x, c):
    """log_0(x) = artanc(c|x|^2) x: logmap at the origin. x: points (..., D) -> tangent vectors. At c = 0: x."""
    c, stored, x = _prepare(c, x)
    z = c * _dot(x, x)
    return _cast(_scale(_artanc(z, _inside(1 - z), x.dtype), x), stored)


def dist(x, y, c):
    """Geodesic distance 2 |d|/sqrt(M) artanc(c|d|^2/M), see logmap. (..., D) -> (..., 1), float32 (float64 for float64
    rows). At c = 0 it is 2|y - x|, the limit of the family (lambda = 2 at the origin). The gradient at x = y, where the
    distance has a kink, is taken as 0."""
    c, _, x, y = _prepare(c, x, y)
    xx, xd, dd = _Gram.apply(x, y, -1)
    a, b = 1 - c * xx, 1 - c * (xx + 2 * xd + dd)
    m = _denominator(a, -c, xx, xd, dd)
    apart = dd > 0
    length = torch.where(apart, torch.sqrt(torch.where(apart, dd, 1.0)), 0.0)
    k = _artanc(c * dd / m, _inside(a) * _inside(b) / m, x.dtype)
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
    a = 1 - c * xx
    m = _denominator(a, -c, xx, e, dd)
    d = y - x
    p, q = _dot(x, v), _dot(d, v)
    along_d = 2 * (c * e) * (c * p) - (c * xx) * (c * q) - a * (c * p)
    along_x = a * (c * q) - (c * dd) * (c * p)
    return v + _scale(2 * along_d / m, d) + _scale(2 * along_x / m, x), a, 1 - c * (xx + 2 * e + dd)


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
    cot(cap)/sqrt(-c) for c < 0, and at most POINT_LIMIT, also at c = 0. c: tensor, any shape -> the same shape."""
    limit = POINT_LIMIT[dtype]
    radius = torch.rsqrt(c.abs().clamp(min=torch.finfo(c.dtype).tiny))
    sphere = radius / math.tan(SPHERE_CAP[dtype])
    return torch.where(c > 0, (1 - BALL_MARGIN[dtype]) * radius, sphere).clamp(max=limit)


def project(x, c):
    """The row, shortened to max_norm(c, x.dtype) where it is longer; rows inside are unchanged bit for bit.
    (..., D) -> points (..., D). The margin is that of the dtype in which the row is stored."""
    c, stored, x = _prepare(c, x)
    x = _squarable(x)
    norm2 = _dot(x, x)
    bound = max_norm(c, stored)
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
    # triangle inequality); that floor keeps the midpoint inside the ball however n and d were rounded
    floor = torch.where(c > 0, total.square(), 0.0)
    length = torch.sqrt(torch.maximum(d.square() - c * _dot(n, n), floor).clamp(min=torch.finfo(d.dtype).tiny))
    return _cast(_scale(1 / (d + length).clamp(min=torch.finfo(x.dtype).eps), n), stored)
