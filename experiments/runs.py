"""
The runs of a sweep: each arm at every point of its grid with every seed, resolved as train.py would resolve it.

A run is known by the hash of its resolved configuration: the keys that are left out of it are NOT_IN_HASH and SPEED.
"""
import hashlib
import itertools
import json
import os
import re
from dataclasses import dataclass, replace

import configurator
import models
from common import paths
from common.errors import UserError
from training.config import ADDED_SINCE, OWN_STARTS, REPOSITORY, TrainConfig

# keys that do not change what a run finds: where it is and how it is started, where the same data are (what they are is
# checked by inputs.py), which machine does it with how many threads (beyond rounding), how much is written down.
# eval_interval and eval_iters stay in the hash (the best loss, and a target, depend on them); so do compile, dtype and
# ops, which are there to change the seconds, and seconds are a result
NOT_IN_HASH = {"out_dir", "overwrite", "init_from", "data_dir", "device", "threads", "num_workers", "parallel",
               "log_interval", "log_stability", "save_interval", "tensorboard_log", "wandb_log", "wandb_project", "wandb_run_name"}
SPEED = {"device", "threads", "num_workers", "parallel"}  # of these; with max_seconds they decide how many steps are made
OWN_KEYS = ("out_dir", "overwrite", "init_from", "seed", "threads")  # set by the sweep for each run


@dataclass(frozen=True)
class Run:
    arm: str
    lr: float  # muon_lr where the grid has that key, else learning_rate
    seed: int
    config: str  # the config file
    overrides: dict  # what the sweep sets on top of it, without OWN_KEYS but for the seed
    hash: str  # SHA-256, hexadecimal
    max_iters: int  # steps
    max_seconds: float | None
    folder: str  # its out_dir
    start: "Run | None" = None  # whose weights it begins with


def short(path):
    """Relative to the repository, where the commands run, if it is inside."""
    relative = os.path.relpath(path, REPOSITORY)
    return path if relative.startswith("..") else relative


def config_path(config):
    """A sweep's config files are named from the repository, wherever it is started."""
    return os.path.join(REPOSITORY, paths.expand(config))


def flags(overrides):
    return [f"--{key}={value if isinstance(value, str) else repr(value)}" for key, value in overrides.items()]


def resolve(config, overrides, where, refuse_idle=True):
    """(TrainConfig, the model's config) as train.py would have them."""
    path = config_path(config)
    try:
        return configurator.resolve([path, *flags(overrides)], TrainConfig, models.CONFIGS, "model", refuse_idle=refuse_idle)
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('command line: ').replace(path, config)}") from None


def idle(config, overrides, where):
    """The keys that the others leave without effect."""
    return set(configurator.without_effect(*resolve(config, overrides, where, refuse_idle=False)))


def config_hash(configs):
    """SHA-256 of the canonical JSON of (TrainConfig, the model's config), without NOT_IN_HASH (with a limit of seconds SPEED
    is in it) and what the data fill in. A key that came later counts where it changes what a run of before did."""
    left_out = NOT_IN_HASH if configs[0].max_seconds is None else NOT_IN_HASH - SPEED
    later = {**models.added_since(configs[0].model), **ADDED_SINCE}
    full = {k: v for c in configs for k, v in configurator.as_dict(c).items()
            if k in configurator.keys_of(c) and k not in left_out and later.get(k, ...) != v}
    return hashlib.sha256(json.dumps(full, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def budget_keys(budget, config, overrides, where):
    """A budget as keys of train.py. Tokens are rounded down to whole steps."""
    if "seconds" in budget:
        return {"max_seconds": float(budget["seconds"])}
    if "steps" in budget:
        return {"max_iters": budget["steps"]}
    if "tokens" in budget:
        main, model = resolve(config, overrides, where)
        step = main.gradient_accumulation_steps * main.batch_size * model.block_size
        if budget["tokens"] < step:
            raise UserError(f"{where}: a budget of {budget['tokens']:,} tokens is less than one step, {step:,}")
        return {"max_iters": int(budget["tokens"] // step)}
    return {}


def make_run(sweep, where, folder, arm, point, seed, threads):
    """One Run of an arm. point: {key: value} of the grid."""
    for key in point:
        if key in arm["overrides"]:
            raise UserError(f"{where}: {key} is set by the arm and by the grid; give the arm a grid of its own")
    overrides = {**sweep["defaults"], **arm["overrides"], **point}
    off = idle(arm["config"], overrides, where) - {*point}
    if off & {*arm["overrides"]}:  # what the arm itself leaves without effect is refused; at a point of the grid it may be so
        off -= idle(arm["config"], {**sweep["defaults"], **arm["overrides"]}, where) & {*arm["overrides"]}
    for key in off:
        overrides.pop(key, None)  # a default for the other arms, or a key for other points
    for key in OWN_KEYS:
        if key in overrides:
            raise UserError(f"{where}: {key} is set by the sweep itself" + ("; use seeds" if key == "seed" else ""))
    budget = budget_keys(sweep["budget"], arm["config"], overrides, where)
    for key in budget:
        if key in overrides:
            raise UserError(f"{where}: {key} = {overrides[key]!r}, but the sweep's budget sets {key}")
    overrides.update(budget, seed=seed)
    main, model = resolve(arm["config"], {**overrides, "threads": threads}, where)
    if main.target_val_loss is not None and "target_val_loss" not in overrides:
        raise UserError(f"{where}: target_val_loss = {main.target_val_loss:g} is from {arm['config']}, where a summary does not see it; "
                        "set it in the sweep's defaults, or None there")
    if main.init_from not in OWN_STARTS or main.overwrite:
        key = "overwrite" if main.overwrite else "init_from"
        raise UserError(f"{where}: {key} = {getattr(main, key)!r} is from {arm['config']}, and set by the sweep itself"
                        + ("" if main.overwrite else "; use start = 'ARM', an arm that gives the weights"))
    digest = config_hash((main, model))
    lr_key = "muon_lr" if "muon_lr" in point else "learning_rate"
    lr = getattr(main, lr_key)
    rest = "".join(f"-{k}={v}" for k, v in point.items() if k != lr_key)
    name = re.sub(r"[^A-Za-z0-9_.+=-]", "_", f"{arm['name']}-lr{lr:g}-seed{seed}{rest}-{digest[:8]}")
    return Run(arm["name"], lr, seed, arm["config"], overrides, digest, main.max_iters, main.max_seconds,
               os.path.join(folder, "runs", name))


def started_from(runs, run, arm, where):
    """The run with the weights of the arm of that name, which has to have one with its seed."""
    given = list({other.hash: other for other in runs if other.arm == arm and other.seed == run.seed}.values())
    if len(given) != 1:
        raise UserError(f"{where}: start = {arm!r} has {len(given) or 'no'} runs of seed {run.seed}: one has to give the weights; "
                        "let that arm have one learning rate and the same seeds")
    digest = hashlib.sha256(f"{run.hash} from {given[0].hash}".encode()).hexdigest()
    return replace(run, hash=digest, folder=run.folder.removesuffix(run.hash[:8]) + digest[:8], start=given[0])


def make_runs(sweep, path, folder, threads=0):
    """Every run of a sweep, each once: the first seed of all, then the second, ...: a sweep that is stopped early has
    something to compare. threads: of each run, for its hash."""
    found = []  # (place of the seed, Run)
    for arm in sweep["arms"]:
        where = f"{path}, arm {arm['name']!r}"
        parts = [arm] + [{**arm, **more} for more in sweep["runs"] if arm["name"] in more["arms"]]
        for part in parts:
            for place, seed in enumerate(part["seeds"]):
                for values in itertools.product(*part["grid"].values()):
                    found.append((place, make_run(sweep, where, folder, arm, dict(zip(part["grid"], values)), seed, threads)))
    runs, starts = {}, {arm["name"]: arm["start"] for arm in sweep["arms"] if arm["start"]}
    first = [run for _, run in found if run.arm not in starts]
    for _, run in sorted(found, key=lambda pair: pair[0]):
        if run.arm in starts:
            run = started_from(first, run, starts[run.arm], f"{path}, arm {run.arm!r}")
        other = runs.setdefault(run.hash, run)
        if other.arm != run.arm:
            raise UserError(f"{path}: the arms {other.arm!r} and {run.arm!r} are one configuration (lr {run.lr:g}, "
                            f"seed {run.seed}); take one of them out")
    return list(runs.values())


def description(sweep, path, runs):
    """sweep.json. Grid and seeds are those of all arms and of `runs` together."""
    grid = {}
    for part in [sweep, *sweep["arms"], *sweep["runs"]]:
        for key, values in part.get("grid", {}).items():
            grid[key] = grid.get(key, []) + [v for v in values if v not in grid.get(key, [])]
    return {"name": sweep_name(path), "file": short(os.path.abspath(path)),
            "arms": [{k: arm[k] for k in ("name", "config", "overrides", "role", *(["start"] if arm["start"] else []))}
                     for arm in sweep["arms"]],
            "grid": grid, "seeds": list(dict.fromkeys(run.seed for run in runs)), "budget": sweep["budget"],
            "defaults": sweep["defaults"]}


def sweep_name(path):
    return os.path.splitext(os.path.basename(path))[0]
