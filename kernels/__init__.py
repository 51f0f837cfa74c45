"""
Triton kernels, forward and backward, for the geometry of geometry.py, and the custom operators that train with them.

    mobius_add(x, y, c, limit)   expmap(x, v, c, limit)   add_exp_0(x, v, c, limit)   add_exp(x, r, v, c, limit)
    logmap(x, y, c)
    log_layernorm(x, c, weight, bias, reference, r): LayerNorm(log_r(x)), the maps per head, LayerNorm over the whole row

They have the signatures, shapes and formulas of geometry.py, and its derivatives, rearranged for float32. Rows:
float32, bfloat16 or float16, any number of them, D <= 8192. c (and limit): a number or a tensor of either sign or 0 that
broadcasts against (..., 1), e.g. one for all, per head or per token. Arithmetic is float32, so that errors grow as
eps/(1 - c|x|^2) near the edge, and on the sphere as eps |c||x|^2 far from the origin, where geometry.py sums in float64 (what
cancels in gradients has been cancelled on paper). Rows are squared in float32: points longer than 1e18
(c = 0, or a tiny c) give NaN or Inf, in gradients of c from 1e8 on, and geometry.py takes them up to 1e30; for |c| over 1e15
gradients of c lose digits. Tangent
vectors over 1e13 are shortened to that. Once differentiable.

Memory. A pass is one read or one write of all rows. The maps keep nothing but their inputs for the backward pass, which finds
its row scalars again from the rows that it reads anyway; log_layernorm keeps mean and 1/deviation, two numbers a token:

                                        forward                      backward
    mobius_add, expmap, add_exp_0       x, v -> out          3       g, x, v -> dx, dv        5
    add_exp                             x, r, v -> out       4       g, x, r, v -> dx, dr, dv 7
    logmap                              x, y -> out          3       g, x, y -> dx, dy        5
    log_layernorm, reference previous   x -> out             2 1/8   g, x -> dx               3 5/8
    log_layernorm, reference origin     x -> out             2       g, x -> dx               3 1/4
    log_layernorm, reference given      x, r -> out          3       g, x, r -> dx, dr        5 1/4
    for comparison, Euclidean:
    x + v                               x, v -> out          3       none (g is both gradients)
    LayerNorm                           x -> out             2       g, x -> dx               3

So what the curvature of a sub-layer costs in memory traffic is the backward of the sum: 5 passes in place of none (residual
'reference': 7, and one more forward).
Programs of log_layernorm walk along CHUNK tokens and keep the neighbouring row in registers; the row before the chunk (in
the backward pass, x and g after it) is read once more, and the backward pass writes and reads again a float32 row of partial
sums for LayerNorm's weight (and one for its bias): for CHUNK = 8 tokens 9 + 8 rows forward, 10 + 9 + 8 + 2 backward (the 2 are 4 of
rows of 16 bits). Padded rows of 4,096 numbers and more have the gradient of LayerNorm's bias summed by PyTorch, one pass more; at
8,192 the backward of log_layernorm spills registers, and where the head size is no multiple of 16 it does from 2,048 on, and
forward from 4,096. Rows are read where they are if they are evenly spaced (log_layernorm: if
they are contiguous), else copied first. The model gives the reference point as rows, not 'previous', where it needs them
anyway (residual 'reference' and 'transport') and with dynamic curvature, where it is projected.

Accesses are of 16 bytes a thread where the number of columns and the strides are multiples of 16, which is what Triton knows
of them, and a row has them for each thread of a warp (512 bytes; several rows of a map make a tile of 1,024 numbers or more).

Gradients of c and limit, and of LayerNorm's parameters, are written as one partial sum a program (or, where c differs from row
to row or from head to head, one number a row, 4 D^-1 of a pass for float32 rows) and added in a fixed order: no atomics, the same
bits each time.

On a machine without a GPU these run in Triton's interpreter (TRITON_INTERPRET=1 in the environment before the start).
"""
import math

import torch
import triton
import triton.language as tl

import geometry

ADD, EXP, EXP_0, EXP_R = (tl.constexpr(k) for k in range(4))
KINDS = {"add": 0, "exp": 1, "exp_0": 2, "exp_r": 3}
ORIGIN, PREVIOUS, GIVEN = (tl.constexpr(k) for k in range(3))
REFERENCES = {"origin": 0, "previous": 1, "given": 2}

EPS = tl.constexpr(1.1920929e-07)
LONGEST = tl.constexpr(1e13)  # tangent vectors beyond are shortened: their squares, divided by A^2, fit float32
SATURATED = tl.constexpr(1024.0)  # tanh is 1 in float32 from sqrt of it on
MAX_D = 8192
MOST_ROWS = 2 ** 31
CHUNK = 8


# ----------------------------------------------------------------------------------------------------------------------
# tanc and artanc (geometry.py) from exp, log and polynomials: Triton has no tanh, tan, atanh or atan of its own

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


# ----------------------------------------------------------------------------------------------------------------------
# row scalars. Tiles are (rows, D); scalars (rows,)

@triton.jit
def _dot(a, b):
    return tl.sum(a * b, axis=1)


@triton.jit
def _to(row, dtype: tl.constexpr, largest: tl.constexpr):
    """A tile in the dtype in which it is stored, saturated."""
    if largest < 3.4028234e38:  # float32 is what the rows are in: nothing to saturate, and NaN and Inf stay
        row = tl.maximum(row, -largest, propagate_nan=tl.PropagateNan.ALL)
        row = tl.minimum(row, largest, propagate_nan=tl.PropagateNan.ALL)
    return row.to(dtype)


@triton.jit
def _shorten(v):
    longest = tl.max(tl.abs(v), axis=1)
    return v * tl.where(longest > LONGEST, (1.0 / longest) * LONGEST, 1.0)[:, None]


@triton.jit
def _exp_scalars(z, z_low):
    """(k, 1 - z k^2, is z beyond its bounds), geometry._exp_coefficient"""
    bounded = tl.minimum(tl.maximum(z, z_low), SATURATED)
    beyond = bounded != z
    k, rest = _tanc(bounded)
    return k * tl.sqrt(tl.where(beyond, bounded / tl.where(beyond, z, 1.0), 1.0)), rest, beyond


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
def _h(a, KIND: tl.constexpr):
    """h: 1/A for the exponential map at x, 1 for the one at the origin"""
    if KIND == EXP:
        h = 1.0 / a
    else:
        h = a * 0.0 + 1.0
    return h


@triton.jit
def _shrink(limit, ww, n, rounding):
    """Where the norm of a sum, sqrt(|w|^2/N), is over the limit, and the factor that makes it the limit (geometry._shrink)"""
    reach = limit * (1.0 + rounding)
    outside = ww > reach * reach * n
    return outside, tl.where(outside, limit * tl.sqrt(n / tl.where(outside, ww, 1.0)), 1.0)


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
    """Gradients by x, y and (for each row) c of log_x(y): geometry._log_backward, with the terms of by_c, which is of the order
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


@triton.jit
def _sum_rows(x, v, c, limit, rounding, z_low, KIND: tl.constexpr, LIMITED: tl.constexpr):
    """x (+) v, exp_x(v) or x (+) exp_0(v), geometry._sum"""
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
    """Gradients of _sum_rows by x, v and (for each row) c and limit: geometry._sum_backward. Which rows are over the limit, and by
    how much, is the formula's, |w|^2/N; _sum_rows takes it of the row, another by its rounding."""
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
        by_xx += c * h * h * (k * by_j + 2.0 * c * h * vv * by_z)
        by_c += 2.0 * (over_ww * (xy * (2.0 * xy + yy + c * xx * yy) - xx * yy * b) - e * (xy + c * xx * yy)) / n
    else:
        by_c += (2.0 * (half * (xy + c * xx * yy) - a * xy * e - c * xx * yy * along) - xx * gy) / n
    grad_x = p[:, None] * g + (2.0 * by_xx)[:, None] * x + by_xv[:, None] * v
    grad_v = q[:, None] * g + (2.0 * by_vv)[:, None] * v + by_xv[:, None] * x
    return grad_x, grad_v, by_c, by_limit


# ----------------------------------------------------------------------------------------------------------------------
# x (+) y, exp_x(v), x (+) exp_0(v), x (+) exp_r(v): ROWS rows a program

@triton.jit
def _tile(R, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    return rows, rows < R, cols[None, :], (rows < R)[:, None] & (cols < D)[None, :]


@triton.jit
def _load(pointer, rows, stride, cols, mask):
    return tl.load(pointer + rows[:, None].to(tl.int64) * stride + cols, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(pointer, rows, D, cols, mask, value, largest: tl.constexpr):
    tl.store(pointer + rows[:, None].to(tl.int64) * D + cols, _to(value, pointer.dtype.element_ty, largest), mask=mask)


@triton.jit
def _of_rows(pointer, rows, live, div, mod):
    """c for each row: entry (row // div) % mod"""
    return tl.load(pointer + (rows // div) % mod, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _store_partial(pointer, rows, live, value, ONE: tl.constexpr):
    """A gradient of c: one number a program where c is one number, else one a row"""
    if ONE:
        tl.store(pointer + tl.program_id(0), tl.sum(tl.where(live, value, 0.0), axis=0))
    else:
        tl.store(pointer + rows, value, mask=live)


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
# LayerNorm(log_r(x)): a program walks along CHUNK tokens; a tile is one token, (heads, head size)

@triton.jit
def _token(pointer, t, wanted, stride, offsets, mask):
    """The row of token t as (heads, head size), zeros where not wanted"""
    return tl.load(pointer + t.to(tl.int64) * stride + offsets, mask=mask & wanted, other=0.0).to(tl.float32)


@triton.jit
def _log_layernorm_forward(x_ptr, r_ptr, c_ptr, w_ptr, b_ptr, out_ptr, mean_ptr, rstd_ptr, N, T, NH, HS, x_stride, r_stride,
                           c_div, c_mod, REFERENCE: tl.constexpr, BIAS: tl.constexpr, LARGEST: tl.constexpr,
                           STEPS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr):
    heads, cols = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    live = heads < NH
    offsets = heads[:, None] * HS + cols[None, :]
    mask = live[:, None] & (cols < HS)[None, :]
    width = NH * HS
    w = tl.load(w_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        bias = tl.load(b_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    first = tl.program_id(0) * STEPS
    before = _token(x_ptr, first - 1, (first > 0) & (REFERENCE == PREVIOUS), x_stride, offsets, mask)
    for step in range(STEPS):
        t = first + step
        wanted = t < N
        x = _token(x_ptr, t, wanted, x_stride, offsets, mask)
        if REFERENCE == PREVIOUS:
            r = tl.where(t % T == 0, 0.0, before)
        elif REFERENCE == GIVEN:
            r = _token(r_ptr, t, wanted, r_stride, offsets, mask)
        else:
            r = x * 0.0
        c = tl.load(c_ptr + ((t * NH + heads) // c_div) % c_mod, mask=live & wanted, other=0.0).to(tl.float32)
        u = _log(r, x, _dot(r, r), _dot(x, x), c)
        mean = tl.sum(tl.sum(u, axis=1), axis=0) / width
        centred = tl.where(mask, u - mean, 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(tl.sum(centred * centred, axis=1), axis=0) / width + 1e-5)
        out = centred * rstd * w
        if BIAS:
            out += bias
        tl.store(out_ptr + t.to(tl.int64) * width + offsets, _to(out, out_ptr.dtype.element_ty, LARGEST), mask=mask & wanted)
        tl.store(mean_ptr + t, mean, mask=wanted)
        tl.store(rstd_ptr + t, rstd, mask=wanted)
        before = x


@triton.jit
def _pair_backward(r, x, g, w, c, mean, rstd, mask, width):
    """From the cotangent of LayerNorm(log_r(x)): gradients by r, x, c (per head), and g (u - mean) rstd for the weight"""
    u = _log(r, x, _dot(r, r), _dot(x, x), c)
    normed = tl.where(mask, (u - mean) * rstd, 0.0)
    gw = g * w
    m1 = tl.sum(tl.sum(gw, axis=1), axis=0) / width
    m2 = tl.sum(tl.sum(gw * normed, axis=1), axis=0) / width
    gu = tl.where(mask, (gw - m1 - normed * m2) * rstd, 0.0)
    grad_r, grad_x, by_c = _log_pull_back(gu, r, x, c)
    return grad_r, grad_x, by_c, g * normed


@triton.jit
def _log_layernorm_backward(g_ptr, x_ptr, r_ptr, c_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, dr_ptr, dc_ptr, dw_ptr, db_ptr,
                            N, T, NH, HS, g_stride, x_stride, r_stride, c_div, c_mod,
                            REFERENCE: tl.constexpr, BIAS: tl.constexpr, C_PER_TOKEN: tl.constexpr, LARGEST: tl.constexpr,
                            R_LARGEST: tl.constexpr, STEPS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr):
    """Backwards along the chunk: token t's gradient is grad_x of the pair (t-1, t) plus grad_r of the pair (t, t+1), which
    is kept from the step before."""
    heads, cols = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    live = heads < NH
    offsets = heads[:, None] * HS + cols[None, :]
    mask = live[:, None] & (cols < HS)[None, :]
    width = NH * HS
    w = tl.load(w_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    first = tl.program_id(0) * STEPS
    last = first + STEPS - 1
    x = _token(x_ptr, last, last < N, x_stride, offsets, mask)
    carried = x * 0.0
    if REFERENCE == PREVIOUS:
        after = first + STEPS
        wanted = (after < N) & (after % T != 0)
        c = tl.load(c_ptr + ((after * NH + heads) // c_div) % c_mod, mask=live & wanted, other=0.0).to(tl.float32)
        grad_r, _, _, _ = _pair_backward(x, _token(x_ptr, after, wanted, x_stride, offsets, mask),
                                         _token(g_ptr, after, wanted, g_stride, offsets, mask), w, c,
                                         tl.load(mean_ptr + after, mask=wanted, other=0.0),
                                         tl.load(rstd_ptr + after, mask=wanted, other=0.0), mask, width)
        carried = tl.where(wanted, grad_r, 0.0)
    dw = x * 0.0
    db = x * 0.0
    dc = tl.sum(dw, axis=1)
    for step in range(STEPS):
        t = last - step
        wanted = t < N
        has_before = (t > 0) & (t - 1 < N)
        if REFERENCE == PREVIOUS:
            before = _token(x_ptr, t - 1, has_before, x_stride, offsets, mask)
            r = tl.where(t % T == 0, 0.0, before)
        elif REFERENCE == GIVEN:
            r = _token(r_ptr, t, wanted, r_stride, offsets, mask)
        else:
            r = x * 0.0
        g = _token(g_ptr, t, wanted, g_stride, offsets, mask)
        index = t * NH + heads
        c = tl.load(c_ptr + (index // c_div) % c_mod, mask=live & wanted, other=0.0).to(tl.float32)
        grad_r, grad_x, by_c, by_w = _pair_backward(r, x, g, w, c, tl.load(mean_ptr + t, mask=wanted, other=0.0),
                                                    tl.load(rstd_ptr + t, mask=wanted, other=0.0), mask, width)
        tl.store(dx_ptr + t.to(tl.int64) * width + offsets, _to(grad_x + carried, dx_ptr.dtype.element_ty, LARGEST),
                 mask=mask & wanted)
        if C_PER_TOKEN:
            tl.store(dc_ptr + index, by_c, mask=live & wanted)
        else:
            dc += by_c
        dw += by_w
        db += g
        if REFERENCE == PREVIOUS:
            carried = tl.where(t % T == 0, 0.0, grad_r)
            x = before
        else:
            if REFERENCE == GIVEN:
                tl.store(dr_ptr + t.to(tl.int64) * width + offsets, _to(grad_r, dr_ptr.dtype.element_ty, R_LARGEST),
                         mask=mask & wanted)
            x = _token(x_ptr, t - 1, has_before & (step < STEPS - 1), x_stride, offsets, mask)
    if not C_PER_TOKEN:
        tl.store(dc_ptr + tl.program_id(0).to(tl.int64) * NH + heads, dc, mask=live)
    tl.store(dw_ptr + tl.program_id(0).to(tl.int64) * width + offsets, dw, mask=mask)
    if BIAS:
        tl.store(db_ptr + tl.program_id(0).to(tl.int64) * width + offsets, db, mask=mask)


# ----------------------------------------------------------------------------------------------------------------------
# launching

INTERPRETED = not isinstance(_sum_forward, triton.runtime.JITFunction)  # decided by TRITON_INTERPRET when triton is imported


def check_device(device_type):
    """Why these kernels cannot run on tensors of this device, or None."""
    if device_type == "cuda" or INTERPRETED:
        return None
    return (f"ops = 'triton' needs a CUDA GPU, and the device is {device_type!r}; set TRITON_INTERPRET=1 to run the kernels "
            "in Triton's interpreter (slow, for tests), or use --ops=torch")


def check_launcher():
    """Why Triton cannot launch kernels on this machine's GPU, or None. It compiles a part of itself the first time."""
    try:
        triton.runtime.driver.active.utils  # noqa: B018
    except Exception as error:
        return (f"ops = 'triton': Triton cannot build its launcher ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
                "it needs a C compiler and Python's headers (gcc, python3-dev); install them, or use --ops=torch")


def _launch(kernel, programs, *arguments, **options):
    """On the device of the first argument: Triton launches on the current one."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **options)


def _strided(x):
    """(x, number of rows, their stride): x itself where its rows are evenly spaced and dense, else a copy."""
    rows, stride = x.numel() // max(1, x.size(-1)), None
    if rows >= MOST_ROWS:
        raise ValueError(f"{rows:,} rows: the kernels count them in 32 bits and take fewer than {MOST_ROWS:,}")
    dense = x.size(-1) == 1 or x.stride(-1) == 1
    for size, step in zip(reversed(x.shape[:-1]), reversed(x.stride()[:-1])):
        if size == 1:
            continue
        if stride is None:
            stride, next_step = step, step * size
        elif step != next_step:
            dense = False
        else:
            next_step = step * size
    if not dense:
        x, stride = x.contiguous(), x.size(-1)
    return x, rows, x.size(-1) if stride is None else stride


def _row_index(c, lead):
    """(c, div, mod) so that row i of rows with leading shape `lead` has c.view(-1)[(i // div) % mod]."""
    shape = tuple(c.shape[:-1]) if c.dim() else ()
    shape = (1,) * (len(lead) - len(shape)) + shape
    own = [i for i, size in enumerate(shape) if size > 1]
    if own and any(shape[i] != lead[i] for i in range(own[0], own[-1] + 1)):  # a broadcast dimension between two of its own
        c, own = c.expand(*lead, 1), [i for i, size in enumerate(lead) if size > 1]
    c = c.to(torch.float32).contiguous()
    if not own:
        return c, 1, 1
    return c, math.prod(lead[own[-1] + 1:]), math.prod(lead[own[0]:own[-1] + 1])


def _result_dtype(*rows):
    """The dtype in which a result is stored"""
    dtype = rows[0].dtype
    for row in rows[1:]:
        dtype = torch.promote_types(dtype, row.dtype)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"the kernels take float32, bfloat16 or float16 rows, not {dtype}; use geometry.py")
    return dtype


def _largest(dtype):
    return float(torch.finfo(dtype).max)


def _all_registers(warps):
    """The option that lets a thread take all registers that there are for it: ptxas, left to itself, trades a spill for
    occupancy. (AMD's compiler has no such option.)"""
    return dict(maxnreg=min(255, 65536 // (32 * warps))) if torch.version.hip is None else {}


def tile(D, tensors):
    """(rows a program, columns, options of the launch): 2,048 numbers in each of the row tiles that a program holds, or one
    row; fewer where there are more than three tiles, so that no register is spilled."""
    if D > MAX_D:
        raise ValueError(f"rows of {D} numbers: the kernels take at most {MAX_D}")
    block_d = triton.next_power_of_2(max(1, D))
    # addresses of columns that are no multiple of 16 are computed a number at a time, in registers
    numbers = 2048 if tensors <= 3 else 1024 if D % 16 == 0 else 512
    rows = max(1, numbers // block_d)
    warps = min(16, max(4, block_d // (256 if tensors > 3 else 512)))
    return rows, block_d, dict(num_warps=warps, **(_all_registers(warps) if tensors > 5 or D % 16 else {}))


def _z_low(dtype):
    return -geometry._cap(dtype) ** 2


def _common(rows, *scalars):
    """The rows in the shape that they and c (and limit) broadcast to."""
    for c in scalars:
        if isinstance(c, torch.Tensor) and c.dim() and c.size(-1) != 1:
            raise ValueError(f"c and limit broadcast against (..., 1), one number a row, and this one is {tuple(c.shape)}")
    rows = geometry.spread(rows, *scalars)
    shape = torch.broadcast_shapes(*(row.shape for row in rows))
    return tuple(row.expand(shape) for row in rows)


def _to_shape(grad_rows, lead, like):
    """The gradient of c from one number a row, or one number a program where c is one number."""
    if like.numel() == 1:
        return geometry._narrow(grad_rows.sum().reshape(like.shape), like.dtype, True)
    return geometry._narrow(grad_rows.view(*lead, 1).sum_to_size(like.shape), like.dtype, True)


def _check_shape(name, tensor, shape):
    """The kernels would read beyond a smaller one."""
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(shape)}")


def _float32(shape, beside):
    return torch.empty(shape, dtype=torch.float32, device=beside.device)


def _like(row):
    return torch.empty(row.shape, dtype=row.dtype, device=row.device)


def _like_or_none(row, beside):
    """An operator returns tensors only: an empty one where there is no such row"""
    return _float32(0, beside) if row is None else _like(row)


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


def check_row(heads, size):
    """Why a row of so many heads of this size is too long for log_layernorm, or None."""
    padded = triton.next_power_of_2(heads) * triton.next_power_of_2(size)
    if padded <= MAX_D:
        return None
    return (f"rows of {heads} x {size} numbers: the kernels pad both to powers of two, {padded:,} numbers here, and take at "
            f"most {MAX_D:,}")


def _walk(x):
    """(tokens, heads, head size, chunks, BLOCK_H, BLOCK_D, options of the launch) of x (B, T, heads, head size)"""
    B, T, NH, HS = x.shape
    block_h, block_d = triton.next_power_of_2(NH), triton.next_power_of_2(HS)
    problem = check_row(NH, HS) or (f"{B * T * NH:,} rows: the kernels take fewer than {MOST_ROWS:,}" if B * T * NH >= MOST_ROWS
                                    else None)
    if problem:
        raise ValueError(problem)
    return B * T, NH, HS, triton.cdiv(B * T, CHUNK), block_h, block_d, walk_options(block_h * block_d, HS)


def walk_options(padded, size):
    """Of the launch of log_layernorm's forward kernel: 8 numbers of a token a thread, 4 where the head size is no multiple of 16
    (see tile())."""
    warps = min(16, max(1, padded // (256 if size % 16 == 0 else 128)))
    return dict(num_warps=warps, **({} if size % 16 == 0 else _all_registers(warps)))


def walk_back_options(padded, size):
    """The same of the backward kernel. It keeps some fifteen numbers a column, so that a thread may take all registers: then none
    is spilled, at 4,096 columns with half as many threads as forward."""
    warps = 8 if padded == 4096 and size % 16 == 0 else walk_options(padded, size)["num_warps"]
    return dict(num_warps=warps, **_all_registers(warps))


@torch.library.custom_op("curvature::log_layernorm", mutates_args=())
def _log_layernorm(x: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
                   reference: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    N, NH, HS, chunks, block_h, block_d, options = _walk(x)
    _check_shape("r", r, x.shape)
    _check_shape("weight", weight, (NH * HS,))
    _check_shape("bias", bias, (NH * HS,))
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    mean, rstd = _float32(N, x), _float32(N, x)
    c, c_div, c_mod = _row_index(c, x.shape[:-1])
    x = x.contiguous()
    r = x if r is None else r.contiguous()
    if N:
        _launch(
            _log_layernorm_forward, chunks,
            x, r, c, weight, weight if bias is None else bias, out, mean, rstd, N, x.size(1), NH, HS, NH * HS, NH * HS, c_div, c_mod,
            REFERENCE=REFERENCES[reference], BIAS=bias is not None, LARGEST=_largest(dtype), STEPS=CHUNK,
            BLOCK_H=block_h, BLOCK_D=block_d, **options)
    return out, mean, rstd


@_log_layernorm.register_fake
def _(x, r, c, weight, bias, reference, dtype):
    N = x.size(0) * x.size(1)
    return torch.empty(x.shape, dtype=dtype, device=x.device), _float32(N, x), _float32(N, x)


@torch.library.custom_op("curvature::log_layernorm_backward", mutates_args=())
def _log_layernorm_grad(g: torch.Tensor, x: torch.Tensor, r: torch.Tensor | None, c: torch.Tensor, weight: torch.Tensor,
                        mean: torch.Tensor, rstd: torch.Tensor, with_bias: bool, reference: str
                        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    N, NH, HS, chunks, block_h, block_d, _ = _walk(x)
    g, x, weight = g.contiguous(), x.contiguous(), weight.contiguous()
    dx, dr = _like(x), _like_or_none(r, x)
    wide_c, c_div, c_mod = _row_index(c, x.shape[:-1])
    per_token = c.numel() == 0 or c.numel() > 1 and (c_div >= NH or c_mod > NH)
    dc = _float32((N if per_token else chunks, NH), x)
    dw = _float32((chunks, NH * HS), x)
    # its sum takes registers that long rows need: they would spill
    bias_inside = with_bias and block_h * block_d <= 2048
    db = _float32((chunks, NH * HS) if bias_inside else (0, NH * HS), x)
    r = x if r is None else r.contiguous()
    if N:
        _launch(
            _log_layernorm_backward, chunks,
            g, x, r, wide_c, weight, mean, rstd, dx, dr, dc, dw, db, N, x.size(1), NH, HS, NH * HS, NH * HS, NH * HS, c_div,
            c_mod, REFERENCE=REFERENCES[reference], BIAS=bias_inside, C_PER_TOKEN=per_token, LARGEST=_largest(dx.dtype),
            R_LARGEST=_largest(dr.dtype), STEPS=CHUNK, BLOCK_H=block_h, BLOCK_D=block_d, **walk_back_options(block_h * block_d, HS))
    dc = dc.view(*x.shape[:-1], 1) if per_token else dc.sum(0).view(1, 1, NH, 1)
    dc = dc.sum_to_size((1,) * (4 - c.dim()) + tuple(c.shape)).reshape(c.shape)
    db = g.sum((0, 1), dtype=torch.float32).flatten() if with_bias and not bias_inside else db.sum(0)
    return dx, dr, geometry._narrow(dc, c.dtype, True), dw.sum(0).to(weight.dtype), db.to(weight.dtype)


@_log_layernorm_grad.register_fake
def _(g, x, r, c, weight, mean, rstd, with_bias, reference):
    return (_like(x), _like_or_none(r, x), torch.empty_like(c, memory_format=torch.contiguous_format),
            torch.empty_like(weight), torch.empty_like(weight))


def _log_layernorm_setup(ctx, inputs, output):
    x, r, c, weight, bias, ctx.reference, _ = inputs
    ctx.given, ctx.with_bias = r is not None, bias is not None
    ctx.set_materialize_grads(False)  # mean and rstd have none
    ctx.save_for_backward(x, c, weight, *output[1:], *([r] if ctx.given else []))


def _log_layernorm_autograd(ctx, g, _mean, _rstd):
    if g is None:
        return (None,) * 7
    x, c, weight, mean, rstd, *r = ctx.saved_tensors
    dx, dr, dc, dw, db = _log_layernorm_grad(g, x, r[0] if ctx.given else None, c, weight, mean, rstd, ctx.with_bias,
                                             ctx.reference)
    return dx, dr if ctx.given else None, dc, dw, db if ctx.with_bias else None, None, None


_log_layernorm.register_autograd(_log_layernorm_autograd, setup_context=_log_layernorm_setup)


# ----------------------------------------------------------------------------------------------------------------------
# the operations

def _tensor(c, x):
    if c is None:
        return None
    return c.to(x.device) if isinstance(c, torch.Tensor) else torch.full((), c, dtype=torch.float32, device=x.device)


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


def logmap(x, y, c):
    """geometry.logmap"""
    return _logmap(*_common((x, y), c), _tensor(c, x))


def log_layernorm(x, c, weight, bias=None, reference="previous", r=None, dtype=None):
    """LayerNorm(log_r(x)) with eps 1e-5: the logarithm per head, the norm over the whole row.

    x: points (B, T, heads, head size). c: as for x. weight, bias: (heads * head size,). reference: 'previous' (r_t = x_{t-1},
    the origin at t = 0), 'origin', or 'given' with r of x's shape. -> (B, T, heads, head size) in `dtype` (default: x's; autocast's
    16 bits halve what the next matrix product reads).
    """
    if (reference == "given") != (r is not None):
        raise ValueError("r goes with reference = 'given'")
    stored = _result_dtype(x)  # also where `dtype` is given: float64 rows are refused
    dtype = stored if dtype is None else dtype
    if isinstance(c, torch.Tensor) and not geometry.fits(c, x):
        raise ValueError(f"c broadcasts against {(*x.shape[:-1], 1)}, one number a head, and is {tuple(c.shape)}")
    return _log_layernorm(x, r, _tensor(c, x), weight, bias, reference, dtype)[0]
