"""What the user sees while runs are running."""
import collections
import datetime
import shutil
import sys
import time

from common.columns import in_columns
from experiments.job import progress
from experiments.runs import short

REPORT_SECONDS = 60  # between two lines of progress where there is no terminal to redraw


class Table:
    """On a terminal the running runs, redrawn in place under a line for each ended one; elsewhere those lines, and one
    of progress now and then."""

    def __init__(self, runs, ended):
        self.total, self.counts = len(runs), collections.Counter(ended)
        self.first = {}  # hash -> (time, step) when its job began: for the speed
        self.drawn, self.last = 0, time.monotonic()
        self.terminal = sys.stdout.isatty()

    def say(self, line):
        self._erase()
        print(line, flush=True)

    def ended(self, run, status, row=None):
        self.counts[status] += 1
        text = f"{status:8}  {run.arm}  lr {run.lr:g}  seed {run.seed}"
        if row and row["status"] != "crashed":
            text += f"  step {row['step']}" + (f"  val loss {float(row['val_loss']):.4f}" if row["val_loss"] else "")
        self.say(text + ("" if status in ("finished", "diverged") else f"  ({short(run.folder)}/log.txt)"))

    def _line(self, run):
        """(arm, lr, seed, step / all, loss, eta)"""
        now = progress(run)
        step, loss = now.get("step", 0), now.get("loss", now.get("val_loss"))
        began, at = self.first[run.hash]
        if step < at:  # gone back to a checkpoint from before the last line
            at = step
            self.first[run.hash] = began, at
        left = (run.max_iters - step) * (time.monotonic() - began) / (step - at) if step > at else None
        if left is not None and run.max_seconds is not None:
            left = min(left, max(0, run.max_seconds - now.get("train_seconds", 0)))
        eta = "-" if left is None else str(datetime.timedelta(seconds=int(left)))
        return (run.arm, f"{run.lr:g}", str(run.seed), f"{step}/{run.max_iters}",
                "-" if loss is None else f"{loss:.4f}", eta)

    def _erase(self):
        if self.drawn:
            print(f"\x1b[{self.drawn}A\x1b[J", end="")
            self.drawn = 0

    def show(self, running):
        """running: at every look; when each was first among them is when its speed is counted from."""
        self.first = {run.hash: self.first.get(run.hash) or (time.monotonic(), progress(run).get("step", 0))
                      for run in running}
        if time.monotonic() - self.last < (0.5 if self.terminal else REPORT_SECONDS):
            return
        self.last = time.monotonic()
        counts = ", ".join(f"{n} {status}" for status, n in self.counts.items()) or "none ended"
        title = f"{self.total} runs: {counts}, {len(running)} running"
        lines = [self._line(run) for run in running]
        if not self.terminal:
            print("; ".join([title] + [f"{a} lr {lr} seed {seed} step {step} loss {loss} eta {eta}"
                                       for a, lr, seed, step, loss, eta in lines]), flush=True)
            return
        size = shutil.get_terminal_size()
        lines = lines and [("arm", "lr", "seed", "step", "loss", "eta"), *lines[:max(1, size.lines - 4)]]
        text = [title, *in_columns(lines, left=1)]
        self._erase()
        print("\n".join(line[:size.columns - 1] for line in text), flush=True)
        self.drawn = len(text)
