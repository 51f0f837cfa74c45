"""
The logarithm: log_x(y), and of every token at the token before it.

Maps with their derivatives in closed form (here and in sums.py). Each is a function _xxx(rows, c, ...) -> (result, row scalars to keep)
of plain operations, and _xxx_backward, written for the row scalars so that the rows are read once for two dot products and once for
the result. Where a derivative is itself to be differentiated, autograd goes through _xxx instead.

The dot products with the cotangent are taken in float32 and what is made of them in float64: they enter linearly, so their rounding
error is scaled by the same coefficients, which cancel, as they are themselves.
"""
import torch
from torch.nn import functional as F

from geometry.coefficients import (
    _coefficient,
    _denominator,
    _gradient,
    _inside,
    _log_coefficient,
    _row_denominator,
    _second_order,
    _through_autograd,
    _wide_c,
    _wide_distance2,
    _wide_norm2,
)
from geometry.float32 import norm2_parts, one_minus
from geometry.inductor import _row_sum, _stored
from geometry.rows import _narrow, _row_dtypes
from geometry.scalar_functions import _artanc_slope


def _log(x, y, c):
    stored, dtype = _row_dtypes(x, y)
    x, y, c = x.to(dtype), y.to(dtype), _wide_c(c, x, y)
    if c.dtype == torch.float32:
        scalars, row = _log_float32(x, y, c, norm2_parts(x), norm2_parts(y))
    else:
        scalars, row = (_wide_norm2(x), _wide_norm2(y), _wide_distance2(x, y, -1), None, None, None), None
    out, k = _log_rows(x, y, c, *scalars, row)
    return _narrow(out, stored), (*scalars, k)


def _log_float32(x, y, c, x_parts, y_parts):
    """|x|^2, |y|^2, |d|^2, A, B and M where row scalars are float32, and the row d - (c|d|^2/A) x."""
    a, b, d = _inside(one_minus(c, *x_parts)), _inside(one_minus(c, *y_parts)), y - x
    dd = _wide_norm2(d)
    e = c * dd
    row = torch.addcmul(d, -e / a, x)
    return (x_parts[0], y_parts[0], dd, a, b, _row_denominator(a, b, e, _wide_norm2(row), dd)), row


def _log_scalars(c, xx, yy, dd, a, b, m):
    if a is not None:  # float32
        return a, b, c * dd, m
    cx, cy, e = c * xx, c * yy, c * dd
    a, b = _inside(1 - cx), _inside(1 - cy)
    return a, b, e, _denominator(a, b, cx, cy, e)


def _log_rows(x, y, c, xx, yy, dd, a, b, m, row):
    """The factored form beta (d + rho x) rounds once where d and rho x nearly cancel, which is for antipodes."""
    a, b, e, m = _log_scalars(c, xx, yy, dd, a, b, m)
    k = _log_coefficient(e / m, a * b / m)
    if row is None:
        row = torch.addcmul(y - x, _coefficient(-e / a, x), x)
    return _coefficient(a * k * a / m, x) * row, k


def _log_backward(g, x, y, c, xx, yy, dd, a, b, m, k):
    """(grad_x, grad_y, gradient of c for each row). With E = c|d|^2, z = E/M, K = artanc z, kappa = A K/M the result is
    kappa (A d - E x), and M = A B + E."""
    is_float32 = a is not None
    a, b, e, m = _log_scalars(c, xx, yy, dd, a, b, m)
    d = y - x
    gx, gd = _row_sum(g * x).to(a.dtype), _row_sum(g * d).to(a.dtype)
    z, one_minus_z = e / m, a * b / m
    kappa = a * k / m
    psi = a * gd - e * gx  # <g, A d - E x>
    by_z = a * psi / m * _artanc_slope(z, one_minus_z, k)
    by_m = -(by_z * z + kappa * psi) / m
    by_a = k * psi / m + kappa * gd + by_m * b
    by_b = by_m * a
    if is_float32:  # what cancels in the chain rule's terms is cancelled by hand: by_c (see kernels/) is of the order of |d|^2
        by_e = (by_z * one_minus_z - kappa * a * (gd + b * gx)) / m
        complement = torch.where(c > 0, a + b * (c * xx), 1 - (c * xx) * (c * yy))
        by_c = (dd * (by_z * complement / m - k * gx) + 2 * (k / m) * psi * (a * _row_sum(x * d) - c * xx * dd)) / m
    else:
        by_e = by_z / m + by_m - kappa * gx
        by_c = dd * by_e - xx * by_a - yy * by_b
    along_d = d.mul_(_coefficient(2 * c * by_e, x))
    grad_x = (_coefficient(-kappa * (a + e), x) * g).sub_(along_d).addcmul_(_coefficient(-2 * c * by_a, x), x)
    grad_y = along_d.addcmul_(_coefficient(kappa * a, x), g).addcmul_(_coefficient(-2 * c * by_b, x), y)
    return grad_x, grad_y, _stored(by_c)


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
        dtype, c_wide = _row_dtypes(x, y)[1], _wide_c(c, x, y, wide=scalars[0].dtype)
        grads = _log_backward(g.to(dtype), x.to(dtype), y.to(dtype), c_wide, *scalars)
        return tuple(_gradient(grad, like) for grad, like in zip(grads, (x, y, c)))


def _shifted(x, steps=1):
    """x_{t-steps} in place of x_t, zeros where there is none; t is dimension 1."""
    if not x.size(1):
        return x
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
    if c.dtype == torch.float32:
        parts = norm2_parts(x)
        (_, *scalars), row = _log_float32(r, x, c, [_stored(_shifted(part)) for part in parts], parts)
    else:
        scalars, row = [_wide_norm2(x), _wide_distance2(r, x, -1), None, None, None], None
    out, k = _log_rows(r, x, c, _stored(_shifted(scalars[0])), *scalars, row)
    return _narrow(out, stored), (*scalars, k)


class _LogPrevious(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, c):
        out, scalars = _log_previous(x, c)
        ctx.save_for_backward(x, c, *scalars)
        return out

    @staticmethod
    def backward(ctx, g):
        stored_x, c, xx, *scalars = ctx.saved_tensors
        if _second_order():
            return _through_autograd(_log_previous, g, (stored_x, c), ctx.needs_input_grad)
        dtype = _row_dtypes(stored_x)[1]
        x = stored_x.to(dtype)
        grad_r, grad_x, grad_c = _log_backward(g.to(dtype), _shifted(x), x, _wide_c(c, x, wide=xx.dtype), _stored(_shifted(xx)),
                                               xx, *scalars)
        grad_x = grad_x + _shifted(grad_r, -1)
        return _gradient(grad_x, stored_x), _gradient(grad_c, c)
