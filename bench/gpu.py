"""
All that this project says of a GPU, measured on one card by one command (docs/gpu.md).

    python bench/gpu.py --out=results/gpu                        all parts: 8 minutes at most
    python bench/gpu.py --out=DIR --parts='["kernels"]'          some of them; DIR keeps what it has of the others
    python bench/gpu.py --device=cpu --quick=True --out=DIR      does the script run? Toy sizes, no GPU, under a minute
    python bench/gpu.py --replot=DIR                             tables and plots again, from the JSON files in DIR

Parts, in this order: ceilings (always), correctness, gpt2, kernels, equality, shapes, stacks,
target. Each works in processes of its own;
what fails is a row with its error, and the rest goes on. <card>.json and <card>.md are written again as rows come, so that a run
that is cut off (SIGTERM, or killed) leaves what it measured. Exit status: 0 everything was measured, whatever the verdicts;
1 something failed or there was no time for it, or the run was stopped; 2 bad input.
"""

import glob
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import configurator
from common import locks, paths
from common.errors import UserError, exit_cleanly
from common.interrupts import Stop
from configurator import Path
from gpu_parts import PARTS, Settings, module_of
from gpu_parts.workers import command_of, one_line, run_jobs, serve

ENDING = 6  # seconds kept for tables and plots


@dataclass
class GpuConfig:
    out: Path = "results/gpu"  # folder for <card>.json, <card>.md and plots
    parts: list[str] = field(default_factory=lambda: list(PARTS))  # which; 'ceilings' always runs
    seconds: float = 480.0  # for all of them together; each has a share
    device: str = "auto"  # 'auto' or 'cuda': a GPU; 'cpu' with quick
    quick: bool = False  # toy sizes, to try the script
    replot: Path | None = None  # instead: write tables and plots of this folder's JSON files again
    worker: str | None = None  # (internal) be a worker process of this part
    work: str | None = None  # (internal) its folder
    until: float = 0.0  # (internal) when its part ends

    def __post_init__(self):
        for part in self.parts:
            if part not in PARTS:
                raise UserError(f"parts: {part!r}; there are {', '.join(PARTS)}")
        if not self.seconds >= 20:
            raise UserError(f"seconds = {self.seconds:g}: must be at least 20")
        if not self.out:
            raise UserError("out is empty: name a folder")


def pick(config):
    """'cuda:N', or 'cpu' to try the script"""
    if config.device == "cpu":
        if not config.quick:
            raise UserError("device = 'cpu' is for trying the script: add --quick=True")
        # before Triton is imported: its interpreter takes the place of a GPU
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        return "cpu"
    from training.machine import pick_device

    device = pick_device("cuda" if config.device == "auto" else config.device)
    if not device.startswith("cuda"):
        raise UserError(f"device = {config.device!r}: this script measures CUDA GPUs")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UserError("TRITON_INTERPRET=1 in the environment makes Triton interpret, not compile; unset it")
    return device


def measure(config, results, stop, work):
    """Runs the parts; -> did all of them give all that they should?"""
    device, began = pick(config), time.time()
    chosen = [name for name in PARTS if name in config.parts or name == "ceilings"]

    def measure_part(i):
        if stop.signal:
            return False
        name, shares = chosen[i], [PARTS[other][1] for other in chosen[i:]]
        left = began + config.seconds - ENDING - time.time()
        until = time.time() + left * (1 if config.quick else shares[0] / sum(shares))  # what a part leaves is the others'
        settings = Settings(name, device, config.quick, work, until)
        results.begin(name)
        print(f"{name}: {PARTS[name][2]}; {max(0, until - time.time()):.0f} s at most", flush=True)
        run_part(settings, results, stop)
        print(f"{name}: {results.parts[name]['status']}, {results.parts[name]['seconds']:.0f} s", flush=True)
        return results.parts[name]["status"] == "done"

    first = measure_part(0)  # names the card
    with ThreadPoolExecutor(2 if config.quick else 1) as pool:  # toy parts time nothing that matters: two at once
        return all([first, *pool.map(measure_part, range(1, len(chosen)))])


def run_part(settings, results, stop):
    """All jobs of a part; its rows are in `results`, and on the disk, as soon as they are there."""
    name, began, changed = settings.part, time.time(), []

    def on_row(row):
        results.add(name, row)
        changed.append(row)
        if row.get("error"):
            print(f"  {row['job']}: {row['error']}", flush=True)

    try:
        module = module_of(name)
        jobs = module.jobs(settings)
        threads = run_jobs(
            jobs, module.workers(settings), command_of(settings), settings.until, on_row, lambda: stop.signal, settings.work
        )
        written = 0.0
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.1)
            if changed and time.time() - written > 2:
                changed.clear()
                results.write()
                written = time.time()
        if hasattr(module, "conclude"):
            for row in module.conclude(results.parts[name]["rows"], settings):
                on_row({"job": "conclusion", **row})
    except Exception as error:  # a part that cannot even begin (an import that fails) is a row, too
        on_row(dict(job="the whole part", error=one_line(error)))
    results.end(name, time.time() - began, bool(stop.signal))
    results.write()


def replot(folder):
    from common.whole_files import write_file
    from gpu_parts import plots
    from gpu_parts.report import markdown
    from gpu_parts.results import read

    files = sorted(glob.glob(os.path.join(folder, "*.json")))
    if not files:
        raise UserError(f"{folder} has no JSON file of this script")
    for path in files:
        content, stem = read(path), path.removesuffix(".json")
        write_file(f"{stem}.md", markdown(content).encode())
        made, why = plots.draw(content, stem)
        print("\n".join([f"{stem}.md", *made, *([why] if why else [])]))


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, GpuConfig, script_doc=__doc__)
    if config.worker:
        serve(Settings(config.worker, pick(config), config.quick, config.work, config.until))
        return 0
    if config.replot:
        replot(config.replot)
        return 0
    from gpu_parts.results import read

    pick(config)
    paths.folder_to_write(config.out, f"out = '{config.out}'")
    there = sorted(os.listdir(config.out)) if os.path.isdir(config.out) else []
    if there and not any(name.endswith(".json") for name in there):
        raise UserError(f"out = '{config.out}' is not empty and holds no results of this script (there is {there[0]}): name another folder")
    for path in glob.glob(os.path.join(config.out, "*.json")):  # what is there is kept: it has to be whole
        read(path)
    with locks.held(config.out, f"{config.out}: another process is measuring into this folder; wait for it, or give another --out"):
        return run(config)


def run(config):
    from gpu_parts import plots
    from gpu_parts.results import Results, page

    stop, results = Stop(), Results(config.out, config.quick)
    work = tempfile.mkdtemp(prefix="gpu-")
    try:
        whole = measure(config, results, stop, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not stop.signal:  # who ends it may not wait
        try:
            made, why = plots.draw(results.content(), results.path("json").removesuffix(".json"))
        except Exception as error:  # what was measured is on the disk, and the verdicts are still to be printed
            made, why, whole = [], f"no plots: {one_line(error)}", False
        print("\n".join([*made, *([why] if why else [])]))
    print("\n".join([results.path("json"), results.path("md"), "", *page(results.content()).splitlines()[:24]]))
    if stop.signal:
        print(f"{stop.signal}: stopped; what was measured is kept")
    return 0 if whole and not stop.signal else 1


if __name__ == "__main__":
    main(sys.argv[1:])
