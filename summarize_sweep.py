"""
What a sweep says: tables, plots and a report, from the files that sweep.py leaves.

    python summarize_sweep.py out/sweeps/shakespeare_lr
    python summarize_sweep.py out/sweeps/shakespeare_lr --metric=best --selection_seed=none --target=1.7 --batches=0

Per arm: the validation loss at its own best learning rate with a 95% interval over seeds; paired differences to the
baseline, to the flat control and, of mixed arms, to the best control; wins at every learning rate; the loss at equal steps, tokens and training seconds;
parameters, FLOPs a token; steps, tokens and seconds to a target loss; the share of diverged runs; for mixed arms what
their curvature does. The statistics and why they are these: experiments/statistics.py; the plots: sweep_plots.py; the
curvature: ablate_curvature.py.

Written to <sweep>/summary: summary.md, summary.csv (a line an arm), summary.json (everything), report.html (tables and
plots in one file) and the plots as .png and .svg. A sweep that is still running can be summarised; the summary says
what is missing. A sweep with target_val_loss is about time: its runs stop at the target, so everything that is said of
losses above is said of the steps to the target, learning rates included, and the headline also of the seconds.
"""
from common import startup  # first: Ctrl-C while the others are imported is one line

import argparse
import csv
import dataclasses
import html
import io
import json
import math
import os
import sys
from base64 import b64encode
from dataclasses import dataclass, field

import numpy as np

import ablate_curvature
import sweep_plots
from ablate_curvature import interval_text
from configurator import Parser
from common.errors import UserError, exit_cleanly
from experiments import sweep_file
from experiments.rows import Rows
from experiments.runs import HERE, make_runs
from experiments.statistics import (Choice, Estimate, candidates, censored_median, choose_lr, holm, mean_interval,
                                    measuring_pair, paired_difference, place_in_grid, value_at, wins)
from sweep_plots import REFERENCES
from common.whole_files import write_file

@dataclass(frozen=True)
class Metric:
    """By what arms are chosen and compared; lower is better."""
    column: str  # of runs.csv
    name: str
    unit: str
    digits: int
    failed: str  # why a run has none: it counts as +inf


METRICS = {"final": Metric("val_loss", "validation loss", "nats a token", 4, "diverged"),
           "best": Metric("best_val_loss", "best validation loss", "nats a token", 4, "diverged"),
           "target": Metric("target_step", "steps to the target", "steps", 0, "diverged or did not reach the target")}
CONTROLS = ("flat", "control")  # roles of arms without curvature, but for the baseline
BUDGETS = {"step": "steps", "tokens": "tokens", "train_seconds": "training seconds"}  # keys of an evaluation's line


# ----------------------------------------------------------------------------------------------------------------------
# what is read

@dataclass
class Run:
    """A row of runs.csv."""
    status: str  # finished | diverged | crashed
    folder: str
    loss: float | None  # by the chosen metric; +inf where it diverged or has none, None where it crashed
    step: float | None
    tokens: float | None
    parameters: float | None
    flops_per_token: float | None
    target_seconds: float | None
    host: str


@dataclass
class Curve:
    """metrics.jsonl of a run: the lines of evaluations, and those of steps."""
    evaluations: list
    steps: list

    def column(self, key):
        return [r[key] for r in self.evaluations]


@dataclass
class Arm:
    name: str
    role: str
    runs: dict = field(default_factory=dict)  # {(lr, seed): Run}
    planned: set = field(default_factory=set)  # {(lr, seed)}
    choice: Choice | None = None
    estimate: Estimate = Estimate(0)  # of the loss at the chosen learning rate
    edge: str = ""  # statistics.place_in_grid
    curves: dict = field(default_factory=dict)  # {seed: Curve}, chosen learning rate, the seeds that measure
    against: dict = field(default_factory=dict)  # {role of the reference: (Difference, p after Holm)}
    wins: dict = field(default_factory=dict)  # {role of the reference: {lr: as statistics.wins}}
    at_budget: dict = field(default_factory=dict)  # {key of BUDGETS: {seed: loss}}
    to_target: dict = field(default_factory=dict)  # {key of BUDGETS: [value, or None if not reached]}
    ablations: dict = field(default_factory=dict)  # {seed: ablate_curvature.Ablation}

    def losses(self):
        """{lr: {seed: loss}}, as statistics has them."""
        out = {}
        for (lr, seed), run in sorted(self.runs.items()):
            if run.loss is not None:
                out.setdefault(lr, {})[seed] = run.loss
        return out

    def grid(self):
        return sorted({lr for lr, _ in self.planned | self.runs.keys()})

    def missing(self):
        return sorted(self.planned - self.runs.keys())

    def count(self, status):
        return sum(run.status == status for run in self.runs.values())

    def diverged_share(self):
        over = self.count("finished") + self.count("diverged")
        return self.count("diverged") / over if over else None

    def constant(self, name):
        """parameters or flops_per_token: all runs of an arm have the same."""
        return next((getattr(r, name) for r in self.runs.values() if getattr(r, name) is not None), None)

    def reached_share(self):
        values = self.to_target.get("step", [])
        return sum(v is not None for v in values) / len(values) if values else None


@dataclass
class Summary:
    folder: str
    name: str
    metric: str  # a key of METRICS
    arms: list
    seeds: list
    selection_seed: int | None
    notes: list = field(default_factory=list)
    budgets: dict = field(default_factory=dict)  # {key of BUDGETS: where the arms are compared}
    shortest: str = ""  # the run that sets the budget of seconds
    target: float | None = None
    headline: str = ""

    @property
    def measure(self):
        return METRICS[self.metric]

    def note(self, *sentences):
        self.notes.append(" ".join(sentences))

    def of_role(self, *roles):
        return [a for a in self.arms if a.role in roles]

    def reference(self, role):
        """The arm that others are compared with, or None"""
        if role == "best_control":
            return best_of(self, *CONTROLS)[0]
        return next(iter(self.of_role(role)), None)


def read_json(path):
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: not the folder of a sweep") from None
    except ValueError:
        raise UserError(f"{path} is damaged: not JSON") from None


def full_name(arm, overrides, plan):
    """The arm's name, with what the grid sets beside the learning rate: each such point is an arm of its own."""
    varied = [k for k in plan["grid"] if k in overrides and k not in arm["overrides"]]
    lr_key = "muon_lr" if "muon_lr" in varied else "learning_rate"
    return " ".join([arm["name"], *(f"{k}={overrides[k]}" for k in varied if k != lr_key)])


def planned_runs(plan, folder, tried):
    """[(name, role, lr, seed)] of every run of the sweep, and a note or None. sweep.json has the union of the arms'
    grids and seeds; which arm has which is in the sweep file. tried: learning rates, for a plan that names none."""
    arms = {arm["name"]: arm for arm in plan["arms"]}
    path = os.path.realpath(os.path.join(HERE, plan["file"]))
    try:
        if path.startswith(os.path.realpath(folder) + os.sep):  # a folder from somebody else runs no code of theirs
            raise UserError(f"{path}: a sweep file in the sweep's own folder is not read")
        return [(full_name(arms[r.arm], r.overrides, plan), arms[r.arm]["role"], r.lr, r.seed)
                for r in make_runs(sweep_file.load(path), path, folder) if r.arm in arms], None
    except UserError as error:
        lrs = plan["grid"].get("muon_lr") or plan["grid"].get("learning_rate") or tried
        planned = [(name, arm["role"], float(lr), seed)
                   for name, arm in arms.items() for lr in lrs for seed in plan["seeds"]]
        return planned, f"The plan is taken to be every learning rate and seed for every arm: {error}."


def read_rows(folder, plan, metric):
    """([(name, role, lr, seed, Run)] of runs.csv, names of arms that sweep.json does not have)."""
    arms, found, unknown = {arm["name"]: arm for arm in plan["arms"]}, [], set()
    for place, row in enumerate(Rows(folder).read().values(), 2):
        if row["arm"] not in arms:
            unknown.add(row["arm"])
            continue
        try:
            loss = {"finished": row[METRICS[metric].column], "diverged": "inf", "crashed": None}[row["status"]]
            if metric == "target" and loss == "":
                loss = "inf"
            numbers = {k: float(row[k]) if row[k] else None
                       for k in ("step", "tokens", "parameters", "flops_per_token", "target_seconds")}
            run = Run(row["status"], os.path.normpath(os.path.join(folder, row["dir"])),
                      None if loss is None else float(loss), host=row["host"], **numbers)
            if run.status == "finished" and metric != "target" and not math.isfinite(run.loss):
                raise ValueError(f"finished with a loss of {loss}")
            found.append((full_name(arms[row["arm"]], json.loads(row["overrides"]), plan), arms[row["arm"]]["role"],
                          float(row["lr"]), int(row["seed"]), run))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{os.path.join(folder, 'runs.csv')}, line {place} ({row['arm']}, lr {row['lr']}, seed "
                            f"{row['seed']}) is damaged: {error}") from None
    return found, unknown


def read_plan(path):
    """sweep.json, with the parts that are read here in the form that sweep.py gives them."""
    plan = read_json(path)
    parts = {"name": str, "file": str, "arms": list, "grid": dict, "seeds": list, "defaults": dict}
    for key, kind in parts.items():
        if not isinstance(plan, dict) or not isinstance(plan.get(key), kind):
            raise UserError(f"{path}: {key!r} is missing or not what sweep.py writes")
    for arm in plan["arms"]:
        if not isinstance(arm, dict) or not (isinstance(arm.get("name"), str) and isinstance(arm.get("role"), str)
                                             and isinstance(arm.get("overrides"), dict)):
            raise UserError(f"{path}: an arm is not what sweep.py writes")
    return plan


def target_of(plan):
    """target_val_loss, if all arms train to the same one; else None."""
    targets = {arm["overrides"].get("target_val_loss", plan["defaults"].get("target_val_loss")) for arm in plan["arms"]}
    return targets.pop() if len(targets) == 1 else None


def read_sweep(folder, metric):
    """Summary with the arms and their runs, nothing computed yet. metric None: 'target' if the sweep has one, else
    'final'."""
    path = os.path.join(folder, "sweep.json")
    plan = read_plan(path)
    target = target_of(plan)
    if metric is None:
        metric = "final" if target is None else "target"
    elif metric == "target" and target is None:
        raise UserError(f"--metric=target: the arms of {path} have no target_val_loss in common")
    found, unknown = read_rows(folder, plan, metric)
    if not found:
        raise UserError(f"no run of {folder} has ended yet: there is nothing to summarise")
    planned, note = planned_runs(plan, folder, sorted({lr for _, _, lr, _, _ in found}))
    arms, notes = {}, [note] if note else []
    for name, role, lr, seed in planned:
        arms.setdefault(name, Arm(name, role)).planned.add((lr, seed))
    for name, role, lr, seed, run in found:
        runs = arms.setdefault(name, Arm(name, role)).runs
        if (lr, seed) in runs:
            notes.append(f"{name} has two rows for lr {lr:g}, seed {seed}; the later one counts.")
        runs[lr, seed] = run
    if unknown:
        notes.append(f"Left out: runs of arms that sweep.json does not have ({', '.join(sorted(unknown))}).")
    seeds = sorted({seed for arm in arms.values() for _, seed in arm.planned | arm.runs.keys()})
    return Summary(folder, plan["name"], metric, list(arms.values()), seeds, None, notes, target=target)


def read_curve(folder):
    """Curve of a run, or None if its metrics are not there (a table alone was copied, say)."""
    path = os.path.join(folder, "metrics.jsonl")
    try:
        with open(path, encoding="utf-8") as f:
            lines = [json.loads(line) for line in f]
        evaluations = [r for r in lines if "val_loss" in r]
        for r in evaluations:
            for key in ("val_loss", *BUDGETS):
                float(r[key])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged: not the lines that train.py writes") from None
    return Curve(evaluations, [r for r in lines if "loss" in r]) if evaluations else None


# ----------------------------------------------------------------------------------------------------------------------
# what is computed

def tune(summary):
    """Each arm at its best learning rate, and the curves of the runs that measure it."""
    without = []  # (arm, run) of those that have no curve
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
        if arm.choice is None:
            summary.note(f"{arm.name} has no learning rate at which a run finished and none {summary.measure.failed}: not tuned.")
            continue
        arm.estimate = mean_interval(arm.choice.losses.values())
        arm.edge = place_in_grid(arm.choice.lr, losses)
        for seed in arm.choice.losses:
            run = arm.runs[arm.choice.lr, seed]
            curve = read_curve(run.folder)
            if curve is None:
                without.append((arm, run))
            else:
                arm.curves[seed] = curve
    if without and not any(arm.curves for arm in summary.arms):
        summary.note("The table of runs is here without the runs: there are losses, but no curves, nothing at equal budgets and",
                     "no changes of c.")
    else:
        for arm, run in without:
            summary.note(f"{arm.name}: no metrics.jsonl in {run.folder}; the run is in the losses, but in no curve",
                         "and no comparison at equal budgets.")
    compared = [a.runs[a.choice.lr, seed] for a in summary.arms if a.choice for seed in a.choice.all_losses]
    steps = {r.step for r in compared if r.step}
    if len(steps) > 1 and summary.metric != "target":
        summary.note(f"The compared runs ended at different steps ({min(steps):,.0f} to {max(steps):,.0f}): their",
                     "losses are not at one budget of steps; the columns at equal budgets are.")
    note_surroundings(summary, compared)
    sizes = {round(r.tokens / r.step) for a in summary.arms for r in a.runs.values() if r.step and r.tokens}
    if len(sizes) > 1:
        summary.note(f"The runs differ in tokens a step ({', '.join(f'{s:,}' for s in sorted(sizes))}): the same seed",
                     "is then not the same batches, and differences are less well paired.")


def note_surroundings(summary, runs):
    """Notes where the compared runs are not of one machine, one state of the code, one precision, ...: from env.json and
    config.json of each, if there."""
    hosts = sorted({r.host for r in runs if r.host})
    if len(hosts) > 1:
        summary.note(f"The compared runs are from {len(hosts)} machines ({', '.join(hosts)}): seconds compare",
                     "these, too.")
    for file, told in (("env.json", {"threads": "threads", "processes": "processes", "device": "device", "torch": "version of torch",
                                     "git_commit": "commit of the code", "git_dirty": "whether the code was as committed"}),
                       ("config.json", {"resolved_dtype": "dtype", "resolved_compile": "whether they were compiled"})):
        paths = [os.path.join(run.folder, file) for run in runs]
        found = [content for content in map(read_json, filter(os.path.exists, paths)) if isinstance(content, dict)]
        for key, what in told.items():
            values = sorted({str(content.get(key))[:12 if key == "git_commit" else None] for content in found})
            if len(values) > 1:
                summary.note(f"The compared runs differ in {what}: {', '.join(values)}.")
        if any(content.get("git_dirty") for content in found):
            summary.note("Some of the compared runs were made with changes that were not committed.")


def best_of(summary, *roles):
    """(the arm of these roles with the lowest loss by which rates were chosen, the others of them that were tuned). (None, [])
    if none could be. An arm with the selection seed alone was not measured, and one without that seed was not chosen as the
    others were; they are taken only if there is no other of their kind."""
    tuned = [a for a in summary.of_role(*roles) if a.choice]
    if not tuned:
        return None, []
    measured = [a for a in tuned if a.choice.selection_seed is not None] or tuned
    held_out = all(a.choice.selection_seed is not None for a in measured)
    shared = set.intersection(*(set(a.choice.all_losses) for a in measured))

    def loss(arm):  # of the seed that chooses, else over the seeds that all of them have
        if held_out or not shared:
            return arm.choice.selection_loss
        return float(np.mean([arm.choice.all_losses[seed] for seed in shared]))
    best = min(measured, key=lambda a: (loss(a), a.name))
    return best, [a for a in tuned if a is not best]


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
            summary.note(f"No arm has the role {role!r}: no comparison with the {REFERENCES[role]}.")
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
    for key in BUDGETS:
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
    if target is not None:
        summary.target = target
    elif summary.target is None and baseline and baseline.choice:
        summary.target = max(baseline.choice.losses.values())
    for arm in summary.arms if summary.target is not None else ():
        first = [next((r for r in curve.evaluations if r["val_loss"] <= summary.target), None)
                 for curve in arm.curves.values()]
        for key in BUDGETS:
            arm.to_target[key] = [r[key] if r else None for r in first]


def look_at_curvature(summary, batches):
    """ablate_curvature.py on the runs that measure the mixed arms. batches: of an evaluation; 0: don't."""
    for arm in summary.of_role("mixed") if batches != 0 else ():
        failed = []
        for seed in arm.choice.losses if arm.choice else ():
            folder = arm.runs[arm.choice.lr, seed].folder
            print(f"changing the curvature of {arm.name}, seed {seed}", file=sys.stderr)
            try:
                checkpoint = "best" if summary.metric == "best" else "last"
                arm.ablations[seed] = ablate_curvature.ablate(folder, checkpoint, batches)
            except UserError as error:
                failed.append((seed, error))
        if failed:
            summary.note(f"{arm.name}: the curvature of seed {', '.join(str(s) for s, _ in failed)} could not be",
                         f"looked at: {failed[0][1]}.")


def p_text(p):
    return "-" if p is None else "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


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
        return "The interval contains 0: these seeds do not tell the two arms apart."
    better, worse = (mixed, control) if estimate.mean < 0 else (control, mixed)
    return f"The interval does not contain 0: {better} is better than {worse}."


def write_headline(summary):
    """Sets summary.headline: the best control against the best mixed arm, in words."""
    best, passed_over, selection, chosen = {}, [], summary.selection_seed, False
    of = summary.measure.digits, summary.measure.unit
    for kind, roles in (("mixed", ("mixed",)), ("control", CONTROLS)):
        best[kind], others = best_of(summary, *roles)
        if best[kind] is None:
            summary.headline = (f"Best mixed arm against best control: not possible, no "
                                f"{'mixed arm' if kind == 'mixed' else 'flat or other control'} could be tuned.")
            return
        chosen |= len(summary.of_role(*roles)) > 1 or len(best[kind].losses()) > 1
        for arm in others:
            if selection is None or arm.choice.selection_seed is not None:
                continue
            if selection not in arm.choice.losses:
                difference = paired_difference(arm.choice.losses, best[kind].choice.losses)
                compared = f": {arm.name} minus {best[kind].name} = {difference_text(difference, *of)}" if difference.seeds else ""
                passed_over.append(f"{arm.name} could not be chosen, for no run of seed {selection} ended there{compared}.")
            elif arm.choice.selection_loss < best[kind].choice.selection_loss:
                passed_over.append(f"{arm.name} was lower than {best[kind].name} with that seed, but has no other.")
        for arm in summary.of_role(*roles):  # where seeds that should only measure took part in choosing
            losses, least = arm.losses(), best[kind].choice
            blocked = {lr: seeds[selection] for lr, seeds in losses.items() if lr not in candidates(losses)
                       and seeds.get(selection, math.inf) < least.selection_loss}
            if blocked:
                lr = min(blocked, key=blocked.get)
                passed_over.append(f"{arm.name} at lr {lr:g} was lower than {best[kind].name} at lr {least.lr:g} with seed {selection} "
                                   f"and is left out, for another seed {summary.measure.failed} there.")
    mixed, control = best["mixed"], best["control"]
    title = (f"Best mixed arm ({mixed.name}, lr {mixed.choice.lr:g}) against best control ({control.name}, lr "
             f"{control.choice.lr:g})")
    difference = paired_difference(*measuring_pair(mixed.choice, control.choice))
    if not difference.seeds:
        summary.headline = f"{title}: they share no seed that measures; no comparison."
        return
    held_out = mixed.choice.selection_seed is not None and control.choice.selection_seed is not None
    how = (f"Arms and learning rates were chosen with seed {mixed.choice.selection_seed} alone, which does not measure."
           if held_out else "There was one arm of each and one rate: nothing was chosen." if not chosen else "Arms and learning rates were chosen on the seeds that measure them, which is optimistic, "
           "more so for the side with more of both.")
    what = "" if summary.metric != "target" else f", steps to a validation loss of {summary.target:g}"
    summary.headline = (f"{title}{what}: mixed minus control = {difference_text(difference, *of)}. "
                        f"{' '.join([verdict(difference, mixed.name, control.name), how, *passed_over])}")
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
# tables: lists of rows of text, the first one the heading

def count_text(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def share_text(share):
    return "-" if share is None else f"{share:.0%}"


def star(seeds, summary):
    """Marks what the seed that chose the rates is in: that is too low."""
    return "*" if summary.selection_seed in seeds else ""


def difference_cell(difference, summary):
    if difference is None or not difference.seeds:
        return "-"
    return (f"{interval_text(difference.estimate, summary.measure.digits)}, n = {difference.estimate.n}"
            f"{star(difference.seeds, summary)}")


def results_table(summary):
    roles = [role for role in REFERENCES if any(role in a.against for a in summary.arms)]
    rows = [["arm", "role", "best lr", "lr chosen with", "seeds", f"{summary.measure.name} [95%]"]
            + [text for role in roles for text in (f"minus {REFERENCES[role]} [95%]", "p (Holm)", "p sign flips")]]
    places = {"lowest": " (lowest tried)", "highest": " (highest tried)", "only": " (only one tried)", "": ""}
    for arm in summary.arms:
        if arm.choice is None:
            rows.append([arm.name, arm.role] + ["-"] * (len(rows[0]) - 2))
            continue
        seed = arm.choice.selection_seed
        row = [arm.name, arm.role, f"{arm.choice.lr:g}{places[arm.edge]}",
               "the same seeds" if seed is None else f"seed {seed}", str(arm.estimate.n),
               interval_text(arm.estimate, summary.measure.digits, sign=False) + star(arm.choice.losses, summary)]
        for role in roles:
            difference, p = arm.against.get(role, (None, None))
            row += [difference_cell(difference, summary), p_text(p),
                    p_text(difference.p_sign_flip if difference else None)]
        rows.append(row)
    return rows


def budgets_table(summary):
    digits = {"step": 0, "tokens": 0, "train_seconds": 1}
    rows = [["arm"] + [f"loss at {count_text(summary.budgets[key], digits[key])} {name}" if key in summary.budgets
                       else f"loss at equal {name}" for key, name in BUDGETS.items()]
            + ["parameters", "FLOPs a token"] + [f"{name} to target" for name in BUDGETS.values()] + ["reached"]]
    for arm in summary.arms:
        at = [arm.at_budget.get(key, {}) for key in BUDGETS]
        rows.append([arm.name] + [f"{mean_interval(by_seed.values()).mean:.4f}{star(by_seed, summary)}" if by_seed else "-" for by_seed in at]
                    + [count_text(arm.constant("parameters")), count_text(arm.constant("flops_per_token"))]
                    + [text + star(arm.curves, summary) if text != "-" else text for text in (
                        *(count_text(censored_median(arm.to_target.get(key, [])), digits[key]) for key in BUDGETS),
                        share_text(arm.reached_share()))])
    return rows


def runs_table(summary):
    rows = [["arm", "planned", "finished", "diverged", "crashed", "missing", "diverged share"]]
    for arm in summary.arms:
        rows.append([arm.name, str(len(arm.planned)), *(str(arm.count(s)) for s in ("finished", "diverged", "crashed")),
                     str(len(arm.missing())), share_text(arm.diverged_share())])
    return rows


def wins_table(summary, role):
    """None where no arm shares a run with the reference."""
    arms = [a for a in summary.arms if a.wins.get(role)]
    lrs = sorted({lr for a in arms for lr in a.wins[role]})
    if not arms:
        return None
    rows = [["arm"] + [f"lr {lr:g}" for lr in lrs] + ["all runs", "rates with a lower mean"]]
    for arm in arms:
        found, row = arm.wins[role], [arm.name]
        for lr in lrs:
            won, of, _, estimate = found.get(lr, (0, 0, False, Estimate(0)))
            mean = f" ({estimate.mean:+.{summary.measure.digits}f})" if estimate.n else ""
            row.append(f"{won}/{of}{mean}" if of else "-")
        won, of, lower, _ = zip(*found.values())
        rows.append(row + [f"{sum(won)}/{sum(of)}", f"{sum(lower)}/{len(lower)}"])
    return rows


def effects_of(arm):
    """{change: (effect of each seed's run on its loss)}."""
    out = {}
    for ablation in arm.ablations.values():
        for e in ablation.effects:
            out.setdefault(e.change, []).append(e.difference.mean)
    return out


def effects_table(arm):
    rows = [["after training", "change of the loss [95% over seeds]", "runs"]]
    for change, means in effects_of(arm).items():
        rows.append([change, interval_text(mean_interval(means)), str(len(means))])
    return rows


def slopes_table(arm):
    """A row for each place, with its heads side by side: means over the runs."""
    places = {}
    for ablation in arm.ablations.values():
        for s in ablation.slopes:
            places.setdefault(s.place, {}).setdefault(s.head, []).append((s.c_start, s.c, s.gradient.mean))
    rows = [["c of", "at the start", "after training", "d loss / d c"]]
    for place, heads in places.items():
        means = np.array([np.mean(values, axis=0) for values in heads.values()])  # (heads, 3)
        rows.append([place] + [" ".join(f"{v:{form}}" for v in column)
                               for column, form in zip(means.T, (".3f", ".3f", "+.4f"))])
    return rows


# ----------------------------------------------------------------------------------------------------------------------
# the document: a list of ("heading" | "text" | "list" | "table" | "figure", content), as Markdown and as HTML

def method(summary):
    target = "" if summary.target is None else (
        f"The target is a validation loss of {summary.target:.4f}; a run reaches it at the first evaluation at or "
        "below it, so these times come in steps of eval_interval. Medians over seeds, where a run that did not reach it counts as later than any; '-': half of the "
        "runs or more did not.")
    return [
        ("Losses are validation losses in nats a token" + {
            "final": ", at the end of each run", "best": ", the lowest of each run", "target": "; arms are compared by the "
            "steps to the target, which is where their runs stop"}[summary.metric])
        + ". Intervals are 95% t-intervals over seeds (n - 1 degrees of freedom); one seed has none, and equal values have none.",
        f"Best learning rate: where a seed is named, the lowest {summary.measure.name} of that seed alone, which is then "
        "left out of what is measured, but for numbers with *, where an arm has no other seed: these are too low, and "
        "differences optimistic for the arm that had more rates. 'the same seeds': the lowest mean over the seeds that all its rates have, or "
        f"the one seed that there is, which is optimistic. A rate at which a seed {summary.measure.failed} cannot be the "
        "best. 'lowest' or 'highest tried': the optimum may lie outside the grid.",
        "Differences are paired: the same seed has the same batches and the same shared initial weights. p: two-sided "
        "paired t-test, corrected by Holm's method over the arms with two pairs or more, for each reference on its own. Sign flips: exact "
        "paired permutation test, not corrected, from 5 seeds on (there its smallest value is 0.062).",
        "Several comparisons: only the tables' p (Holm) are corrected for their number. No interval is, here or in the plots, "
        "nor is the p of the headline, which is of one comparison: it differs from the table's of the same two arms for that "
        "reason. An interval without 0 can therefore stand beside a p (Holm) above 0.05.",
        "Equal budgets: the largest step and token count that all compared runs have, and the training seconds of the "
        "shortest of them"
        + (f" ({summary.shortest})" if summary.shortest else "") + ". Between two evaluations losses are linear "
        "(in seconds, not their logarithm, which is slightly too high on a falling curve). The learning-rate schedule "
        "of a slower arm has not ended at that time, so this column is hard on slow arms (a budget of seconds too, unless "
        "each arm has a max_iters of its own that it reaches). Means over the seeds of each arm, which can be others. "
        "Seconds are comparable only where nothing else ran on the machine. FLOPs a token: 6 N + 12 L C T, the matrix "
        "products; the geometry's own are not in it.",
        *([target] if target else []),
        "Wins: runs at the same learning rate and seed, all seeds; a diverged run loses against a finished one, and a mean "
        "with one in it against any other. In brackets the mean difference of the pairs where both finished.",
    ]


def document(summary, figures):
    parts = [("heading", f"Sweep {summary.name}")]
    planned, ended = (sum(n) for n in zip(*((len(a.planned), len(a.planned & a.runs.keys())) for a in summary.arms)))
    if ended < planned:
        parts.append(("text", f"The sweep is not complete: {planned - ended} of {planned} runs are missing."))
    parts += [("text", summary.headline), ("table", results_table(summary))]

    def figure(name):
        parts.extend(("figure", f) for f in figures if f.name == name)
    figure("differences")
    figure("loss")
    parts += [("heading", "Equal budgets, cost, and time to the target"), ("table", budgets_table(summary)),
              ("heading", "Learning rates")]
    figure("lr")
    for role, name in REFERENCES.items():
        table = wins_table(summary, role)
        if table:
            parts += [("text", f"Wins against the {name}, with the mean difference:"), ("table", table)]
    parts += [("heading", "Runs"), ("table", runs_table(summary))]
    figure("stability")
    mixed = [a for a in summary.of_role("mixed") if a.ablations]
    if mixed:
        parts += [("heading", "Is the curvature doing anything?"), ("text",
                  "The trained models with c changed afterwards, each on its own evaluation batches, at the best "
                  "learning rate. A change that hurts says that a model relies on its c, not that one trained "
                  "without it would be worse; that is the comparison with the controls above, and curvature_lr_mult = 0 "
                  "trains with c frozen at its start. c = 0 takes away the ball, too, and what keeps rows inside of it. Gradients by block, head by head; intervals over batches are "
                  "in summary.json.")]
    for arm in mixed:
        parts += [("text", f"{arm.name}:"), ("table", effects_table(arm)), ("table", slopes_table(arm))]
        left_out = sorted({s for a in arm.ablations.values() for s in a.left_out})
        parts += [("list", left_out)] if left_out else []
    figure("curvature")
    parts += [("heading", "Notes"), ("list", summary.notes)] if summary.notes else []
    return parts + [("heading", "How to read this"), ("list", method(summary))]


def as_markdown(parts, with_figures=True):
    out = []
    for place, (kind, content) in enumerate(parts):
        if kind == "heading":
            out.append(("## " if place else "# ") + content)
        elif kind == "text":
            out.append(content)
        elif kind == "list":
            out.append("\n".join(f"- {text}" for text in content))
        elif kind == "figure" and with_figures:
            out.append(f"![{content.title}]({content.name}.png)\n\n{content.caption}")
        elif kind == "table":
            widths = [max(map(len, column)) for column in zip(*content)]
            lines = [[row[0].ljust(widths[0])] + [v.rjust(w) for v, w in zip(row[1:], widths[1:])] for row in content]
            lines.insert(1, ["-" * widths[0]] + ["-" * (w - 1) + ":" for w in widths[1:]])
            out.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(out) + "\n"


STYLE = """body { font: 15px/1.5 sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #444 } th:first-child, td:first-child { text-align: left }
figure { margin: 1.5em 0 } figure img { max-width: 100% } figcaption { color: #555 }"""


def as_html(parts, title):
    """One file: the plots are in it as SVG."""
    out = [f"<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{html.escape(title)}</title>\n"
           f"<style>\n{STYLE}\n</style></head><body>"]
    for place, (kind, content) in enumerate(parts):
        if kind == "heading":
            level = 2 if place else 1
            out.append(f"<h{level}>{html.escape(content)}</h{level}>")
        elif kind == "text":
            out.append(f"<p>{html.escape(content)}</p>")
        elif kind == "list":
            out.append("<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in content) + "</ul>")
        elif kind == "figure":
            image = b64encode(content.files["svg"]).decode()
            out.append(f"<figure><img alt=\"{html.escape(content.title)}\" src=\"data:image/svg+xml;base64,{image}\">"
                       f"<figcaption>{html.escape(content.caption)}</figcaption></figure>")
        elif kind == "table":
            lines = ["".join(f"<{cell}>{html.escape(v)}</{cell}>" for v in row)
                     for cell, row in zip(["th"] + ["td"] * len(content), content)]
            out.append("<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>")
    return "\n".join(out) + "\n</body></html>\n"


# ----------------------------------------------------------------------------------------------------------------------
# files for other programs

def as_dict(summary):
    """Everything but the curves, for summary.json."""
    arms = []
    for arm in summary.arms:
        arms.append({
            "name": arm.name, "role": arm.role, "choice": dataclasses.asdict(arm.choice) if arm.choice else None,
            "place_in_grid": arm.edge, "estimate": dataclasses.asdict(arm.estimate),
            "parameters": arm.constant("parameters"), "flops_per_token": arm.constant("flops_per_token"),
            "diverged_share": arm.diverged_share(), "missing": [{"lr": lr, "seed": seed} for lr, seed in arm.missing()],
            "runs": [{"lr": lr, "seed": seed, "status": r.status, "dir": r.folder, "loss": r.loss}
                     for (lr, seed), r in sorted(arm.runs.items())],
            "against": {role: {**dataclasses.asdict(d), "p_holm": p} for role, (d, p) in arm.against.items()},
            "wins": {role: [{"lr": lr, "won": won, "of": of, "lower_mean": lower, "difference": dataclasses.asdict(e)}
                            for lr, (won, of, lower, e) in found.items()] for role, found in arm.wins.items()},
            "at_budget": {key: {"by_seed": by_seed, **dataclasses.asdict(mean_interval(by_seed.values()))}
                          for key, by_seed in arm.at_budget.items()},
            "to_target": {**{key: censored_median(values) for key, values in arm.to_target.items()},
                          "reached_share": arm.reached_share()},
            "curvature": {seed: dataclasses.asdict(a) for seed, a in arm.ablations.items()},
        })
    plain = {f.name: getattr(summary, f.name) for f in dataclasses.fields(summary) if f.name != "arms"}
    best = summary.reference("best_control")
    return {**plain, "best_control": best.name if best else None, "arms": arms}


def finite(value):
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(summary):
    """A line an arm, plain numbers, empty where there is none."""
    rows = []
    for arm in summary.arms:
        value = summary.measure.column
        row = {"arm": arm.name, "role": arm.role, "best_lr": arm.choice.lr if arm.choice else None,
               "lr_place_in_grid": arm.edge, "selection_seed": arm.choice.selection_seed if arm.choice else None,
               "seeds": arm.estimate.n,
               f"{value}_on_selection_seed": bool(star(arm.choice.losses, summary)) if arm.choice else None, value: arm.estimate.mean, f"{value}_low": arm.estimate.low,
               f"{value}_high": arm.estimate.high}
        for role in REFERENCES:
            d, p = arm.against.get(role, (None, None))
            e = d.estimate if d else Estimate(0)
            row.update({f"minus_{role}": e.mean, f"minus_{role}_low": e.low, f"minus_{role}_high": e.high,
                        f"minus_{role}_seeds": e.n, f"minus_{role}_p": d.p if d else None, f"minus_{role}_p_holm": p,
                        f"minus_{role}_p_sign_flip": d.p_sign_flip if d else None,
                        f"minus_{role}_on_selection_seed": bool(star(d.seeds, summary)) if d else None})
            found = arm.wins.get(role, {})
            row.update({f"wins_{role}": sum(won for won, *_ in found.values()),
                        f"pairs_{role}": sum(of for _, of, *_ in found.values())})
        for key in BUDGETS:
            row[f"loss_at_equal_{key}"] = mean_interval(arm.at_budget.get(key, {}).values()).mean
        row.update(parameters=arm.constant("parameters"), flops_per_token=arm.constant("flops_per_token"))
        for key in BUDGETS:
            row[f"{key}_to_target"] = censored_median(arm.to_target.get(key, []))
        row.update(target_reached_share=arm.reached_share(), planned=len(arm.planned), finished=arm.count("finished"),
                   diverged=arm.count("diverged"), crashed=arm.count("crashed"), missing=len(arm.missing()),
                   diverged_share=arm.diverged_share())
        rows.append(row)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


# ----------------------------------------------------------------------------------------------------------------------

def summarize(folder, metric=None, selection_seed="auto", target=None, batches=8):
    """The Summary of a sweep's folder. selection_seed: an int, 'auto' or None; the rest as the options of the command
    line. Raises UserError."""
    summary = read_sweep(folder, metric)
    if selection_seed == "auto":
        ran = [seed for arm in summary.arms for _, seed in arm.runs]
        planned = [seed for arm in summary.arms for _, seed in arm.planned]
        selection_seed = min(summary.seeds, key=lambda seed: (-ran.count(seed), -planned.count(seed), seed))
        if all(len(arm.grid()) < 2 for arm in summary.arms):
            selection_seed = None  # there is no rate to choose
    elif selection_seed is not None and selection_seed not in summary.seeds:
        raise UserError(f"--selection_seed={selection_seed}: the seeds of this sweep are "
                        f"{', '.join(map(str, summary.seeds))}")
    summary.selection_seed = selection_seed
    tune(summary)
    compare(summary)
    equal_budgets(summary)
    time_to_target(summary, target)
    look_at_curvature(summary, batches)
    write_headline(summary)
    return summary


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
    parser.add_argument("sweep", help="folder of the sweep (out/sweeps/NAME)")
    parser.add_argument("--out", help="where to write (default: <sweep>/summary)")
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
    parser.add_argument("--batches", type=ablate_curvature.whole_number(0), default=8,
                        help="evaluation batches for the effects of changing c (default: 8; 0: leave them out)")
    options = parser.parse_args(argv)
    summary = summarize(options.sweep, options.metric, options.selection_seed, options.target, options.batches)
    figures = sweep_plots.draw(summary)
    parts = document(summary, figures)

    out = options.out or os.path.join(options.sweep, "summary")
    os.makedirs(out, exist_ok=True)
    files = {f"{figure.name}.{kind}": data for figure in figures for kind, data in figure.files.items()}
    files.update({"summary.md": as_markdown(parts).encode(), "summary.csv": as_csv(summary).encode(),
                  "summary.json": (json.dumps(finite(as_dict(summary)), indent=1, allow_nan=False) + "\n").encode(),
                  "report.html": as_html(parts, f"Sweep {summary.name}").encode()})
    for name, data in files.items():
        write_file(os.path.join(out, name), data)
    print(as_markdown(parts, with_figures=False))
    print(f"written to {out}: {', '.join(files)}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
