"""
Row scalars without float64: which devices want that, and the float32 arithmetic that keeps the digits.

    use_row_scalars("float32")     float64 for float64 rows only
    use_row_scalars("float64")     float64 for all rows (mps has none and is refused)
    use_row_scalars("auto")        float64, but not on mps and not on CUDA cards whose float64 is slower than 1/4 of float32

geometry/ sums dot products in float64 and works on what follows from them in float64. Cards for games do 1/64 as many float64
operations a second as float32 ones (docs/float64.md). The choice is one for the process. It is made where a model is built,
before its first step.

What float32 loses. A = 1 - c|x|^2 is a difference of nearly equal numbers for rows near the ball's edge: a rounding error of
|x|^2 is magnified by 1/A, up to 8,192 times, and A enters everything. So |x|^2 is kept as the sum of two float32 numbers:

    x = h + r,    h = x rounded to multiples of u, a power of 2 of about 2^-11 |x|
    |x|^2 = sum h h + sum (x + h) r

The products h h and all their sums are whole multiples of u^2 below 2^24 u^2, which float32 holds exactly, in any order. The
second sum is at most some 2^-8 of the first, and so is its rounding error: |x|^2 is known to some 2^-33. A is then formed from
the exact product c|x|^2 and rounded once. The other row scalars are sums of positive numbers for c > 0, to which float32 does no
harm; on the sphere, where N and M are differences, they are taken from the row that they belong to.

Contraction. A compiler may turn a product and a sum into one fused multiply-add, which rounds once and not twice. Textbook forms
(Dekker 1971, with Veltkamp's split) break when it does so to one of two equal products. Here every product that is to be exact is
exact (factors of 12 bits), and numbers are split by masking their bits and not by a product, so that fusing changes nothing.
"""
import torch

from common.errors import UserError
from geometry.transforms import apply

CHOICES = ("auto", "float64", "float32")
SLOWEST = 1 / 4  # of the float32 rate: devices below this are spared float64
# float64 operations for each float32 one: NVIDIA, CUDA C++ Programming Guide, arithmetic throughput by compute capability. All
# others since 5.0 are at 1/32 or 1/64.
HALF_RATE = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}

_choice = "auto"  # float64 where nobody asked whether a GPU has it at speed
_float32_on = frozenset({"mps"})  # device types


def float64_rate(capability):
    """float64 operations for each float32 one on an NVIDIA GPU of this compute capability (at most)."""
    return 1 / 2 if tuple(capability) in HALF_RATE else 1 / 32


def _cuda_is_slow():
    if not torch.cuda.is_available():
        return False
    if torch.version.hip:  # AMD: Instinct cards (gfx90a, gfx942, ...) have float64 at 1/2 or more, Radeons at 1/16 and less
        return not torch.cuda.get_device_properties().gcnArchName.startswith("gfx9")
    return float64_rate(torch.cuda.get_device_capability()) < SLOWEST


def use_row_scalars(choice):
    """Choose for all maps of this process, see above. -> a line that says what holds now."""
    global _choice, _float32_on
    if choice not in CHOICES:
        raise UserError(f"row_scalars = {choice!r}: must be one of {', '.join(CHOICES)}")
    slow_cuda = choice == "auto" and _cuda_is_slow()
    _choice = choice
    _float32_on = {"float64": frozenset(), "float32": frozenset({"cpu", "cuda", "mps", "meta", "xpu"}),
                   "auto": frozenset({"mps", "cuda"} if slow_cuda else {"mps"})}[choice]
    where = {"float64": "float64", "float32": "float32, compensated"}.get(
        choice, "float32, compensated, on this GPU" if slow_cuda else "float64 (on mps float32, compensated)")
    return f"row scalars of the geometry: {where}"


def row_scalars():
    """The choice that holds."""
    return _choice


def wide_on(device):
    """The dtype of dot products and row scalars on this device, for rows that are not float64."""
    if device.type == "mps" and _choice == "float64":
        raise UserError("row_scalars = 'float64': Apple's mps has no float64; use --row_scalars=auto")
    return torch.float32 if device.type in _float32_on else torch.float64


# ----------------------------------------------------------------------------------------------------------------------
# float32 numbers in two parts

def _high(a):
    """The first 12 bits of a float32 number, so that products of two of these are exact."""
    return (a.detach().view(torch.int32) & -4096).view(torch.float32)


def product(a, b):
    """a b as (p, e): p = a b to a rounding error, p + e to 2^-34. (Above 1e-25: below, the parts are too small for float32.)"""
    a, b = torch.broadcast_tensors(a, b)
    a_high, b_high = _high(a.contiguous()), _high(b.contiguous())
    a_low, b_low = a - a_high, b - b_high
    middle = a_high * b_low + a_low * b_high
    p = a_high * b_high + middle
    return p, (a_high * b_high - p) + middle + a_low * b_low


def norm2_parts(x):
    """|x|^2 of float32 rows as (high, low), (..., D) -> 2 x (..., 1). Rows between 1e-15 and 1e18 long."""
    with torch.no_grad():
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        above = ((length.view(torch.int32) & 0x7F800000) + 0x00800000).view(torch.float32)  # the next power of 2
        shift = 6144 * above  # 1.5 x 2^23 u, u = 2^-11 above: adding it rounds to multiples of u
    h = (x + shift) - shift
    r = x - h
    first, second = (h * h).sum(-1, keepdim=True), ((x + h) * r).sum(-1, keepdim=True)
    high = first + second
    return high, (first - high) + second


def one_minus(c, high, low):
    """1 - c (high + low), rounded once where it cancels."""
    cx = c * high
    near = (cx > 0.125) & (cx < 8)
    p, e = product(c, torch.where(near, high, 0.0))
    a = 1 - p
    lost = (1 - (a - (a - 1))) - (p + (a - 1))  # 1 - p - a, exactly
    return torch.where(near, a + (lost - (e + c * torch.where(near, low, 0.0))), 1 - cx)


def far_step(c, high, low, z, j):
    """j in two parts, where y = j v is the end of a step v from the origin that gets near the edge: y = (1 - t)/(sqrt(c)|v|) v,
    t = 1 - tanh sqrt(z). Then a rounding error of y is magnified by up to 1/t if another point is added that is close to -y.
    high, low: |v|^2. z: c|v|^2 of the step as seen from the origin; elsewhere than at z > 1, j is kept."""
    far = (z > 1) & (c * high < 1e30)
    c, high, low, z = (torch.where(far, a, other) for a, other in ((c, 1.0), (high, 1.0), (low, 0.0), (z, 1.0)))
    p, e = product(c, high)
    e = e + c * low
    q = torch.rsqrt(p)
    qq, qq_low = product(q, q)
    one, one_low = product(qq, p)
    missing = (1 - one) - one_low - qq_low * p - qq * e  # 1 - q^2 c|v|^2
    t = torch.exp(-2 * torch.sqrt(z))
    t = 2 * t / (1 + t)
    return torch.where(far, q, j), torch.where(far, q * (0.5 * missing - t), 0.0)


class _Norm2Parts(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        high, low = norm2_parts(x)
        ctx.mark_non_differentiable(low)  # |x|^2 has its whole derivative through high
        return high, low

    @staticmethod
    def backward(ctx, g, _):
        x, = ctx.saved_tensors
        return 2 * g * x


class _OneMinus(torch.autograd.Function):

    @staticmethod
    def forward(ctx, c, high, low):
        ctx.save_for_backward(c, high)
        return one_minus(c, high, low)

    @staticmethod
    def backward(ctx, g):
        c, high = ctx.saved_tensors
        return (-g * high).sum_to_size(c.shape), -g * c, None


def norm2_and_complement(x, c):
    """(|x|^2, 1 - c|x|^2) with derivatives, of any order, in closed form. x: float32 rows, c: float32."""
    high, low = apply(_Norm2Parts, norm2_parts, x)
    return high, apply(_OneMinus, one_minus, c, high, low)
