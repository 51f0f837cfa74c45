"""
Rows and their dtypes: casts that saturate, dot products in the wide dtype, shapes. All differentiable twice: each backward is made of
functions that have one.
"""
import math
import numbers

import torch

from geometry.float32 import wide_on
from geometry.inductor import _EveryRow, _for_cpu_code, _row_sum, _stored, _sum_to
from geometry.limits import BALL_MARGIN, TANGENT_LIMIT_FLOAT32
from geometry.transforms import apply


class _FiniteCast(torch.autograd.Function):
    """Cast that saturates at the largest finite number of the target instead of overflowing, in both directions."""

    @staticmethod
    def forward(ctx, row, dtype, is_gradient=False):
        ctx.dtype = row.dtype
        return _saturate(row, dtype, is_gradient)

    @staticmethod
    def backward(ctx, grad):
        return _FiniteCast.apply(grad, ctx.dtype, True), None, None


def _finite_cast(row, dtype):
    return apply(_FiniteCast, _saturate, row, dtype)


def _saturate(row, dtype, is_gradient=False):
    """Gradients in float32, those of c, which several operations add, at a 1024th: so many can be added and stay finite."""
    bound = torch.finfo(dtype).max / (1024 if is_gradient and dtype == torch.float32 else 1)
    return row.to(dtype) if bound >= torch.finfo(row.dtype).max else row.clamp(-bound, bound).to(dtype)


def _cast(row, dtype):
    if row.dtype == dtype:
        return row
    if torch.float16 in (row.dtype, dtype):  # its range ends at 65,504; the others share float32's or exceed it
        return _finite_cast(row, dtype)
    return row.to(dtype)


def _wide(*rows):
    """The dtype of dot products and row coefficients: float64, or float32 where use_row_scalars says so (geometry/float32.py)."""
    return torch.float64 if any(row.dtype == torch.float64 for row in rows) else wide_on(rows[0].device)


def as_curvature(c, dtype, device, of_rows=True):
    """c itself, if it is a tensor; a number as a tensor of this dtype. TypeError, ValueError: it is neither, or no curvature. (Whether
    a tensor has a NaN in it is not looked at: that waits for the device. GEOMETRY_CHECK=1 does.) of_rows: it is to go with rows."""
    if isinstance(c, torch.Tensor):
        if not c.is_floating_point():
            raise TypeError(f"c is a tensor of {c.dtype}: a curvature is a floating point number")
        if of_rows and c.dim() and c.shape[-1] != 1:
            raise ValueError(f"c of shape {tuple(c.shape)}: it has one number for each row, so its last dimension must be 1 (of heads: "
                             "(n_head, 1))")
        return c
    if isinstance(c, bool) or not isinstance(c, (numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"c = {c!r}: a curvature is a number, or a tensor of floating point numbers")
    if isinstance(c, numbers.Real):
        try:
            c = float(c)
        except OverflowError:
            raise ValueError("c is beyond the range of float64") from None
        if c != c or abs(c) == math.inf:
            raise ValueError(f"c is {'NaN' if c != c else c}")
    return torch.full((), c, dtype=dtype, device=device)


def _prepare(c, *rows, per_row=True):
    """c as a tensor of the wide dtype, the dtype in which to store the result, and the rows in that of the arithmetic.
    per_row=False where c goes with other rows than these."""
    stored = rows[0].dtype
    for row in rows[1:]:
        stored = torch.promote_types(stored, row.dtype)
    if stored not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(f"rows must be float32, bfloat16, float16 or float64, not {stored}")
    wide, compute = _wide(*rows), torch.promote_types(stored, torch.float32)
    c = as_curvature(c, wide, rows[0].device)
    c = c if c.dtype == wide else _finite_cast(c, wide)
    if per_row and c.dim() and _for_cpu_code(rows[0]):
        shape = torch.broadcast_shapes(c.shape, *((*row.shape[:-1], 1) for row in rows))
        c = _EveryRow.apply(c, shape)
    return c, stored, *(_cast(row, compute) for row in rows)


# ----------------------------------------------------------------------------------------------------------------------
# rows -> row scalars -> rows. All differentiable twice: each backward is made of functions that have one.

def _dot(a, b):
    """Row-wise dot product in the wide dtype, (..., D) x (..., D) -> (..., 1)."""
    return apply(_Norm2, _plain_norm2, a) if a is b else apply(_Dot, _plain_dot, a, b)


def _scale(k, row):
    """k * row for a wide row scalar k (..., 1), in the row's dtype."""
    return apply(_Scale, _plain_scale, k, row)


def _gram(x, y, sign):
    """(x.x, x.w, w.w) with w = y + sign x taken in the wide dtype. 2 x (..., D) -> 3 x (..., 1), wide."""
    return apply(_Gram, _plain_gram, x, y, sign)


def _plain_dot(a, b):
    wide = _wide(a, b)
    return _row_sum(a.to(wide) * b.to(wide))


def _plain_norm2(a):
    return _row_sum(a.to(_wide(a)).square())


def _plain_scale(k, row):
    return _stored(k.to(row.dtype)) * row


def _plain_gram(x, y, sign):
    wide = _wide(x, y)
    x, y = x.to(wide), y.to(wide)
    w = y + sign * x
    return tuple(_row_sum(a * b) for a, b in ((x, x), (x, w), (w, w)))


class _Dot(torch.autograd.Function):

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return _plain_dot(a, b)

    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return _sum_to(_scale(g, b), a.shape), _sum_to(_scale(g, a), b.shape)


class _Norm2(torch.autograd.Function):

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return _plain_norm2(a)

    @staticmethod
    def backward(ctx, g):
        a, = ctx.saved_tensors
        return _scale(2 * g, a)


class _Scale(torch.autograd.Function):

    @staticmethod
    def forward(ctx, k, row):
        ctx.save_for_backward(k, row)
        return _plain_scale(k, row)

    @staticmethod
    def backward(ctx, g):
        k, row = ctx.saved_tensors
        return _sum_to(_dot(g, row), k.shape), _sum_to(_scale(k, g), row.shape)


class _Gram(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, y, sign):
        ctx.save_for_backward(x, y)
        ctx.sign = sign
        return _plain_gram(x, y, sign)

    @staticmethod
    def backward(ctx, g_xx, g_xw, g_ww):
        x, y = ctx.saved_tensors
        wide_x, wide_y = x.to(g_xx.dtype), y.to(g_xx.dtype)  # far out on the sphere the terms of grad_x cancel
        w = wide_y + ctx.sign * wide_x
        grad_w = g_xw * wide_x + 2 * g_ww * w
        grad_x = 2 * g_xx * wide_x + g_xw * w + ctx.sign * grad_w
        return _cast(_sum_to(grad_x, x.shape), x.dtype), _cast(_sum_to(grad_w, y.shape), y.dtype), None


def _limited(v, limit):
    """v, shortened where a component is over the limit. The shortening counts as a constant in the derivatives."""
    with torch.no_grad():
        length = torch.linalg.vector_norm(v, float("inf"), dim=-1, keepdim=True)
        shrink = torch.where(length > limit, limit / length, 1.0)
    return v * shrink


def _squarable(v):
    """Where there is no wider dtype for the squares of rows, long ones are shortened."""
    if v.dtype == torch.float64:
        return _limited(v, 1e90)
    return _limited(v, TANGENT_LIMIT_FLOAT32) if _wide(v) == torch.float32 and v.dtype != torch.float16 else v


# ----------------------------------------------------------------------------------------------------------------------
# shapes and dtypes

def _tensors(x, c, limit=None):
    """Numbers as tensors beside the rows x."""
    dtype = _wide(x)
    c = as_curvature(c, dtype, x.device)
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


def _narrow(row, dtype, is_gradient=False):
    """Saturating where the range is smaller."""
    if row.dtype == dtype:
        return row
    return _saturate(row, dtype, is_gradient)
