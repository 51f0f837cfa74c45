"""
x (+) y, exp_x(v), x (+) exp_0(v), x (+) exp_r(v): mobius_add, expmap, add_exp_0, add_exp, each projected to the norm `limit` if
there is one. All are one pair of kernels, with a kind.
"""
import torch
import triton
import triton.language as tl

import geometry
from geometry.coefficients import _cap
from kernels.launch import (
    _check_shape,
    _common,
    _float32,
    _largest,
    _launch,
    _like,
    _like_or_none,
    _result_dtype,
    _row_index,
    _strided,
    _tensor,
    _to_shape,
    tile,
)
from kernels.rows import EPS, _dot, _load, _of_rows, _store, _store_partial, _tile
from kernels.scalar_functions import SATURATED, _tanc, _tanc_slope

ADD, EXP, EXP_0, EXP_R = (tl.constexpr(k) for k in range(4))
KINDS = {"add": 0, "exp": 1, "exp_0": 2, "exp_r": 3}

LONGEST = tl.constexpr(1e13)  # tangent vectors beyond are shortened: their squares, divided by A^2, fit float32


# ----------------------------------------------------------------------------------------------------------------------
# the formulas

@triton.jit
def _shorten(v):
    longest = tl.max(tl.abs(v), axis=1)
    return v * tl.where(longest > LONGEST, (1.0 / longest) * LONGEST, 1.0)[:, None]


@triton.jit
def _exp_scalars(z, z_low):
    """(k, 1 - z k^2, is z beyond its bounds), geometry/coefficients.py"""
    bounded = tl.minimum(tl.maximum(z, z_low), SATURATED)
    beyond = bounded != z
    k, rest = _tanc(bounded)
    return k * tl.sqrt(tl.where(beyond, bounded / tl.where(beyond, z, 1.0), 1.0)), rest, beyond


@triton.jit
def _h(a, KIND: tl.constexpr):
    """h: 1/A for the exponential map at x, 1 for the one at the origin"""
    if KIND == EXP:
        h = 1.0 / a
    else:
        h = a * 0.0 + 1.0
    return h


@triton.jit
def _sum_scalars(x, v, c, z_low, KIND: tl.constexpr):
    """A, B, S, N, |w|^2, j, k, whether z was bounded, |x|^2, <x,v>, |v|^2 for x (+) y = (S x + A y)/N, y = j v, w = x + y.

    S = A + c|w|^2 and N = A B + c|w|^2 are sums of positive numbers for c > 0; for c < 0, where they are differences, the
    textbook's 1 + 2c<x,y> + ... lose less.
    """
    xx, xv, vv = _dot(x, x), _dot(x, v), _dot(v, v)
    a = tl.maximum(1.0 - c * xx, EPS)
    if KIND == ADD:
        ww = _dot(x + v, x + v)
        b = tl.maximum(1.0 - c * vv, EPS)
        j = xx * 0.0 + 1.0
        k = j
        beyond = xx < 0.0
    else:
        h = _h(a, KIND)
        k, b, beyond = _exp_scalars(c * (h * h * vv), z_low)
        j = h * k
        w = x + j[:, None] * v
        ww = _dot(w, w)
    ab, xy, yy = a * b, j * xv, j * j * vv
    both = (c * xx) * (c * yy)
    s = tl.where(c < 0.0, 1.0 + c * (2.0 * xy + yy), a + c * ww)
    n = tl.where(c < 0.0, 1.0 + c * (2.0 * xy) + both, ab + c * ww)
    n = tl.maximum(n, tl.where(c < 0.0, 1.0 + both, ab) * EPS)
    return a, b, s, n, ww, j, k, beyond, xx, xv, vv


@triton.jit
def _shrink(limit, ww, n, rounding):
    """Where the norm of a sum, sqrt(|w|^2/N), is over the limit, and the factor that makes it the limit (geometry/sums.py)"""
    reach = limit * (1.0 + rounding)
    outside = ww > reach * reach * n
    return outside, tl.where(outside, limit * tl.sqrt(n / tl.where(outside, ww, 1.0)), 1.0)


@triton.jit
def _sum_rows(x, v, c, limit, rounding, z_low, KIND: tl.constexpr, LIMITED: tl.constexpr):
    """x (+) v, exp_x(v) or x (+) exp_0(v), geometry/sums.py"""
    if KIND != ADD:
        v = _shorten(v)
    a, b, s, n, ww, j, k, beyond, xx, xv, vv = _sum_scalars(x, v, c, z_low, KIND)
    out = (a / n)[:, None] * (x + j[:, None] * v + (c * ww / a)[:, None] * x)
    if LIMITED:  # by the norm that the row has, in which the formula's rounding is magnified where the terms nearly cancel
        outside, shrink = _shrink(limit, _dot(out, out), 1.0, rounding)
        out *= shrink[:, None]
    return out


@triton.jit
def _sum_pull_back(g, x, v, c, limit, rounding, z_low, KIND: tl.constexpr, LIMITED: tl.constexpr):
    """Gradients of _sum_rows by x, v and (for each row) c and limit: _sum_backward of geometry/sums.py. Which rows are over
    the limit, and by how much, is the formula's, |w|^2/N; _sum_rows takes it of the row, another by its rounding."""
    if KIND != ADD:
        v = _shorten(v)
    a, b, s, n, ww, j, k, beyond, xx, xv, vv = _sum_scalars(x, v, c, z_low, KIND)
    xy, yy = j * xv, j * j * vv
    p, q = s / n, a * j / n
    gx, gv = _dot(g, x), _dot(g, v)
    half = n * 0.0  # of what the projection's factor, limit sqrt(N/|w|^2), adds
    over_ww = n * 0.0
    by_limit = n * 0.0
    if LIMITED:
        outside, shrink = _shrink(limit, ww, n, rounding)
        p, q, gx, gv = shrink * p, shrink * q, shrink * gx, shrink * gv
    gy = j * gv
    along = (gx * s + gy * a) / n
    e = (c * yy * gx + gy) / n  # the gradient by c|w|^2 is -A e/N, by A it is c|w|^2 e/N
    if LIMITED:
        half = tl.where(outside, 0.5 * along, 0.0)
        over_ww = half / tl.where(outside, ww, 1.0)
        by_limit = 2.0 * half / tl.where(outside, limit, 1.0)
    f = c * e + b * over_ww
    by_ww = -a / n * f
    by_xx = -s / n * f  # through w and A
    by_b = a * (half - along) / n
    by_c = yy * gx / n
    if KIND == ADD:
        by_xv, by_vv = 2.0 * by_ww, by_ww - c * by_b
    else:
        h = _h(a, KIND)
        z = c * (h * h * vv)
        by_j = gv * a / n + 2.0 * (xv + j * vv) * by_ww
        constant = tl.where(beyond, 0.0, b)
        slope = _tanc_slope(z, k, constant)  # 2 z slope = constant - k
        by_z = h * by_j * slope - by_b * k * constant
        by_xv, by_vv = 2.0 * j * by_ww, j * j * by_ww + c * h * h * by_z
        by_c_by_z = h * h * vv * slope * (h * by_j - 2.0 * by_b * k * z)
        if KIND == EXP:
            by_c_by_z *= (1.0 + c * xx) * h
        by_c += by_c_by_z
    if KIND == EXP:  # h = 1/A: -|x|^2 <g,y>/N and more is cancelled by what comes through h
        by_xx += tl.where(beyond, 0.0, c * h * h * (k * by_j + 2.0 * c * h * vv * by_z))
        by_c += 2.0 * (over_ww * (xy * (2.0 * xy + yy + c * xx * yy) - xx * yy * b) - e * (xy + c * xx * yy)) / n
    else:
        by_c += (2.0 * (half * (xy + c * xx * yy) - a * xy * e - c * xx * yy * along) - xx * gy) / n
    if KIND != ADD:  # beyond the cap nothing of these is left but their rounding (_sum_backward of geometry/sums.py)
        by_y = gy * a / n
        limited = -by_y
        if LIMITED:
            limited = tl.where(outside, gx * s / n, limited)
        by_vv = tl.where(beyond, -0.5 * (by_y + by_xv * xv) / tl.where(beyond, vv, 1.0), by_vv)
        by_c = tl.where(beyond, 0.5 * (2.0 * by_xx * xx + by_xv * xv + limited) / tl.where(beyond, c, 1.0), by_c)
    grad_x = p[:, None] * g + (2.0 * by_xx)[:, None] * x + by_xv[:, None] * v
    grad_v = q[:, None] * g + (2.0 * by_vv)[:, None] * v + by_xv[:, None] * x
    return grad_x, grad_v, by_c, by_limit


# ----------------------------------------------------------------------------------------------------------------------
# the kernels: ROWS rows a program

@triton.jit
def _sum_forward(x_ptr, r_ptr, v_ptr, c_ptr, limit_ptr, out_ptr, R, D, x_stride, r_stride, v_stride, c_div, c_mod, limit_div,
                 limit_mod, rounding, z_low, KIND: tl.constexpr, LIMITED: tl.constexpr, LARGEST: tl.constexpr,
                 ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, live, cols, mask = _tile(R, D, ROWS, BLOCK_D)
    x = _load(x_ptr, rows, x_stride, cols, mask)
    v = _load(v_ptr, rows, v_stride, cols, mask)
    c = _of_rows(c_ptr, rows, live, c_div, c_mod)
    limit = c
    if LIMITED:
        limit = _of_rows(limit_ptr, rows, live, limit_div, limit_mod)
    if KIND == EXP_R:
        point = _sum_rows(_load(r_ptr, rows, r_stride, cols, mask), v, c, limit, rounding, z_low, EXP, LIMITED)
        out = _sum_rows(x, point, c, limit, rounding, z_low, ADD, LIMITED)
    else:
        out = _sum_rows(x, v, c, limit, rounding, z_low, KIND, LIMITED)
    _store(out_ptr, rows, D, cols, mask, out, LARGEST)


@triton.jit
def _sum_backward(g_ptr, x_ptr, r_ptr, v_ptr, c_ptr, limit_ptr, dx_ptr, dr_ptr, dv_ptr, dc_ptr, dlimit_ptr, R, D, g_stride,
                  x_stride, r_stride, v_stride, c_div, c_mod, limit_div, limit_mod, rounding, z_low,
                  KIND: tl.constexpr, LIMITED: tl.constexpr, ONE_C: tl.constexpr, ONE_LIMIT: tl.constexpr,
                  X_LARGEST: tl.constexpr, R_LARGEST: tl.constexpr, V_LARGEST: tl.constexpr,
                  ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, live, cols, mask = _tile(R, D, ROWS, BLOCK_D)
    x = _load(x_ptr, rows, x_stride, cols, mask)
    v = _load(v_ptr, rows, v_stride, cols, mask)
    g = _load(g_ptr, rows, g_stride, cols, mask)
    c = _of_rows(c_ptr, rows, live, c_div, c_mod)
    limit = c
    if LIMITED:
        limit = _of_rows(limit_ptr, rows, live, limit_div, limit_mod)
    if KIND == EXP_R:
        r = _load(r_ptr, rows, r_stride, cols, mask)
        point = _sum_rows(r, v, c, limit, rounding, z_low, EXP, LIMITED)
        grad_x, grad_point, by_c, by_limit = _sum_pull_back(g, x, point, c, limit, rounding, z_low, ADD, LIMITED)
        _store(dx_ptr, rows, D, cols, mask, grad_x, X_LARGEST)
        grad_r, grad_v, by_c_too, by_limit_too = _sum_pull_back(grad_point, r, v, c, limit, rounding, z_low, EXP, LIMITED)
        _store(dr_ptr, rows, D, cols, mask, grad_r, R_LARGEST)
        by_c += by_c_too
        by_limit += by_limit_too
    else:
        grad_x, grad_v, by_c, by_limit = _sum_pull_back(g, x, v, c, limit, rounding, z_low, KIND, LIMITED)
        _store(dx_ptr, rows, D, cols, mask, grad_x, X_LARGEST)
    _store(dv_ptr, rows, D, cols, mask, grad_v, V_LARGEST)
    _store_partial(dc_ptr, rows, live, by_c, ONE_C)
    if LIMITED:
        _store_partial(dlimit_ptr, rows, live, by_limit, ONE_LIMIT)


# ----------------------------------------------------------------------------------------------------------------------
# the operators

def _z_low(dtype):
    return -_cap(dtype) ** 2


@torch.library.custom_op("curvature::sum", mutates_args=())
def _sum(x: torch.Tensor, r: torch.Tensor | None, v: torch.Tensor, c: torch.Tensor, limit: torch.Tensor | None,
         kind: str) -> torch.Tensor:
    dtype, lead, D = _result_dtype(x, v, *([] if r is None else [r])), x.shape[:-1], x.size(-1)
    _check_shape("v", v, x.shape)
    _check_shape("r", r, x.shape)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    (x, R, x_stride), (v, _, v_stride) = _strided(x), _strided(v)
    r, _, r_stride = (x, R, x_stride) if r is None else _strided(r)
    c, c_div, c_mod = _row_index(c, lead)
    bound, limit_div, limit_mod = _row_index(c if limit is None else limit, lead)
    rows, block_d, options = tile(D, 4 if kind == "exp_r" else 3)
    if R:
        _launch(
            _sum_forward, triton.cdiv(R, rows),
            x, r, v, c, bound, out, R, D, x_stride, r_stride, v_stride, c_div, c_mod, limit_div, limit_mod,
            geometry.ROUNDING[dtype], _z_low(dtype), KIND=KINDS[kind], LIMITED=limit is not None, LARGEST=_largest(dtype),
            ROWS=rows, BLOCK_D=block_d, **options)
    return out


@_sum.register_fake
def _(x, r, v, c, limit, kind):
    return torch.empty(x.shape, dtype=_result_dtype(x, v, *([] if r is None else [r])), device=x.device)


@torch.library.custom_op("curvature::sum_backward", mutates_args=())
def _sum_grad(g: torch.Tensor, x: torch.Tensor, r: torch.Tensor | None, v: torch.Tensor, c: torch.Tensor,
              limit: torch.Tensor | None, kind: str
              ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    stored, lead, D = _result_dtype(x, v, *([] if r is None else [r])), x.shape[:-1], x.size(-1)
    dx, dr, dv = _like(x), _like_or_none(r, x), _like(v)
    (g, R, g_stride), (x, _, x_stride), (v, _, v_stride) = _strided(g), _strided(x), _strided(v)
    r, _, r_stride = (x, R, x_stride) if r is None else _strided(r)
    wide_c, c_div, c_mod = _row_index(c, lead)
    bound = c if limit is None else limit
    wide_bound, limit_div, limit_mod = _row_index(bound, lead)
    rows, block_d, options = tile(D, 7 if kind == "exp_r" else 5)
    programs = triton.cdiv(R, rows)
    # every program, or row, writes its own; without any there are none, and sums over nothing are 0
    dc = _float32(programs if c.numel() == 1 else R, x)
    dlimit = _float32((programs if bound.numel() == 1 else R) if limit is not None else 1, x)
    if R:
        _launch(
            _sum_backward, programs,
            g, x, r, v, wide_c, wide_bound, dx, dr, dv, dc, dlimit, R, D, g_stride, x_stride, r_stride, v_stride, c_div, c_mod,
            limit_div, limit_mod, geometry.ROUNDING[stored], _z_low(stored), KIND=KINDS[kind], LIMITED=limit is not None,
            ONE_C=c.numel() == 1, ONE_LIMIT=bound.numel() == 1, X_LARGEST=_largest(dx.dtype), R_LARGEST=_largest(dr.dtype),
            V_LARGEST=_largest(dv.dtype), ROWS=rows, BLOCK_D=block_d, **options)
    dlimit = (torch.zeros_like(bound, memory_format=torch.contiguous_format) if limit is None else
              _to_shape(dlimit, lead, bound))
    return dx, dr, dv, _to_shape(dc, lead, c), dlimit


@_sum_grad.register_fake
def _(g, x, r, v, c, limit, kind):
    return (_like(x), _like_or_none(r, x), _like(v), torch.empty_like(c, memory_format=torch.contiguous_format),
            torch.empty_like(c if limit is None else limit, memory_format=torch.contiguous_format))


def _sum_setup(ctx, inputs, output):
    x, r, v, c, limit, ctx.kind = inputs
    ctx.given, ctx.limited = r is not None, limit is not None
    ctx.save_for_backward(x, v, c, r, limit)


def _sum_autograd(ctx, g):
    x, v, c, r, limit = ctx.saved_tensors
    dx, dr, dv, dc, dlimit = _sum_grad(g, x, r, v, c, limit, ctx.kind)
    return dx, dr if ctx.given else None, dv, dc, dlimit if ctx.limited else None, None


_sum.register_autograd(_sum_autograd, setup_context=_sum_setup)


# ----------------------------------------------------------------------------------------------------------------------
# the functions

def mobius_add(x, y, c, limit=None):
    """geometry.mobius_add"""
    x, y = _common((x, y), c, limit)
    return _sum(x, None, y, _tensor(c, x), _tensor(limit, x), "add")


def expmap(x, v, c, limit=None):
    """geometry.expmap"""
    x, v = _common((x, v), c, limit)
    return _sum(x, None, v, _tensor(c, x), _tensor(limit, x), "exp")


def add_exp_0(x, v, c, limit=None):
    """geometry.add_exp_0"""
    x, v = _common((x, v), c, limit)
    return _sum(x, None, v, _tensor(c, x), _tensor(limit, x), "exp_0")


def add_exp(x, r, v, c, limit=None):
    """geometry.add_exp; exp_r(v) stays in registers"""
    x, r, v = _common((x, r, v), c, limit)
    return _sum(x, r, v, _tensor(c, x), _tensor(limit, x), "exp_r")
