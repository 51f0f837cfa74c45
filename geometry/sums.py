"""
The sums with their derivatives in closed form: x (+) y, exp_x(v), x (+) exp_0(v), x (+) exp_r(v), each with a limit; exp_0 and
log_0. (logarithms.py says how such a map is written.)
"""
import torch

from geometry.coefficients import (
    _almost_0,
    _beyond,
    _coefficient,
    _denominator,
    _dot_with,
    _exp_coefficient,
    _exp_slope,
    _gradient,
    _inside,
    _log_coefficient,
    _row_denominator,
    _second_order,
    _sqrt,
    _through_autograd,
    _wide_c,
    _wide_distance2,
    _wide_dot,
    _wide_norm2,
)
from geometry.float32 import far_step, norm2_parts, one_minus, product
from geometry.inductor import _row_sum, _stored
from geometry.limits import ROUNDING
from geometry.rows import _narrow, _row_dtypes, _wide
from geometry.scalar_functions import _artanc_slope
from geometry.transforms import transformed


def _sum(x, v, c, limit, kind):
    """x (+) y with y = v ('add') or y = h k(c h^2|v|^2) v, h = 1/A ('exp') or 1 ('exp_0'), at most `limit` long."""
    stored, dtype = _row_dtypes(x, v)
    limit = None if limit is None else _wide_c(limit, x, v)
    x, v, c = x.to(dtype), v.to(dtype), _wide_c(c, x, v)
    if c.dtype == torch.float32:
        return _sum_float32(x, v, c, limit, kind, stored)
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
    scalars = xx, vv, xv, ww, k, rest, None, None, None
    a, s, j, _, _, ww, _, n = _sum_scalars(c, *scalars[:-1], kind)
    shrink = 1.0
    if limit is not None:
        outside, shrink = _shrink(limit, _sum_norm(xx, vv, a, s, j, ww, n, x.dtype, kind), stored)
    if kind != "exp_0":
        # Where the terms nearly cancel, what float32 rounds in them is magnified, up to 1e4 times for rows at 0.999 of the
        # radius. The sum that models take in their default residual does without: it is the time of a step.
        x, v = x.to(_wide(x)), v.to(_wide(x))
    # in place where that saves a row: not in compiled code, where torch 2.11 gives a result that is made so gradients of 0, and not
    # under vmap, where the other operand may have more rows
    in_place = not (torch.compiler.is_compiling() or transformed())
    add, scale = (torch.Tensor.addcmul_, torch.Tensor.mul_) if in_place else (torch.addcmul, torch.mul)
    if kind == "add":
        out = scale(add(x + v, _coefficient(c * ww / a, x), x), _coefficient(shrink * a / n, x))
    else:
        out = add(_coefficient(shrink * s / n, x) * x, _coefficient(shrink * a * j / n, x), v)
    return _narrow(out, stored), scalars


def _sum_float32(x, v, c, limit, kind, stored):
    """_sum where row scalars are float32: (A/N) (w + (c|w|^2/A) x) has no difference of long rows. Here the length of a sum is
    that of its row, rounding and all."""
    x_parts = norm2_parts(x)
    a = _inside(one_minus(c, *x_parts))
    if kind == "add":
        v_parts = norm2_parts(v)
        vv, k, rest = v_parts[0], None, _inside(one_minus(c, *v_parts))
        w = x + v
    elif kind == "exp":
        v_parts, h = norm2_parts(v), 1 / a
        vv = v_parts[0]
        z = c * (h * h * vv)
        k, rest = _exp_coefficient(z, stored)
        j, j_low = far_step(c, *v_parts, z, h * k)
        y, y_low = product(j, v)
        w = (x + y) + (y_low + j_low * v)
    else:
        vv = _wide_norm2(v)
        k, rest = _exp_coefficient(c * vv, stored)
        w = x + k * v
    ww = _wide_norm2(w)
    row = torch.addcmul(w, c * ww / a, x)
    rows2 = _wide_norm2(row)
    n = _row_denominator(a, rest, c * ww, rows2, ww)
    scale = a / n
    norm = scale * _sqrt(rows2)
    if limit is not None:
        scale = _shrink(limit, norm, stored)[1] * scale
    return _narrow(scale * row, stored), (x_parts[0], vv, _wide_dot(x, v), ww, k, rest, a, n, norm)


def _sum_scalars(c, xx, vv, xv, ww, k, rest, a, n, kind):
    """A, S = A + c|w|^2, j, <x,y>, |y|^2, |w|^2, B and N of the sum x (+) y, y = j v, w = x + y. xv or ww: <x,v> or |w|^2, what
    was taken of the rows."""
    if a is not None:  # float32
        j = 1.0 if kind == "add" else k / a if kind == "exp" else k
        xy, yy = j * xv, j * j * vv
        return a, torch.where(c < 0, 1 + c * (2 * xy + yy), a + c * ww), j, xy, yy, ww, rest, n
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


def _sum_norm(xx, vv, a, s, j, ww, n, computed, kind):
    """The norm of the sum."""
    norm = _sqrt(ww / n)
    if kind == "exp_0":
        # the row is S/N x + A j/N v in float32; what rounding may add where they nearly cancel is counted in, so that no row is
        # left outside the ball
        norm = norm + 2 * torch.finfo(computed).eps * (s.abs() * _sqrt(xx) + a * j * _sqrt(vv)) / n
    return norm


def _shrink(limit, norm, stored):
    """Where the norm of the sum is over the limit, and the factor that makes it the limit. Rows a rounding error longer than that
    count as inside, so that shortening twice is the same as shortening once."""
    factor = limit / norm.clamp(min=_almost_0(norm))
    outside = factor < 1 / (1 + ROUNDING[stored])
    return outside, torch.where(outside, factor, 1.0)


def _sum_backward(g, x, v, c, limit, kind, stored, xx, vv, xv, ww, k, rest, a, n, norm):
    """(grad_x, grad_v, gradients of c and of the limit for each row). With y = j v the sum is (S x + A y)/N, S = A + t. What
    cancels in the chain rule's terms has been cancelled by hand, for the gradient of c, which is of the order of |v| (of |v|^2
    for exp_x) and would hold the rounding of |x|:

        N - S = -c A |y|^2      N - A B = c|w|^2      N - S B = c^2 |w|^2 |y|^2      |w|^2 - |x|^2 B = 2<x,y> + |y|^2 + c|x|^2|y|^2
    """
    a, s, j, xy, yy, ww, b, n = _sum_scalars(c, xx, vv, xv, ww, k, rest, a, n, kind)
    cyy = c * yy
    cxxyy = xx * cyy
    p, q = s / n, a * j / n
    gx, gv = _row_sum(g * x).to(a.dtype), _dot_with(g, v, vv)
    if limit is not None:
        norm = _sum_norm(xx, vv, a, s, j, ww, n, x.dtype, kind) if norm is None else norm
        outside, shrink = _shrink(limit, norm, stored)
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
        z = c * hhvv
        slope, slope_rest = _exp_slope(z, k, rest, stored)
        by_z = hby_j * slope + by_b * slope_rest
        by_xv, twice_by_vv = j * twice_by_ww, j * j * twice_by_ww + 2 * hhc * by_z
        by_c_by_z = hhvv * slope * (hby_j - 2 * by_b * k * z)
        beyond = _beyond(z, stored)
        if kind == "exp":
            twice_by_xx = twice_by_xx + torch.where(beyond, 0.0, 2 * c * h * (k * hby_j + 2 * z * by_z))
            by_c_by_z = by_c_by_z * h * (1 + c * xx)
        by_c = by_c + by_c_by_z
        # Beyond the cap y has v's direction alone, so that grad_v is at right angles to v; and y is so long, 1e3 to 1e8, that a limit
        # leaves nothing of the terms above but their rounding. by_c from 2 c by_c = <grad_x, x> + <grad_v, v> + limit by_limit
        # - <g, result>: the result scales with x, v, limit and 1/sqrt|c|.
        by_y = gy * a / n
        over_x = torch.addcmul(by_xv * xv, twice_by_xx, xx)
        limited = -by_y if limit is None else torch.where(outside, gx * s / n, -by_y)
        twice_by_vv = torch.where(beyond, -torch.addcmul(by_y, by_xv, xv) / vv, twice_by_vv)
        by_c = torch.where(beyond, 0.5 * (over_x + limited) / c, by_c)
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
        (stored, dtype), wide = _row_dtypes(x, v), scalars[0].dtype
        grad_x, grad_v, grad_c, grad_limit = _sum_backward(
            g.to(dtype), x.to(dtype), v.to(dtype), _wide_c(c, x, v, wide=wide),
            None if limit is None else _wide_c(limit, x, v, wide=wide), ctx.kind, stored, *scalars)
        return (_gradient(grad_x, x), _gradient(grad_v, v), _gradient(grad_c, c),
                None if limit is None else _gradient(grad_limit, limit), None)


def _radial(v, c, kind):
    """k v with k = k(c|v|^2) of exp_0 ('exp') or log_0 ('log')."""
    stored, dtype = _row_dtypes(v)
    v, c = v.to(dtype), _wide_c(c, v)
    a = None
    if kind == "log" and c.dtype == torch.float32:
        parts = norm2_parts(v)
        vv, a = parts[0], _inside(one_minus(c, *parts))
    else:
        vv = _wide_norm2(v)
    z = c * vv
    k = _exp_coefficient(z, stored)[0] if kind == "exp" else _log_coefficient(z, _inside(1 - z) if a is None else a)
    return _narrow(_coefficient(k, v) * v, stored), (vv, k, a)


class _Radial(torch.autograd.Function):

    @staticmethod
    def forward(ctx, v, c, kind):
        out, scalars = _radial(v, c, kind)
        ctx.kind = kind
        ctx.save_for_backward(v, c, *scalars)
        return out

    @staticmethod
    def backward(ctx, g):
        stored_v, c, vv, k, a = ctx.saved_tensors
        if _second_order():
            return _through_autograd(_radial, g, (stored_v, c, ctx.kind), ctx.needs_input_grad)
        stored, dtype = _row_dtypes(stored_v)
        v, wide_c = stored_v.to(dtype), _wide_c(c, stored_v, wide=vv.dtype)
        g, z = g.to(dtype), wide_c * vv
        slope = (_exp_slope(z, k, 1 - z * k * k, stored)[0] if ctx.kind == "exp" else
                 _artanc_slope(z, _inside(1 - z) if a is None else a, k))
        by_z = slope * _dot_with(g, v, vv)
        grad_v = torch.addcmul(_coefficient(k, v) * g, _coefficient(2 * wide_c * by_z, v), v)
        return _gradient(grad_v, stored_v), _gradient(_stored(vv * by_z), c), None
