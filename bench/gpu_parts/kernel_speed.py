"""
Every kernel of kernels/ against a plain copy of as many bytes, measured in the same way, eager PyTorch and autotuned Inductor
(mode 'max-autotune-no-cudagraphs'): forward, backward and both. The rows are far larger than the L2 cache, which is flushed
before each call. Each is compared with float64 before it is timed; a wrong one is not timed.
"""

import functools

import bench_kernels
import torch
from bench_kernels import OPERATIONS

from gpu_parts import Job

NUMBERS = 65536 * 768  # in a tensor of rows: 96 MiB in 16 bits
WIDTHS = (64, 384, 768, 1024, 2048, 4096)  # 64: one c per head, 12 heads
MODELS_OWN = ("add_exp_0", "log_layernorm")  # what the default mixed model calls
AUTOTUNED = dict(mode="max-autotune-no-cudagraphs")


def jobs(settings):
    if settings.quick:
        return [
            Job("triton, logmap", ("triton", "logmap", "bfloat16", (64,))),
            Job("inductor, logmap", ("inductor", "logmap", "bfloat16", (64,))),
        ]
    names = [*MODELS_OWN, *(name for name in OPERATIONS if name not in MODELS_OWN)]
    wanted = [("triton", name, "bfloat16", WIDTHS) for name in names]
    wanted += [("inductor", name, "bfloat16", (D,)) for D in (768, 4096, 384, 2048) for name in MODELS_OWN]
    wanted += [("triton", name, "float32", WIDTHS) for name in MODELS_OWN]
    wanted += [("eager", name, "bfloat16", (768,)) for name in names]
    wanted += [("inductor", name, "bfloat16", (D,)) for D in (768, 4096) for name in names[2:]]
    wanted += [("inductor", name, "bfloat16", (D,)) for D in (384, 2048) for name in names[2:]]
    wanted += [("inductor", name, "bfloat16", (D,)) for D in (64, 1024) for name in names]
    wanted += [("eager", name, "bfloat16", (64, 384, 1024, 2048, 4096)) for name in names]
    return [
        Job(f"{provider}, {name}, {dtype}, {', '.join(map(str, widths))}", (provider, name, dtype, widths))
        for provider, name, dtype, widths in wanted
    ]


def workers(settings):
    return 1


@functools.cache
def copy_rate(size, device, rounds):
    return bench_kernels.copy_bandwidth(device, rounds, size)


def run(job, settings, record):
    provider, name, dtype, widths = job.arguments
    bench_kernels.allow_repeated_backward()
    numbers, rounds = (24 * 64, 2) if settings.quick else (NUMBERS, 5 if provider == "eager" else 15)
    for D in widths:
        c = "head" if D == 64 else "one"
        inputs, g = bench_kernels.make_inputs(name, numbers // D, D, getattr(torch, dtype), c, settings.device)
        torch._dynamo.reset()
        options = dict(backend="aot_eager") if settings.quick else AUTOTUNED
        f = {
            "triton": bench_kernels.in_triton,
            "eager": bench_kernels.in_pytorch,
            "inductor": functools.partial(bench_kernels.in_compiled, **options),
        }[provider](name)
        row = dict(what="speed", provider=provider, op=name, dtype=dtype, D=D, rows=inputs[0].numel() // D, c=c)
        error = max(bench_kernels.errors_of(f, bench_kernels.in_pytorch(name), inputs, g, OPERATIONS[name]))
        if not error < bench_kernels.BOUNDS[dtype]:
            record(**row, error=f"wrong, so not timed: relative error {error:.1e}, allowed {bench_kernels.BOUNDS[dtype]:.0e}")
            continue
        for passes, size, (median, low, high), memory in bench_kernels.timings(f, name, inputs, g, rounds, settings.device):
            copy = copy_rate(size, settings.device, rounds)
            record(
                **row,
                passes=passes,
                ms=1e3 * median,
                ms_20=1e3 * low,
                ms_80=1e3 * high,
                GB_s=size / median / 1e9,
                copy_GB_s=copy,
                share_of_copy=size / median / 1e9 / copy,
                peak_MiB=memory,
                wrong_by=error,
            )


def conclude(rows, settings):
    """What the kernels are faster than, where both were timed"""
    timed = {(row["provider"], row["op"], row["dtype"], row["D"], row["passes"]): row["ms"] for row in rows if "ms" in row}
    found = []
    for (provider, *case), ms in timed.items():
        if provider == "triton":
            others = {f"over_{other}": timed[other, *case] / ms for other in ("eager", "inductor") if (other, *case) in timed}
            if others:
                found.append(dict(what="faster", **dict(zip(("op", "dtype", "D", "passes"), case)), **others))
    return found
