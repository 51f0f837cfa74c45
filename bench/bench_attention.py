"""
Attention by distance between scalars (scalar_attention/) against scaled_dot_product_attention, on CPUs.

    python bench/bench_attention.py                              T = 512 to 16,384, one head of 64 numbers, 2 threads
    python bench/bench_attention.py --heads=6 --sizes='[4096,8192]' --spread=1000
    python bench/bench_attention.py --out=attention.csv          the rows of the table, too

Correctness comes first: output and gradients of 'tiled' and 'divide' against the plain form in float64, at the first size. Then, for
every T, the time of a forward pass and of one with the backward pass, and the peak memory of both together above the inputs.

The calls of all arms take turns. The table has the least wall time and the least CPU time (of all threads) of each, not the median:
where cores are shared with other work, the least is nearest to what the code takes. Below it: how much faster 'divide' is, the
exponent of its time and the growth of its memory, from which T on it is quicker than 'tiled' (scalar_attention.choose).
"""
import csv
import math
import os
import sys
import time
from dataclasses import dataclass, field

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import torch
from bench_kernels import keep_freed_memory, peak_memory
from torch.nn import functional as F

import configurator
import scalar_attention
from common import paths
from common.errors import UserError, exit_cleanly
from configurator import Path

ARMS = {"divide": scalar_attention.FORMS["divide"], "tiled": scalar_attention.FORMS["tiled"],
        "sdpa": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)}


@dataclass
class BenchConfig:
    sizes: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096, 8192, 16384])  # T
    arms: list[str] = field(default_factory=lambda: list(ARMS))  # divide | tiled | sdpa
    heads: int = 1  # in one sequence
    head_dim: int = 64  # numbers a value
    spread: float = 20.0  # a and b are uniform on an interval of this length (1 / temperature where lambda fills [0, 1))
    rounds: int = 5  # timed calls of each
    threads: int = 2  # CPU threads
    out: Path | None = None  # write the rows here (CSV)

    def __post_init__(self):
        if min((*self.sizes, self.heads, self.head_dim, self.rounds, self.threads), default=0) < 1:
            raise UserError("sizes, heads, head_dim, rounds and threads must be at least 1")
        if not self.sizes or not self.arms:
            raise UserError("sizes and arms need at least one entry")
        if not 0 <= self.spread < math.inf:
            raise UserError(f"spread = {self.spread}: must be a number from 0 on")
        for arm in self.arms:
            if arm not in ARMS:
                raise UserError(f"arm {arm!r}: there are {', '.join(ARMS)}")


def make_inputs(arm, T, config, dtype=torch.float32):
    """(what the arm takes, a cotangent)"""
    rng = torch.Generator().manual_seed(0)
    v, g = (torch.randn(1, config.heads, T, config.head_dim, generator=rng) for _ in range(2))
    if arm == "sdpa":
        first = [torch.randn(1, config.heads, T, config.head_dim, generator=rng) for _ in range(2)]
    else:
        first = [(torch.rand(1, config.heads, T, generator=rng) - 0.5) * config.spread for _ in range(2)]
    return [t.to(dtype).requires_grad_() for t in (*first, v)], g.to(dtype)


def forward_and_backward(call, inputs, g):
    return torch.autograd.grad(call(*inputs), inputs, g)


def error_of(arm, T, config):
    """The largest relative error of output and gradients."""
    results = []
    for call, dtype in ((ARMS[arm], torch.float32), (scalar_attention.FORMS["plain"], torch.float64)):
        inputs, g = make_inputs(arm, T, config, dtype)
        results.append([call(*inputs).detach(), *forward_and_backward(call, inputs, g)])
    return max(((got - exact).norm() / exact.norm().clamp(min=1e-300)).item() for got, exact in zip(*results))


def measure(T, config):
    """One row an arm: the least times and the peak memory."""
    work = {}
    for arm in config.arms:
        inputs, g = make_inputs(arm, T, config)
        call = ARMS[arm]

        def forward(call=call, inputs=inputs):
            with torch.no_grad():
                call(*inputs)
        work[arm] = {"forward": forward, "both": lambda call=call, inputs=inputs, g=g: forward_and_backward(call, inputs, g)}
    least = {(arm, passes, clock): math.inf for arm in work for passes in work[arm] for clock in ("ms", "cpu_ms")}
    for turn in range(config.rounds + 1):
        for arm, calls in work.items():
            for passes, call in calls.items():
                began = time.perf_counter(), time.process_time()
                call()
                if turn:  # the first warms up
                    for clock, start, end in zip(("ms", "cpu_ms"), began, (time.perf_counter(), time.process_time())):
                        least[arm, passes, clock] = min(least[arm, passes, clock], 1000 * (end - start))
    for arm, calls in work.items():
        yield {"T": T, "arm": arm, **{f"{passes}_{clock}": least[arm, passes, clock] for passes in calls for clock in ("ms", "cpu_ms")},
               "peak_MiB": peak_memory(calls["both"], "cpu")}


def conclusions(rows):
    """Lines of text about the goals of the divide and conquer form."""
    at = {(row["arm"], row["T"]): row for row in rows}
    sizes = sorted({row["T"] for row in rows})
    for T in sizes:
        if ("divide", T) in at and ("sdpa", T) in at:
            ours, theirs = at["divide", T], at["sdpa", T]
            ratio = {key: theirs[key] / ours[key] for key in ("forward_ms", "forward_cpu_ms", "both_ms", "both_cpu_ms")}
            yield (f"T = {T:,}: divide is {ratio['forward_ms']:.1f} times as fast as scaled_dot_product_attention forward "
                   f"({ratio['forward_cpu_ms']:.1f} by CPU time), {ratio['both_ms']:.1f} ({ratio['both_cpu_ms']:.1f}) with backward")
    for small, large in ((4096, 16384), (4096, 8192)):
        if ("divide", small) in at and ("divide", large) in at:
            ours = at["divide", small], at["divide", large]
            exponent = {key: math.log(ours[1][key] / ours[0][key]) / math.log(large / small)
                        for key in ("forward_ms", "forward_cpu_ms", "both_ms", "both_cpu_ms")}
            yield (f"time of divide from {small:,} to {large:,}: exponent {exponent['forward_ms']:.2f} forward "
                   f"({exponent['forward_cpu_ms']:.2f} by CPU time), {exponent['both_ms']:.2f} ({exponent['both_cpu_ms']:.2f}) both ways")
            if ours[0]["peak_MiB"]:
                yield f"memory of divide from {small:,} to {large:,}: times {ours[1]['peak_MiB'] / ours[0]['peak_MiB']:.2f}"
    quicker = [T for T in sizes if ("divide", T) in at and ("tiled", T) in at
               and at["divide", T]["both_cpu_ms"] < at["tiled", T]["both_cpu_ms"]]
    if quicker:
        yield (f"divide takes less CPU time than tiled with the backward pass at T = {', '.join(f'{T:,}' for T in quicker)}; "
               f"choose() takes it from {scalar_attention.DIVIDE_FROM:,} on")


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, BenchConfig, script_doc=__doc__)
    if config.out:
        paths.file_to_write(config.out, f"out = '{config.out}'")
    torch.set_num_threads(config.threads)
    for arm in config.arms:
        if arm != "sdpa" and (error := error_of(arm, min(config.sizes[0], 2048), config)) > 1e-4:
            raise UserError(f"{arm} is wrong: relative error {error:.1e}; it is not timed")
    keep_freed_memory()
    print(f"{config.heads} head{'s' if config.heads > 1 else ''} of {config.head_dim}, float32, a and b within {config.spread:g}, "
          f"{config.threads} threads, least of {config.rounds} calls, torch {torch.__version__}")
    print(f"{'T':>7} {'arm':8}{'forward ms':>11}{'CPU ms':>10}{'with backward':>15}{'CPU ms':>10}{'peak MiB':>10}")
    rows = []
    for T in config.sizes:
        for row in measure(T, config):
            rows.append(row)
            peak = "-" if row["peak_MiB"] is None else f"{row['peak_MiB']:.1f}"
            print(f"{T:>7} {row['arm']:8}{row['forward_ms']:>11.2f}{row['forward_cpu_ms']:>10.2f}{row['both_ms']:>15.2f}"
                  f"{row['both_cpu_ms']:>10.2f}{peak:>10}", flush=True)
    for line in conclusions(rows):
        print(line)
    if config.out:
        paths.make_folder_of(config.out)
        with open(config.out, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
