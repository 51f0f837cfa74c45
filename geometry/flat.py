"""
What a curved block does, in flat space (results/component): rows and updates of a largest length, and how alike two rows are.

    bound(x)           = x min(1, R / |x|)
    limit(v)           = v / sqrt(1 + |v|^2 / L^2), at most L long
    bounded_sum(x, v)  = bound(x + limit(v))
    cosine(x, r)       = <x, r> / (|x| |r|)

Rows (..., n) of any floating-point dtype, which is that of the arithmetic, too, and in which |x|^2 has to be finite (float32: rows of at
most 1e19; longer ones become 0); R, L > 0: numbers. The gradient of bounded_sum is in
closed form: one pass over the rows where autograd's rules take three. Under torch.func and for second derivatives they are at work
(geometry/transforms.py).
"""
import torch

from geometry.coefficients import _second_order, _through_autograd
from geometry.transforms import apply, first


def bound(rows, longest):
    """Rows at most `longest` long. (..., n) -> the same."""
    return rows * _shrink(rows, longest)


def bounded_sum(x, v, longest, longest_update):
    """x + v, with v shortened to less than longest_update (smoothly) and the sum to at most `longest`. (..., n) x 2 -> (..., n)"""
    return apply(_BoundedSum, first(_bounded_sum), x, v, longest, longest_update)


def inverse_length(rows):
    """1 / |x|, at most 1e8 (float16: 128). Its gradient in float32 is for rows of at most 1e12. (..., n) -> (..., 1)"""
    return torch.rsqrt(_norm2(rows).clamp(min=max(1e-16, torch.finfo(rows.dtype).tiny)))


def cosine(x, r, inverse_x, inverse_r):
    """Of rows and their inverse lengths: 1 / |r| of r = x_prev is that of x, one token on. (..., n) x 2, (..., 1) x 2 -> (..., 1)"""
    return (x * r).sum(-1, keepdim=True) * (inverse_x * inverse_r)


def _norm2(rows):
    return rows.square().sum(-1, keepdim=True)


def _shrink(rows, longest):
    return torch.rsqrt((_norm2(rows) / longest ** 2).clamp(min=1))


def _bounded_sum(x, v, longest, longest_update):
    s = torch.rsqrt(1 + _norm2(v) / longest_update ** 2)
    y = x + s * v
    m = _shrink(y, longest)
    return m * y, (s, m)


class _BoundedSum(torch.autograd.Function):
    """z = m y, y = x + s v. Of the cotangent g of z:

        grad_x = m g - k z, k = m <g, z> / R^2 where m < 1, else 0
        grad_v = s grad_x - s^3 / L^2 <grad_x, v> v, <grad_x, v> = m <g, v> - k <z, v>
    """

    @staticmethod
    def forward(ctx, x, v, longest, longest_update):
        z, (s, m) = _bounded_sum(x, v, longest, longest_update)
        ctx.save_for_backward(x, v, z, s, m)
        ctx.lengths = longest, longest_update
        return z

    @staticmethod
    def backward(ctx, g):
        x, v, z, s, m = ctx.saved_tensors
        longest, longest_update = ctx.lengths
        if _second_order():
            return _through_autograd(_bounded_sum, g, (x, v, longest, longest_update), ctx.needs_input_grad)
        gz, gv, zv = ((a * b).sum(-1, keepdim=True) for a, b in ((g, z), (g, v), (z, v)))
        k = torch.where(m < 1, m * gz / longest ** 2, 0.0)
        grad_x = m * g - k * z
        return grad_x, s * grad_x - s ** 3 / longest_update ** 2 * (m * gv - k * zv) * v, None, None
