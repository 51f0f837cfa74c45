"""
geometry/ against geoopt: expmap, logmap and mobius_add, forward and backward, in one run.

    python bench/bench_geometry.py                   12,288 x 384 float32
    python bench/bench_geometry.py --rows=4096 --dim=128 --threads=2

Providers: geoopt's Stereographic (eager, as published), ours in eager mode, ours compiled. They take turns, a call each;
the table gives the median time of a forward and backward pass and the speed-up over geoopt (median over rounds of the
ratio within a round). Results and gradients are compared with float64 first.
"""
import os
import statistics
import sys
import time
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import torch

import configurator
import geometry
from common.errors import UserError, exit_cleanly


@dataclass
class BenchConfig:
    rows: int = 12288  # points
    dim: int = 384  # dimension
    rounds: int = 15  # timed calls of each
    threads: int = 2  # CPU threads
    c: float = 1.0  # minus the curvature

    def __post_init__(self):
        if min(self.rows, self.dim, self.rounds, self.threads) < 1:
            raise UserError("rows, dim, rounds and threads must be at least 1")


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, BenchConfig, script_doc=__doc__)
    try:
        import geoopt
    except ImportError:
        raise UserError("this benchmark compares with geoopt: pip install -r requirements-dev.txt") from None
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize
    x = 0.7 * unit(torch.randn(config.rows, config.dim), dim=-1) / max(abs(config.c), 1e-6) ** 0.5
    y = 0.6 * unit(torch.randn(config.rows, config.dim), dim=-1) / max(abs(config.c), 1e-6) ** 0.5
    g = torch.randn(config.rows, config.dim)
    theirs = geoopt.Stereographic(k=-config.c, learnable=True)

    calls = {}
    for name in ("expmap", "logmap", "mobius_add"):
        ours = getattr(geometry, name)
        compiled = torch.compile(ours, fullgraph=True, dynamic=False)
        their = getattr(theirs, name)
        calls[name] = {
            "geoopt": lambda x, y, c, their=their: their(x, y),
            "ours, eager": ours,
            "ours, compiled": compiled,
        }
    print(f"{config.rows:,} x {config.dim} float32, c = {config.c}, forward and backward (x, y and c), {config.threads} "
          f"threads, torch {torch.__version__}")
    for name, providers in calls.items():
        def run(call, dtype=torch.float32):
            a, b = (t.to(dtype, copy=True).requires_grad_() for t in (x, y))
            c = torch.tensor(config.c, dtype=dtype, requires_grad=True)
            out = call(a, b, c)
            out.backward(g.to(dtype))
            return out.detach(), a.grad, b.grad
        truth = run(getattr(geometry, name), torch.float64)
        for provider, call in providers.items():
            for got, expected in zip(run(call), truth):
                error = ((got - expected).norm() / expected.norm()).item()
                assert error < 1e-5, f"{provider} {name}: relative error {error}"
        times = {p: [] for p in providers}
        for _ in range(config.rounds):
            for provider, call in providers.items():
                began = time.perf_counter()
                run(call)
                times[provider].append(time.perf_counter() - began)
        for provider, taken in times.items():
            faster = statistics.median(a / b for a, b in zip(times["geoopt"], taken))
            print(f"  {name:12}{provider:16}{1000 * statistics.median(taken):9.1f} ms   {faster:6.1f} x geoopt")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
