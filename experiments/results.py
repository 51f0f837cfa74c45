"""
What sweep.py has left of a sweep: its arms, with the runs that have ended, and their curves. summarize_sweep.py computes with it.
"""
import json
import os
from dataclasses import dataclass, field

import numpy as np

from common.errors import UserError
from common.intervals import Estimate
from experiments import question, sweep_file
from experiments.curves import BUDGETS
from experiments.rows import Rows
from experiments.runs import make_runs
from experiments.statistics import Choice
from training.config import REPOSITORY


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
LARGEST = 1e100  # of any number of a table: what is beyond is damage, and no plot or mean can take it
CONTROLS = ("flat", "control")  # roles of arms without curvature, but for the baseline


@dataclass
class Run:
    """A row of runs.csv."""
    status: str  # finished | diverged | crashed
    folder: str
    loss: float | None  # by the chosen metric; +inf where it diverged or missed the target, None where there is none to compare
    step: float | None
    tokens: float | None
    parameters: float | None
    flops_per_token: float | None
    target_seconds: float | None
    hash: str


class NothingEnded(UserError):
    """There are no rows to summarise."""


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
    spared: bool = False  # of its planned runs, those that have not ended are not needed: the sweep's question is decided

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
        return [] if self.spared else sorted(self.planned - self.runs.keys())

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
    seconds_differ: str | None = None  # why training seconds say nothing of the arms, if so (surroundings.py)
    target: float | None = None
    headline: str = ""
    file: str = ""  # the sweep's
    advice: list = field(default_factory=list)  # sentences: which roles to set
    question: dict | None = None  # of sweep.json (question.py)
    answer: object = None  # answer.Answer, or None
    answered: str = ""  # in words

    @property
    def measure(self):
        return METRICS[self.metric]

    def comparable_budgets(self):
        return [key for key in BUDGETS if not (key == "train_seconds" and self.seconds_differ)]

    def note(self, *sentences):
        self.notes.append(" ".join(sentences))

    def of_role(self, *roles):
        return [a for a in self.arms if a.role in roles]

    def reference(self, role):
        """The arm that others are compared with, or None"""
        if role == "best_control":
            return best_of(self, *CONTROLS)[0]
        return next(iter(self.of_role(role)), None)


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


def read_json(path):
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: not the folder of a sweep") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: not JSON") from None


def full_name(arm, overrides, lr, plan):
    """The arm's name, with what the grid sets beside the learning rate: each such point is an arm of its own."""
    varied = [k for k in plan["grid"] if k in overrides and k not in arm["overrides"]]
    if {"muon_lr", "learning_rate"} <= {*varied} and overrides["muon_lr"] == plan["defaults"].get("muon_lr") and \
            float(overrides["learning_rate"]) == lr:
        varied.remove("muon_lr")  # another arm's grid has it
    lr_key = "muon_lr" if "muon_lr" in varied else "learning_rate"
    return " ".join([arm["name"], *(f"{k}={overrides[k]}" for k in varied if k != lr_key)])


def planned_runs(plan, folder, tried):
    """[(name, role, lr, seed)] of every run of the sweep, and a note or None. sweep.json has the union of the arms'
    grids and seeds; which arm has which is in the sweep file. tried: learning rates, for a plan that names none."""
    arms = {arm["name"]: arm for arm in plan["arms"]}
    path = os.path.realpath(os.path.join(REPOSITORY, plan["file"]))
    try:
        if path.startswith(os.path.realpath(folder) + os.sep):  # a folder from somebody else runs no code of theirs
            raise UserError(f"{path}: a sweep file in the sweep's own folder is not read")
        return [(full_name(arms[r.arm], r.overrides, r.lr, plan), arms[r.arm]["role"], r.lr, r.seed)
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
            if loss == "" and metric != "final":  # no evaluation at the target; no checkpoint that could be the best
                loss = "inf" if metric == "target" else None
            numbers = {k: float(row[k]) if row[k] else None
                       for k in ("step", "tokens", "parameters", "flops_per_token", "target_seconds")}
            run = Run(row["status"], os.path.normpath(os.path.join(folder, row["dir"])),
                      None if loss is None else float(loss), hash=row["hash"], **numbers)
            if run.status == "finished" and metric != "target" and loss is not None and not abs(run.loss) <= LARGEST:
                raise ValueError(f"finished with a loss of {loss}")
            for name, value in {**numbers, "lr": float(row["lr"])}.items():
                if value is not None and not 0 <= value <= LARGEST or name == "lr" and value == 0:
                    raise ValueError(f"{name} is {value:g}")
            found.append((full_name(arms[row["arm"]], json.loads(row["overrides"]), float(row["lr"]), plan), arms[row["arm"]]["role"],
                          float(row["lr"]), int(row["seed"]), run))
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
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
        if not isinstance(arm, dict) or not (isinstance(arm.get("name"), str) and arm.get("role") in sweep_file.ROLES
                                             and isinstance(arm.get("overrides"), dict)):
            raise UserError(f"{path}: an arm is not what sweep.py writes")
        if not is_number(targets_of(plan, arm), or_none=True):
            raise UserError(f"{path}: target_val_loss of {arm['name']} is not a number")
    for key, values in plan["grid"].items():
        if not isinstance(values, list) or key in ("learning_rate", "muon_lr") and not all(map(is_number, values)):
            raise UserError(f"{path}: grid of {key!r} is not what sweep.py writes")
    if not all(isinstance(seed, int) for seed in plan["seeds"]) or "\0" in plan["file"]:
        raise UserError(f"{path}: 'seeds' or 'file' is not what sweep.py writes")
    for text in (plan["name"], plan["file"], *(arm["name"] for arm in plan["arms"])):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}: a name in it is not Unicode text") from None
    return plan


def is_number(value, or_none=False):
    if value is None:
        return or_none
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def targets_of(plan, arm):
    return arm["overrides"].get("target_val_loss", plan["defaults"].get("target_val_loss"))


def target_of(plan):
    """target_val_loss, if all arms train to the same one; else None."""
    targets = {targets_of(plan, arm) for arm in plan["arms"]}
    return targets.pop() if len(targets) == 1 else None


def read_sweep(folder, metric, planned=True):
    """Summary with the arms and their runs, nothing computed yet. metric None: 'target' if the sweep has one, else
    'final'. planned False: without the runs that have not ended, which the sweep's file has: it is Python, and is not run then."""
    path = os.path.join(folder, "sweep.json")
    plan = read_plan(path)
    target = target_of(plan)
    if metric is None:
        metric = "final" if target is None else "target"
    elif metric == "target" and target is None:
        raise UserError(f"--metric=target: the arms of {path} have no target_val_loss in common")
    found, unknown = read_rows(folder, plan, metric)
    if not found:
        raise NothingEnded(f"no run of {folder} has ended yet: there is nothing to summarise")
    planned, note = planned_runs(plan, folder, sorted({lr for _, _, lr, _, _ in found})) if planned else ([], None)
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
    return Summary(folder, plan["name"], metric, list(arms.values()), seeds, None, notes, target=target, file=plan["file"],
                   question=question.read_told(plan, path))
