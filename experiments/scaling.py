"""
How losses depend on size and tokens, and whether the difference of two arms grows or shrinks with them: a joint fit.

    python -m experiments.scaling out/sweeps/size --arm=c1-within --against=ball-v

The sweep's arms are named NAME-REST, one for each size and budget: c1-within-64-300, c1-within-128-300, ... For each NAME

    log L = a - alpha log N - beta log D        N: parameters, all of them; D: tokens; L: validation loss, nats a token

by least squares over all sizes and budgets, once for each seed; alpha and beta are means over seeds with 95% t-intervals. It has no loss
that cannot be undercut, so it holds in the range that was measured, and not beyond (Kaplan et al. 2020 fit each power law so). The
difference, paired by seed and REST, with N and D of `against`:

    L_arm - L_against = d + b log2(N / N_0) + c log2(D / D_0)        N_0, D_0: geometric means over the pairs

b < 0 where d < 0: what the arm gains grows with size. Seeds without all pairs are left out, and named, as are sizes and budgets that one
NAME has no result at: an arm that diverged with any seed has none, and where such arms are the largest the slopes are of the others.
Where arms have several rates, one seed chooses and the others measure, as in a summary.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import json
import math
import sys
from dataclasses import asdict, dataclass

import numpy as np

from common import paths
from common.columns import in_columns
from common.errors import UserError, exit_cleanly
from common.intervals import Estimate, interval_text, mean_interval
from common.whole_files import write_file
from configurator import Parser
from experiments.results import read_sweep
from experiments.statistics import choose_lr, selection_seed_of


@dataclass(frozen=True)
class Family:
    """The fit of one NAME."""
    name: str
    alpha: Estimate
    beta: Estimate
    largest_error: float  # of the fit, nats, of a mean over seeds


@dataclass(frozen=True)
class Trend:
    """The fit of a difference. at_middle: d; by_size: b; by_tokens: c."""
    at_middle: Estimate
    by_size: Estimate
    by_tokens: Estimate
    middle_parameters: float
    middle_tokens: float
    largest_error: float


@dataclass(frozen=True)
class Cell:
    """One run of an arm at its chosen rate."""
    loss: float
    parameters: float
    tokens: float


def arms_of(arms, name, other):
    """{REST: results.Arm} of the arms called NAME-REST. Where the other NAME is a longer beginning of an arm's name, it is the other's."""
    def starts(arm, with_name):
        return arm.name.startswith(f"{with_name}-")
    return {arm.name.removeprefix(f"{name}-"): arm for arm in arms
            if starts(arm, name) and not (len(other) > len(name) and starts(arm, other))}


def cells_of(arms, name, other, selection_seed):
    """{(REST, seed): Cell} of NAME's arms, each at its own best rate, of the seeds that measure it. Raises UserError."""
    found = {}
    for rest, arm in arms_of(arms, name, other).items():
        choice = choose_lr(arm.losses(), selection_seed)
        for seed, loss in (choice.losses if choice else {}).items():
            run = arm.runs[choice.lr, seed]
            if not (run.parameters and run.tokens and loss > 0):
                raise UserError(f"{arm.name}, seed {seed}: parameters, tokens and loss have to be above 0 (they are {run.parameters}, "
                                f"{run.tokens} and {loss}) for a fit of their logarithms")
            if math.isfinite(loss):
                found[rest, seed] = Cell(loss, run.parameters, run.tokens)
    if not found:
        raise UserError(f"no arm {name}-... has a finished run; there are {', '.join(sorted(arm.name for arm in arms))}")
    return found


def rests_of(cells):
    return {rest for rest, _ in cells}


def complete_seeds(*families):
    """(the RESTs that all families have, seeds that have all of them in each, the other seeds)"""
    rests = sorted(set.intersection(*map(rests_of, families)))
    seeds = sorted({seed for cells in families for _, seed in cells})
    whole = [seed for seed in seeds if all((rest, seed) in cells for cells in families for rest in rests)]
    return rests, whole, [seed for seed in seeds if seed not in whole]


def coordinates(cells, rests, seed):
    """(log N, log D) of each REST, (n,) each."""
    there = [cells[rest, seed] for rest in rests]
    return np.log([cell.parameters for cell in there]), np.log([cell.tokens for cell in there])


def plane(values, *axes):
    """Least squares of values against 1 and the centred axes: (constant, slopes..., residuals). The slope of an axis that does not vary is
    None. Raises UserError."""
    varies = [np.ptp(axis) > 1e-9 for axis in axes]
    design = np.stack([np.ones_like(values), *(axis - axis.mean() for axis, moves in zip(axes, varies) if moves)], 1)
    if not any(varies) or np.linalg.matrix_rank(design, tol=1e-6) < design.shape[1]:
        raise UserError("a fit needs sizes or tokens that vary; a joint one two sizes with two budgets each, at least")
    constant, *slopes = np.linalg.lstsq(design, values, rcond=None)[0]
    residuals = values - design @ [constant, *slopes]
    return (constant, *(slopes.pop(0) if moves else None for moves in varies), residuals)


def over_seeds(values):
    values = list(values)
    return Estimate(0) if None in values else mean_interval(values)


def fit_family(name, cells, rests, seeds):
    fits, losses = [], []
    for seed in seeds:
        loss = np.array([cells[rest, seed].loss for rest in rests])
        fits.append(plane(np.log(loss), *coordinates(cells, rests, seed)))
        losses.append(loss)
    errors = np.mean(losses, 0) * (1 - np.exp(-np.mean([fit[3] for fit in fits], 0)))
    return Family(name, *(over_seeds(fit[i] and -fit[i] for fit in fits) for i in (1, 2)), float(np.abs(errors).max()))


def fit_difference(arm, against, rests, seeds):
    fits = []
    for seed in seeds:
        log_n, log_d = coordinates(against, rests, seed)
        d = np.array([arm[rest, seed].loss - against[rest, seed].loss for rest in rests])
        fits.append(plane(d, log_n / np.log(2), log_d / np.log(2)))
    middle = [float(np.exp(axis.mean())) for axis in coordinates(against, rests, seeds[0])]
    errors = np.mean([fit[3] for fit in fits], 0)
    return Trend(*(over_seeds(fit[i] for fit in fits) for i in range(3)), *middle, float(np.abs(errors).max()))


def in_words(slope, at_middle, what):
    """What a slope with `what` says of the difference."""
    if slope.low is None:
        return "no interval"
    if slope.low <= 0 <= slope.high:
        return "neither growing nor shrinking is shown"
    if at_middle.low is None or at_middle.low <= 0 <= at_middle.high:
        return f"it depends on {what}, though in the middle no difference is shown"
    return "the difference grows" if (slope.mean > 0) == (at_middle.mean > 0) else "the difference shrinks"


def table(arm, against, arms_cells, against_cells, rests, seeds):
    """Lines: REST, N, D, mean losses, the difference with its interval."""
    rows = [("size, tokens", "parameters", "tokens", arm, against, "difference [95%]")]
    sizes = {rest: (against_cells[rest, seeds[0]].parameters, against_cells[rest, seeds[0]].tokens) for rest in rests}
    for rest in sorted(rests, key=sizes.get):
        a, b = ([cells[rest, seed].loss for seed in seeds] for cells in (arms_cells, against_cells))
        rows.append((rest, *(f"{size:,.0f}" for size in sizes[rest]), f"{np.mean(a):.4f}", f"{np.mean(b):.4f}",
                     interval_text(mean_interval(x - y for x, y in zip(a, b)))))
    return in_columns(rows)


def report(arm, against, families, trend, lines, seeds, left_out, lacking):
    """left_out: seeds; lacking: {NAME: its RESTs without a result that the sweep has}."""
    out = [*lines, ""]
    for family in families:
        out.append(f"{family.name}: L ~ N^-alpha D^-beta, alpha = {interval_text(family.alpha, sign=False)}, beta = "
                   f"{interval_text(family.beta, sign=False)}; largest error {family.largest_error:.4f} nats")
    out += ["", f"{arm} minus {against}: {interval_text(trend.at_middle)} at {trend.middle_parameters:,.0f} parameters and "
            f"{trend.middle_tokens:,.0f} tokens",
            *(f"a doubling of {what} changes it by {interval_text(slope)}: {in_words(slope, trend.at_middle, what)}"
              for what, slope in (("size", trend.by_size), ("tokens", trend.by_tokens)) if slope.n),
            f"largest error of this fit {trend.largest_error:.4f} nats; intervals are over {len(seeds)} seeds, not corrected"]
    if left_out:
        out.append(f"left out: seeds without all pairs ({', '.join(map(str, left_out))})")
    for name, rests in lacking.items():
        out.append(f"left out: {', '.join(sorted(rests))}, for {name} has no result there (it diverged, or has not run)")
    return "\n".join(out)


@exit_cleanly
def main(argv):
    parser = Parser("python -m experiments.scaling", __doc__)
    parser.add_argument("sweep", type=paths.expand, help="folder of the sweep (out/sweeps/NAME)")
    parser.add_argument("--arm", required=True, help="NAME of the arms in question")
    parser.add_argument("--against", required=True, help="NAME of those that they are compared with")
    parser.add_argument("--out", type=paths.expand, help="a JSON file for the numbers")
    options = parser.parse_args(argv)
    if options.out:
        paths.file_to_write(options.out, f"--out {options.out}")
    paths.folder_to_read(options.sweep, options.sweep, "the folder of a sweep")
    if options.arm == options.against:
        raise UserError(f"--arm and --against are both {options.arm!r}")
    summary = read_sweep(options.sweep, "final", planned=False)
    chooses = selection_seed_of(summary.arms, summary.seeds)
    names = (options.arm, options.against)
    arm, against = (cells_of(summary.arms, *pair, chooses) for pair in (names, names[::-1]))
    rests, seeds, left_out = complete_seeds(arm, against)
    if not seeds:
        raise UserError(f"no seed has finished runs of both at every size and budget that they share ({', '.join(rests) or 'none'})")
    lacking = {name: missing for name, cells in ((options.arm, arm), (options.against, against))
               if (missing := {rest for pair in (names, names[::-1]) for rest in arms_of(summary.arms, *pair)} - rests_of(cells))}
    families = [fit_family(name, cells, rests, seeds) for name, cells in ((options.arm, arm), (options.against, against))]
    trend = fit_difference(arm, against, rests, seeds)
    print(report(options.arm, options.against, families, trend, table(options.arm, options.against, arm, against, rests, seeds), seeds,
                 left_out, lacking))
    if options.out:
        content = {"arm": options.arm, "against": options.against, "seeds": seeds, "families": [asdict(f) for f in families],
                   "difference": asdict(trend)}
        paths.make_folder_of(options.out)
        write_file(options.out, (json.dumps(content, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
