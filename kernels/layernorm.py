"""
LayerNorm(log_r(x)), the logarithm per head, the norm over the whole row: log_layernorm.
"""
import torch
import triton
import triton.language as tl

import geometry
from geometry.rows import _narrow
from kernels.launch import (
    MAX_D,
    MOST_ROWS,
    _all_registers,
    _check_shape,
    _float32,
    _largest,
    _launch,
    _like,
    _like_or_none,
    _result_dtype,
    _row_index,
    _tensor,
)
from kernels.logarithm import _log, _log_pull_back
from kernels.rows import _dot, _to

ORIGIN, PREVIOUS, GIVEN = (tl.constexpr(k) for k in range(3))
REFERENCES = {"origin": 0, "previous": 1, "given": 2}

CHUNK = 8


# ----------------------------------------------------------------------------------------------------------------------
# the kernels: a program walks along CHUNK tokens; a tile is one token, (heads, head size)

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
# how they are launched

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


# ----------------------------------------------------------------------------------------------------------------------
# the operators

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
    return dx, dr, _narrow(dc, c.dtype, True), dw.sum(0).to(weight.dtype), db.to(weight.dtype)


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
# the function

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
