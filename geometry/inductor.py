"""Code that changes no number, only what Inductor makes of it for a CPU. Each was found by reading the generated code."""
import torch


def _sum_to(grad, shape):
    return grad if grad.shape == shape else grad.sum_to_size(shape)


def _for_cpu_code(tensor):
    return torch.compiler.is_compiling() and tensor.device.type == "cpu"


def _stored(k):
    """k, written to memory where the compiler would fuse its formula into the loops that read it, once for every element
    of a row instead of once a row: a strided view can only be taken of memory."""
    return k.as_strided(k.shape, k.stride()) if _for_cpu_code(k) else k


_AVX512 = bool(torch.cpu.get_capabilities().get("avx512_f"))


def _row_sum(products):
    """Sum over the last dimension, (..., D) -> (..., 1). What takes the time in compiled float64 code is the end of each
    row, across the lanes of a vector register; so 8 sums of D/8 numbers are made first. With AVX-512 that pays for short
    rows only, and where their terms are written out (fewer than 8): Inductor counts a loop over 8 lanes of a register of 16
    as none, and starts its threads anew for every row."""
    size = products.size(-1)
    if not _for_cpu_code(products) or products.dtype != torch.float64:
        return products.sum(-1, keepdim=True)
    if size % 8 or (_AVX512 and size > 64):
        return _stored(products.sum(-1, keepdim=True))
    if _AVX512 and size == 64:
        products = products.unflatten(-1, (2, 32)).sum(-2)
    lanes = _stored(products.unflatten(-1, (-1, 8)).sum(-2))
    return _stored(lanes.unflatten(-1, (2, 4)).sum(-2).sum(-1, keepdim=True))


class _EveryRow(torch.autograd.Function):
    """c, one for every row: compiled loops over rows with one c per head use n_head of the lanes of a register."""

    @staticmethod
    def forward(ctx, c, shape):
        ctx.shape = c.shape
        return _stored(c.expand(shape).contiguous())

    @staticmethod
    def backward(ctx, g):
        return _sum_to(g, ctx.shape), None
