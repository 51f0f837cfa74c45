"""
Hidden states of a sweep's arms over its seeds: are those of a curved model more isotropic than a control's, and would other seeds say so?

    python analyze_representations.py out/sweeps/isotropy/runs/* --out=out/sweeps/isotropy/analysis    # if the sweep's `after` has not
    python -m experiments.representations out/sweeps/isotropy --against=gate+norm

An analysis has an interval for each run, over its text. Here the runs of an arm are brought together: at its learning rate the mean over
seeds with a 95% t-interval, and the difference to another arm, seed by seed (paired t-interval), for every measure of every layer that
both have. Ambient coordinates, trained weights. With many measures some differ by chance: p has Holm's correction over what is printed.
Where arms have several rates, each is taken at its best one by the sweep's own measure, as in a summary.

Written to <sweep>/representations.csv: every layer and measure, with uncorrected p; printed: the measures of --measures at the layers of
--layers, by default each arm's last block and ln_f.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import csv
import io
import json
import math
import os
import re
import sys

from common import paths
from common.columns import in_columns
from common.errors import UserError, exit_cleanly
from common.intervals import interval_text, mean_interval
from common.whole_files import write_file
from configurator import Parser
from experiments.results import read_sweep
from experiments.statistics import choose_lr, holm, paired_difference, selection_seed_of

MEASURES = ("mean_cosine", "isoscore", "partition_isotropy_scaled", "effective_rank", "top1_variance", "self_similarity_adjusted", "delta")
DELTA = "delta"  # of Gromov, relative: hyperbolicity by the Euclidean distance, which every layer has


def measures_of(layer):
    """{measure: value} of a layer of metrics.json, those that have a value."""
    delta = layer["hyperbolicity"].get("euclidean_ambient", {}).get("tokens")
    found = {**layer["isotropy"].get("ambient", {}), DELTA: delta}
    values = {key: e.get("value") for key, e in found.items() if isinstance(e, dict)}
    return {key: float(v) for key, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)}


def read_analysis(folder):
    """{name of a run's folder: {layer: {measure: value}}} of an analysis, trained weights. Raises UserError."""
    path = os.path.join(folder, "metrics.json")
    try:
        with open(path, encoding="utf-8") as f:
            models = json.load(f)["models"]
        return {os.path.basename(os.path.normpath(m["folder"])): {layer: measures_of(found) for layer, found in m["layers"].items()}
                for m in models if m["weights"] == "trained"}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; make it with python analyze_representations.py RUNS --out={folder}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{path} is not the numbers of an analysis; make it with python analyze_representations.py RUNS "
                        f"--out={folder}") from None


def by_arm(folder, analysed):
    """({arm: {seed: {layer: {measure: value}}}}: the runs that were analysed at each arm's learning rate, all seeds; names of arms without
    one, and of the folders of runs without). Raises UserError."""
    summary = read_sweep(folder, None, planned=False)
    chooses, out, lacking = selection_seed_of(summary.arms, summary.seeds), {}, []
    for arm in summary.arms:
        choice = choose_lr(arm.losses(), chooses)
        for seed in sorted(choice.all_losses if choice else ()):
            name = os.path.basename(arm.runs[choice.lr, seed].folder)
            if analysed.get(name):
                out.setdefault(arm.name, {})[seed] = analysed[name]
            else:
                lacking.append(name)
    if not out:
        raise UserError(f"the analysis has no run of {folder} at the rates that the arms are compared at")
    return out, [arm.name for arm in summary.arms if arm.name not in out], lacking


def order(layer):
    """Of layers: embedding, blocks by number, ln_f."""
    return (1, int(layer[5:])) if re.fullmatch(r"block\d+", layer) else (0, 0) if layer == "embedding" else (2, 0)


def last_block(rows, arm):
    blocks = {layer for name, layer, *_ in rows if name == arm and order(layer)[0] == 1}
    return max(blocks, key=order, default=None)


def values_of(seeds, layer, measure):
    """{seed: value} of those that have it."""
    return {seed: layers[layer][measure] for seed, layers in seeds.items() if measure in layers.get(layer, {})}


def compare(arms, against):
    """[(arm, layer, measure, n, mean Estimate, Difference or None)] of all, in the order of the arms."""
    rows = []
    for name, seeds in arms.items():
        for layer in sorted({layer for layers in seeds.values() for layer in layers}, key=order):
            for measure in dict.fromkeys(m for layers in seeds.values() for m in layers.get(layer, {})):
                values = values_of(seeds, layer, measure)
                other = values_of(arms[against], layer, measure) if against and against != name else {}
                difference = paired_difference(values, other, sign_flips=False) if other else None  # the flips would take minutes in all
                rows.append((name, layer, measure, mean_interval(values.values()), difference))
    return rows


def table(rows, layers, measures, against):
    """Text: the rows of these layers (None: each arm's last block and ln_f) and measures, with p after Holm over all of them."""
    shown = [row for row in rows if row[2] in measures and row[1] in (layers or (last_block(rows, row[0]), "ln_f"))]
    p = [d.p if d else None for *_, d in shown]
    # a difference without a p is one of those that are looked at: it counts, and stays without
    adjusted = [None if alone is None else corrected for alone, corrected in
                zip(p, holm([1.0 if d and d.seeds and alone is None else alone for (*_, d), alone in zip(shown, p)]))]
    lines = [("arm", "layer", "measure", "seeds", "mean [95%]", f"minus {against} [95%]" if against else "", "p, Holm" if against else "")]
    for (name, layer, measure, mean, d), p in zip(shown, adjusted):
        lines.append((name, layer, measure, str(mean.n), interval_text(mean, sign=False), interval_text(d.estimate) if d else "",
                      "" if p is None else f"{p:.2g}"))
    return "\n".join(in_columns(lines))


def as_csv(rows):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("arm", "layer", "measure", "seeds", "mean", "low", "high",
                     "pairs", "difference", "difference_low", "difference_high", "p_uncorrected"))
    for name, layer, measure, mean, d in rows:
        e = d.estimate if d else None
        numbers = (mean.n, mean.mean, mean.low, mean.high, *((e.n, e.mean, e.low, e.high, d.p) if d else (None,) * 5))
        writer.writerow((name, layer, measure, *("" if x is None else x if isinstance(x, int) else f"{x:.6g}" for x in numbers)))
    return text.getvalue()


def chosen(asked, there, what):
    """The names of a comma-separated list. Raises UserError."""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    for name in names:
        if name not in there:
            raise UserError(f"{what} {name!r} is not in the analysis; there are {', '.join(there)}")
    if not names:
        raise UserError(f"name at least one {what}; there are {', '.join(there)}")
    return names


@exit_cleanly
def main(argv):
    parser = Parser("python -m experiments.representations", __doc__)
    parser.add_argument("sweep", type=paths.expand, help="folder of the sweep (out/sweeps/NAME)")
    parser.add_argument("--analysis", type=paths.expand, help="folder of the analysis of its runs (the sweep's analysis/)")
    parser.add_argument("--against", help="the arm that the others are compared with (the sweep's baseline; else none)")
    parser.add_argument("--layers", help="comma-separated: embedding, block0, ..., ln_f (the last block and ln_f)")
    parser.add_argument("--measures", help=f"comma-separated ({', '.join(MEASURES)})")
    options = parser.parse_args(argv)
    paths.folder_to_read(options.sweep, options.sweep, "the folder of a sweep")
    folder = options.analysis or os.path.join(options.sweep, "analysis")
    arms, without, runs_without = by_arm(options.sweep, read_analysis(folder))
    against = options.against
    if against is None:
        baseline = read_sweep(options.sweep, None, planned=False).reference("baseline")
        against = baseline.name if baseline and baseline.name in arms else None
    elif against not in arms:
        raise UserError(f"--against={against}: the analysis has no run of that arm; there are {', '.join(arms)}")
    rows = compare(arms, against)
    layers, measures = sorted({row[1] for row in rows}, key=order), list(dict.fromkeys(row[2] for row in rows))
    if not rows:
        raise UserError(f"{folder} has no measure of any layer")
    shown_layers = chosen(options.layers, layers, "layer") if options.layers is not None else None
    shown = chosen(options.measures, measures, "measure") if options.measures is not None else [m for m in MEASURES if m in measures]
    path = os.path.join(options.sweep, "representations.csv")
    write_file(path, as_csv(rows).encode())
    print(table(rows, shown_layers, shown, against))
    for name in without:
        print(f"left out: {name}, of which no run was analysed")
    if runs_without:
        print(f"not analysed: {', '.join(runs_without[:4])}{f' and {len(runs_without) - 4} more' if len(runs_without) > 4 else ''}")
    if against is None:
        print("nothing is compared: no arm with the role 'baseline' was analysed; --against=ARM names another")
    print(f"all layers and measures: {path}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
