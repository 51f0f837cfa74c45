"""
Losses along the way: from a run's metrics.jsonl or, where the runs are not (a table that was copied), from the sweep's curves.jsonl, which
experiments/publish.py writes: a line an evaluation, as in metrics.jsonl, with `run`, the run's hash in runs.csv.
"""
import os
from dataclasses import dataclass

from common.errors import UserError
from training.run_directory import read_metrics

BUDGETS = {"step": "steps", "tokens": "tokens", "train_seconds": "training seconds"}  # keys of an evaluation's line
FILE = "curves.jsonl"


@dataclass
class Curve:
    """The lines of evaluations, and those of steps (none in curves.jsonl)."""
    evaluations: list
    steps: list

    def column(self, key):
        return [r[key] for r in self.evaluations]


def read_curve(folder):
    """Curve of a run, or None if its metrics are not there."""
    path = os.path.join(folder, "metrics.jsonl")
    lines = _lines(path)
    return None if lines is None else _curve(lines, path, "train.py")


def read_kept(sweep):
    """hash -> Curve, of the runs that the sweep's curves.jsonl has; {} where there is none."""
    path = os.path.join(sweep, FILE)
    by_run = {}
    for line in _lines(path, "experiments.publish") or []:
        by_run.setdefault(line.get("run"), []).append(line)
    curves = {run: _curve(lines, path, "experiments.publish") for run, lines in by_run.items()}
    if not all(isinstance(run, str) and curve for run, curve in curves.items()):
        raise _damaged(path, "experiments.publish")
    return curves


def _lines(path, by="train.py"):
    try:
        return read_metrics(path)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        raise _damaged(path, by) from None


def _curve(lines, path, by):
    try:
        evaluations, steps = ([r for r in lines if key in r] for key in ("val_loss", "loss"))
        for r, keys in ((r, keys) for found, keys in ((evaluations, ("val_loss", *BUDGETS)), (steps, ("loss",))) for r in found):
            for key in keys:
                # a loss that is NaN is what a run that diverged has
                if not isinstance(r[key], (int, float)) or abs(r[key]) > 1e300 or r[key] != r[key] and key in BUDGETS:
                    raise ValueError(f"{key} is {r[key]!r}")
    except (ValueError, TypeError, KeyError, OverflowError):
        raise _damaged(path, by) from None
    return Curve(evaluations, steps) if evaluations else None


def _damaged(path, by):
    return UserError(f"{path} is damaged: not the lines that {by} writes")
