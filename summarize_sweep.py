"""
What a sweep says: tables, plots and a report, from the files that sweep.py leaves.

    python summarize_sweep.py out/sweeps/shakespeare_lr
    python summarize_sweep.py out/sweeps/shakespeare_lr --metric=best --selection_seed=none --target=1.7 --batches=0

Per arm: the validation loss at its own best learning rate with a 95% interval over seeds; paired differences to the
baseline, to the flat control and, of mixed arms, to the best control; wins at every learning rate; the loss at equal steps,
tokens and training seconds; parameters, FLOPs a token; steps, tokens and seconds to a target loss; the share of diverged
runs; for mixed arms what their curvature does. What is read: experiments/results.py; the statistics and why they are these:
experiments/statistics.py; how arms are compared: experiments/comparison.py; the tables: experiments/report.py; the plots:
experiments/plots.py; the curvature: analysis/ablation.py.

The terminal gets the headline, the main table and what is missing. Written to <sweep>/summary: summary.md and report.html
(tables, plots and how to read them; the second is one file), summary.csv (a line an arm), summary.json (everything) and
the plots as .png and .svg. A sweep that is still running can be summarised; the summary says what is missing. A sweep
with target_val_loss is about time: its runs stop at the target, so everything that is said of losses above is said of
the steps to the target, learning rates included, and the headline also of the seconds.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import argparse
import math
import os
import sys

from common import locks, paths
from common.errors import UserError, exit_cleanly
from common.whole_files import write_file
from configurator import Parser, whole_number
from experiments import plots, report
from experiments.comparison import summarize
from experiments.results import METRICS


def seed_option(text):
    if text in ("auto", "none"):
        return None if text == "none" else text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a seed nor 'none'") from None


def finite_number(text):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


@exit_cleanly
def main(argv):
    parser = Parser("summarize_sweep.py", __doc__)
    parser.add_argument("sweep", type=paths.expand, help="folder of the sweep (out/sweeps/NAME)")
    parser.add_argument("--out", type=paths.expand, help="where to write (default: <sweep>/summary)")
    parser.add_argument("--metric", choices=tuple(METRICS), help="what arms are chosen and compared by: the validation "
                        "loss at the end, the lowest one of a run, or the steps to the sweep's target_val_loss "
                        "(default: target where the sweep has one, else final)")
    parser.add_argument("--selection_seed", type=seed_option, default="auto",
                        help="the seed that chooses learning rates and is left out of what is measured, where an arm "
                        "has others (default: the lowest of those that ran at the most learning rates, and none where no "
                        "arm has two rates); none: all seeds do both")
    parser.add_argument("--target", type=finite_number,
                        help="loss for the times to a target (default: the sweep's target_val_loss, or the highest of "
                        "the losses that measure the baseline)")
    parser.add_argument("--batches", type=whole_number(0), default=8,
                        help="evaluation batches for the effects of changing c (default: 8; 0: leave them out)")
    options = parser.parse_args(argv)
    paths.folder_to_read(options.sweep, options.sweep, "the folder of a sweep")
    out = options.out or os.path.join(options.sweep, "summary")
    check_out(out)
    with locks.held(out, f"{out}: another process is writing a summary there; wait for it, or give another --out"):
        write(options, out)
    return 0


def check_out(out):
    """A new folder, an empty one or that of a summary. Raises UserError."""
    paths.folder_to_write(out, f"--out {out}")
    found = sorted(os.listdir(out)) if os.path.isdir(out) else []
    if found and "summary.md" not in found and any(not name.startswith(".") for name in found):
        raise UserError(f"--out {out} is not empty and holds no summary (there is {found[0]}): give another folder")


def write(options, out):
    summary = summarize(options.sweep, options.metric, options.selection_seed, options.target, options.batches)
    figures = plots.draw(summary)
    parts = report.document(summary, figures)
    files = {f"{figure.name}.{kind}": data for figure in figures for kind, data in figure.files.items()}
    files.update({"summary.csv": report.as_csv(summary).encode(), "summary.json": report.as_json(summary).encode(),
                  "report.html": report.as_html(parts, f"Sweep {summary.name}").encode(),
                  "summary.md": report.as_markdown(parts).encode()})
    for name, data in files.items():
        write_file(os.path.join(out, name), data)
    print(report.on_terminal(summary, out))


if __name__ == "__main__":
    main(sys.argv[1:])
