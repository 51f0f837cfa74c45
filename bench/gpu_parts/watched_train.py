"""
train.py with a watch on its steps: each wait of the host for the device, in a step that is not logged, is printed with its place.

    python bench/gpu_parts/watched_train.py (train.py's arguments)

torch warns of a synchronising call (torch.cuda.set_sync_debug_mode); torch.cuda.synchronize(), of which it does not, is
replaced by one that counts. The first steps, in which compilers work and memory is allocated, and logged steps are not watched.
On a CPU nothing can wait: only the steps are counted.
"""

import os
import sys
import traceback
import warnings

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[0] = ROOT

import torch

import train

UNWATCHED = 3 if torch.cuda.is_available() else 0  # first steps


class Watch:
    def __init__(self):
        self.on, self.steps, self.waits = False, 0, []
        self.lr_at, self.synchronize, self.showwarning = train.lr_at, torch.cuda.synchronize, warnings.showwarning
        train.lr_at, torch.cuda.synchronize, warnings.showwarning = self.step_begins, self.counted, self.warned
        warnings.filterwarnings("always", message=".*synchronizing CUDA operation.*")

    def step_begins(self, step, config):
        self.on = step >= UNWATCHED and step % config.log_interval != 0
        self.steps += self.on
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn" if self.on else "default")
        return self.lr_at(step, config)

    def counted(self, *arguments):
        if self.on:
            caller = traceback.extract_stack(limit=2)[0]
            self.waits.append(f"torch.cuda.synchronize() in {place(caller.filename, caller.lineno)}")
        return self.synchronize(*arguments)

    def warned(self, message, category, filename, lineno, file=None, line=None):
        if self.on and "synchronizing" in str(message):
            ours = [
                f for f in traceback.extract_stack() if f.filename.startswith(ROOT) and f.filename != os.path.abspath(__file__)
            ]
            self.waits.append(
                f"{place(filename, lineno)}, called from {place(ours[-1].filename, ours[-1].lineno) if ours else 'a thread'}"
            )
        else:
            self.showwarning(message, category, filename, lineno, file, line)


def place(filename, line):
    return f"{os.path.relpath(filename, ROOT) if filename.startswith(ROOT) else os.path.basename(filename)}:{line}"


if __name__ == "__main__":
    watch = Watch()
    try:
        train.main(sys.argv[1:])
    finally:
        print(f"\nwatched steps: {watch.steps}")
        for wait in watch.waits:
            print(f"waits: {wait}")
