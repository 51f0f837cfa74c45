"""
Validation losses of runs: a table on the terminal and a plot of the curves.

    python plot_runs.py out/demo_baseline out/demo_flat out/demo_mixed --out=out/demo.png

A run can be plotted as soon as it has been evaluated once: while it runs, after a kill, stopped, diverged or finished.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import json
import math
import os
import sys

import matplotlib.pyplot as plt
import numpy as np

from common import locks, paths
from common.columns import in_columns
from common.errors import UserError, exit_cleanly
from common.plot_style import (  # noqa: F401
    SETTINGS,
    STYLES,
    image,
    label,
    legend,
    loss_frame,
    mark_above,
    peaks_above,
    said_of_frame,
    style,
    token_ticks,
)
from common.whole_files import write_file
from configurator import Parser
from training import checkpoint
from training.run_directory import LOCK, read_metrics

SUMMARY = ("model", "parameters", "tokens", "train_seconds", "val_loss", "best_val_loss", "status")
POINT = ("tokens", "train_seconds", "val_loss")  # what the plot needs of an evaluation's line


def summary_so_far(out_dir, config, records, evaluations, parameters=None):
    """As summary.json, of a run that has none because it has not ended or was killed."""
    last = records[-1] if records else {"tokens": 0, "train_seconds": 0.0}
    return {"model": config.get("model"), "parameters": parameters,
            "tokens": last["tokens"], "train_seconds": last["train_seconds"],
            "val_loss": evaluations[-1]["val_loss"] if evaluations else None,
            "best_val_loss": min((r["val_loss"] for r in evaluations), default=None),
            "status": "running" if locks.is_held(os.path.join(out_dir, LOCK)) else "killed"}


def read_run(out_dir):
    """(summary, evaluations) of a run directory: summary.json, or what metrics.jsonl says where the run has not ended; and its
    lines that have a val_loss."""
    config = checkpoint.load_config(out_dir)
    reading = "metrics.jsonl"
    try:
        try:
            records = read_metrics(os.path.join(out_dir, reading))
        except FileNotFoundError:  # killed before its first line
            records = []
        evaluations = [{key: float(r[key]) for key in POINT} for r in records if r.get("val_loss") is not None]
        if not all(math.isfinite(value) for r in evaluations for value in r.values()):
            raise ValueError("an evaluation is not finite")
        seen = records[-1]["tokens"] if records else 0
        reading = "summary.json"
        try:
            with open(os.path.join(out_dir, reading), encoding="utf-8") as f:
                summary = json.load(f)
            summary = {key: summary[key] for key in SUMMARY}
            if seen > summary["tokens"]:  # it has been resumed since
                summary = summary_so_far(out_dir, config, records, evaluations, summary["parameters"])
        except FileNotFoundError:
            summary = summary_so_far(out_dir, config, records, evaluations)
        row(out_dir, summary)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{out_dir}: {reading} is damaged: not what train.py writes") from None
    return summary, evaluations


def number(value, form=".4f"):
    return "-" if value is None else f"{value:{form}}"


def row(name, summary):
    if not isinstance(summary["status"], str):
        raise TypeError
    return (name, str(summary["model"]), number(summary["parameters"], ","), number(summary["tokens"], ","),
            number(summary["train_seconds"], ".1f"), number(summary["val_loss"]), number(summary["best_val_loss"]),
            summary["status"])


def table(runs):
    rows = [("run", "model", "parameters", "tokens", "train s", "val loss", "best", "status")]
    rows += [row(name, summary) for name, (summary, _) in runs.items()]
    return "\n".join(in_columns(rows, left=2))


def plot(runs, kind):
    """The image of the runs' curves as bytes. kind: png, svg or pdf. runs: {name: (summary, evaluations)}; each needs an
    evaluation."""
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
        lines = [{key: np.array([r[key] for r in evaluations]) for key in POINT} for _, evaluations in runs.values()]
        curves = [(line["tokens"], line["val_loss"]) for line in lines]
        low, top = loss_frame(curves)
        for axis, key, name in zip(axes, POINT, ("tokens", "seconds of training")):
            for place, (run, line) in enumerate(zip(runs, lines)):
                axis.plot(line[key], line["val_loss"], label=label(run), markersize=4, linewidth=1.4,
                          markevery=max(1, len(line[key]) // 12), **style(place))
            axis.set(xlabel=name)
        token_ticks(axes[0])
        axes[0].set(ylabel="validation loss (nats a token)", ylim=(low, top))
        peaks = [(place, line, at) for place, (line, at) in enumerate(zip(lines, peaks_above(curves, top))) if at is not None]
        marks = [[(line[key][at], f"\u2191 {line['val_loss'][at]:.2f}", style(place)["color"]) for place, line, at in peaks]
                 for key in POINT[:2]]
        for fit in (figure.tight_layout, lambda: legend(axes[1])):
            for axis, above in zip(axes, marks):
                mark_above(axis, above)
            fit()
        figure.text(0.01, -0.01, said_of_frame(curves, top), fontsize=8, color="0.35", va="top")
        data = image(figure, kind)
        plt.close(figure)
    return data


def image_path(given):
    """(path, kind) of --out; refused before anything is read."""
    kind = os.path.splitext(given)[1].lower()[1:]
    if os.path.isdir(given):
        raise UserError(f"--out={given} is a folder; name a file in it, as in --out={os.path.join(given, 'curves.png')}")
    if kind not in ("png", "svg", "pdf"):
        raise UserError(f"--out={given}: the name must end in .png, .svg or .pdf")
    return paths.file_to_write(given, f"--out={given}"), kind


@exit_cleanly
def main(argv):
    parser = Parser("plot_runs.py", __doc__)
    parser.add_argument("runs", nargs="+", metavar="run", type=paths.expand, help="directory of a run of train.py")
    parser.add_argument("--out", type=paths.expand, default="curves.png", help="the picture: .png, .svg or .pdf (default: curves.png)")
    options = parser.parse_args(argv)
    path, kind = image_path(options.out)
    names = [os.path.basename(os.path.normpath(f)) for f in options.runs]
    if len(set(names)) < len(names):  # a/run and b/run
        names = [os.path.normpath(f) for f in options.runs]
    runs = {name: read_run(f) for name, f in zip(names, options.runs)}
    drawn = {name: run for name, run in runs.items() if run[1]}
    if not drawn:
        raise UserError(f"{', '.join(options.runs)}: not evaluated yet, there is nothing to draw")
    print(table(runs))
    for name in runs:
        if name not in drawn:
            print(f"{name}: not evaluated yet, it is not in the plot", file=sys.stderr)
    data = plot(drawn, kind)
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        write_file(path, data)
    except OSError as error:
        error.filename = f"--out={path}"  # and not the name that a file has while it is written
        raise
    print(f"curves: {path}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
