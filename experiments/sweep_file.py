"""A sweep file: what may be in it, and what is said of mistakes. Users read of it in sweep.py's docstring."""
import difflib
import json
import math
import re
import shlex

import configurator
from common.errors import UserError
from experiments import question
from experiments.runs import NOT_IN_HASH, OWN_KEYS, TrainConfig

ROLES = ("baseline", "flat", "control", "mixed", "other")
SLURM = {"partition": "slurm_partition", "account": "slurm_account", "qos": "slurm_qos",
         "constraint": "slurm_constraint", "time_min": "timeout_min", "gpus": "gpus_per_node", "cpus": "cpus_per_task",
         "mem_gb": "mem_gb"}  # the sweep file's names: submitit's


def check_names(given, known, where):
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, 0.5)
            raise UserError(f"{where}: unknown name {name!r}; "
                            + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"))


def check_type(value, kind, what, where):
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {dict: "a dict", list: "a list", str: "text", int: "a whole number", (int, float): "a number"}
        raise UserError(f"{where}: {what} = {value!r}: must be {names[kind]}")


def check_grid(grid, where):
    check_type(grid, dict, "grid", where)
    for key, values in grid.items():
        check_type(values, list, f"grid[{key!r}]", where)
        if not values:
            raise UserError(f"{where}: grid[{key!r}] is empty")
        if key in OWN_KEYS:
            raise UserError(f"{where}: {key} cannot be in a grid" + ("; use seeds" if key == "seed" else ""))
        if key in NOT_IN_HASH:
            raise UserError(f"{where}: {key} cannot be in a grid: it says how or where a run is done, not what it is")
    check_numbers(grid, where)


def check_numbers(values, where):
    """Those that a summary reads. train.py would take them as text, too."""
    for key in ("learning_rate", "muon_lr", "target_val_loss"):
        for value in values.get(key, ()):
            if value is not None or key != "target_val_loss":
                check_type(value, (int, float), key, where)


def check_seeds(seeds, where):
    check_type(seeds, list, "seeds", where)
    for seed in seeds:
        check_type(seed, int, "a seed", where)
    if not seeds:
        raise UserError(f"{where}: seeds is empty")


def check_start(start, name, arms, where):
    check_type(start, str, "start", where)
    if start == name or start not in arms:
        raise UserError(f"{where}: start = {start!r}: must be another arm, whose runs give the weights; there are {', '.join(arms)}")
    if isinstance(arms[start], dict) and arms[start].get("start"):
        raise UserError(f"{where}: start = {start!r} has a start itself; one arm after another is what can be done")


def shortened(value, most=80):
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def load(path):
    """The assignments of a sweep file, checked; arms as a list of {name, config, role, overrides, grid, seeds}."""
    kinds = {"arms": dict, "grid": dict, "seeds": list, "runs": list, "budget": dict, "defaults": dict, "slurm": dict,
             "after": list, "question": dict}
    given = configurator.run_file(path, "sweep file")
    check_names(given, kinds, path)
    for name, value in given.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise UserError(f"{path}: {name} = {shortened(value)}: values must be text, numbers, True, False, None, lists or dicts"
                            + (f"; write list({value!r})" if isinstance(value, range) else "")) from None
    sweep = {**{name: kind() for name, kind in kinds.items()}, "seeds": [TrainConfig.seed], **given}
    if isinstance(sweep["arms"], list):
        for arm in sweep["arms"]:
            check_type(arm, dict, "an arm", path)
            if "name" not in arm:
                raise UserError(f"{path}: an arm of a list needs a name: dict(name='...', config='...')")
        named = [(arm["name"], {k: v for k, v in arm.items() if k != "name"}) for arm in sweep["arms"]]
    else:
        check_type(sweep["arms"], dict, "arms", path)
        named = list(sweep["arms"].items())
    for name in ("grid", "seeds", "runs", "budget", "defaults", "slurm", "after", "question"):
        check_type(sweep[name], kinds[name], name, path)
    if not named:
        raise UserError(f"{path}: no arms; arms = {{'name': dict(config='config/x.py', key=value)}}")
    check_grid(sweep["grid"], path)
    check_seeds(sweep["seeds"], path)
    check_numbers({key: [value] for key, value in sweep["defaults"].items()}, f"{path}, defaults")

    sweep["arms"] = []
    for name, arm in named:
        where = f"{path}, arm {name!r}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.+=-]+", name):
            raise UserError(f"{where}: a name has letters, digits and _ . + = - only (it is part of a folder's name)")
        if name in [a["name"] for a in sweep["arms"]]:
            raise UserError(f"{where}: there are two arms of this name")
        check_type(arm, dict, "the arm", where)
        arm = dict(arm)
        config, role, start = arm.pop("config", None), arm.pop("role", "other"), arm.pop("start", None)
        if not isinstance(config, str):
            raise UserError(f"{where}: config is missing; config='config/x.py'")
        if role not in ROLES:
            raise UserError(f"{where}: role = {role!r}: must be one of {', '.join(ROLES)}")
        grid, seeds = arm.pop("grid", sweep["grid"]), arm.pop("seeds", sweep["seeds"])
        check_grid(grid, where)
        check_seeds(seeds, where)
        check_numbers({key: [value] for key, value in arm.items()}, where)
        if start is not None:
            check_start(start, name, dict(named), where)
        sweep["arms"].append({"name": name, "config": config, "role": role, "overrides": arm, "grid": grid,
                              "seeds": seeds, "start": start})

    for more in sweep["runs"]:
        check_type(more, dict, "an entry of runs", path)
        check_names(more, ("arms", "grid", "seeds"), f"{path}, runs")
        check_type(more.get("arms"), list, "arms", f"{path}, runs")
        check_names(more["arms"], [a["name"] for a in sweep["arms"]], f"{path}, runs, arms")
        check_grid(more.get("grid", {}), f"{path}, runs")
        check_seeds(more.get("seeds", [1]), f"{path}, runs")
    check_names(sweep["budget"], ("steps", "tokens", "seconds"), f"{path}, budget")
    if len(sweep["budget"]) > 1:
        raise UserError(f"{path}: budget has {' and '.join(sweep['budget'])}; one of them is the budget")
    for unit, amount in sweep["budget"].items():
        check_type(amount, int if unit == "steps" else (int, float), f"budget of {unit}", path)
        if not 0 < amount < math.inf:
            raise UserError(f"{path}: budget of {unit} = {amount}: must be above 0 and finite")
    check_names(sweep["slurm"], SLURM, f"{path}, slurm")
    for name, value in sweep["slurm"].items():
        check_type(value, {"time_min": int, "gpus": int, "cpus": int, "mem_gb": (int, float)}.get(name, str), name,
                   f"{path}, slurm")
    for command in sweep["after"]:
        check_type(command, str, "a command of after", path)
        try:
            shlex.split(command.format(runs="", out=""))[0]
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            raise UserError(f"{path}: after: {command!r} is not a command line; {{runs}} and {{out}} are filled in"
                            ) from None
    sweep["question"] = question.checked(sweep["question"], [arm["name"] for arm in sweep["arms"]], path)
    if sweep["question"]:
        check_question(sweep, path)
    return sweep


def check_question(sweep, path):
    """The two arms have seeds in common, one measure and, but for their rate, one configuration each."""
    asked, where = sweep["question"], f"{path}, question"
    both = [arm for arm in sweep["arms"] if arm["name"] in (asked.arm, asked.against)]
    seeds, grids = ({arm["name"]: kind(arm[key]) for arm in both} for key, kind in (("seeds", set), ("grid", dict)))
    for more in sweep["runs"]:
        for name in set(more["arms"]) & seeds.keys():
            seeds[name].update(more.get("seeds", sweep["seeds"]))
            grids[name].update(more.get("grid", {}))
    if not seeds[asked.arm] & seeds[asked.against]:
        raise UserError(f"{where}: {asked.arm} and {asked.against} have no seed in common, and are compared seed by seed; "
                        "give both the same seeds")
    varied = {key for part in (*sweep["arms"], *sweep["runs"]) for key in part.get("grid", {})}
    for arm in both:
        own = grids[arm["name"]].keys() | (varied & sweep["defaults"].keys()) - arm["overrides"].keys()
        more = sorted(own - {"muon_lr" if "muon_lr" in own else "learning_rate"})
        if more:
            raise UserError(f"{where}: {arm['name']} has {more[0]} in the grid, and each value of it is an arm of its own, which no "
                            f"question can name; set {more[0]} in the arms")
        target = {**sweep["defaults"], **arm["overrides"]}.get("target_val_loss")
        if target is not None:
            raise UserError(f"{where}: its margin is in nats, and {arm['name']} stops at target_val_loss = {target}: a sweep of "
                            "steps to a target has no question; leave one of the two out")
