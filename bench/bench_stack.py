"""
Runs an hour, if N runs of an arm are one program (training/stacked.py), for several N; beside them a run by itself, as train.py makes it.

    python bench/bench_stack.py                               on a GPU N = 1, 4, 16, 64; on a CPU 1, 2, 4
    python bench/bench_stack.py --N=[1,8] --arms='["baseline"]' --mode=compiled --out=stack.csv

A step is forward, backward, clipping and AdamW of all runs, each with its own batch, which stays on the device: no data are read, nothing
is evaluated or saved. On a GPU it is two CUDA graphs (--graph=False: none). On a CPU the rows of an arm take turns, a step each.
"""
import csv
import io
import os
import statistics
import sys
from dataclasses import dataclass, field
from typing import Literal

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import torch
from bench_model import ARMS, SHAPES, autocast_in, interleaved, make_model, synchronize
from bench_model import make_step as step_alone

import configurator
from common import paths
from common.errors import UserError, exit_cleanly
from common.whole_files import write_file
from configurator import Path
from training.config import TrainConfig
from training.machine import pick_device, pick_dtype
from training.optimizer import make_optimizers
from training.stacked_step import Captured, free_memory, stacked_step

COLUMNS = ("arm", "shape", "N", "mode", "graph", "device", "dtype", "threads", "ms", "runs_hour", "tokens_s", "peak_MiB", "torch",
           "hardware")


@dataclass
class BenchConfig:
    N: list[int] = field(default_factory=list)  # runs at once (none: 1, 4, 16, 64 on a GPU; 1, 2, 4 on a CPU)
    arms: list[str] = field(default_factory=lambda: ["baseline", "mixed, c per head"])  # of bench_model.py
    shape: str = "small"  # of bench_model.py: toy | small | large | text | 124M | 350M
    steps: int = 1500  # of a run
    mode: Literal["eager", "compiled"] = "eager"  # torch.compile or not
    graph: bool = True  # on a GPU: a step as two CUDA graphs, a micro-batch and the update
    rounds: int = 10  # timed steps of each
    threads: int = 1  # CPU threads
    device: str = "auto"  # 'auto' | 'cpu' | 'cuda'
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of matrix products (autocast), as train.py's
    out: Path | None = None  # a CSV file

    def __post_init__(self):
        if min(self.steps, self.rounds, self.threads, *self.N, 1) < 1:
            raise UserError("N, steps, rounds and threads must be at least 1")
        for arm in self.arms:
            if arm not in ARMS:
                raise UserError(f"arms: {arm!r}; there are {' | '.join(ARMS)}")
        if self.shape not in SHAPES:
            raise UserError(f"shape = {self.shape!r}: there are {' | '.join(SHAPES)}")


def make_step(arm, shape, N, compiled, device, dtype, graph):
    """A function that makes one step of N runs and returns their losses, (N,)."""
    members = [make_model(arm, shape, device) for _ in range(N)]
    configs = [TrainConfig(learning_rate=1e-3 * (1 + n / N), seed=n) for n in range(N)]
    optimizers = [make_optimizers(member, config, torch.device(device).type) for (member, _, _), config in zip(members, configs)]
    step = stacked_step(arm, make_model(arm, shape, device)[0], [member for member, _, _ in members], optimizers, configs, device,
                        autocast_in(dtype, device), compiled, graph=graph and device.startswith("cuda"))
    x, y = (torch.cat([batch[i] for batch in members]) for i in (1, 2))

    def one():
        step.backward(x, y)
        step.finish(0)
        return step.shown
    return one


def measure(steps, rounds, device):
    """Yields (name, seconds a step, MiB at the peak or None). steps: name -> function that makes a step. On a GPU one after the other: they
    need not be in memory together."""
    for group in [steps] if device == "cpu" else [{name: make} for name, make in steps.items()]:
        free_memory(device)
        if device.startswith("cuda"):  # before a graph is captured: what it uses is taken then, not when it is repeated
            torch.cuda.reset_peak_memory_stats()
        made = {name: make() for name, make in group.items()}
        for step in made.values():
            for _ in range(2 if device == "cpu" else Captured.WARM_UP + 2):
                step()
        synchronize(device)

        def and_wait(step):
            return lambda: (step(), synchronize(device))
        times = interleaved({name: and_wait(step) for name, step in made.items()}, rounds, device)
        peak = torch.cuda.max_memory_reserved() / 2 ** 20 if device.startswith("cuda") else None
        yield from ((name, statistics.median(taken), peak) for name, taken in times.items())
        made.clear()
        step = times = None  # (a function of the last one)


def rows_of(arm, config, device, dtype):
    numbers = config.N or ([1, 2, 4] if device == "cpu" else [1, 4, 16, 64])
    compiled = config.mode == "compiled"
    steps = {"alone": lambda: step_alone(arm, config.shape, compiled, device, dtype, checked=False)[0]}
    steps |= {N: lambda N=N: make_step(arm, config.shape, N, compiled, device, dtype, config.graph) for N in numbers}
    _, _, _, block_size, batch_size, _ = SHAPES[config.shape]
    for name, seconds, peak in measure(steps, config.rounds, device):
        runs = 1 if name == "alone" else name
        hardware = torch.cuda.get_device_name(device) if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
        yield dict(arm=arm, shape=config.shape, N=name, mode=config.mode, graph=config.graph and name != "alone" and device != "cpu",
                   device=device, dtype=dtype, threads=config.threads, ms=1000 * seconds,
                   runs_hour=3600 * runs / (seconds * config.steps), tokens_s=runs * batch_size * block_size / seconds, peak_MiB=peak,
                   torch=torch.__version__, hardware=hardware)


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, BenchConfig, script_doc=__doc__)
    if config.out:
        paths.file_to_write(config.out, f"out = '{config.out}'")
    torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dtype = pick_dtype(config.dtype, torch.device(device).type)
    n_layer, _, n_embd, block_size, batch_size, _ = SHAPES[config.shape]
    print(f"torch {torch.__version__}, {device}, {dtype}, {config.mode}, {config.threads} threads; {n_layer} x {n_embd}, T = {block_size}, "
          f"{batch_size} sequences a run and step; runs of {config.steps:,} steps")
    print(f"  {'arm':22}{'N':>6}{'ms a step':>12}{'ms a run':>11}{'runs/hour':>11}{'x alone':>9}{'MiB':>8}")
    rows = []
    for arm in config.arms:
        here = list(rows_of(arm, config, device, dtype))
        for row in here:
            runs = 1 if row["N"] == "alone" else row["N"]
            mib = "-" if row["peak_MiB"] is None else f"{row['peak_MiB']:,.0f}"
            print(f"  {arm:22}{row['N']:>6}{row['ms']:12.2f}{row['ms'] / runs:11.2f}{row['runs_hour']:11.1f}"
                  f"{row['runs_hour'] / here[0]['runs_hour']:9.2f}{mib:>8}", flush=True)
        rows += here
    if config.out:
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, COLUMNS)
        table.writeheader()
        table.writerows(rows)
        paths.make_folder_of(config.out)
        write_file(config.out, text.getvalue().encode())
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
