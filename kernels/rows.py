"""
What kernels do with rows: which rows a program has, reading them as float32, writing them in the dtype they are stored in; c of
each row, and its gradient; dot products. Tiles are (rows, D); scalars, one a row, are (rows,).
"""
import triton
import triton.language as tl

EPS = tl.constexpr(1.1920929e-07)


@triton.jit
def _tile(R, D, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, BLOCK_D)
    return rows, rows < R, cols[None, :], (rows < R)[:, None] & (cols < D)[None, :]


@triton.jit
def _load(pointer, rows, stride, cols, mask):
    return tl.load(pointer + rows[:, None].to(tl.int64) * stride + cols, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _to(row, dtype: tl.constexpr, largest: tl.constexpr):
    """A tile in the dtype in which it is stored, saturated."""
    if largest < 3.4028234e38:  # float32 is what the rows are in: nothing to saturate, and NaN and Inf stay
        row = tl.maximum(row, -largest, propagate_nan=tl.PropagateNan.ALL)
        row = tl.minimum(row, largest, propagate_nan=tl.PropagateNan.ALL)
    return row.to(dtype)


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
def _dot(a, b):
    return tl.sum(a * b, axis=1)
