"""
The geometry in 60-digit arithmetic (mpmath), written from the textbook Gram form and not from geometry/: with 60
digits its cancellation costs nothing. Rows are lists of mpf; c is an mpf of either sign or 0.
"""
import mpmath as mp
from mpmath.libmp import from_float, mpf_add, mpf_mul, mpf_sum

mp.mp.dps = 60
number = mp.mp.make_mpf  # of libmp's form of it. The four functions of rows are most of the work: mpf's own operators take twice as long


def row(t):
    """A 1-D tensor as exact mpf numbers (every float is a 60-digit number's prefix, so nothing is rounded)."""
    return [number(from_float(v)) for v in t.double().tolist()]


def dot(a, b):
    return number(mpf_sum([mpf_mul(p._mpf_, q._mpf_) for p, q in zip(a, b)], *mp.mp._prec_rounding))


def norm(a):
    return mp.sqrt(dot(a, a))


def axpby(alpha, x, beta, y):
    a, b, rounded = mp.mpf(alpha)._mpf_, mp.mpf(beta)._mpf_, mp.mp._prec_rounding
    if beta == 0:
        return [number(mpf_mul(a, p._mpf_, *rounded)) for p in x]
    return [number(mpf_add(mpf_mul(a, p._mpf_, *rounded), mpf_mul(b, q._mpf_, *rounded), *rounded)) for p, q in zip(x, y)]


def tan_c(s, c):
    """tanh(sqrt(c) s)/sqrt(c), tan(sqrt(-c) s)/sqrt(-c), or s."""
    if c == 0:
        return s
    r = mp.sqrt(abs(c))
    return (mp.tanh(r * s) if c > 0 else mp.tan(r * s)) / r


def artan_c(s, c):
    if c == 0:
        return s
    r = mp.sqrt(abs(c))
    return (mp.atanh(r * s) if c > 0 else mp.atan(r * s)) / r


def mobius_add(x, y, c):
    xy, x2, y2 = dot(x, y), dot(x, x), dot(y, y)
    n = 1 + 2 * c * xy + c * c * x2 * y2
    return axpby((1 + 2 * c * xy + c * y2) / n, x, (1 - c * x2) / n, y)


def conformal(x, c):
    return 2 / (1 - c * dot(x, x))


def expmap(x, v, c):
    s = norm(v)
    if s == 0:
        return x
    return mobius_add(x, axpby(tan_c(conformal(x, c) * s / 2, c) / s, v, 0, v), c)


def logmap(x, y, c):
    w = mobius_add(axpby(-1, x, 0, x), y, c)
    s = norm(w)
    if s == 0:
        return w
    return axpby(2 / conformal(x, c) * artan_c(s, c) / s, w, 0, w)


def dist(x, y, c):
    return 2 * artan_c(norm(mobius_add(axpby(-1, x, 0, x), y, c)), c)


def gyration(x, y, v, c):
    minus = mobius_add(x, y, c)
    return mobius_add(axpby(-1, minus, 0, minus), mobius_add(x, mobius_add(y, v, c), c), c)


def relative_error(got, expected):
    """|got - expected| / |expected|, got a tensor row, expected an oracle row."""
    diff = axpby(1, row(got), -1, expected)
    scale = norm(expected)
    return float(norm(diff) / scale) if scale else float(norm(diff))


def exp_0(v, c):
    return expmap([mp.mpf(0)] * len(v), v, c)


def log_0(x, c):
    return logmap([mp.mpf(0)] * len(x), x, c)


def transport(x, y, v, c):
    return axpby(conformal(x, c) / conformal(y, c), gyration(y, axpby(-1, x, 0, x), v, c), 0, v)


def gyromidpoint(points, weights, c):
    """1/2 (x) (sum w lambda x / sum w (lambda - 1)), with the angle halved by atan2 so that a mean beyond the equator of
    the sphere (a negative denominator) comes out there."""
    factors = [conformal(x, c) for x in points]
    n = [mp.fsum(w * f * x[i] for w, f, x in zip(weights, factors, points)) for i in range(len(points[0]))]
    d = mp.fsum(w * (f - 1) for w, f in zip(weights, factors))
    length = norm(n)
    if length == 0:
        return n
    if c >= 0:
        half = tan_c(artan_c(length / d, c) / 2, c)
    else:
        half = mp.tan(mp.atan2(mp.sqrt(-c) * length, d) / 2) / mp.sqrt(-c)
    return axpby(half / length, n, 0, n)
