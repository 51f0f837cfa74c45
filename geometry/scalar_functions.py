"""tanc and artanc, the two analytic functions of one number that all maps are made of, with their derivatives."""
import torch

SERIES_BELOW = 0.05  # |z| under which tanc and artanc are summed as a power series
# tanc in float32: the slope of tan(s)/s is a difference of numbers 1.5/|z| times larger, and tan's last digit differs by the CPU
TANC_SERIES_BELOW = {torch.float32: 0.1, torch.float64: SERIES_BELOW}
# enough terms that the remainder at these |z| is below half an ulp of the dtype, also in the derivative
TANC_TERMS = {torch.float32: 7, torch.float64: 13}
ARTANC_TERMS = {torch.float32: 8, torch.float64: 15}

# The same for derivatives in closed form, differences divided by 2 z: |z| under which they are a power series instead, and
# its number of terms. float64 loses 1e-16/1e-4 there and the series leaves out 1e-4 cubed: 1e-12.
SLOPE_SERIES = {torch.float32: (0.25, 13), torch.float64: (1e-4, 3)}


def _tanc_coefficients(n):
    """First n coefficients of tanh(sqrt z)/sqrt z as a power series in z, from y' = 1 - y^2 term by term."""
    a = [1.0]
    for k in range(1, n):
        # tanh s = sum_k a_k s^(2k+1), and (2k+1) a_k is minus the coefficient of s^(2k) in tanh^2
        a.append(-sum(a[i] * a[k - 1 - i] for i in range(k)) / (2 * k + 1))
    return a


_TANC = _tanc_coefficients(max(TANC_TERMS.values()))
_ARTANC = [1.0 / (2 * k + 1) for k in range(max(ARTANC_TERMS.values()))]


def horner(z, coefficients):
    """sum_k a_k z^k. z: any shape; coefficients: two numbers or more."""
    total = coefficients[-1] * z + coefficients[-2]
    for a in coefficients[-3::-1]:
        total = total * z + a
    return total


def _branches(z, below=SERIES_BELOW):
    """The three regimes of z with inputs that are safe in the regimes that are not taken: their values are thrown
    away by `where`, but a NaN or Inf gradient there would survive being multiplied by zero."""
    small = z.abs() < below
    series_z = torch.where(small, z, 0.0)
    root = torch.sqrt(torch.where(small, 1.0, z.abs()))
    return small, series_z, root


def tanc(z):
    """tanh(sqrt z)/sqrt z for z > 0, tan(sqrt -z)/sqrt -z for z < 0, analytic through tanc(0) = 1.

    z: float32 or float64, any shape, z > -(pi/2)^2 (the pole of tan). With z = c s^2, sqrt|c| s tanc(z) is the
    stereographic radius at half-distance sqrt|c| s.
    """
    small, series_z, s = _branches(z, TANC_SERIES_BELOW[z.dtype])
    tan = torch.tan(torch.where(z < 0, s, 0.5))
    series = horner(series_z, _TANC[:TANC_TERMS[z.dtype]])
    return torch.where(small, series, torch.where(z < 0, tan, torch.tanh(s)) / s)


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
    series = horner(series_z, _ARTANC[:ARTANC_TERMS[z.dtype]])
    return torch.where(small, series, torch.where(z < 0, arctan, artanh) / r)


def _slope(z, numerator, coefficients):
    """numerator/(2 z), or the derivative of the power series where z is small. z: wide."""
    below, terms = SLOPE_SERIES[z.dtype]
    size = z.abs()
    series = horner(z.clamp(-below, below), [k * a for k, a in enumerate(coefficients[:terms + 1])][1:])
    return torch.where(size < below, series, 0.5 * numerator / torch.copysign(size.clamp(min=below), z))


def _tanc_slope(z, k, b):
    """d tanc/dz = (b - k)/(2 z) with k = tanc(z), b = 1 - z k^2."""
    return _slope(z, b - k, _TANC)


def _artanc_slope(z, one_minus_z, k):
    """d artanc/dz = (1/(1 - z) - k)/(2 z) with k = artanc(z)."""
    return _slope(z, 1 / one_minus_z - k, _ARTANC)
