"""
What to conclude from each table of a sweep's report, in a sentence or two that stand above it. They are made from the numbers of the
Summary, so that they change with them. Of the table of results it is the headline (experiments/comparison.py).
"""
import numpy as np

from common.intervals import mean_interval
from experiments.curves import BUDGETS
from experiments.plots import REFERENCES
from experiments.statistics import censored_median

DIGITS = {"step": 0, "tokens": 0, "train_seconds": 1}  # of the amounts of a budget


def names_of(names):
    names = list(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def lowest(values):
    """(the lowest value, the names that have it)"""
    best = min(values.values())
    return best, [name for name, value in values.items() if value == best]


def cost(summary):
    """How far the arms are apart in size."""
    out = []
    for key, name in (("parameters", "parameters"), ("flops_per_token", "FLOPs a token")):
        values = [v for arm in summary.arms if (v := arm.constant(key)) is not None]
        if values and min(values) > 0:
            out.append(f"{name} by {max(values) / min(values) - 1:.1%}")
    return f"The arms differ in {names_of(out)} at most." if out else ""


def of_budgets(summary):
    """Which arm is ahead at each equal budget, which reach the target first, how far the arms differ in cost."""
    def honest(found):  # {arm: (value, whether it is of the seed that chose)}: without those, where there are others
        return {name: value for name, (value, chose) in found.items() if not chose} or {name: value for name, (value, _) in found.items()}

    def chose(seeds):
        return summary.selection_seed in seeds
    at, to_target = [], []
    for key, name in BUDGETS.items():
        means = honest({arm.name: (mean_interval(by_seed.values()).mean, chose(by_seed)) for arm in summary.arms
                        if (by_seed := arm.at_budget.get(key))})
        if means:
            loss, arms = lowest(means)
            at.append(f"at {summary.budgets[key]:,.{DIGITS[key]}f} {name} {loss:.4f} ({names_of(arms)})")
        medians = honest({arm.name: (median, chose(arm.curves)) for arm in summary.arms
                          if (median := censored_median(arm.to_target.get(key, []))) is not None})
        if medians:
            amount, arms = lowest(medians)
            to_target.append(f"{amount:,.{DIGITS[key]}f} {name} ({names_of(arms)})")
    out = [f"The lowest losses: {'; '.join(at)}. These are means without intervals." if at else
           "Nothing is known here of losses at equal budgets: there are no curves."]
    if to_target:
        out.append(f"The target takes at least {'; '.join(to_target)}.")
    elif at and summary.target is not None:
        out.append("No arm reaches the target in more than half of its runs.")
    return " ".join([*out, cost(summary)]).rstrip()


def of_wins(summary, role):
    """Which arms win all, none or some of their pairs with the reference."""
    kinds = {"in all pairs": [], "in none": [], "in some": []}
    for arm in summary.arms:
        if arm.wins.get(role):
            won, of = (sum(n) for n in zip(*((won, of) for won, of, *_ in arm.wins[role].values())))
            kind = "in all pairs" if won == of else "in some" if won else "in none"
            kinds[kind].append(f"{arm.name} {won}/{of}" if kind == "in some" else arm.name)
    found = "; ".join(f"{kind}: {', '.join(arms)}" for kind, arms in kinds.items() if arms)
    return f"Lower than the {REFERENCES[role]} {found}."


def of_runs(summary):
    """Whether the sweep is whole."""
    runs = [(run.status, key in arm.planned) for arm in summary.arms for key, run in arm.runs.items()]
    planned, missing = sum(len(arm.planned) for arm in summary.arms), sum(len(arm.missing()) for arm in summary.arms)
    spared = sum(len(arm.planned - arm.runs.keys()) for arm in summary.arms if arm.spared)
    finished, diverged, crashed = (sum(found == (status, True) for found in runs) for status in ("finished", "diverged", "crashed"))
    decided = summary.answer is None or summary.answer.decided
    why = "the question is decided" if decided else "an arm of the question diverged, and they could not answer it"
    parts = [f"{n} {what}" for n, what in ((missing, "are missing"), (spared, f"are not needed, for {why}"),
                                           (diverged, "diverged"), (crashed, "crashed")) if n]
    text = f"All {planned} planned runs finished." if finished == planned else \
        f"Of {planned} planned runs {finished} finished; {names_of(parts)}."
    more = sum(not in_plan for _, in_plan in runs)
    return text + (f" {more} more ran that are not in the plan." if more else "")


def of_effects(effects):
    """{change: [effect on each run's loss]} -> whether a trained model relies on the c of its blocks."""
    estimates = {change: mean_interval(means) for change, means in effects.items() if not change.startswith("head: ")}
    moved = {change: e for change, e in estimates.items() if e.mean}  # a fixed c is the same after some changes
    if not moved:
        return "No change of c changes the loss."
    least, most = (choose(moved, key=lambda change: moved[change].mean) for choose in (min, max))
    text = f"{moved[most].mean:+.4f} ({most})"
    text = text if least == most else f"between {moved[least].mean:+.4f} ({least}) and {text}"
    without = [change for change, e in moved.items() if e.low is None]
    sure = [change for change, e in moved.items() if e.low is not None and e.low > 0]
    known = "There are no intervals." if len(without) == len(moved) else \
        f"{len(sure)} of {len(moved)} intervals are above 0."
    return f"Changing c changes the loss by {text}. {known}"


def of_slopes(places):
    """{place: (heads, 3) array of c at the start, c after training, d loss / d c} -> how far training moved c."""
    starts, ends = (np.concatenate([means[:, column] for place, means in places.items() if place != "head"]) for column in (0, 1))
    text = ("c at the start is not known for every run." if np.isnan(starts).any() else
            "Training did not move c." if np.array_equal(starts, ends) else
            f"Training moved c by {np.abs(ends - starts).max():.3f} at most, and on average from {starts.mean():.3f} to {ends.mean():.3f}.")
    for start, end, _ in places.get("head", ()):
        text += f" That of the output head {f'went from {start:.4f} to' if start != end else 'is'} {end:.4f}."
    return text
