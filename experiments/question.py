"""
The question of a sweep, stated in its file before its runs: what is compared with what, from which difference on it matters, when to stop.

    question = dict(hypothesis='curvature per head is worth more than its best control',
                    arm='c0.1-head', against='gate+norm', margin=0.004, stop='anytime')

    margin    nats: a smaller difference does not matter. The answer is 'lower', 'higher' (by more than that) or 'equivalent' (within it)
    stop      'fixed': all planned pairs of seeds are run and looked at once: t-interval, and TOST at alpha for equivalence (an interval
              at 1 - 2 alpha within the margin). 'anytime': a confidence sequence (sequential.py), looked at after every pair; runs of
              the two arms that are not needed for the answer are not started
    alpha     0.05
    spread    nats: of the difference of one pair of seeds, from an earlier sweep, if there is one. Then sweep.py says before the first
              run how many pairs the margin needs, and how many are planned (answer.planned_in_words)

sweep.json keeps it with its SHA-256, with that of the planned runs of its two arms, and with how many of them had ended when it was first
stated. With another arm, rate or budget, or with stop = 'fixed' other seeds, it is a new question, and the earlier one is kept beside it.
The answer: answer.py.
"""
import dataclasses
import hashlib
import json
import os
import time
from dataclasses import dataclass

from common.errors import UserError
from experiments.runs import config_hash, resolve


@dataclass(frozen=True)
class Question:
    hypothesis: str
    arm: str
    against: str
    margin: float
    stop: str = "fixed"
    alpha: float = 0.05
    spread: float = None

    def as_dict(self):
        """Without what is not said: a name that came later leaves the hash of the others."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def sha256(self):
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def checked(given, arms, path):
    """The Question of a sweep file's dict, or None for an empty one. Raises UserError."""
    if not given:
        return None
    where = f"{path}, question"
    kinds = {f.name: f.type for f in dataclasses.fields(Question)}
    for key, value in given.items():
        if key not in kinds:
            raise UserError(f"{where}: unknown name {key!r}; there are {', '.join(kinds)}")
        if kinds[key] is str and not isinstance(value, str) or kinds[key] is float and (
                not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e300):
            raise UserError(f"{where}: {key} = {value!r}: must be {'text' if kinds[key] is str else 'a number'}")
    lacking = [f.name for f in dataclasses.fields(Question) if f.default is dataclasses.MISSING and f.name not in given]
    if lacking:
        raise UserError(f"{where}: {lacking[0]} is missing")
    question = Question(**{k: float(v) if kinds[k] is float else v for k, v in given.items()})
    for name in (question.arm, question.against):
        if name not in arms:
            raise UserError(f"{where}: there is no arm {name!r}; there are {', '.join(arms)}")
    if question.arm == question.against:
        raise UserError(f"{where}: arm and against are both {question.arm!r}")
    if question.stop not in ("fixed", "anytime"):
        raise UserError(f"{where}: stop = {question.stop!r}: must be 'fixed' or 'anytime'")
    if question.margin < 0 or not 0 < question.alpha < 0.5:
        raise UserError(f"{where}: margin must be at least 0, alpha between 0 and 0.5")
    if question.spread is not None and question.spread <= 0:
        raise UserError(f"{where}: spread = {question.spread:g}: must be above 0, or left out")
    return question


def runs_sha256(question, runs):
    """SHA-256 of the planned Runs of the two arms. With stop = 'anytime' their seeds do not count: more of them are no other question."""
    def of(run):
        if question.stop == "fixed":
            return run.hash
        own = config_hash(resolve(run.config, {**run.overrides, "seed": 0}, f"arm {run.arm!r}"))
        return f"{own} from {of(run.start)}" if run.start else own
    plan = sorted({(run.arm, of(run)) for run in runs if run.arm in (question.arm, question.against)})
    return hashlib.sha256(json.dumps(plan, separators=(",", ":")).encode()).hexdigest()


def stated(question, runs, before, ended):
    """What sweep.json says of a Question. runs: of the sweep; before: what it said until now, or None; ended: runs of the two arms that
    have."""
    before = before if isinstance(before, dict) else None
    if question is None:
        return {**before, "taken_out": True} if before else None  # its history stays
    digest, plan, now = question.sha256(), runs_sha256(question, runs), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    if before and before.get("sha256") == digest and before.get("runs_sha256", plan) == plan:
        kept = {k: v for k, v in before.items() if k != "taken_out"}
        # one from before runs were part of it: they are known from now on
        return kept if "runs_sha256" in kept else {**kept, "runs_sha256": plan, "runs_known_since": now}
    first = before.get("earlier") if before else None  # a list, unless somebody changed the file
    earlier = [*(first if isinstance(first, list) else []), {k: v for k, v in before.items() if k != "earlier"}] if before else []
    return {**question.as_dict(), "sha256": digest, "runs_sha256": plan, "stated_at": now, "ended_before": ended, "earlier": earlier}


def from_told(told):
    """The Question that sweep.json tells of, or None."""
    if not isinstance(told, dict) or told.get("taken_out"):
        return None
    return Question(**{f.name: told[f.name] for f in dataclasses.fields(Question) if f.name in told})


def read_told(plan, path):
    """What a sweep.json that was read says of its question, None for none or one that was taken out. Raises UserError where it is not
    what stated() gives."""
    told = plan.get("question")
    if told is None or isinstance(told, dict) and told.get("taken_out"):
        return None
    names = [f.name for f in dataclasses.fields(Question)]
    try:
        if not (isinstance(told["sha256"], str) and isinstance(told["earlier"], list) and isinstance(told["ended_before"], int)
                and all(isinstance(told.get(key, ""), str) and told.get(key, "").isascii() for key in ("runs_sha256", "runs_known_since"))):
            raise UserError("")
        checked({key: told[key] for key in names if told.get(key) is not None}, [arm["name"] for arm in plan["arms"]], path)
    except (UserError, KeyError, TypeError):
        raise UserError(f"{path}: 'question' is not what sweep.py writes; start sweep.py again with the sweep's file") from None
    return told


def answers(for_what):
    """The module answer.py. Raises UserError where SciPy is not installed, which sweeps without such a question do without."""
    try:
        from experiments import answer
    except ImportError as error:
        raise UserError(f"question: {for_what} needs what requirements-eval.txt lists ({error})") from None
    return answer


def planned(question, runs):
    """A sentence on how many pairs of seeds the margin needs, or None where nothing is known of their spread."""
    if question is None or question.spread is None or not question.margin:
        return None
    return answers("spread").planned_in_words(question, runs)


def not_needed_in(folder, question, dry_run=False):
    """A function that says of a Run whether the answer to the question makes it needless, looked at anew when runs have ended. dry_run:
    a damaged sweep.json counts as none; the sweep writes it anew. Raises UserError where SciPy, which that needs, is not installed."""
    if question is None or question.stop != "anytime":
        return lambda run: False
    answer, seen = answers("stop = 'anytime'"), {}
    if dry_run and not answer.has_plan(folder):
        return lambda run: False

    def not_needed(run):
        if run.arm not in (question.arm, question.against):
            return False
        path = os.path.join(folder, "runs.csv")
        state = os.stat(path).st_mtime_ns if os.path.exists(path) else None
        if state not in seen:
            seen.clear()
            seen[state] = answer.of_folder(folder, question)
        return seen[state] is not None and (seen[state].decided or seen[state].impossible)
    return not_needed
