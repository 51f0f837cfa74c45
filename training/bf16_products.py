"""
Products of bf16 matrices on a CPU that cannot multiply them: by float32, rounded to bf16.

torch's own are a plain loop there: 12.6 ms where float32 takes 1.1 (a gram matrix of 128 x 512 and a product with it, one thread, Zen 1).
The result is that of bf16 hardware, which also adds in float32 and rounds once, but for the order of a sum. Muon needs it: Newton-Schulz is
in bf16, and was two thirds of a training step at 4 x 128.
"""
import contextlib

import torch
from torch.overrides import TorchFunctionMode

PRODUCTS = {torch.Tensor.matmul, torch.Tensor.__matmul__, torch.addmm, torch.baddbmm}  # of Newton-Schulz


class InFloat32(TorchFunctionMode):

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS and args[0].dtype == torch.bfloat16:
            return func(*(arg.float() for arg in args), **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))


def has_bf16_products():
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def fast_bf16_products(device_type):
    """A context in which products of bf16 matrices are fast on this device."""
    return InFloat32() if device_type == "cpu" and not has_bf16_products() else contextlib.nullcontext()
