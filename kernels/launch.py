"""
What PyTorch does around a kernel. Can it run on this device? How many rows does a program take, with how many threads? Rows and c
become what a kernel reads, and the gradients that it writes get the shape of what they belong to.
"""
import math

import torch
import triton

import geometry
from geometry.rows import _narrow
from kernels.interpreter import patch_once_a_launch
from kernels.rows import _load

MAX_D = 8192
MOST_ROWS = 2 ** 31

INTERPRETED = not isinstance(_load, triton.runtime.JITFunction)  # decided by TRITON_INTERPRET when triton is imported
if INTERPRETED:
    patch_once_a_launch()


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


def _all_registers(warps):
    """The option that lets a thread take all registers that there are for it: ptxas, left to itself, trades a spill for
    occupancy. (AMD's compiler has no such option.)"""
    return dict(maxnreg=min(255, 65536 // (32 * warps))) if torch.version.hip is None else {}


# ----------------------------------------------------------------------------------------------------------------------
# rows, c and gradients of it

def _common(rows, *scalars):
    """The rows in the shape that they and c (and limit) broadcast to."""
    for c in scalars:
        if isinstance(c, torch.Tensor) and c.dim() and c.size(-1) != 1:
            raise ValueError(f"c and limit broadcast against (..., 1), one number a row, and this one is {tuple(c.shape)}")
    rows = geometry.spread(rows, *scalars)
    shape = torch.broadcast_shapes(*(row.shape for row in rows))
    return tuple(row.expand(shape) for row in rows)


def _tensor(c, x):
    if c is None:
        return None
    return c.to(x.device) if isinstance(c, torch.Tensor) else torch.full((), c, dtype=torch.float32, device=x.device)


def _check_shape(name, tensor, shape):
    """The kernels would read beyond a smaller one."""
    if tensor is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(shape)}")


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


def _to_shape(grad_rows, lead, like):
    """The gradient of c from one number a row, or one number a program where c is one number."""
    if like.numel() == 1:
        return _narrow(grad_rows.sum().reshape(like.shape), like.dtype, True)
    return _narrow(grad_rows.view(*lead, 1).sum_to_size(like.shape), like.dtype, True)


# ----------------------------------------------------------------------------------------------------------------------
# what is stored

def _result_dtype(*rows):
    """The dtype in which a result is stored"""
    dtype = rows[0].dtype
    for row in rows[1:]:
        dtype = torch.promote_types(dtype, row.dtype)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"the kernels take float32, bfloat16 or float16 rows, not {dtype}; use geometry/")
    return dtype


def _largest(dtype):
    return float(torch.finfo(dtype).max)


def _float32(shape, beside):
    return torch.empty(shape, dtype=torch.float32, device=beside.device)


def _like(row):
    return torch.empty(row.shape, dtype=row.dtype, device=row.device)


def _like_or_none(row, beside):
    """An operator returns tensors only: an empty one where there is no such row"""
    return _float32(0, beside) if row is None else _like(row)
