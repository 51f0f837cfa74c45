"""
Where and how runs were made, as far as that makes them unlike: machine, threads, versions, precision, the state of the code, stacks. From
env.json, config.json and summary.json of each run or, where the runs are not (a table that was copied), from the sweep's
surroundings.jsonl, which experiments/publish.py writes: a line a run, with `run`, its hash in runs.csv.

Machines are numbered there: neither what they are called nor what they have is kept.
"""
import json
import os

from common.errors import UserError
from experiments.results import read_json

FILE = "surroundings.jsonl"
MACHINE = ("host", "cpu")  # of env.json: what tells machines apart (rented ones are often called alike)
TOLD = {"env.json": {"threads": "threads", "processes": "processes", "device": "device", "torch": "version of torch",
                     "git_commit": "commit of the code", "git_dirty": "whether the code was as committed"},
        "config.json": {"resolved_dtype": "dtype", "resolved_matmul": "what multiplied matrices",
                        "resolved_compile": "whether they were compiled"},
        "summary.json": {"stacked": "how many runs were trained together"}}
OLDER = {"resolved_matmul": "torch", "stacked": 1}  # of runs that have not written it
PLAIN = (str, int, float, type(None))  # of what is told
SLOWER = 1.3  # runs of one arm whose seconds a step differ by more had other work beside them, or other machines


def of_run(folder):
    """{key: what the run's files say}, `machine` what MACHINE says; {} where they are not there."""
    found = {}
    for file, keys in TOLD.items():
        path = os.path.join(folder, file)
        content = read_json(path) if os.path.exists(path) else None
        if not isinstance(content, dict):
            continue
        told = {key: content.get(key, OLDER.get(key)) for key in keys}
        for key, value in told.items():
            if not isinstance(value, PLAIN):
                raise UserError(f"{path} is damaged: {key} = {value!r}")
        found.update(told)
        if file == "env.json":  # a file of an earlier version has no cpu
            found["machine"] = tuple(None if content.get(key) is None else str(content[key]) for key in MACHINE)
    return found


def read_kept(sweep):
    """hash -> the same as kept, `machine` a number; {} where there is none."""
    path, kept = os.path.join(sweep, FILE), {}
    if not os.path.exists(path):
        return kept
    try:
        with open(path, encoding="utf-8") as f:
            for line in map(json.loads, f):
                kept[line.pop("run")] = line
        if not all(isinstance(run, str) and type(told.get("machine", 0)) is int and all(isinstance(value, PLAIN) for value in told.values())
                   for run, told in kept.items()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged: not the lines that experiments.publish writes") from None
    return kept


def numbered(found, *kept):
    """{run: what is told of it}, each machine a number. found: run -> of_run(); kept: of read_kept(), each with numbers of its own. Two
    numbers, or a number and what MACHINE says, are one machine where they are told of one run. Numbers of the first `kept` stay."""
    found = complete(found)
    number, out = {}, {}  # (where it is told, machine there) -> number
    for place, told_there in enumerate([*kept, found]):
        told_there = {run: told for run, told in told_there.items() if told}
        for run, told in told_there.items():  # what is known already links them
            if "machine" in told and "machine" in out.get(run, {}):
                number.setdefault((place, told["machine"]), out[run]["machine"])
        for run, told in told_there.items():
            if "machine" in told:
                key = place, told["machine"]
                if key not in number:
                    number[key] = told["machine"] if place == 0 and kept else max([0, *number.values()]) + 1
                told = {**told, "machine": number[key]}
            out[run] = told
    return out


def complete(found):
    """Of runs of an earlier version the cpu that the host has in the others, if that is one."""
    cpus = {}
    for told in found.values():
        if "machine" in told and told["machine"][1] is not None:
            cpus.setdefault(told["machine"][0], set()).add(told["machine"][1])
    return {run: {**told, "machine": (told["machine"][0], *cpus[told["machine"][0]])}
            if "machine" in told and told["machine"][1] is None and len(cpus.get(told["machine"][0], ())) == 1 else told
            for run, told in found.items()}


def to_keep(sweep, to, rows):
    """The lines of surroundings.jsonl, in the table's order. A machine keeps the number that an earlier call gave it."""
    found = {run: of_run(os.path.join(sweep, row["dir"])) for run, row in rows.items()}
    told = numbered(found, read_kept(to), read_kept(sweep))
    return [{"run": run, **told[run]} for run in rows if run in told]


def note(summary, runs):
    """Notes where the compared runs are unlike. Sets summary.seconds_differ."""
    told = numbered({run.hash: of_run(run.folder) for run in runs}, read_kept(summary.folder))
    found = [told[run.hash] for run in runs if run.hash in told]
    if unknown := len(runs) - len(found):
        which = f"all {unknown}" if unknown == len(runs) else f"{unknown} of the {len(runs)}"
        summary.note(f"On what machine, with how many threads and with what code {which} compared runs were made is not known here.")
    machines = {told["machine"] for told in found if "machine" in told}
    if len(machines) > 1:
        summary.note(f"The compared runs are from {len(machines)} machines.")
    for key, what in (item for keys in TOLD.values() for item in keys.items()):
        values = sorted({str(told[key])[:12 if key == "git_commit" else None] for told in found if key in told})
        if len(values) > 1:
            summary.note(f"The compared runs differ in {what}: {', '.join(values)}.")
    if any(told.get("git_dirty") for told in found):
        summary.note("Some of the compared runs were made with changes that were not committed.")
    summary.seconds_differ = why_seconds_differ(summary, machines, {told.get("stacked", 1) for told in found})
    if summary.seconds_differ:
        summary.note(f"Training seconds are not compared: {summary.seconds_differ}.")


def why_seconds_differ(summary, machines, stacked):
    """By what seconds of these runs say nothing of their arms, or None."""
    if len(machines) > 1:
        return f"the runs are from {len(machines)} machines"
    if len(stacked) > 1:
        return "the runs were not stacked alike"
    for arm in summary.arms:
        a_step = [last["train_seconds"] / last["step"] for curve in arm.curves.values() if (last := curve.evaluations[-1])["step"] > 0]
        if a_step and max(a_step) > SLOWER * min(a_step):
            return f"a step of {arm.name} took {min(a_step):.3g} to {max(a_step):.3g} s, so other work or other machines were at work"
    return None
