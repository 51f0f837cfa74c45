"""
Validation losses of runs: a table on the terminal and a plot of the curves.

    python plot_runs.py out/demo_baseline out/demo_flat out/demo_mixed --out=out/demo.png
"""
from common import startup  # first: Ctrl-C while the others are imported is one line

import json
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from training import checkpoint  # noqa: E402
from common.errors import UserError, exit_cleanly  # noqa: E402

# Okabe and Ito's colours, which the colour-blind tell apart, with line styles for print
STYLES = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#E69F00", "-"), ("#56B4E9", "--")]


SUMMARY = ("model", "parameters", "tokens", "train_seconds", "val_loss", "best_val_loss", "status")


def read_run(out_dir):
    """(config, summary, evaluations) of a run directory: what the table needs of summary.json, and what the plot needs of the
    metrics lines that have a val_loss."""
    config = checkpoint.load_config(out_dir)
    try:
        with open(os.path.join(out_dir, "summary.json"), encoding="utf-8") as f:
            summary = json.load(f)
        with open(os.path.join(out_dir, "metrics.jsonl"), encoding="utf-8") as f:
            records = [json.loads(line) for line in f]
        evaluations = [{key: float(r[key]) for key in ("tokens", "train_seconds", "val_loss")}
                       for r in records if r.get("val_loss") is not None]
        summary = {key: summary[key] for key in SUMMARY}
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: the run is not over, or is not a run of train.py") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{out_dir}: summary.json or metrics.jsonl is damaged") from None
    return config, summary, evaluations


def number(value, digits=4):
    return "-" if value is None else f"{value:.{digits}f}"


def table(runs):
    rows = [("run", "model", "parameters", "tokens", "train s", "val loss", "best", "status")]
    for name, (config, summary, _) in runs.items():
        rows.append((name, summary["model"], f"{summary['parameters']:,}", f"{summary['tokens']:,}",
                     number(summary["train_seconds"], 1), number(summary["val_loss"]), number(summary["best_val_loss"]),
                     summary["status"]))
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(v.ljust(w) if i < 2 else v.rjust(w) for i, (v, w) in enumerate(zip(r, widths)))
                     for r in rows)


def plot(runs, path):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for (name, (_, _, evals)), (colour, line) in zip(runs.items(), STYLES * len(runs)):
        for axis, key in zip(axes, ("tokens", "train_seconds")):
            axis.plot([r[key] for r in evals], [r["val_loss"] for r in evals], line, color=colour, label=name, marker=".")
    axes[0].set(xlabel="tokens", ylabel="validation loss (nats a token)")
    axes[1].set(xlabel="seconds of training")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend()
    figure.tight_layout()
    if os.path.dirname(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


@exit_cleanly
def main(argv):
    folders = [a for a in argv if not a.startswith("--")]
    options = dict(a[2:].partition("=")[::2] for a in argv if a.startswith("--"))
    if "help" in options or not folders:
        print(__doc__.strip())
        return 0 if "help" in options else 2
    for key in options:
        if key != "out":
            raise UserError(f"unknown option --{key}; there is --out=FILE.png")
    path = options.get("out", "curves.png")
    if os.path.splitext(path)[1].lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out={path}: the name must end in .png, .svg or .pdf")
    names = [os.path.basename(os.path.normpath(f)) for f in folders]
    if len(set(names)) < len(names):  # a/run and b/run
        names = [os.path.normpath(f) for f in folders]
    runs = {name: read_run(f) for name, f in zip(names, folders)}
    print(table(runs))
    plot(runs, path)
    print(f"curves: {path}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
