"""
Speed of the geometry against memory bandwidth: mobius_add, expmap, add_exp_0, add_exp, logmap and log_layernorm (reference
'previous'), forward, backward and both.

    python bench/bench_kernels.py                                        on a GPU eager, compiled and triton; else eager and compiled
    python bench/bench_kernels.py --rows='[65536]' --D='[384]' --ops='["logmap"]'
    python bench/bench_kernels.py --c=head --D='[64]'                    one c per head (12 heads)

Correctness comes first: each provider's output and gradients against float64 (geometry/), and a wrong one is not timed. Then the
time (median, 20th and 80th percentile), the bandwidth of the *necessary* bytes (each input read once, each output written once:
for most maps 3 rows forward, 5 backward, 8 for both), its share of what a plain copy reaches in this run on this machine, the
speed-up over eager and the peak memory above the inputs. A table, a CSV (--out) with hardware and versions, and a plot beside it.
"""
import contextlib
import csv
import ctypes
import gc
import importlib.metadata
import math
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from typing import Literal

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import numpy as np
import torch
from bench_model import _status_kib
from torch.nn import functional as F

import configurator
import geometry
from common import paths
from common.errors import UserError, exit_cleanly
from configurator import Path
from training.machine import pick_device

# map -> rows that it takes. Necessary passes: forward reads them and writes one; backward reads them and the cotangent, and
# writes a gradient for each
OPERATIONS = {"mobius_add": 2, "expmap": 2, "add_exp_0": 2, "add_exp": 3, "logmap": 2, "log_layernorm": 1}
LIMIT = {"add_exp_0": 2.0, "add_exp": 2.0}  # models call these with the projection; no row of make_inputs is as long
DTYPES = ("float32", "bfloat16", "float16")
BOUNDS = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}  # on errors, before anything is timed
HEADS = 12


@dataclass
class BenchConfig:
    rows: list[int] = field(default_factory=lambda: [4096, 65536])  # how many rows
    D: list[int] = field(default_factory=lambda: [64, 384, 768])  # numbers in a row
    dtype: list[str] = field(default_factory=lambda: ["float32"])  # of the rows: float32 | bfloat16 | float16
    ops: list[str] = field(default_factory=lambda: list(OPERATIONS))  # which maps
    c: Literal["one", "head", "row"] = "one"  # one c, one for each of 12 heads, or one a row
    rounds: int = 15  # timed calls of each
    threads: int = 2  # CPU threads
    device: str = "auto"  # 'auto' | 'cpu' | 'cuda'
    keep_memory: bool = True  # CPU: keep freed memory for the next tensor (keep_freed_memory)
    out: Path = "out/bench_kernels.csv"  # the table as CSV; the plot is beside it (.png)

    def __post_init__(self):
        for key, allowed in (("ops", tuple(OPERATIONS)), ("dtype", DTYPES)):
            for value in getattr(self, key):
                if value not in allowed:
                    raise UserError(f"{key}: {value!r}; there are {', '.join(allowed)}")
        for key in ("ops", "dtype", "rows", "D"):
            if not getattr(self, key):
                raise UserError(f"{key} is an empty list: nothing to measure")
        if self.rounds < 2 or self.threads < 1 or min(self.rows + self.D) < 1:
            raise UserError("rounds must be at least 2; threads, rows and D at least 1")
        if self.c == "head" and min(self.rows) < HEADS:
            raise UserError(f"rows: at least {HEADS} with c = 'head', one for each head")


def keep_freed_memory():
    """Tells glibc, where it is the C library, to keep what is freed. By default it maps tensors over 32 MiB afresh and the
    operating system clears their pages each time, which takes several times as long as the geometry itself; the copy, into
    memory that it has, would not pay for that. (train.py leaves the default: kept memory can add up to several times
    the largest tensor.)"""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD


def quantiles(f, rounds, device):
    """(median, 20th, 80th percentile) of the seconds that f takes"""
    f(), f()
    times = []
    if device.startswith("cuda"):
        flush = torch.empty(2 ** 28, dtype=torch.int8, device=device)  # larger than any L2 cache
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            torch.cuda._sleep(10_000_000)  # some 5 ms, in which the CPU runs ahead: what launching takes is not the GPU's time
            begin.record()
            f()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        return tuple(np.quantile(times, [0.5, 0.2, 0.8]))
    for _ in range(rounds):
        began = time.perf_counter()
        f()
        times.append(time.perf_counter() - began)
    return tuple(np.quantile(times, [0.5, 0.2, 0.8]))


def copy_bandwidth(device, rounds, size=2 ** 29):
    """GB/s of torch's own copy; size: bytes read and written, together."""
    a = torch.rand(max(1, size // 8), device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes / quantiles(lambda: b.copy_(a), rounds, device)[0] / 1e9


def peak_memory(f, device):
    """MiB that f takes above what is allocated before it, or None where that cannot be seen"""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        f()
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # what keep_freed_memory has kept would be taken again unseen
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status_kib("VmRSS")
    f()
    return max(0, _status_kib("VmHWM") - before) / 1024


def log_layernorm(x, c, weight):
    """LayerNorm(log_r(x)), r_t = x_{t-1}, of model.py: what kernels.log_layernorm does in one kernel"""
    u = geometry.log_previous(x, c).flatten(2)
    return F.layer_norm(u.to(weight.dtype), weight.shape, weight).to(x.dtype).view(x.shape)


def as_models_call(module, name):
    f = getattr(module, name)
    return (lambda *inputs: f(*inputs, limit=LIMIT[name])) if name in LIMIT else f


def in_pytorch(name):
    return log_layernorm if name == "log_layernorm" else as_models_call(geometry, name)


def in_triton(name):
    import kernels
    return as_models_call(kernels, name)


def in_compiled(name, **options):
    """options: torch.compile's"""
    return torch.compile(in_pytorch(name), fullgraph=True, dynamic=False, **options)


def providers(device):
    """name -> a function that returns a map by name"""
    found = {"eager": in_pytorch, "compiled": in_compiled}
    if device.startswith("cuda"):
        found["triton"] = in_triton
    return found


def too_long(name, x):
    """Why the kernels do not take rows like x, or None"""
    import kernels
    heads = x.size(2) if name == "log_layernorm" else 1
    return kernels.check_row(heads, x.size(-1))


def make_inputs(name, rows, D, dtype, c, device):
    """The rows (points in the ball, the last a tangent vector too), c, LayerNorm's weight where there is one; and a cotangent"""
    rng = torch.Generator(device).manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=rng, device=device)
    share = lambda *size: torch.rand(*size, generator=rng, device=device)
    lead = (rows // HEADS, HEADS) if c == "head" else (rows,)
    shape = {"one": (), "head": (HEADS, 1), "row": (rows, 1)}[c]
    if name == "log_layernorm":  # (B, T, heads, head size)
        lead = (1, *lead) if c == "head" else (1, rows, 1)
        shape = (rows, 1, 1) if c == "row" else shape
    points = [draw(*lead, D) for _ in range(OPERATIONS[name])]
    points = [0.7 * v / v.norm(dim=-1, keepdim=True) * share(*lead, 1) for v in points]
    curvature = 0.5 + 0.5 * share(shape)
    weight = [1 + 0.1 * draw(lead[2] * D)] if name == "log_layernorm" else []
    inputs = [*(v.to(dtype) for v in points), curvature, *weight]
    return [t.requires_grad_() for t in inputs], draw(*lead, D).to(dtype)


def results_of(f, inputs, g):
    """The output of f and its gradients by every input, detached; g: cotangent"""
    out = f(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, g.to(out.dtype))]


def errors_of(f, exact, inputs, g, taken, floor=0.0):
    """Relative errors of the output of f and of its gradient by every input, against `exact` on the same numbers in float64. taken:
    how many of the inputs, the first ones, are rows. floor: a share of the cotangent's norm, added to that of a row's gradient,
    which may be 0."""
    found = results_of(f, inputs, g)
    expected = results_of(exact, [t.detach().double().requires_grad_() for t in inputs], g)
    # a gradient of c is a sum over a row, or all of them, that may cancel: relative to what it is made of
    size = float(g.double().norm())
    parts = [0, *[floor * size] * taken, *(size if t.numel() == 1 else 0.05 * size for t in inputs[taken:])]
    return [float((a.double() - b).norm() / (b.norm() + part)) for a, b, part in zip(found, expected, parts)]


def allow_repeated_backward():
    """Else a compiled backward pass can be timed once only: it reuses what was kept."""
    from torch._functorch import config as functorch
    functorch.donated_buffer = False


def bench(config, device, table):
    """Adds to the table, a dict for each line of it."""
    allow_repeated_backward()
    copy = copy_bandwidth(device, config.rounds)
    print(f"{hardware(device)}, torch {torch.__version__}, {config.threads} CPU threads")
    print(f"copy of 256 MiB: {copy:.1f} GB/s\n")
    print(f"{'op':14}{'rows':>8}{'D':>6} {'dtype':9}{'pass':9}{'provider':9}{'ms':>9}{'20%':>9}{'80%':>9}{'GB/s':>8}{'of copy':>8}"
          f"{'x eager':>8}{'MiB':>8}")
    for name in config.ops:
        for dtype in config.dtype:
            for D in config.D:
                for rows in config.rows:
                    table += one_case(config, name, dtype, D, rows, device, copy)


def one_case(config, name, dtype, D, rows, device, copy):
    kind = getattr(torch, dtype)
    inputs, g = make_inputs(name, rows, D, kind, config.c, device)
    few = make_inputs(name, min(rows, 256), D, kind, config.c, device)
    rows = inputs[0].numel() // D
    lines, eager = [], {}
    for provider, get in providers(device).items():
        problem = too_long(name, inputs[0]) if provider == "triton" else None
        if problem:
            print(f"{name:14}{rows:8}{D:6} {dtype:9}{'':9}{provider:9} not timed: {problem}")
            continue
        torch._dynamo.reset()
        f = get(name)
        worst, bound = max(errors_of(f, in_pytorch(name), *few, OPERATIONS[name])), BOUNDS[dtype]
        if not worst < bound:
            print(f"{name:14}{rows:8}{D:6} {dtype:9}{'':9}{provider:9} WRONG: error {worst:.1e} over {bound:.0e}, not timed")
            continue
        for passes, size, (median, low, high), memory in timings(f, name, inputs, g, config.rounds, device):
            rate = size / median / 1e9
            if provider == "eager":
                eager[passes] = median
            speedup = eager[passes] / median if eager else math.nan  # eager was wrong, and not timed
            line = dict(op=name, rows=rows, D=D, dtype=dtype, c=config.c, passes=passes, provider=provider, ms=1e3 * median,
                        ms_20=1e3 * low, ms_80=1e3 * high, GB_s=rate, share_of_copy=rate / copy,
                        speedup_over_eager=speedup, peak_MiB=memory, error=worst, copy_GB_s=copy)
            lines.append(line)
            print(f"{name:14}{rows:8}{D:6} {dtype:9}{passes:9}{provider:9}{1e3 * median:9.3f}{1e3 * low:9.3f}{1e3 * high:9.3f}"
                  f"{rate:8.1f}{rate / copy:8.0%}{speedup:8.1f}{'-' if memory is None else f'{memory:.0f}':>8}", flush=True)
    return lines


def timings(f, name, inputs, g, rounds, device):
    """For forward, backward and both: (name, necessary bytes, quantiles of the seconds, peak MiB above the inputs or None)"""
    taken = OPERATIONS[name]
    out = f(*inputs)
    work = {"forward": (taken + 1, lambda: f(*inputs)),  # necessary passes, and what is timed
            "backward": (2 * taken + 1, lambda: torch.autograd.grad(out, inputs, g, retain_graph=True)),
            "both": (3 * taken + 2, lambda: torch.autograd.grad(f(*inputs), inputs, g))}
    for passes, (count, call) in work.items():
        yield passes, count * inputs[0].nbytes, quantiles(call, rounds, device), peak_memory(call, device)


def hardware(device):
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda or torch.version.hip}"
    model = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        model = next((line.split(":", 1)[1].strip() + " " for line in f if line.startswith("model name")), "")
    return f"CPU {model}{torch.backends.cpu.get_cpu_capability()}"


def write(table, config, device):
    folder = os.path.dirname(config.out)
    if folder:
        os.makedirs(folder, exist_ok=True)
    triton = importlib.metadata.version("triton") if device.startswith("cuda") else None
    about = dict(hardware=hardware(device), threads=config.threads, torch=torch.__version__, triton=triton,
                 python=platform.python_version())
    with open(config.out, "w", newline="") as f:
        writer = csv.DictWriter(f, [*table[0], *about])
        writer.writeheader()
        writer.writerows({**line, **about} for line in table)
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    biggest = max(line["rows"] * line["D"] for line in table)
    chosen = [line for line in table if line["rows"] * line["D"] == biggest]
    names = list(dict.fromkeys(line["provider"] for line in chosen))
    groups = list(dict.fromkeys((line["op"], line["passes"], line["dtype"]) for line in chosen))
    figure, axis = plt.subplots(figsize=(1.5 + 0.6 * len(groups), 4))
    for i, (provider, colour) in enumerate(zip(names, ("#0072B2", "#E69F00", "#009E73"))):
        share = {(line["op"], line["passes"], line["dtype"]): line["share_of_copy"] for line in chosen if line["provider"] == provider}
        axis.bar([k + 0.27 * i for k in range(len(groups))], [100 * share.get(g, 0) for g in groups], 0.25, label=provider, color=colour)
    axis.axhline(100, color="grey", linewidth=0.8)
    axis.set_xticks(range(len(groups)), ["\n".join(g[:2]) + ("" if len(config.dtype) == 1 else "\n" + g[2]) for g in groups], fontsize=7)
    axis.set_ylabel("% of copy bandwidth (necessary bytes)")
    axis.set_title(f"{chosen[0]['rows']:,} x {chosen[0]['D']} on {hardware(device)}")
    axis.legend()
    figure.tight_layout()
    picture = os.path.splitext(config.out)[0] + ".png"
    figure.savefig(picture, dpi=150)
    print(f"\n{config.out}\n{picture}")


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, BenchConfig, script_doc=__doc__)
    paths.file_to_write(config.out, f"out = '{config.out}'")
    device = pick_device(config.device)
    torch.set_num_threads(config.threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # Triton launches on the current one
    if config.keep_memory and device == "cpu":
        keep_freed_memory()
    table = []
    try:
        bench(config, device, table)
    finally:  # what was measured is kept, whatever ended it
        if table:
            write(table, config, device)
    if not table:
        raise UserError("no provider was correct; nothing was timed")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
