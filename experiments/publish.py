"""
What of a sweep is kept: its table, plan and curves, without the runs (weights, which are large, and what a machine is called).

    python -m experiments.publish out/sweeps/NAME                 to results/NAME
    python -m experiments.publish out/sweeps/NAME --to=FOLDER

Written to the folder: runs.csv (without hosts), sweep.json, curves.jsonl (the evaluations of every run in the table, six digits a number,
losses in full), surroundings.jsonl (on which of how many machines, with what versions and code) and texts/ (the tables of
experiments/texts.py). `python summarize_sweep.py FOLDER --batches=0` then says what the sweep's own folder says, but for what needs weights
or steps. Publishing again, after more runs, replaces the files; what is known of runs that are no longer in the sweep's folder stays.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import json
import os
import sys

from common import paths
from common.errors import UserError, exit_cleanly
from common.whole_files import write_file
from configurator import Parser
from experiments import surroundings
from experiments.curves import FILE, read_curve, read_kept
from experiments.results import read_plan
from experiments.rows import Rows
from training.config import REPOSITORY


def rounded(key, value):
    """val_loss in full: it is compared with losses of runs.csv."""
    return float(f"{value:.6g}") if isinstance(value, float) and key != "val_loss" else value


def curves_of(sweep, to, rows):
    """The lines of curves.jsonl, in the table's order, and the runs that have none."""
    kept, lines, without = {**read_kept(to), **read_kept(sweep)}, [], []
    for run, row in rows.items():
        curve = read_curve(os.path.join(sweep, row["dir"])) or kept.get(run)
        if curve is None:
            without.append(row)
            continue
        lines += [{"run": run, **{key: rounded(key, value) for key, value in line.items() if key != "run"}} for line in curve.evaluations]
    return lines, without


def check(sweep, to, plan, rows):
    """Raises UserError where publishing would lose something."""
    if not rows:
        raise UserError(f"no run of {sweep} has ended yet: there is nothing to publish")
    paths.folder_to_write(to, f"--to {to}")
    if os.path.realpath(to) == os.path.realpath(sweep):
        raise UserError(f"--to {to} is the sweep's own folder, which keeps its hosts and runs: give another folder")
    found = sorted(os.listdir(to)) if os.path.isdir(to) else []
    if not found:
        return
    if "sweep.json" not in found:
        raise UserError(f"--to {to} is not empty and holds no sweep (there is {found[0]}): give another folder")
    if (other := read_plan(os.path.join(to, "sweep.json"))["name"]) != plan["name"]:
        raise UserError(f"--to {to} holds another sweep, {other}: give another folder")
    lost = [row for run, row in Rows(to).read().items() if run not in rows]
    if lost:
        raise UserError(f"{to} has {len(lost)} runs that {sweep} lacks (the first: {lost[0]['arm']}, lr {lost[0]['lr']}, seed "
                        f"{lost[0]['seed']}): copy its runs.csv there, start the sweep again, and then publish it")


@exit_cleanly
def main(argv):
    parser = Parser("python -m experiments.publish", __doc__)
    parser.add_argument("sweep", type=paths.expand, help="folder of the sweep (out/sweeps/NAME)")
    parser.add_argument("--to", type=paths.expand, help="where to (default: results/NAME of the repository)")
    options = parser.parse_args(argv)
    paths.folder_to_read(options.sweep, options.sweep, "the folder of a sweep")
    plan, rows = read_plan(os.path.join(options.sweep, "sweep.json")), Rows(options.sweep).read()
    to = options.to or os.path.join(REPOSITORY, "results", plan["name"])
    check(options.sweep, to, plan, rows)
    lines, without = curves_of(options.sweep, to, rows)
    texts = os.path.join(options.sweep, "texts")
    copied = {name: os.path.join(options.sweep, name) for name in ["sweep.json", *(
        os.path.join("texts", name) for name in sorted(os.listdir(texts) if os.path.isdir(texts) else []) if name.endswith(".csv"))]}
    around = surroundings.to_keep(options.sweep, to, rows)  # all is read before anything is written
    os.makedirs(to, exist_ok=True)
    for name, path in copied.items():  # sweep.json first: a folder that has it can be published to again
        with open(path, "rb") as f:
            content = f.read()
        os.makedirs(os.path.dirname(os.path.join(to, name)), exist_ok=True)
        write_file(os.path.join(to, name), content)
    for name, kept in ((FILE, lines), (surroundings.FILE, around)):
        if kept or name == FILE:
            write_file(os.path.join(to, name), "".join(json.dumps(line) + "\n" for line in kept).encode())
    Rows(to).write({run: {**row, "host": ""} for run, row in rows.items()})
    print(f"{len(rows)} runs, {len(lines)} evaluations of {len(rows) - len(without)} of them, in {to}")
    if without:
        first, more = without[0], f" and {len(without) - 1} more" if len(without) > 1 else ""
        print(f"note: no curve of {first['arm']}, lr {first['lr']}, seed {first['seed']}{more}: the runs are not here, and no curves.jsonl "
              "has them", file=sys.stderr)
    print(f"next: python summarize_sweep.py {to} --batches=0")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
