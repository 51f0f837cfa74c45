"""
float32 products of a CPU by oneDNN, where MKL leaves half of the CPU idle.

torch multiplies float32 matrices with MKL, which takes its AVX2 code on CPUs that are not Intel's, also where they have AVX-512. oneDNN,
which comes with torch, too, takes AVX-512 there. One thread of a Zen 5 at 3,072 x 128 x 512: 97 Gflop/s with MKL, 240 with oneDNN.
The sums are the same to rounding.

Compiled code saves less then: the compiler does not look into these products (docs/performance.md).
"""
import functools

import torch
import torch.nn as nn
import torch.nn.functional as F

COMPILING_SAVES_LESS = 0.1  # of a step


@functools.cache
def vendor():
    """'AuthenticAMD', 'GenuineIntel', ..., or '' where the system does not say"""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            return next((line.split(":")[1].strip() for line in f if line.startswith("vendor_id")), "")
    except OSError:  # not Linux, or not to be read: then torch's own products are taken
        return ""


def is_there():
    return torch.backends.mkldnn.is_available()


def is_faster():
    """By a rule and not by a measurement, so that a run that is repeated or resumed does the same sums."""
    return is_there() and torch.backends.cpu.get_cpu_capability() == "AVX512" and vendor() == "AuthenticAMD"


@torch.library.custom_op("curvature::product", mutates_args=(), device_types="cpu")
def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x w^T. x: (M, K), w: (N, K), float32, any strides -> (M, N), contiguous."""
    return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


@product.register_fake
def _(x, w):
    return x.new_empty(x.shape[0], w.shape[0])


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    """d/dx = g w, d/dw = g^T x: products of the same kind, so that they have derivatives, too."""
    x, w = ctx.saved_tensors
    return (product(grad, w.t()) if ctx.needs_input_grad[0] else None,
            product(grad.t(), x.t()) if ctx.needs_input_grad[1] else None)


product.register_autograd(_backward, setup_context=_save)


class Linear(nn.Linear):
    """nn.Linear whose products are oneDNN's."""

    def forward(self, x):
        if not x.numel() or x.dtype != torch.float32 or self.weight.dtype != torch.float32:
            return F.linear(x, self.weight, self.bias)
        y = product(x.reshape(-1, self.in_features), self.weight).view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias


def use_in(model):
    """Every nn.Linear of a model is one of these from now on: the same parameters, the same names. -> the model"""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model
