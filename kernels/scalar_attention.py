"""
Attention by distance between scalars, o_i = sum_{j <= i} softmax_j(-|a_i - b_j| - m (i - j)) v_j: the tiled form of
scalar_attention/tiled.py. The slope m, one a key head, is ALiBi's; without it the kernels are compiled with m = 0 (SLOPED).

Three kernels, none with atomics, the same bits each time; a program has BLOCK queries or BLOCK keys and walks along tiles of the others:

    forward        a, b, v -> o, z, l         z_i: distance to the nearest key, or 0; l_i = log sum_j e^{z_i - |a_i - b_j|}
    of queries     ..., do, o -> da, delta    delta_i = do_i . o_i,   da_i = -sum_j p_ij (do_i . v_j - delta_i) sign(a_i - b_j)
    of keys        ..., do, delta -> db, dv   dv_j = sum_i p_ij do_i, db_j = sum_i p_ij (do_i . v_j - delta_i) sign(a_i - b_j)

with p_ij = e^{z_i - |a_i - b_j| - l_i} and the sign of a tie 0; with a slope, |a_i - b_j| + m (i - j) in place of |a_i - b_j|. While
m = 0 and all |a| and |b| are at most NARROW = 28, weights need no exponential a pair: e^{-|a - b|} = min(e^a e^-b, e^-a e^b), and no
running maximum (z = 0). A flag on the device says so, and the host does not wait for it. Otherwise (and with float16 values, for
which such weights are too small) the nearest key is kept as flash attention keeps its maximum. Distances are float32 there, so that
weights err as 6e-8 of the distance to the nearest key; scalar_attention/ takes them in float64.

v is float32, bfloat16 or float16. Products of matrices take v's dtype, of float32 three products of 10-bit pieces (tf32x3), and
sum in float32. a, b and their gradients are float32. D <= 128.
"""
import torch
import triton
import triton.language as tl

from kernels.launch import INTERPRETED, _all_registers, _float32, _largest, _launch, _like
from kernels.rows import _to
from scalar_attention.shapes import NARROW, check

MAX_D = 128
WIDEN = tl.constexpr(INTERPRETED)


# ----------------------------------------------------------------------------------------------------------------------
# pieces

@triton.jit
def _ends(pointer, line, places, live, length):
    """Of a line of scalars those at `places`, 0 beyond the end."""
    return tl.load(pointer + line.to(tl.int64) * length + places, mask=live, other=0.0)


@triton.jit
def _rows(pointer, line, places, live, length, D, BLOCK_D: tl.constexpr):
    """(places, D) of a line of rows, zeros beyond the end."""
    cols = tl.arange(0, BLOCK_D)
    offsets = (line.to(tl.int64) * length + places)[:, None] * D + cols[None, :]
    return tl.load(pointer + offsets, mask=live[:, None] & (cols < D)[None, :], other=0.0)


@triton.jit
def _store_rows(pointer, line, places, live, length, D, value, LARGEST: tl.constexpr, BLOCK_D: tl.constexpr):
    cols = tl.arange(0, BLOCK_D)
    offsets = (line.to(tl.int64) * length + places)[:, None] * D + cols[None, :]
    tl.store(pointer + offsets, _to(value, pointer.dtype.element_ty, LARGEST), mask=live[:, None] & (cols < D)[None, :])


@triton.jit
def _distance(a, b, age, slope, SLOPED: tl.constexpr):
    """|a_i - b_j| + m (i - j). a, b: as columns or rows of the tile; age: i - j."""
    distance = tl.abs(a - b)
    return distance + slope * age.to(tl.float32) if SLOPED else distance


@triton.jit
def _probabilities(distance, z, log, seen):
    """p_ij, 0 where not seen. z, log: as columns or rows of the tile."""
    return tl.exp(tl.where(seen, (z - distance) - log, -float("inf")))


@triton.jit
def _product(x, y):
    """x y, summed in float32. The interpreter multiplies bfloat16 as integers: it gets float32, which loses nothing."""
    if WIDEN:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, input_precision="tf32x3")


@triton.jit
def _signed(a, b, value):
    """value sign(a_i - b_j), 0 for a tie"""
    return tl.where(a > b, value, tl.where(a < b, -value, 0.0))


# ----------------------------------------------------------------------------------------------------------------------
# the kernels

@triton.jit
def _distance_forward(a_ptr, b_ptr, v_ptr, slope_ptr, narrow_ptr, out_ptr, z_ptr, log_ptr, T, T_ALL, D, GROUP, N_KV,
                      SLOPED: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr, OTHER: tl.constexpr, BLOCK_D: tl.constexpr):
    tiles = tl.cdiv(T, BLOCK)
    line = tl.program_id(0) // tiles
    queries = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)  # the longest walks first
    live = queries < T
    a = _ends(a_ptr, line, queries, live, T)
    at = queries + (T_ALL - T)
    last = tl.minimum((tiles - tl.program_id(0) % tiles) * BLOCK + (T_ALL - T), T_ALL)
    kv = line // GROUP
    slope = tl.load(slope_ptr + kv % N_KV) if SLOPED else 0.0
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    if tl.load(narrow_ptr) != 0:
        z = tl.zeros([BLOCK], tl.float32)
        up, down = tl.exp(a), tl.exp(-a)
        for start in range(0, last, OTHER):
            keys = start + tl.arange(0, OTHER)
            b = _ends(b_ptr, kv, keys, keys < T_ALL, T_ALL)
            v = _rows(v_ptr, kv, keys, keys < T_ALL, T_ALL, D, BLOCK_D)
            weights = tl.minimum(up[:, None] * tl.exp(-b)[None, :], down[:, None] * tl.exp(b)[None, :])
            weights = tl.where((keys[None, :] <= at[:, None]) & (keys < T_ALL)[None, :], weights, 0.0)
            weights = weights.to(v.dtype)
            total += tl.sum(weights.to(tl.float32), axis=1)  # as rounded: no weight here is 1, as the largest is below
            acc += _product(weights, v)
    else:
        z = tl.full([BLOCK], float("inf"), tl.float32)
        for start in range(0, last, OTHER):
            keys = start + tl.arange(0, OTHER)
            b = _ends(b_ptr, kv, keys, keys < T_ALL, T_ALL)
            v = _rows(v_ptr, kv, keys, keys < T_ALL, T_ALL, D, BLOCK_D)
            seen = (keys[None, :] <= at[:, None]) & (keys < T_ALL)[None, :]
            distance = _distance(a[:, None], b[None, :], at[:, None] - keys[None, :], slope, SLOPED)
            distance = tl.where(seen, distance, float("inf"))
            nearest = tl.minimum(z, tl.min(distance, axis=1))  # finite: every query sees the first key
            weights = tl.exp(nearest[:, None] - distance)
            before = tl.exp(nearest - z)
            total = total * before + tl.sum(weights, axis=1)
            acc = acc * before[:, None] + _product(weights.to(v.dtype), v)
            z = nearest
    _store_rows(out_ptr, line, queries, live, T, D, acc / total[:, None], LARGEST, BLOCK_D)
    tl.store(z_ptr + line.to(tl.int64) * T + queries, z, mask=live)
    tl.store(log_ptr + line.to(tl.int64) * T + queries, tl.log(total), mask=live)


@triton.jit
def _distance_backward_queries(g_ptr, a_ptr, b_ptr, v_ptr, slope_ptr, out_ptr, z_ptr, log_ptr, da_ptr, delta_ptr, T, T_ALL, D, GROUP,
                               N_KV, SLOPED: tl.constexpr, BLOCK: tl.constexpr, OTHER: tl.constexpr, BLOCK_D: tl.constexpr):
    tiles = tl.cdiv(T, BLOCK)
    line = tl.program_id(0) // tiles
    queries = (tiles - 1 - tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    live = queries < T
    a, z = _ends(a_ptr, line, queries, live, T), _ends(z_ptr, line, queries, live, T)
    log = _ends(log_ptr, line, queries, live, T)
    g = _rows(g_ptr, line, queries, live, T, D, BLOCK_D)
    delta = tl.sum(g.to(tl.float32) * _rows(out_ptr, line, queries, live, T, D, BLOCK_D).to(tl.float32), axis=1)
    at = queries + (T_ALL - T)
    last = tl.minimum((tiles - tl.program_id(0) % tiles) * BLOCK + (T_ALL - T), T_ALL)
    kv = line // GROUP
    slope = tl.load(slope_ptr + kv % N_KV) if SLOPED else 0.0
    da = tl.zeros([BLOCK], tl.float32)
    for start in range(0, last, OTHER):
        keys = start + tl.arange(0, OTHER)
        b = _ends(b_ptr, kv, keys, keys < T_ALL, T_ALL)
        v = _rows(v_ptr, kv, keys, keys < T_ALL, T_ALL, D, BLOCK_D)
        distance = _distance(a[:, None], b[None, :], at[:, None] - keys[None, :], slope, SLOPED)
        p = _probabilities(distance, z[:, None], log[:, None], (keys[None, :] <= at[:, None]) & (keys < T_ALL)[None, :])
        by_p = _product(g, tl.trans(v))
        da -= tl.sum(_signed(a[:, None], b[None, :], p * (by_p - delta[:, None])), axis=1)
    tl.store(da_ptr + line.to(tl.int64) * T + queries, da, mask=live)
    tl.store(delta_ptr + line.to(tl.int64) * T + queries, delta, mask=live)


@triton.jit
def _distance_backward_keys(g_ptr, a_ptr, b_ptr, v_ptr, slope_ptr, z_ptr, log_ptr, delta_ptr, db_ptr, dv_ptr, T, T_ALL, D, GROUP, N_KV,
                            SLOPED: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr, OTHER: tl.constexpr, BLOCK_D: tl.constexpr):
    tiles = tl.cdiv(T_ALL, BLOCK)
    kv = tl.program_id(0) // tiles
    first_key = tl.program_id(0) % tiles * BLOCK
    keys = first_key + tl.arange(0, BLOCK)
    live = keys < T_ALL
    b = _ends(b_ptr, kv, keys, live, T_ALL)
    v = _rows(v_ptr, kv, keys, live, T_ALL, D, BLOCK_D)
    slope = tl.load(slope_ptr + kv % N_KV) if SLOPED else 0.0
    first = tl.maximum(first_key - (T_ALL - T), 0) // OTHER * OTHER  # the first query that sees one of them
    db = tl.zeros([BLOCK], tl.float32)
    dv = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for member in range(GROUP):
        line = kv * GROUP + member
        for start in range(first, T, OTHER):
            queries = start + tl.arange(0, OTHER)
            exist = queries < T
            a, z = _ends(a_ptr, line, queries, exist, T), _ends(z_ptr, line, queries, exist, T)
            log, delta = _ends(log_ptr, line, queries, exist, T), _ends(delta_ptr, line, queries, exist, T)
            g = _rows(g_ptr, line, queries, exist, T, D, BLOCK_D)
            at = queries + (T_ALL - T)
            seen = (keys[:, None] <= at[None, :]) & exist[None, :] & live[:, None]
            distance = _distance(a[None, :], b[:, None], at[None, :] - keys[:, None], slope, SLOPED)
            p = _probabilities(distance, z[None, :], log[None, :], seen)  # (keys, queries)
            dv += _product(p.to(g.dtype), g)
            by_p = _product(v, tl.trans(g))
            db += tl.sum(_signed(a[None, :], b[:, None], p * (by_p - delta[None, :])), axis=1)
    tl.store(db_ptr + kv.to(tl.int64) * T_ALL + keys, db, mask=live)
    _store_rows(dv_ptr, kv, keys, live, T_ALL, D, dv, LARGEST, BLOCK_D)


# ----------------------------------------------------------------------------------------------------------------------
# the operators

def blocks(kernel, D, dtype, sloped=False):
    """(options of the launch) of 'forward', 'queries' or 'keys': BLOCK, OTHER, BLOCK_D, warps. As large as they can be
    with no register spilled (bench/machine_code.py): float32 products keep three pieces of each number, and 'keys' sums two tiles."""
    if D > MAX_D:
        raise ValueError(f"values of {D} numbers: the kernels take at most {MAX_D}")
    block_d, float32 = max(16, triton.next_power_of_2(D)), dtype == torch.float32
    warps = 4
    if kernel == "forward":
        block, other, warps = 64, 32, 8 if float32 else 4
    elif kernel == "queries":
        block, other = (32, 16) if float32 and block_d > 64 else (64, 64)
    elif block_d <= 64:
        block, other = ((16, 32) if sloped else (32, 16)) if float32 else (64, 32)
    else:
        block, other = (16, 32) if float32 else (32, 16)
    return dict(BLOCK=block, OTHER=other, BLOCK_D=block_d, num_warps=warps, num_stages=2, **_all_registers(warps))


def _check(a, b, v, slope):
    """(B, key heads, query heads a key head, T, T_all, D)"""
    n_kv, group = check(a, b, v)
    if slope is not None and (slope.shape != (n_kv,) or slope.dtype != torch.float32 or not slope.is_contiguous()):
        raise ValueError(f"slope is {n_kv} float32 numbers, one a key head, not {tuple(slope.shape)} of {slope.dtype}")
    if a.dtype != torch.float32 or v.dtype == torch.float64:
        raise TypeError(f"the kernels take float32 a and b and values of 32 or 16 bits, not {a.dtype} and {v.dtype}; use scalar_attention/")
    return a.size(0), n_kv, group, a.size(2), b.size(2), v.size(3)


def _narrow_flag(a, b, v, slope):
    """One number on the device: may weights be taken without a reference?"""
    if v.dtype == torch.float16 or slope is not None:
        return torch.zeros(1, dtype=torch.int32, device=a.device)
    return (torch.maximum(a.abs().amax(), b.abs().amax()) <= NARROW).to(torch.int32).reshape(1)


@torch.library.custom_op("curvature::scalar_attention", mutates_args=())
def _attention(a: torch.Tensor, b: torch.Tensor, v: torch.Tensor,
               slope: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    B, n_kv, group, T, T_all, D = _check(a, b, v, slope)
    out, z, log = v.new_empty(B, n_kv * group, T, D), _float32(a.shape, a), _float32(a.shape, a)
    options = blocks("forward", D, v.dtype)
    if out.numel():
        a, b, v = a.contiguous(), b.contiguous(), v.contiguous()
        programs = triton.cdiv(T, options["BLOCK"]) * B * n_kv * group
        _launch(_distance_forward, programs, a, b, v, a if slope is None else slope, _narrow_flag(a, b, v, slope), out, z, log, T, T_all, D,
                group, n_kv, SLOPED=slope is not None, LARGEST=_largest(v.dtype), **options)
    return out, z, log


@_attention.register_fake
def _(a, b, v, slope=None):
    return v.new_empty(*a.shape, v.size(-1)), _float32(a.shape, a), _float32(a.shape, a)


@torch.library.custom_op("curvature::scalar_attention_backward", mutates_args=())
def _attention_grad(g: torch.Tensor, a: torch.Tensor, b: torch.Tensor, v: torch.Tensor, out: torch.Tensor, z: torch.Tensor,
                    log: torch.Tensor, slope: torch.Tensor | None = None,
                    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    B, n_kv, group, T, T_all, D = _check(a, b, v, slope)
    da, db, dv, delta = _like(a), _like(b), _like(v), _float32(a.shape, a)
    if out.numel() == 0:
        return da.zero_(), db.zero_(), dv.zero_()
    g, a, b, v, out, z, log = (t.contiguous() for t in (g, a, b, v, out, z, log))
    sloped = slope is not None
    slope = a if slope is None else slope  # a pointer that is not read
    options = blocks("queries", D, v.dtype)
    programs = triton.cdiv(T, options["BLOCK"]) * B * n_kv * group
    _launch(_distance_backward_queries, programs, g, a, b, v, slope, out, z, log, da, delta, T, T_all, D, group, n_kv, SLOPED=sloped,
            **options)
    options = blocks("keys", D, v.dtype, sloped)
    programs = triton.cdiv(T_all, options["BLOCK"]) * B * n_kv
    _launch(_distance_backward_keys, programs, g, a, b, v, slope, z, log, delta, db, dv, T, T_all, D, group, n_kv, SLOPED=sloped,
            LARGEST=_largest(v.dtype), **options)
    return da, db, dv


@_attention_grad.register_fake
def _(g, a, b, v, out, z, log, slope=None):
    return _like(a), _like(b), _like(v)


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)  # z and log have none
    a, b, v, slope = inputs
    ctx.save_for_backward(a, b, v, *output, slope)


def _autograd(ctx, g, _z, _log):
    return (None, None, None, None) if g is None else (*_attention_grad(g, *ctx.saved_tensors), None)


_attention.register_autograd(_autograd, setup_context=_setup)


# ----------------------------------------------------------------------------------------------------------------------

def scalar_attention(a, b, v, slope=None):
    """o_i = sum_j softmax_j(-|a_i - b_j| - slope (i - j)) v_j over the keys j up to the query's own position.

    a: (B, nh, T), b: (B, n_kv, T_all), float32, of the last T and all T_all positions. v: (B, n_kv, T_all, D), float32, bfloat16 or
    float16, D <= 128. Query head h reads key head h // (nh / n_kv). slope: (n_kv,), float32, fixed, or None for 0. -> (B, nh, T, D) in
    v's dtype. Once differentiable. ValueError, TypeError: shapes or dtypes that do not go together.
    """
    return _attention(a, b, v, slope)[0]
