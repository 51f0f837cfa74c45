"""Choices that depend on the machine: device, dtype, what multiplies matrices, torch.compile. Each is made once and printed."""
import contextlib
import functools
import importlib.util
import os
import shutil
import sys

import torch

from common.errors import UserError
from training import onednn


def pick_device(wanted):
    """'cpu', 'mps' or 'cuda:N'"""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise UserError(f"device = {wanted!r}: there is no such device; use auto, cpu, cuda, cuda:N or mps") from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    index = torch.device(wanted).index or 0
    if not present.get(kind, False) or (kind == "cuda" and index >= torch.cuda.device_count()):
        raise UserError(f"device = {wanted!r} is not available on this machine; use --device=auto")
    return f"cuda:{index}" if kind == "cuda" else kind


def pick_dtype(wanted, device_type):
    """bf16 where the hardware multiplies it faster than float32 (on a CPU: AMX or AVX512-BF16 instructions)."""
    if wanted != "auto":
        return wanted
    if device_type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device_type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "bfloat16"
    return "float32"


def pick_matmul(wanted, device_type, dtype):
    """'torch' or 'onednn': what multiplies the matrices of a model's linear layers. dtype: as pick_dtype() has it. Raises UserError."""
    usable = device_type == "cpu" and dtype == "float32"
    if wanted == "auto":
        return "onednn" if usable and onednn.is_faster() else "torch"
    if wanted == "onednn" and not usable:
        raise UserError(f"matmul = 'onednn' is for float32 on a CPU, not {dtype} on {device_type}")
    if wanted == "onednn" and not onednn.is_there():
        raise UserError("matmul = 'onednn': this torch was built without oneDNN; use --matmul=torch")
    return wanted


def no_compiler(device_type):
    """What torch.compile needs on this device and does not find, or None."""
    def found(variable, *names):
        return any(map(shutil.which, [os.environ[variable]] if variable in os.environ else names))
    name = "clang++" if sys.platform == "darwin" else "g++"
    if device_type == "cpu" and not found("CXX", name):
        return f"a C++ compiler: there is no {os.environ.get('CXX', name)}"
    if device_type == "cuda" and not found("CC", "gcc", "clang"):  # Triton compiles a part of itself the first time
        return f"a C compiler: there is no {os.environ.get('CC', 'gcc or clang')}"
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton, and it is not installed"
    return None


def pick_compile(wanted, device_type, flops, cost, saving=0.1):
    """(compile?, why). flops: of all planned steps; cost: seconds that compiling the model takes; saving: what it saves on this
    device, as a share of what the flops take. Assumed for 'auto': 1e11 flop/s on a CPU and 5e13 on a GPU."""
    lacking = no_compiler(device_type)
    if wanted != "auto":
        if wanted and lacking:
            raise UserError(f"compile = True needs {lacking}; install it, or use --compile=False")
        return wanted, "as asked"
    if device_type == "mps":
        return False, "not on mps"
    if lacking:
        return False, f"it needs {lacking}"
    seconds = flops / (5e13 if device_type == "cuda" else 1e11)
    saved = seconds * saving
    return saved > cost, f"some {seconds:,.0f} s of matrix products planned; it may save {saved:,.0f} s and cost {cost:,.0f}"


def precision(dtype, device, model_config):
    """(context of a forward pass, gradient scaler). dtype: as pick_dtype() has it. Weights are float32 whatever it is."""
    device_type = torch.device(device).type
    if dtype == "float32":
        autocast = contextlib.nullcontext
    else:
        autocast = functools.partial(torch.autocast, device_type, dtype=getattr(torch, dtype))
    if device_type == "cuda":
        torch.cuda.set_device(device)  # kernels are launched on the current one
        # TF32; not for gyro-midpoints, float32 products that need their digits (and all that there is beside autocast's)
        if dtype == "float32" and not has_midpoints(model_config):
            torch.set_float32_matmul_precision("high")
    return autocast, torch.amp.GradScaler(device_type, enabled=dtype == "float16")


def has_midpoints(model_config):
    """Does the model take gyro-midpoints: of earlier tokens, of streams, or of values?"""
    def of(key):
        return getattr(model_config, key, None)
    return (of("reference") in ("mean", "window", "ema") or of("attention") == "distance"
            or of("hc_space") == "midpoint" and of("hc") != "none")


def padded_vocabulary(size):
    """A GPU's matrix units want whole tiles: GPT-2's 50,257 become nanoGPT's 50,304. The added tokens never occur."""
    return size if size < 1024 else -(-size // 64) * 64
