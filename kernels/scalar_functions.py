"""
tanc and artanc (geometry/) and their slopes, for one number a row. They are made from exp, log and polynomials: Triton has no
tanh, tan, atanh or atan of its own.
"""
import triton
import triton.language as tl

SATURATED = tl.constexpr(1024.0)  # tanh is 1 in float32 from sqrt of it on


@triton.jit
def _tanc_series(z):
    """tanc z - 1, |z| < 0.62"""
    p = 2.6147711512907542e-06 - 1.059726832010465e-06 * z
    p = -6.451689215655431e-06 + z * p
    p = 1.591890506932896e-05 + z * p
    p = -3.927832388331683e-05 + z * p
    p = 9.69153795692945e-05 + z * p
    p = -0.00023912911424355242 + z * p
    p = 0.000590027440945586 + z * p
    p = -0.0014558343870513181 + z * p
    p = 0.0035921280365724807 + z * p
    p = -0.008863235529902196 + z * p
    p = 0.021869488536155203 + z * p
    p = -0.053968253968253964 + z * p
    p = 0.13333333333333333 + z * p
    return z * (-0.3333333333333333 + z * p)


@triton.jit
def _tanc_slope_series(z):
    """|z| < 0.3"""
    p = 0.000969153795692945 - 0.00043206156271648514 * z
    p = -0.0021521620281919718 + z * p
    p = 0.004720219527564688 + z * p
    p = -0.010190840709359227 + z * p
    p = 0.021552768219434883 + z * p
    p = -0.04431617764951098 + z * p
    p = 0.08747795414462081 + z * p
    p = -0.16190476190476188 + z * p
    return -0.3333333333333333 + z * (0.26666666666666666 + z * p)


@triton.jit
def _artanc_series(z):
    """sum of z^n / (2n + 1), |z| < 0.5"""
    p = z * 0.0
    for i in tl.static_range(24):
        p = 1.0 / (2 * (23 - i) + 1) + z * p
    return p


@triton.jit
def _artanc_slope_series(z):
    """sum of (n + 1) z^n / (2n + 3), |z| < 0.5"""
    p = z * 0.0
    for i in tl.static_range(28):
        p = (28 - i) / (2 * (27 - i) + 3) + z * p
    return p


@triton.jit
def _tanc(z):
    """(tanc z, 1 - z tanc(z)^2) for -(pi/2)^2 < z <= SATURATED."""
    s = tl.sqrt_rn(tl.maximum(z, 0.62))
    e = tl.exp(-2.0 * s)
    # tan s = 1/tan(pi/2 - s) = 1/(t tanc(-t^2)). s = q + more, from -z - q^2 (the square exactly, from two halves of q), and
    # pi/2 is in two parts, too, so that t loses nothing near the pole; lost: what its last rounding and that of q are, of 1
    q = tl.sqrt_rn(tl.maximum(-z, 0.62))
    high = q * 4097.0
    high = high - (high - q)
    low = q - high
    more = (((tl.maximum(-z, 0.62) - high * high) - 2.0 * high * low) - low * low) / (2.0 * q)
    rest = more + 4.371139000186241e-08
    t = (1.5707963705062866 - q) - rest
    lost = (((1.5707963705062866 - q) - t) - rest) / t + more / q
    near_pole = z < -0.62
    series = _tanc_series(tl.where(near_pole, -t * t, tl.where(z > 0.62, 0.0, z)))
    above = tl.where(near_pole, 1.0, 1.0 - e)
    below = tl.where(near_pole, (t + t * (series + lost)) * q, (1.0 + e) * s)
    k = tl.where((z > 0.62) | near_pole, tl.div_rn(above, below), 1.0 + series)
    return k, tl.where(z > 0.62, 4.0 * e / ((1.0 + e) * (1.0 + e)), 1.0 - z * k * k)


@triton.jit
def _tanc_slope(z, k, rest):
    """d tanc/dz, k = tanc z, rest = 1 - z k^2 (0 where the argument was bounded: there z k^2 is a constant)"""
    small = tl.abs(z) < 0.3
    return tl.where(small, _tanc_slope_series(tl.where(small, z, 0.0)), 0.5 * (rest - k) / tl.where(small, 1.0, z))


@triton.jit
def _artanc(z, one_minus_z):
    hyperbolic = z > 0.5
    r = tl.sqrt_rn(tl.maximum(tl.abs(z), 0.5))
    artanh = 0.5 * tl.log(tl.where(hyperbolic, tl.div_rn((1.0 + r) * (1.0 + r), one_minus_z), 1.0))
    # arctan r = pi/4 + arctan((r - 1)/(r + 1)), or pi/2 - arctan(1/r) for r > 2; pi in two parts
    far = r > 2.0
    w = tl.div_rn(tl.where(far, -1.0, r - 1.0), tl.where(far, r, r + 1.0))
    spherical = z < -0.5
    series = _artanc_series(tl.where(spherical, -w * w, tl.where(hyperbolic, 0.0, z)))
    arctan = tl.where(far, 1.5707963705062866 + (w * series - 4.371139000186241e-08),
                      0.7853981852531433 + (w * series - 2.1855695000931204e-08))
    return tl.where(hyperbolic | spherical, tl.div_rn(tl.where(hyperbolic, artanh, arctan), r), series)


@triton.jit
def _artanc_slope(z, one_minus_z, k):
    small = tl.abs(z) < 0.5
    return tl.where(small, _artanc_slope_series(tl.where(small, z, 0.0)),
                    0.5 * (1.0 / one_minus_z - k) / tl.where(small, 1.0, z))
