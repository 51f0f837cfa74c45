"""
log_x(y): logmap. The kernels of layernorm.py use the formulas, too.
"""
import torch
import triton
import triton.language as tl

from kernels.launch import (
    _check_shape,
    _common,
    _float32,
    _largest,
    _launch,
    _like,
    _result_dtype,
    _row_index,
    _strided,
    _tensor,
    _to_shape,
    tile,
)
from kernels.rows import EPS, _dot, _load, _of_rows, _store, _store_partial, _tile
from kernels.scalar_functions import _artanc, _artanc_slope

# ----------------------------------------------------------------------------------------------------------------------
# the formulas

@triton.jit
def _log_scalars(xx, yy, dd, c):
    """A, B, E = c|d|^2, M, z = E/M, 1 - z, K = artanc z for log_x(y), d = y - x"""
    a = tl.maximum(1.0 - c * xx, EPS)
    b = tl.maximum(1.0 - c * yy, EPS)
    e = c * dd
    m = tl.maximum(a * b + e, a * b * EPS)
    z, one_minus_z = e / m, a * b / m
    return a, b, e, m, z, one_minus_z, _artanc(z, one_minus_z)


@triton.jit
def _log(x, y, xx, yy, c):
    d = y - x
    a, b, e, m, z, one_minus_z, k = _log_scalars(xx, yy, _dot(d, d), c)
    return (a * k * a / m)[:, None] * (d - (e / a)[:, None] * x)


@triton.jit
def _log_pull_back(g, x, y, c):
    """Gradients by x, y and (for each row) c of log_x(y): as _log_backward of geometry/logarithms.py, with the terms of by_c, of the order
    of |d|^2, cancelled by hand: |d|^2 - |x|^2 B - |y|^2 A = -2 (|x|^2 B + <x,d>), A B = M - E and
    M + 2c(|x|^2 B + <x,d>) = 1 - c^2 |x|^2 |y|^2, which is A + B c|x|^2."""
    d = y - x
    xx, yy, dd = _dot(x, x), _dot(y, y), _dot(d, d)
    a, b, e, m, z, one_minus_z, k = _log_scalars(xx, yy, dd, c)
    gx, gd = _dot(g, x), _dot(g, d)
    kappa = a * k / m
    psi = a * gd - e * gx
    by_z = a * psi / m * _artanc_slope(z, one_minus_z, k)
    by_m = -(by_z * z + kappa * psi) / m
    by_e = by_z / m + by_m - kappa * gx
    by_a = k * psi / m + kappa * gd + by_m * b
    by_b = by_m * a
    along_d = (2.0 * c * by_e)[:, None] * d
    grad_y = along_d + (kappa * a)[:, None] * g - (2.0 * c * by_b)[:, None] * y
    grad_x = -along_d - (kappa * (a + e))[:, None] * g - (2.0 * c * by_a)[:, None] * x
    complement = tl.where(c > 0.0, a + b * (c * xx), 1.0 - (c * xx) * (c * yy))
    by_c = (dd * (by_z * complement / m - k * gx) + 2.0 * (k / m) * psi * (a * _dot(x, d) - c * xx * dd)) / m
    return grad_x, grad_y, by_c


# ----------------------------------------------------------------------------------------------------------------------
# the kernels: ROWS rows a program

@triton.jit
def _log_forward(x_ptr, y_ptr, c_ptr, out_ptr, R, D, x_stride, y_stride, c_div, c_mod,
                 LARGEST: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, live, cols, mask = _tile(R, D, ROWS, BLOCK_D)
    x = _load(x_ptr, rows, x_stride, cols, mask)
    y = _load(y_ptr, rows, y_stride, cols, mask)
    c = _of_rows(c_ptr, rows, live, c_div, c_mod)
    _store(out_ptr, rows, D, cols, mask, _log(x, y, _dot(x, x), _dot(y, y), c), LARGEST)


@triton.jit
def _log_backward(g_ptr, x_ptr, y_ptr, c_ptr, dx_ptr, dy_ptr, dc_ptr, R, D, g_stride, x_stride, y_stride, c_div, c_mod,
                  ONE_C: tl.constexpr, X_LARGEST: tl.constexpr, Y_LARGEST: tl.constexpr,
                  ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, live, cols, mask = _tile(R, D, ROWS, BLOCK_D)
    x = _load(x_ptr, rows, x_stride, cols, mask)
    y = _load(y_ptr, rows, y_stride, cols, mask)
    g = _load(g_ptr, rows, g_stride, cols, mask)
    c = _of_rows(c_ptr, rows, live, c_div, c_mod)
    grad_x, grad_y, by_c = _log_pull_back(g, x, y, c)
    _store(dx_ptr, rows, D, cols, mask, grad_x, X_LARGEST)
    _store(dy_ptr, rows, D, cols, mask, grad_y, Y_LARGEST)
    _store_partial(dc_ptr, rows, live, by_c, ONE_C)


# ----------------------------------------------------------------------------------------------------------------------
# the operators

@torch.library.custom_op("curvature::logmap", mutates_args=())
def _logmap(x: torch.Tensor, y: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    dtype, lead, D = _result_dtype(x, y), x.shape[:-1], x.size(-1)
    _check_shape("y", y, x.shape)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    (x, R, x_stride), (y, _, y_stride) = _strided(x), _strided(y)
    c, c_div, c_mod = _row_index(c, lead)
    rows, block_d, options = tile(D, 3)
    if R:
        _launch(_log_forward, triton.cdiv(R, rows), x, y, c, out, R, D, x_stride, y_stride, c_div, c_mod, LARGEST=_largest(dtype),
                ROWS=rows, BLOCK_D=block_d, **options)
    return out


@_logmap.register_fake
def _(x, y, c):
    return torch.empty(x.shape, dtype=_result_dtype(x, y), device=x.device)


@torch.library.custom_op("curvature::logmap_backward", mutates_args=())
def _logmap_grad(g: torch.Tensor, x: torch.Tensor, y: torch.Tensor,
                 c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lead, D = x.shape[:-1], x.size(-1)
    dx, dy = _like(x), _like(y)
    (g, R, g_stride), (x, _, x_stride), (y, _, y_stride) = _strided(g), _strided(x), _strided(y)
    wide_c, c_div, c_mod = _row_index(c, lead)
    rows, block_d, options = tile(D, 5)
    programs = triton.cdiv(R, rows)
    # every program, or row, writes its own; without any there are none, and sums over nothing are 0
    dc = _float32(programs if c.numel() == 1 else R, x)
    if R:
        _launch(_log_backward, programs, g, x, y, wide_c, dx, dy, dc, R, D, g_stride, x_stride, y_stride, c_div, c_mod,
                ONE_C=c.numel() == 1, X_LARGEST=_largest(dx.dtype), Y_LARGEST=_largest(dy.dtype), ROWS=rows, BLOCK_D=block_d,
                **options)
    return dx, dy, _to_shape(dc, lead, c)


@_logmap_grad.register_fake
def _(g, x, y, c):
    return _like(x), _like(y), torch.empty_like(c, memory_format=torch.contiguous_format)


_logmap.register_autograd(lambda ctx, g: _logmap_grad(g, *ctx.saved_tensors),
                          setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


# ----------------------------------------------------------------------------------------------------------------------
# the function

def logmap(x, y, c):
    """geometry.logmap"""
    return _logmap(*_common((x, y), c), _tensor(c, x))
