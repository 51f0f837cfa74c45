"""The operations, as models call them."""
import torch

from geometry.coefficients import _denominator, _inside, _norm2_and_a, _row_denominator
from geometry.logarithms import _Log, _log, _log_previous, _LogPrevious
from geometry.rows import _cast, _dot, _gram, _limited, _other, _prepare, _scale, _squarable, _tensors, spread
from geometry.scalar_functions import artanc
from geometry.sums import _Radial, _radial, _Sum, _sum
from geometry.transforms import apply, first


def conformal_factor(x, c):
    """lambda_x = 2/(1 - c|x|^2): tangent vectors at x have length lambda_x |v|. (..., D) -> (..., 1), float32 (float64 for
    float64 rows)."""
    c, _, x = _prepare(c, x)
    return (2 / _inside(_norm2_and_a(x, c)[1])).to(x.dtype)


def mobius_add(x, y, c, limit=None):
    """x (+) y = ( c|s|^2 x + A s ) / N,  s = x + y,  A = 1 - c|x|^2,  N = (A + c<x,s>)^2 + c^2 (|x|^2|s|^2 - <x,s>^2).

    Ungar 2008; Ganea et al. 2018, eq. 1, in the sum form. x, y: points (..., D) -> (..., D). At c = 0: x + y.
    Neither commutative nor associative: -x (+) (x (+) y) = y.
    limit: a norm, broadcasts as c does; a longer result is shortened to it. With max_norm(c, dtype) this is project()
    of the result without reading it again.
    """
    x, y = spread((x, y), c, limit)
    return apply(_Sum, first(_sum), x, _other(y, x), *_tensors(x, c, limit), "add")


def expmap(x, v, c, limit=None):
    """exp_x(v) = x (+) u,  u = h tanc(c h^2 |v|^2) v,  h = 1/(1 - c|x|^2) = lambda_x/2.

    Ganea et al. 2018, lemma 2. x: points, v: tangent vectors at x, (..., D) -> points (..., D). At c = 0: x + v.
    limit: see mobius_add.
    """
    x, v = spread((x, v), c, limit)
    return apply(_Sum, first(_sum), x, _other(_squarable(v), x), *_tensors(x, c, limit), "exp")


def add_exp_0(x, v, c, limit=None):
    """x (+) exp_0(v) in one step. x: points, v: tangent vectors at the origin, (..., D) -> points. At c = 0: x + v.
    limit: see mobius_add."""
    x, v = spread((x, v), c, limit)
    return apply(_Sum, first(_sum), x, _other(_squarable(v), x), *_tensors(x, c, limit), "exp_0")


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
    return apply(_Log, first(_log), x, _other(y, x), _tensors(x, c)[0])


def log_previous(x, c):
    """log_r(x) with r_t = x_{t-1}, the origin at t = 0: logmap(previous_token(x), x, c) without making r.
    x: points (B, T, ..., D), t in dimension 1 -> tangent vectors at r."""
    return apply(_LogPrevious, first(_log_previous), x, _tensors(x, c)[0])


def exp_0(v, c):
    """exp_0(v) = tanc(c|v|^2) v: expmap at the origin. v: (..., D) -> points (..., D). At c = 0: v."""
    v, = spread((v,), c)
    return apply(_Radial, first(_radial), _squarable(v), _tensors(v, c)[0], "exp")


def log_0(x, c):
    """log_0(x) = artanc(c|x|^2) x: logmap at the origin. x: points (..., D) -> tangent vectors. At c = 0: x."""
    x, = spread((x,), c)
    return apply(_Radial, first(_radial), x, _tensors(x, c)[0], "log")


def dist(x, y, c):
    """Geodesic distance 2 |d|/sqrt(M) artanc(c|d|^2/M), see logmap. (..., D) -> (..., 1), float32 (float64 for float64
    rows). At c = 0 it is 2|y - x|, the limit of the family (lambda = 2 at the origin). At x = y, where the distance has a kink,
    the gradient is taken as 0; rows nearer than 1e-30 (float64: 1e-150) count as equal: 1/|d| would not fit."""
    c, _, x, y = _prepare(c, x, y)
    if c.dtype == torch.float32:
        _, _, dd, a, b, m, _ = _gram_float32(x, y, c)
        a, b, e = _inside(a), _inside(b), c * dd
    else:
        xx, xd, dd = _gram(x, y, -1)
        cx, cy, e = c * xx, c * (xx + 2 * xd + dd), c * dd
        a, b = _inside(1 - cx), _inside(1 - cy)
        m = _denominator(a, b, cx, cy, e)
    apart = dd > (1e-300 if x.dtype == torch.float64 else 1e-60 if dd.dtype == torch.float64 else 1e-37)
    length = torch.where(apart, torch.sqrt(torch.where(apart, dd, 1.0)), 0.0)
    k = artanc(e / m, a * b / m)
    return (2 * length / torch.sqrt(m) * k).to(x.dtype)


def _gram_float32(x, y, c):
    """c|x|^2, <x,d>, |d|^2, A, B, M and d = y - x where row scalars are float32, by operations that autograd differentiates."""
    (xx, a), (_, b), d = _norm2_and_a(x, c), _norm2_and_a(y, c), y - x
    dd, floor_a = _dot(d, d), _inside(a)
    e = c * dd
    row = d - _scale(e / floor_a, x)
    return c * xx, _dot(x, d), dd, a, b, _row_denominator(floor_a, _inside(b), e, _dot(row, row), dd), d


def _rotatable(v):
    """Tangent vectors short enough that they can be turned, and scaled by a ratio of conformal factors, without
    overflow, in the gradients too."""
    return _limited(v, 1e90 if v.dtype == torch.float64 else 1e15)


def _gyrate(x, y, v, c):
    """gyr[y, -x] v and the row scalars A = 1 - c|x|^2, B = 1 - c|y|^2. With d = y - x, p = <x,v>, q = <d,v>, e = <x,d>:
    v + (2/M) [ (-c A p + c^2 (2 e p - |x|^2 q)) d + (c A q - c^2 |d|^2 p) x ],
    the closed form of Ungar 2008 written in the difference, so that it is v + O(|d|) term by term."""
    if c.dtype == torch.float32:
        cx, e, dd, a, b, m, d = _gram_float32(x, y, c)
    else:
        xx, e, dd = _gram(x, y, -1)
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


def gyromidpoint(x, weights, c):
    """Weighted gyro-midpoints of n points: the ambient (hyperboloid or sphere) mean, put back on the surface.
    m = n/(d + sqrt(d^2 - c|n|^2)),  n = sum w lambda x,  d = sum w (lambda - 1)   (Ungar 2008; Bachmann et al. 2020,
    definition 3.1, with the half-step of their 1/2 (x) folded in). At c = 0: the weighted mean.

    x: points (..., n, D); weights: (..., m, n), non-negative with a positive sum in each row, or all 0, which gives
    the origin; c: broadcasts against (..., 1, 1), one for all n points -> (..., m, D). If weights is lower triangular
    the result is causal.
    """
    c, stored, x = _prepare(c, x, per_row=False)
    a = _inside(_norm2_and_a(x, c)[1])
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
