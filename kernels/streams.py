"""
Residual streams x (n, B, T, C), read and written in one pass each: read_layernorm, mix_write; rms_factor for maps that depend on
tokens. The same functions as streams/mixing.py with F.layer_norm; weights of the streams are numbers (static) or numbers of each token.

    read_layernorm    LayerNorm(sum_j p_j x_j)       p (n) or (B, T, n)
    mix_write         sum_j R_ij x_j + w_i y         R (n, n) or (B, T, n, n) or None (the identity), w (n) or (B, T, n)
    rms_factor        1 / sqrt(mean over n and C of x^2 + 1e-6), (B, T)

The streams are x (n, B, T, C), y is (B, T, C): float32, bfloat16 or float16; weights and all sums are float32.
Rows are read where they are if they are contiguous, else copied first.

Necessary passes over rows of C numbers, all of which are made once:

                             forward                        backward
    read_layernorm           x -> out           n + 1       g, x -> dx                     2 n + 1
    mix_write                x, y -> out        2 n + 1     g, x, y -> dx, dy              3 n + 2
    mix_write, R None        x, y -> out        2 n + 1     g, y -> dy  (dx is g)          n + 2
    rms_factor               x ->               n           x -> dx                        2 n

Kept for the backward pass: the inputs; read_layernorm keeps mean and 1/deviation, two numbers a token, rms_factor its result. Beside
rows there are: R, w, p of each token and their gradients, if they depend on tokens, n^2 + 2 n numbers; else one partial sum of each for
a tile of 1,024 numbers of a stream, added in a fixed order; and for LayerNorm's weight and bias a float32 row each for STEPS tiles,
written and read again. No atomics: the same bits each time.

A tile is rows of one stream; the n tiles of a kernel are in registers together (a tuple). Where they are too many (read_layernorm's
backward of long rows, read_back_tile()) each is read a second time, when it is in the L2 cache. mix_write splits long rows among programs.
"""
import math

import torch
import triton
import triton.language as tl

from kernels.launch import (
    MAX_D,
    MOST_ROWS,
    _all_registers,
    _check_shape,
    _float32,
    _largest,
    _launch,
    _like,
    _result_dtype,
)
from kernels.rows import _dot, _to

STEPS = 8  # tiles that a program of read_layernorm's backward walks along


# ----------------------------------------------------------------------------------------------------------------------
# the kernels. stride: from stream to stream; p_step, r_step, w_step: from token to token, 0 where all tokens have the same

@triton.jit
def _streams(pointer, offsets, stride, mask, NS: tl.constexpr):
    """The rows of all streams: a tuple of tiles"""
    rows = ()
    for _ in tl.static_range(NS):
        rows = rows + (tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32),)
        pointer += stride
    return rows


@triton.jit
def _weight(pointer, index, live):
    """One number for each row of a tile, as a column"""
    return tl.load(pointer + index, mask=live, other=0.0)[:, None]


@triton.jit
def _store_sum(pointer, index, live, k, COUNT: tl.constexpr, value, ONE: tl.constexpr):
    """Sum k of COUNT, of each row; of all rows together if ONE. index: of the row, or of the program"""
    if ONE:
        tl.store(pointer + index * COUNT + k, tl.sum(value, axis=0))  # rows that are not live are zeros
    else:
        tl.store(pointer + index * COUNT + k, value, mask=live)


@triton.jit
def _read_forward(x_ptr, p_ptr, w_ptr, b_ptr, out_ptr, mean_ptr, rstd_ptr, R, D, stride, p_step, eps, NS: tl.constexpr,
                  BIAS: tl.constexpr, LARGEST: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.arange(0, BLOCK_D)[None, :]
    live = rows < R
    mask = live[:, None] & (cols < D)
    offsets = rows[:, None] * D + cols
    h = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for j in tl.static_range(NS):
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        h += _weight(p_ptr, rows * p_step + j, live) * x
        x_ptr += stride
    mean = tl.sum(h, axis=1) / D
    centred = tl.where(mask, h - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(_dot(centred, centred) / D + eps)
    out = centred * rstd[:, None] * tl.load(w_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    if BIAS:
        out += tl.load(b_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, _to(out, out_ptr.dtype.element_ty, LARGEST), mask=mask)
    tl.store(mean_ptr + rows, mean, mask=live)
    tl.store(rstd_ptr + rows, rstd, mask=live)


@triton.jit
def _read_backward(g_ptr, x_ptr, p_ptr, w_ptr, mean_ptr, rstd_ptr, dx_ptr, dp_ptr, dw_ptr, db_ptr, R, D, stride, p_step,
                   NS: tl.constexpr, ONE: tl.constexpr, BIAS: tl.constexpr, HELD: tl.constexpr, LARGEST: tl.constexpr,
                   STEPS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    cols = tl.arange(0, BLOCK_D)[None, :]
    w = tl.load(w_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    dw = tl.zeros((ROWS, BLOCK_D), tl.float32)
    db = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for step in range(STEPS):
        tile = tl.program_id(0) * STEPS + step
        rows = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        live = rows < R
        mask = live[:, None] & (cols < D)
        offsets = rows[:, None] * D + cols
        g = tl.load(g_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        x_row, dx_row = x_ptr, dx_ptr
        h = tl.zeros((ROWS, BLOCK_D), tl.float32)
        held = ()
        for j in tl.static_range(NS):
            x = tl.load(x_row + offsets, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
            h += _weight(p_ptr, rows * p_step + j, live) * x
            x_row += stride
            if j < HELD:
                held = held + (x,)
        rstd = tl.load(rstd_ptr + rows, mask=live, other=0.0)[:, None]
        normed = tl.where(mask, (h - tl.load(mean_ptr + rows, mask=live, other=0.0)[:, None]) * rstd, 0.0)
        dw += g * normed
        if BIAS:
            db += g
        g *= w
        m1, m2 = tl.sum(g, axis=1) / D, _dot(g, normed) / D
        g = tl.where(mask, (g - m1[:, None] - normed * m2[:, None]) * rstd, 0.0)  # the gradient of h
        x_row = x_ptr
        for j in tl.static_range(NS):
            if j < HELD:
                x = held[j]
            else:  # another policy, that the compiler does not take the two loads for one and keep the row
                x = tl.load(x_row + offsets, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32)
            _store_sum(dp_ptr, tile if ONE else rows, live, j, NS, _dot(g, x), ONE)
            dx = _weight(p_ptr, rows * p_step + j, live) * g
            tl.store(dx_row + offsets, _to(dx, dx_ptr.dtype.element_ty, LARGEST), mask=mask)
            x_row += stride
            dx_row += stride
    index = tl.program_id(0).to(tl.int64) * D + tl.arange(0, BLOCK_D)
    tl.store(dw_ptr + index, tl.sum(dw, axis=0), mask=tl.arange(0, BLOCK_D) < D)
    if BIAS:
        tl.store(db_ptr + index, tl.sum(db, axis=0), mask=tl.arange(0, BLOCK_D) < D)


@triton.jit
def _part(R, D, BLOCKS, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Of a program that has BLOCK_D columns of ROWS rows: rows, which are live, mask, offsets, index of its sums for each row"""
    rows = (tl.program_id(0) // BLOCKS * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    block = tl.program_id(0) % BLOCKS
    cols = (block * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    live = rows < R
    return rows, live, live[:, None] & (cols < D), rows[:, None] * D + cols, block.to(tl.int64) * R + rows


@triton.jit
def _write_forward(x_ptr, y_ptr, r_ptr, w_ptr, out_ptr, R, D, BLOCKS, stride, r_step, w_step, NS: tl.constexpr, MIX: tl.constexpr,
                   LARGEST: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, live, mask, offsets, _ = _part(R, D, BLOCKS, ROWS, BLOCK_D)
    y = tl.load(y_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    xs = _streams(x_ptr, offsets, stride, mask, NS)
    for i in tl.static_range(NS):
        out = _weight(w_ptr, rows * w_step + i, live) * y
        if MIX:
            for j in tl.static_range(NS):
                out += _weight(r_ptr, rows * r_step + (i * NS + j), live) * xs[j]
        else:
            out += xs[i]
        tl.store(out_ptr + offsets, _to(out, out_ptr.dtype.element_ty, LARGEST), mask=mask)
        out_ptr += stride


@triton.jit
def _write_backward(g_ptr, x_ptr, y_ptr, r_ptr, w_ptr, dx_ptr, dy_ptr, dr_ptr, dw_ptr, R, D, BLOCKS, stride, r_step, w_step,
                    NS: tl.constexpr, MIX: tl.constexpr, ONE_R: tl.constexpr, ONE_W: tl.constexpr, X_LARGEST: tl.constexpr,
                    Y_LARGEST: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows, live, mask, offsets, each = _part(R, D, BLOCKS, ROWS, BLOCK_D)
    program = tl.program_id(0).to(tl.int64)
    gs = _streams(g_ptr, offsets, stride, mask, NS)
    y = tl.load(y_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    dy = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for i in tl.static_range(NS):
        dy += _weight(w_ptr, rows * w_step + i, live) * gs[i]
        _store_sum(dw_ptr, program if ONE_W else each, live, i, NS, _dot(gs[i], y), ONE_W)
    tl.store(dy_ptr + offsets, _to(dy, dy_ptr.dtype.element_ty, Y_LARGEST), mask=mask)
    if MIX:
        for j in tl.static_range(NS):
            x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            dx = tl.zeros((ROWS, BLOCK_D), tl.float32)
            for i in tl.static_range(NS):
                dx += _weight(r_ptr, rows * r_step + (i * NS + j), live) * gs[i]
                _store_sum(dr_ptr, program if ONE_R else each, live, i * NS + j, NS * NS, _dot(gs[i], x), ONE_R)
            tl.store(dx_ptr + offsets, _to(dx, dx_ptr.dtype.element_ty, X_LARGEST), mask=mask)
            x_ptr += stride
            dx_ptr += stride


@triton.jit
def _rms_forward(x_ptr, out_ptr, R, D, stride, eps, NS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    cols = tl.arange(0, BLOCK_D)[None, :]
    live = rows < R
    offsets = rows[:, None] * D + cols
    squares = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for _ in tl.static_range(NS):
        x = tl.load(x_ptr + offsets, mask=live[:, None] & (cols < D), other=0.0).to(tl.float32)
        squares += x * x
        x_ptr += stride
    tl.store(out_ptr + rows, 1.0 / tl.sqrt(tl.sum(squares, axis=1) / (NS * D) + eps), mask=live)


@triton.jit
def _rms_backward(g_ptr, x_ptr, f_ptr, dx_ptr, R, D, BLOCKS, stride, NS: tl.constexpr, LARGEST: tl.constexpr, ROWS: tl.constexpr,
                  BLOCK_D: tl.constexpr):
    rows, live, mask, offsets, _ = _part(R, D, BLOCKS, ROWS, BLOCK_D)
    f = _weight(f_ptr, rows, live)
    factor = -_weight(g_ptr, rows, live) * f * (f * f / (NS * D))
    for _ in tl.static_range(NS):
        x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + offsets, _to(factor * x, dx_ptr.dtype.element_ty, LARGEST), mask=mask)
        x_ptr += stride
        dx_ptr += stride


# ----------------------------------------------------------------------------------------------------------------------
# how they are launched

def _numbers(D):
    """Of a tile. Addresses of columns that are no multiple of 16 are computed a number at a time, in registers."""
    return 1024 if D % 16 == 0 else 512


def read_tile(D):
    """(rows a program, columns, options of the launch) where a program has whole rows: 8 numbers a thread, or one row."""
    if D > MAX_D:
        raise ValueError(f"rows of {D} numbers: the kernels take at most {MAX_D}")
    block_d = triton.next_power_of_2(max(1, D))
    warps = min(16, max(4, block_d * 4 // _numbers(D)))
    return max(1, _numbers(D) // block_d), block_d, dict(num_warps=warps, **_all_registers(warps))


def read_back_tile(n, D):
    """The same of read_layernorm's backward kernel, and of how many streams it keeps the rows in registers: 32 numbers a thread in all,
    or 16. It keeps six more tiles: padded rows of 4,096 numbers have half as many threads as forward, each with twice the registers."""
    rows, block_d, options = read_tile(D)
    warps = 8 if block_d == 4096 and D % 16 == 0 else options["num_warps"]
    held = (32 if D % 16 == 0 else 16) * 32 * warps // (rows * block_d)
    return rows, block_d, dict(num_warps=warps, **_all_registers(warps)), min(n, held)


def write_tile(D, numbers=None, warps=4):
    """(rows a program, columns, blocks of columns in a row, options of the launch): 8 numbers of each stream a thread."""
    numbers = numbers or _numbers(D)
    block_d = min(numbers, triton.next_power_of_2(max(1, D)))
    return numbers // block_d, block_d, max(1, triton.cdiv(D, block_d)), dict(num_warps=warps, **_all_registers(warps))


def write_back_tile(n, D):
    """The same of mix_write's backward kernel. A program is one warp: its n^2 + n sums are added by shuffles, where several warps would
    wait for each other at each of them."""
    return write_tile(D, (512 if n <= 4 else 256) // (1 if D % 16 == 0 else 2), 1)


def _sizes(x):
    """(streams, tokens, C) of x (n, ..., C)"""
    n, D = x.size(0), x.size(-1)
    tokens = x[0].numel() // max(1, D)
    if tokens >= MOST_ROWS:
        raise ValueError(f"{tokens:,} tokens: the kernels count them in 32 bits and take fewer than {MOST_ROWS:,}")
    return n, tokens, D


def _weights(name, weights, x, own):
    """(weights, contiguous; from token to token, 0 where they are static). own: the shape of one token's."""
    _check_shape(name, weights, own if weights.dim() == len(own) else (*x.shape[1:-1], *own))
    if weights.dtype != torch.float32:
        raise TypeError(f"{name} is {weights.dtype}: the weights of streams are float32")
    return weights.contiguous(), 0 if weights.dim() == len(own) else math.prod(own)


# ----------------------------------------------------------------------------------------------------------------------
# the operators

@torch.library.custom_op("curvature::stream_read", mutates_args=())
def _read(x: torch.Tensor, p: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, dtype: torch.dtype
          ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, R, D = _sizes(x)
    _check_shape("weight", weight, (D,))
    _check_shape("bias", bias, (D,))
    p, p_step = _weights("p", p, x, (n,))
    x, weight, bias = x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
    out, mean, rstd = torch.empty(x.shape[1:], dtype=dtype, device=x.device), _float32(R, x), _float32(R, x)
    rows, block_d, options = read_tile(D)
    if R:
        _launch(_read_forward, triton.cdiv(R, rows), x, p, weight, weight if bias is None else bias, out, mean, rstd, R, D, R * D,
                p_step, eps, NS=n, BIAS=bias is not None, LARGEST=_largest(dtype), ROWS=rows, BLOCK_D=block_d, **options)
    return out, mean, rstd


@_read.register_fake
def _(x, p, weight, bias, eps, dtype):
    R = x.numel() // (x.size(0) * x.size(-1))
    return torch.empty(x.shape[1:], dtype=dtype, device=x.device), _float32(R, x), _float32(R, x)


@torch.library.custom_op("curvature::stream_read_backward", mutates_args=())
def _read_grad(g: torch.Tensor, x: torch.Tensor, p: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor,
               with_bias: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    n, R, D = _sizes(x)
    wide_p, p_step = _weights("p", p, x, (n,))
    g, x, weight, dx = g.contiguous(), x.contiguous(), weight.contiguous(), _like(x)
    rows, block_d, options, held = read_back_tile(n, D)
    programs = triton.cdiv(R, rows * STEPS)
    dp = _float32((R if p_step else programs * STEPS, n), x)
    dw, db = _float32((programs, D), x), _float32((programs if with_bias else 0, D), x)
    if R:
        _launch(_read_backward, programs, g, x, wide_p, weight, mean, rstd, dx, dp, dw, db, R, D, R * D, p_step, NS=n,
                ONE=not p_step, BIAS=with_bias, HELD=held, LARGEST=_largest(dx.dtype), STEPS=STEPS, ROWS=rows,
                BLOCK_D=block_d, **options)
    return dx, (dp if p_step else dp.sum(0)).view(p.shape), dw.sum(0).to(weight.dtype), db.sum(0).to(weight.dtype)


@_read_grad.register_fake
def _(g, x, p, weight, mean, rstd, with_bias):
    return _like(x), _like(p), _like(weight), _like(weight)


def _read_setup(ctx, inputs, output):
    x, p, weight, bias, _, _ = inputs
    ctx.with_bias = bias is not None
    ctx.set_materialize_grads(False)  # mean and rstd have none
    ctx.save_for_backward(x, p, weight, *output[1:])


def _read_autograd(ctx, g, _mean, _rstd):
    if g is None:
        return (None,) * 6
    dx, dp, dw, db = _read_grad(g, *ctx.saved_tensors, ctx.with_bias)
    return dx, dp, dw, db if ctx.with_bias else None, None, None


_read.register_autograd(_read_autograd, setup_context=_read_setup)


@torch.library.custom_op("curvature::stream_write", mutates_args=())
def _write(x: torch.Tensor, y: torch.Tensor, mix: torch.Tensor | None, w: torch.Tensor) -> torch.Tensor:
    n, R, D = _sizes(x)
    _check_shape("y", y, x.shape[1:])
    w, w_step = _weights("w", w, x, (n,))
    matrix, r_step = (w, 0) if mix is None else _weights("mix", mix, x, (n, n))
    x, y, out = x.contiguous(), y.contiguous(), _like(x)
    rows, block_d, blocks, options = write_tile(D)
    if R:
        _launch(_write_forward, triton.cdiv(R, rows) * blocks, x, y, matrix, w, out, R, D, blocks, R * D, r_step, w_step, NS=n,
                MIX=mix is not None, LARGEST=_largest(x.dtype), ROWS=rows, BLOCK_D=block_d, **options)
    return out


@_write.register_fake
def _(x, y, mix, w):
    return _like(x)


@torch.library.custom_op("curvature::stream_write_backward", mutates_args=())
def _write_grad(g: torch.Tensor, x: torch.Tensor, y: torch.Tensor, mix: torch.Tensor | None, w: torch.Tensor
                ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx, dy, dR, dw; dx and dR are empty where R is the identity: dx is g."""
    n, R, D = _sizes(x)
    wide_w, w_step = _weights("w", w, x, (n,))
    matrix, r_step = (wide_w, 0) if mix is None else _weights("mix", mix, x, (n, n))
    g, x, y = g.contiguous(), x.contiguous(), y.contiguous()
    dx, dy = _float32(0, x) if mix is None else _like(x), _like(y)
    rows, block_d, blocks, options = write_back_tile(n, D)
    programs = triton.cdiv(R, rows) * blocks
    dw = _float32((blocks, R, n) if w_step else (programs, n), x)
    dr = _float32(0 if mix is None else (blocks, R, n * n) if r_step else (programs, n * n), x)
    if R:
        _launch(_write_backward, programs, g, x, y, matrix, wide_w, dx, dy, dr, dw, R, D, blocks, R * D, r_step, w_step, NS=n,
                MIX=mix is not None, ONE_R=not r_step, ONE_W=not w_step, X_LARGEST=_largest(dx.dtype),
                Y_LARGEST=_largest(dy.dtype), ROWS=rows, BLOCK_D=block_d, **options)
    dr = dr if mix is None else dr.sum(0).view(mix.shape)
    return dx, dy, dr, dw.sum(0).view(w.shape)


@_write_grad.register_fake
def _(g, x, y, mix, w):
    return _float32(0, x) if mix is None else _like(x), _like(y), _float32(0, x) if mix is None else _like(mix), _like(w)


def _write_setup(ctx, inputs, output):
    x, y, mix, w = inputs
    ctx.mixed = mix is not None
    ctx.save_for_backward(x, y, w, *([mix] if ctx.mixed else []))


def _write_autograd(ctx, g):
    x, y, w, *mix = ctx.saved_tensors
    dx, dy, dr, dw = _write_grad(g, x, y, mix[0] if ctx.mixed else None, w)
    return (dx, dy, dr, dw) if ctx.mixed else (g, dy, None, dw)


_write.register_autograd(_write_autograd, setup_context=_write_setup)


@torch.library.custom_op("curvature::stream_rms", mutates_args=())
def _rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    n, R, D = _sizes(x)
    x, out = x.contiguous(), _float32(x.shape[1:-1], x)
    rows, block_d, options = read_tile(D)
    if R:
        _launch(_rms_forward, triton.cdiv(R, rows), x, out, R, D, R * D, eps, NS=n, ROWS=rows, BLOCK_D=block_d, **options)
    return out


@_rms.register_fake
def _(x, eps):
    return _float32(x.shape[1:-1], x)


@torch.library.custom_op("curvature::stream_rms_backward", mutates_args=())
def _rms_grad(g: torch.Tensor, x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    n, R, D = _sizes(x)
    g, x, factor, dx = g.contiguous(), x.contiguous(), factor.contiguous(), _like(x)
    rows, block_d, blocks, options = write_tile(D)
    if R:
        _launch(_rms_backward, triton.cdiv(R, rows) * blocks, g, x, factor, dx, R, D, blocks, R * D, NS=n,
                LARGEST=_largest(dx.dtype), ROWS=rows, BLOCK_D=block_d, **options)
    return dx


@_rms_grad.register_fake
def _(g, x, factor):
    return _like(x)


def _rms_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output)


_rms.register_autograd(lambda ctx, g: (_rms_grad(g, *ctx.saved_tensors), None), setup_context=_rms_setup)


# ----------------------------------------------------------------------------------------------------------------------
# the functions

def read_layernorm(x, p, weight, bias=None, eps=1e-5, dtype=None):
    """LayerNorm(sum_j p_j x_j). x (n, B, T, C), p (n) or (B, T, n), weight and bias (C) -> (B, T, C) in `dtype` (default: x's;
    autocast's 16 bits halve what the next matrix product reads). ValueError, TypeError for what does not fit these shapes and dtypes."""
    stored = _result_dtype(x)  # also where `dtype` is given: float64 rows are refused
    return _read(x, p.float(), weight, bias, eps, stored if dtype is None else dtype)[0]


def mix_write(x, y, mix, w):
    """streams.mixing.write: sum_j R_ij x_j + w_i y, in the dtype of x. x (n, B, T, C), y (B, T, C), R (n, n) or (B, T, n, n) or None
    (the identity), w (n) or (B, T, n)."""
    _result_dtype(x), _result_dtype(y)
    return _write(x, y, None if mix is None else mix.float(), w.float())


def rms_factor(x, eps=1e-6):
    """streams.mixing.rms_factor: 1 / sqrt(mean over n and C of x^2 + eps). x (n, B, T, C) -> (B, T), float32."""
    _result_dtype(x)
    return _rms(x, eps)
