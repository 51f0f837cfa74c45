"""
Logits by distance to hyperplanes. With u the product of a row and a normal w, scaled as the space wants it,

    l = u F(k u^2/|w|^2),    F(z) = asinh(sqrt z)/sqrt z,    asin(sqrt -z)/sqrt -z for z < 0

which is |w|/sqrt(k) asinh(sqrt(k) u/|w|): the length of the normal times the signed distance to its hyperplane through the origin.
Analytic in k: at k = 0 it is u.
"""
import math

import torch

from geometry import SPHERE_CAP
from geometry.coefficients import _second_order, _through_autograd
from geometry.float32 import wide_on
from geometry.scalar_functions import horner
from geometry.transforms import apply

SERIES_BELOW = 0.05  # |z| under which sinhc is a power series, sum_k z^k/(2k + 1)!
TERMS = {torch.float32: 5, torch.float64: 9}
_SINHC = [1 / math.factorial(2 * k + 1) for k in range(TERMS[torch.float64])]
# F(z) = sum_k a_k z^k; |z| under which F' is taken from that, and its number of terms
_ARSINC = [(-1) ** k * math.comb(2 * k, k) / 4 ** k / (2 * k + 1) for k in range(15)]
SLOPE_SERIES = {torch.float32: (0.02, 4), torch.float64: (1e-3, 5)}
WRITTEN_OUT_BELOW = 0.1  # |z| under which F is a power series where autograd takes its derivatives, which divide by z
REACH = 20.0  # in units of 1/sqrt c: rows and hyperplanes further from the origin count as being there. exp(2 REACH)^2 fits float32


def arsinc(z):
    """F(z). Any shape; z >= -1 (less counts as -1)."""
    size = z.abs().clamp(min=torch.finfo(z.dtype).tiny)
    r = torch.sqrt(size)
    # torch.asinh takes 30 times as long on a CPU; small r keep their digits
    asinh = torch.log1p(r + size / (1 + torch.sqrt(1 + size)))
    return torch.where(z < 0, torch.asin(r.clamp(max=1)), asinh) / r


def arsinc_written_out(z):
    """F(z), which autograd differentiates any number of times. Any shape, float32 or float64; z >= -1 (less counts as -1)."""
    small = z.abs() < WRITTEN_OUT_BELOW
    r = torch.sqrt(torch.where(small, 1.0, z.abs()))
    arcsine = torch.asin(torch.where(z < 0, r, 0.5).clamp(max=1 - torch.finfo(z.dtype).eps))
    return torch.where(small, horner(torch.where(small, z, 0.0), _ARSINC), torch.where(z < 0, arcsine, torch.asinh(r)) / r)


def inverse_root(z):
    """P(z) = 1/sqrt(1 + z), with which 2 z F' = P - F."""
    return torch.rsqrt((1 + z).clamp(min=torch.finfo(z.dtype).eps))


def arsinc_slope(z, f, p):
    """F'(z), given F and P."""
    below, terms = SLOPE_SERIES[z.dtype]
    small = z.abs() < below
    series = horner(z.clamp(-below, below), [k * a for k, a in enumerate(_ARSINC[:terms + 1])][1:])
    return torch.where(small, series, 0.5 * (p - f) / torch.where(small, 1.0, z))


def sinhc(z):
    """sinh(sqrt z)/sqrt z, sin(sqrt -z)/sqrt -z for z < 0; autograd differentiates it."""
    small = z.abs() < SERIES_BELOW
    s = torch.sqrt(torch.where(small, 1.0, z.abs()))
    return torch.where(small, horner(torch.where(small, z, 0.0), _SINHC[:TERMS[z.dtype]]),
                       torch.where(z < 0, torch.sin(s), torch.sinh(torch.where(z < 0, 1.0, s))) / s)


def cosh_root(z):
    """cosh(sqrt z), cos(sqrt -z) for z < 0; likewise."""
    return 1 + 0.5 * z * sinhc(0.25 * z).square()


def norm2(row):
    """|row|^2, (..., D) -> (..., 1), in the dtype of geometry/'s row scalars. (At most 1e30, so that float32 holds what follows.)"""
    wide = torch.float64 if row.dtype == torch.float64 else wide_on(row.device)
    return row.to(wide).square().sum(-1, keepdim=True).clamp(max=1e30)


def _reached(z, farthest=REACH):
    """z, within what REACH and, for z < 0, `farthest` (an angle) allow; and the square root of the ratio of the two."""
    bounded = z.clamp(-farthest ** 2, REACH ** 2)
    beyond = bounded != z
    return bounded, torch.sqrt(torch.where(beyond, bounded, 1.0) / torch.where(beyond, z, 1.0))


def row_coefficients(hh, c, stored):
    """Of x = exp_0(h), with s = 2 sqrt(c)|h|: a = sinh(s)/s, which is lambda_x |x|/(2 |h|), and cosh(s), (1 + c|x|^2)/(1 - c|x|^2); without
    x itself, which float32 would put at the ball's edge. hh: |h|^2 (..., 1) and c (), wide. Rows beyond REACH, or beyond a sphere's last
    point before the antipode, count as being there."""
    z, ratio = _reached(4 * c * hh, math.pi - 2 * SPHERE_CAP[stored])
    return sinhc(z) * ratio, cosh_root(z)


def offset_products(d, a, t, norm, r, k):
    """d cosh(sqrt k r) - t/a |w| sinh(sqrt k r)/sqrt k: what takes the place of d where the hyperplanes are at a (signed) distance from the
    origin, through r w/|w|. t: what the constant of a row is, cosh(s) or sqrt(1 + c|h|^2). r, norm: (V,)."""
    z, ratio = _reached(k * r.square(), 1.5)
    return d * cosh_root(z).to(d.dtype) - (t / a).to(d.dtype) * (norm * (r * ratio * sinhc(z))).to(d.dtype)


def chunks(rows, width, device):
    """Slices of rows in which eager code works, so that the numbers in between stay in a CPU's cache (half the time for a vocabulary of
    50,000), or are no large part of a GPU's memory."""
    if torch.compiler.is_compiling():
        return [slice(0, rows)]
    step = max(1, (2 ** 17 if device.type == "cpu" else 2 ** 26) // max(1, width))
    return [slice(first, first + step) for first in range(0, rows, step)]


class _Hyperplanes(torch.autograd.Function):
    """l = a d F(k a^2 d^2/n). d: products (N, V); a: (N, 1); n: |w|^2 (V,); k: (). Of (N, V) only d is kept."""

    @staticmethod
    def forward(ctx, d, a, n, k):
        ctx.save_for_backward(d, a, n, k)
        parts = [a[i] * d[i] * arsinc(_Hyperplanes.argument(d[i], a[i], n, k)[0]) for i in chunks(*d.shape, d.device)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    @staticmethod
    def argument(d, a, n, k):
        """z = k a^2 d^2/n, at most 1e34 in size, so that it fits float32; and d/sqrt(n)."""
        along = d * torch.rsqrt(n.clamp(min=torch.finfo(n.dtype).tiny))
        y = (along * (a * torch.sqrt(k.abs()))).clamp(-1e17, 1e17)
        return torch.where(k < 0, -y, y) * y, along

    @staticmethod
    def backward(ctx, g):
        d, a, n, k = ctx.saved_tensors
        if _second_order():
            return _through_autograd(lambda *inputs: [_written_out(*inputs)], g, (d, a, n, k), ctx.needs_input_grad)
        parts = [_Hyperplanes.gradients(g[i], d[i], a[i], n, k, ctx.needs_input_grad[3]) for i in chunks(*d.shape, d.device)]
        if len(parts) == 1:
            return parts[0]
        by_d, by_a, by_n, by_k = zip(*parts)
        return torch.cat(by_d), torch.cat(by_a), sum(by_n), None if by_k[0] is None else sum(by_k)

    @staticmethod
    def gradients(g, d, a, n, k, by_curvature):
        z, along = _Hyperplanes.argument(d, a, n, k)
        f, p = arsinc(z), inverse_root(z)
        by_u, weight, grad_k = g * p, g * (a * d), None
        grad_n = -0.5 * (weight * (p - f)).sum(0) / n.clamp(min=torch.finfo(n.dtype).tiny)
        if by_curvature:
            largest, along = torch.finfo(d.dtype).max ** 0.75, a * along  # of such numbers many can be added
            grad_k = (weight * arsinc_slope(z, f, p) * along * along).clamp(-largest, largest).sum()
        return a * by_u, (by_u * d).sum(-1, keepdim=True), grad_n, grad_k


def _written_out(d, a, n, k):
    """l, by operations that autograd differentiates any number of times."""
    along = (a * d * torch.rsqrt(n.clamp(min=torch.finfo(n.dtype).tiny))).clamp(-1e17, 1e17)
    return a * d * arsinc_written_out((k * along.square()).clamp(-1e34, 1e34))


def hyperplanes(d, a, n, k):
    """u F(k u^2/n), u = a d. d: (..., V) of float32 or float64; a: (..., 1) and n: (V,) and k: (), wide -> (..., V)."""
    a, n, k = (t.to(d.dtype) for t in (a, n, k))
    return apply(_Hyperplanes, _written_out, d.reshape(-1, d.size(-1)), a.reshape(-1, 1), n, k).reshape(d.shape)
