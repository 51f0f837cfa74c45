"""
The parts of bench/gpu.py, one a file. A part's module has

    jobs(settings)                 list of Job, the most telling first; the same list in every process
    workers(settings)              how many processes share its jobs: 1 where something is timed
    run(job, settings, record)     does one job in a worker process; record(**row) hands over a row as soon as it is there
    conclude(rows, settings)       (optional) more rows, from those of all jobs; in the parent process, without a GPU

A row is a dict of numbers and text; 'job' is added. A job that raises, crashes or takes too long is a row with 'error'.
"""

import importlib
import os
from dataclasses import dataclass

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# name -> (module, share of the time, what it finds out). In this order: what is cut off at the end tells least
PARTS = {
    "ceilings": ("ceilings", 25, "the card; what a copy and a matrix product reach on it"),
    "correctness": ("correctness", 100, "every kernel against float64; compiles the models meanwhile"),
    "gpt2": ("steps", 110, "training steps of GPT-2 124M: time, tokens/s, MFU, memory"),
    "kernels": ("kernel_speed", 95, "every kernel against the copy, eager PyTorch and autotuned Inductor"),
    "equality": (
        "equality",
        60,
        "50 steps of train.py in eager mode, compiled and on the kernels; host synchronisations; resuming",
    ),
    "shapes": ("steps", 50, "training steps of 4 x 128, 6 x 384 and GPT-2 350M"),
    "stacks": ("stacks", 25, "steps of N runs of 4 x 128 as one program"),
    "target": ("target", 45, "training to a validation loss on the text of this repository"),
}


@dataclass(frozen=True)
class Settings:
    part: str
    device: str  # 'cuda:0' or 'cpu'
    quick: bool  # toy sizes
    work: str  # a folder that is removed in the end
    until: float = float("inf")  # time.time() at which the part ends

    @property
    def cuda(self):
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Job:
    name: str
    arguments: tuple = ()
    seconds: float = 90  # after so many it is stopped


def module_of(part):
    return importlib.import_module(f"gpu_parts.{PARTS[part][0]}")
