"""
What a sweep says: each arm at its own best learning rate, compared with the others, and the headline. It fills the Summary that
results.py reads; report.py and plots.py show it. The statistics and why they are these: statistics.py.
"""
import math
import os
import sys

import numpy as np

from analysis import ablation
from common.errors import UserError
from common.intervals import mean_interval
from experiments import answer, question, surroundings
from experiments.curves import read_curve, read_kept
from experiments.plots import REFERENCES
from experiments.report import p_text
from experiments.results import CONTROLS, METRICS, best_of, read_sweep
from experiments.statistics import (
    LEAST_TO_PLAN,
    candidates,
    choose_lr,
    holm,
    measuring_pair,
    paired_difference,
    pairs_needed,
    place_in_grid,
    power_of_difference,
    selection_seed_of,
    value_at,
    wins,
)

# what to do where no arm has a role that a comparison needs; {} is the sweep's file
SET_ROLE = {
    "baseline": "No arm has the role 'baseline': set role='baseline' in the arm of {} that the others are to be compared with",
    "flat": "No arm has the role 'flat': if an arm of {} is the mixed block at c = 0, set role='flat' in it",
    "control": "No arm has the role 'flat' or 'control': set one of them in the arms of {} without curvature that the mixed arms "
               "are to be compared with",
    "mixed": "No arm has the role 'mixed': set role='mixed' in the arms of {} whose curvature is the question"}


# ----------------------------------------------------------------------------------------------------------------------
# what is computed

def tune(summary):
    """Each arm at its best learning rate, and the curves of the runs that measure it."""
    without, kept = [], read_kept(summary.folder)  # (arm, run) of those that have no curve; curves of runs that are not here
    for arm in summary.arms:
        losses = arm.losses()
        arm.choice = choose_lr(losses, summary.selection_seed)
        for lr in sorted(losses.keys() - candidates(losses).keys()):
            diverged = sum(math.isinf(v) for v in losses[lr].values())
            summary.note(f"{arm.name}: {diverged} of {len(losses[lr])} seeds {summary.measure.failed} at lr {lr:g},",
                         "which therefore cannot be its best.")
        selecting = [lr for lr, seeds in candidates(losses).items() if summary.selection_seed in seeds]
        for lr in candidates(losses).keys() - selecting if selecting else ():
            summary.note(f"{arm.name}: lr {lr:g} could not be chosen, for the run of seed {summary.selection_seed},",
                         "which chooses, did not end there.")
        if arm.missing():
            listed = [f"lr {lr:g} seed {seed}" for lr, seed in arm.missing()]
            more = f" and {len(listed) - 6} more" if len(listed) > 6 else ""
            summary.note(f"{arm.name} is incomplete, {len(listed)} of {len(arm.planned)} runs are missing:",
                         f"{', '.join(listed[:6])}{more}.")
        for (lr, seed), run in sorted(arm.runs.items()):
            if run.status == "crashed":
                summary.note(f"{arm.name}: lr {lr:g} seed {seed} crashed and is left out ({run.folder}).")
            elif run.loss is None:
                summary.note(f"{arm.name}: lr {lr:g} seed {seed} has no {summary.measure.name}, for it has saved no checkpoint,",
                             "and is left out.")
        if arm.choice is None:
            summary.note(f"{arm.name} has no learning rate at which a run finished and none {summary.measure.failed}: not tuned.")
            continue
        arm.estimate = mean_interval(arm.choice.losses.values())
        arm.edge = place_in_grid(arm.choice.lr, losses)
        for seed in arm.choice.losses:
            run = arm.runs[arm.choice.lr, seed]
            curve = read_curve(run.folder) or kept.get(run.hash)
            if curve is None:
                without.append((arm, run))
            else:
                arm.curves[seed] = curve
    if without and not any(arm.curves for arm in summary.arms):
        summary.note("The table of runs is here without the runs: there are losses, but no curves, nothing at equal budgets and",
                     "no changes of c.")
    else:
        for arm in summary.arms:
            lacking = [run.folder for other, run in without if other is arm]
            more = f" and {len(lacking) - 1} more; these runs are" if len(lacking) > 1 else "; the run is"
            if lacking:
                summary.note(f"{arm.name}: no metrics.jsonl in {lacking[0]}{more} in the losses, but in no curve",
                             "and no comparison at equal budgets.")
    compared = [a.runs[a.choice.lr, seed] for a in summary.arms if a.choice for seed in a.choice.all_losses]
    steps = {r.step for r in compared if r.step}
    if len(steps) > 1 and summary.metric != "target":
        summary.note(f"The compared runs ended at different steps ({min(steps):,.0f} to {max(steps):,.0f}): their",
                     "losses are not at one budget of steps; the columns at equal budgets are.")
    surroundings.note(summary, compared)
    sizes = {round(r.tokens / r.step) for a in summary.arms for r in a.runs.values() if r.step and r.tokens}
    if len(sizes) > 1:
        summary.note(f"The runs differ in tokens a step ({', '.join(f'{s:,}' for s in sorted(sizes))}): the same seed",
                     "is then not the same batches, and differences are less well paired.")


def compare(summary):
    """Paired differences, corrected by Holm over the arms compared with one reference; wins by learning rate."""
    for role in REFERENCES:
        reference = summary.reference(role)
        if role == "best_control":
            if reference is None:
                continue
            if reference is summary.reference("flat"):
                summary.note(f"The best control is the flat control, {reference.name}: see the comparisons with that.")
                continue
            how = (", chosen on the seeds that measure it" if reference.choice.selection_seed is None
                   and len(summary.of_role(*CONTROLS)) > 1 else "")
            summary.note(f"The best control, with which the mixed arms are compared, is {reference.name}{how}.")
        elif reference is None:
            summary.note(f"{set_role(summary, role)} No comparison with the {REFERENCES[role]} is made.")
            if role == "baseline":
                summary.advice.append(set_role(summary, role))
            continue
        elif len(summary.of_role(role)) > 1:
            summary.note(f"Several arms have the role {role!r}; the {REFERENCES[role]} of the comparisons is the",
                         f"first, {reference.name}.")
        # the flat control is compared with the baseline; the same number with the other sign is not another test. The best
        # control is for the question of the sweep: what do mixed arms add to it?
        others = [a for a in summary.arms if a is not reference and not (role == "flat" and a.role == "baseline")
                  and (role != "best_control" or a.role == "mixed")]
        if reference.choice:
            tuned = [a for a in others if a.choice]
            found = [paired_difference(*measuring_pair(a.choice, reference.choice)) for a in tuned]
            # a pair without spread has no p of its own, but is one of the comparisons
            for arm, difference, p in zip(tuned, found, holm([1.0 if d.p is None and d.estimate.n > 1 else d.p for d in found])):
                arm.against[role] = difference, None if difference.p is None else p
        theirs = reference.losses()
        for arm in others:
            arm.wins[role] = {lr: wins(seeds, theirs[lr]) for lr, seeds in arm.losses().items()
                              if lr in theirs and seeds.keys() & theirs[lr].keys()}


def equal_budgets(summary):
    """The loss of every compared run at the steps, tokens and seconds that all of them have."""
    runs = [(arm, seed, curve) for arm in summary.arms for seed, curve in arm.curves.items()]
    if not runs:
        return
    for key in summary.comparable_budgets():
        arm, seed, curve = min(runs, key=lambda r: r[2].evaluations[-1][key])
        summary.budgets[key] = curve.evaluations[-1][key]
        if key == "train_seconds":
            summary.shortest = f"{arm.name}, seed {seed}"
        for arm, seed, curve in runs:
            loss = value_at(curve.column(key), curve.column("val_loss"), summary.budgets[key])
            if loss is not None:  # its first evaluations may be missing
                arm.at_budget.setdefault(key, {})[seed] = loss


def time_to_target(summary, target):
    """When each compared run was first evaluated at the target or below. target None: the sweep's own; if it has none, the
    highest of the losses that measure the baseline, which all of its runs reach."""
    baseline = summary.reference("baseline")
    if target is not None and summary.metric == "target" and target != summary.target:
        raise UserError(f"--target={target:g}: the runs of this sweep stopped at a loss of {summary.target:g}; its arms are compared by "
                        "the steps to it; give --metric=final with it, or leave --target out")
    if target is not None:
        summary.target = target
    elif summary.target is None and baseline and baseline.choice:
        summary.target = max(baseline.choice.losses.values())
    for arm in summary.arms if summary.target is not None else ():
        first = [next((r for r in curve.evaluations if r["val_loss"] <= summary.target), None)
                 for curve in arm.curves.values()]
        for key in summary.comparable_budgets():
            arm.to_target[key] = [r[key] if r else None for r in first]


def look_at_curvature(summary, batches):
    """analysis/ablation.py on the runs that measure the mixed arms. batches: of an evaluation; 0: don't."""
    for arm in summary.of_role("mixed") if batches != 0 else ():
        failed = []
        for seed in arm.choice.losses if arm.choice else ():
            folder = arm.runs[arm.choice.lr, seed].folder
            if not os.path.isdir(folder):  # the table alone was copied: a note says so
                continue
            print(f"changing the curvature of {arm.name}, seed {seed}", file=sys.stderr)
            try:
                checkpoint = "best" if summary.metric == "best" else "last"
                arm.ablations[seed] = ablation.ablate(folder, checkpoint, batches)
            except UserError as error:
                failed.append((seed, error))
        if failed:
            summary.note(f"{arm.name}: the curvature of seed {', '.join(str(s) for s, _ in failed)} could not be",
                         f"looked at: {failed[0][1]}.")


def set_role(summary, role):
    """The sentence that says what to do where no arm has this role."""
    return f"{SET_ROLE[role].format(summary.file)}, and start sweep.py again (it repeats no run)."


def difference_text(difference, digits, unit):
    """'-0.0123 nats a token (95% interval [-0.0200, -0.0046], 4 seeds, paired t-test p = 0.01)'."""
    e = difference.estimate
    if e.n == 1:
        return f"{e.mean:+.{digits}f} {unit} (one seed: no interval, no test)"
    interval = (f"no interval: equal in all {e.n} seeds" if e.low is None else
                f"95% interval [{e.low:+.{digits}f}, {e.high:+.{digits}f}], {e.n} seeds")
    flips = f", sign flips p = {p_text(difference.p_sign_flip)}" if difference.p_sign_flip is not None else ""
    return (f"{e.mean:+.{digits}f} {unit} ({interval}, paired t-test p = {p_text(difference.p)}{flips})")


def verdict(difference, mixed, control):
    estimate = difference.estimate
    if estimate.n == 1:
        return "One seed decides nothing."
    if estimate.low is None and estimate.mean == 0:
        return "Every seed has the same for both: these seeds do not tell the two arms apart."
    if estimate.low is None:
        return "All seeds differ by the same: the resolution of the measure hides their spread, and nothing is tested."
    if estimate.low <= 0 <= estimate.high:
        text = "The interval contains 0: these seeds do not tell the two arms apart."
        spread = float(np.std(difference.differences, ddof=1))
        known = estimate.mean and estimate.n >= LEAST_TO_PLAN
        pairs = pairs_needed(lambda n: power_of_difference(n, abs(estimate.mean) / spread)) if known else None
        if pairs is None:
            return text
        return f"{text} Some {pairs:,} pairs would, with a probability of 80%, if difference and spread are what they are now."
    better, worse = (mixed, control) if estimate.mean < 0 else (control, mixed)
    return f"The interval does not contain 0: {better} is better than {worse}."


def sides_of(summary):
    """(kind, roles, what an arm of it is called) of the two sides of the headline: mixed arms and controls; in a sweep that has neither,
    and so is not about curvature, other arms and the baseline."""
    if not summary.of_role("mixed", *CONTROLS) and summary.of_role("baseline") and summary.of_role("other"):
        return ("other", ("other",), "other arm"), ("baseline", ("baseline",), "baseline")
    return ("mixed", ("mixed",), "mixed arm"), ("control", CONTROLS, "flat or other control")


def write_headline(summary):
    """Sets summary.headline: the best of one side against the best of the other (sides_of), in words."""
    best, passed_over, selection, chosen = {}, [], summary.selection_seed, False
    of, sides = (summary.measure.digits, summary.measure.unit), sides_of(summary)
    about_curvature = sides[0][0] == "mixed"
    one, other = ("Best mixed arm", "best control") if about_curvature else ("Best arm", "the baseline")
    for kind, roles, called in sides:
        best[kind], others = best_of(summary, *roles)
        if best[kind] is None:
            unset = [kind for kind, roles, _ in sides if not summary.of_role(*roles)]
            why = " ".join(set_role(summary, role) for role in unset) or f"No {called} could be tuned."
            summary.headline = f"{one} against {other}: not possible. {why}"
            return
        chosen |= len(summary.of_role(*roles)) > 1 or len(best[kind].losses()) > 1
        for arm in others:
            if selection is None or arm.choice.selection_seed is not None:
                continue
            if selection not in arm.choice.losses:
                difference = paired_difference(arm.choice.losses, best[kind].choice.losses)
                compared = (f": {arm.name} minus {best[kind].name} = {difference_text(difference, *of)}"
                            if difference.seeds else "")
                passed_over.append(f"{arm.name} could not be chosen, for no run of seed {selection} ended there{compared}.")
            elif arm.choice.selection_loss < best[kind].choice.selection_loss:
                passed_over.append(f"{arm.name} was lower than {best[kind].name} with that seed, but has no other.")
        for arm in summary.of_role(*roles):  # where seeds that should only measure took part in choosing
            losses, least = arm.losses(), best[kind].choice
            blocked = {lr: seeds[selection] for lr, seeds in losses.items() if lr not in candidates(losses)
                       and seeds.get(selection, math.inf) < least.selection_loss}
            if blocked:
                lr = min(blocked, key=blocked.get)
                passed_over.append(f"{arm.name} at lr {lr:g} was lower than {best[kind].name} at lr {least.lr:g} with seed "
                                   f"{selection} and is left out, for another seed {summary.measure.failed} there.")
    mixed, control = (best[kind] for kind, *_ in sides)
    title = f"{one} ({mixed.name}, lr {mixed.choice.lr:g}) against {other} ({control.name}, lr {control.choice.lr:g})"
    difference = paired_difference(*measuring_pair(mixed.choice, control.choice))
    if not difference.seeds:
        summary.headline = f"{title}: they share no seed that measures; no comparison."
        return
    held_out = mixed.choice.selection_seed is not None and control.choice.selection_seed is not None
    how = (f"Arms and learning rates were chosen with seed {mixed.choice.selection_seed} alone, which does not measure."
           if held_out else "There was one arm of each and one rate: nothing was chosen." if not chosen else
           "Arms and learning rates were chosen on the seeds that measure them, which is optimistic, more so for "
           "the side with more of both.")
    what = "" if summary.metric != "target" else f", steps to a validation loss of {summary.target:g}"
    summary.headline = (f"{title}{what}: {'mixed minus control' if about_curvature else f'{mixed.name} minus {control.name}'} = "
                        f"{difference_text(difference, *of)}. "
                        f"{' '.join([verdict(difference, mixed.name, control.name), how, *passed_over])}")
    if summary.seconds_differ:
        return
    if summary.metric == "target":
        at = paired_difference(*({seed: a.runs[a.choice.lr, seed].target_seconds for seed in difference.seeds
                                  if a.runs[a.choice.lr, seed].target_seconds is not None} for a in (mixed, control)))
        title, of = "In training seconds to the target", (1, "s")
    else:
        at = paired_difference(*(a.at_budget.get("train_seconds", {}) for a in (mixed, control)))
        title = f"At equal training seconds ({summary.budgets.get('train_seconds', 0):,.1f} s)"
    if at.seeds:
        summary.headline += f" {title}: {difference_text(at, *of)}. {verdict(at, mixed.name, control.name)}"


# ----------------------------------------------------------------------------------------------------------------------
# the question of the sweep

def answer_question(summary, planned):
    """Sets summary.answer, and marks arms whose missing runs are not needed."""
    asked = question.from_told(summary.question)
    if asked is None:
        return
    arms = {arm.name: arm for arm in summary.arms}
    summary.answer = answer.of_folder(summary.folder, asked, planned)  # as asked, whatever --metric and --selection_seed the table has
    for name in (asked.arm, asked.against):
        if name in arms and asked.stop == "anytime" and summary.answer is not None:
            arms[name].spared = summary.answer.decided or summary.answer.impossible
    told, after = summary.question, summary.question["ended_before"]
    summary.note(f"The question was stated {'before any run of its two arms had ended' if not after else ''}"
                 f"{f'when {after} runs of its two arms had ended, so its answer is not a confirmation' if after else ''}; "
                 f"SHA-256 {told['sha256'][:12]}"
                 + (f", of the planned runs {told['runs_sha256'][:12]}" if "runs_sha256" in told else "")
                 + (f" (known since {told['runs_known_since'][:10]})" if "runs_known_since" in told else "") + "."
                 + (f" It was changed {len(told['earlier'])} times since the first." if told["earlier"] else ""))


def words_of_question(summary):
    asked = question.from_told(summary.question)
    pair = [arm for arm in summary.arms if arm.name in (asked.arm, asked.against)]
    chooses = selection_seed_of(summary.arms, summary.seeds)
    planned = [{seed for _, seed in arm.planned} - {chooses} for arm in pair]
    after = summary.question["ended_before"]
    late = f" It is no confirmation: {after} runs of its two arms had ended when the question was stated." if after else ""
    return answer.in_words(asked, summary.answer, METRICS["final"].unit, len(set.intersection(*planned)) if planned else 0,
                           ended=len(pair) == 2 and not any(arm.missing() for arm in pair)) + late


# ----------------------------------------------------------------------------------------------------------------------

def summarize(folder, metric=None, selection_seed="auto", target=None, batches=8, planned=True):
    """The Summary of a sweep's folder. selection_seed: an int, 'auto' or None; planned: of read_sweep(); the rest as the options of the
    command line. Raises UserError."""
    summary = read_sweep(folder, metric, planned)
    if selection_seed == "auto":
        selection_seed = selection_seed_of(summary.arms, summary.seeds)
    elif selection_seed is not None and selection_seed not in summary.seeds:
        raise UserError(f"--selection_seed={selection_seed}: the seeds of this sweep are "
                        f"{', '.join(map(str, summary.seeds))}")
    summary.selection_seed = selection_seed
    answer_question(summary, planned)
    tune(summary)
    compare(summary)
    equal_budgets(summary)
    time_to_target(summary, target)
    look_at_curvature(summary, batches)
    write_headline(summary)
    if summary.question and planned:
        summary.answered = words_of_question(summary)
    return summary
