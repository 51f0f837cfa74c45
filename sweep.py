"""
Run a sweep: every arm at every point of a grid with every seed, what is missing of it, in parallel.

    ./run_sweeps.sh sweeps/shakespeare_lr.py --jobs 2                     run what is missing, then its tables
    python sweep.py sweeps/shakespeare_lr.py --jobs 2 --threads 8         the runs alone; 4 threads each
    python sweep.py sweeps/shakespeare_lr.py --dry-run                    print the commands, create nothing
    python sweep.py sweeps/fineweb_lr.py --jobs 8 --launcher slurm        the same on a Slurm cluster (submitit)

A sweep file is Python with flat assignments, like a config file:

    arms = {name: dict(config='config/x.py', role='baseline', key=value, ...), ...}
                        a config file and what the arm changes in it; role: baseline | flat | control | mixed | other
                        (default). `grid` and `seeds` in an arm stand for that arm in place of the sweep's
    grid = {key: [values]}                   every combination of the values
    seeds = [1337, 1338]
    runs = [dict(arms=[names], grid={...}, seeds=[...])]     more runs of some arms: a learning rate is chosen with one
                                                             seed, then seeds are spent on the arms that compete
    budget = dict(steps=1500)                or tokens=, or seconds= of training (max_iters of the config then shapes
                                             the schedule and bounds the run); none: max_iters of the config
    defaults = dict(key=value, ...)          for all arms
    slurm = dict(partition=, account=, qos=, constraint=, time_min=, gpus=, cpus=, mem_gb=)     of one run
    after = ['python analyze.py {runs} --out={out}/analysis']    commands for when every run has ended; {runs} are the
                                                                 folders of the finished ones

Everything is in out/sweeps/<name of the file> (--out is another place):

    sweep.json    the sweep as resolved
    runs.csv      one row for each ended run
    runs/<arm>-lr<lr>-seed<seed>[-key=value]-<hash>/    train.py's out_dir; log.txt, all that its attempts said; lock

A run is known by the SHA-256 of its resolved configuration without the keys of NOT_IN_HASH, so a changed arm or default
(or a key that is new in train.py) gives new runs and the others are skipped; rows that no longer belong to the sweep
wait in runs_before.csv. With a budget of seconds the keys of SPEED (device, threads of a run, ...) are part of it.
Ctrl-C (or SIGTERM) saves what is running; the same command goes on. It also does after a kill -9, from the last
checkpoints: on Linux the runs get SIGTERM when their sweep dies. A run's lock is held by its processes, so several
sweeps, or Slurm jobs, can share a folder (where the file system has locks); a run in use elsewhere is waited for. A
resumed run is the one that was never stopped, bit for bit on a CPU with as many threads.

A run that diverged has ended and is a result. One that crashed goes on from its checkpoint once; then it is recorded,
reported, and left alone until --retry-crashed. With Slurm, each run is a job of one array, at most --jobs at a time; a
preempted job, or one at its time limit, saves, is queued again and goes on; one that died under its run (its node, its
memory) is submitted once more. Ctrl-C cancels the jobs (they save too).

Exit status: 0 every run finished or diverged, or a signal stopped the sweep; 1 some crashed or were stopped, or a
command of `after` failed; 2 bad input, of which most is found before anything starts, or runs.csv cannot be written
(a full disk): what is running is saved first, and the same command goes on.
"""
from common import startup  # first: Ctrl-C while the others are imported is one line

import collections
import contextlib
import csv
import datetime
import difflib
import fcntl
import functools
import hashlib
import io
import itertools
import json
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass

import torch

from training import checkpoint
import configurator
from common import locks
import models
from common import paths
import train
from configurator import Parser
from training.dataloader import load_meta
from common.errors import UserError, exit_cleanly
from common.interrupts import Stop
from training.run_directory import LOCK
from common.whole_files import naming, write_file, write_json

HERE = os.path.dirname(os.path.abspath(__file__))
TRAIN = (sys.executable, "train.py")  # the trainer's command; it runs in HERE
TRIES = 2  # a crashed run is started again once
POLL_SECONDS = 0.2
REPORT_SECONDS = 60  # between two lines of progress where there is no terminal to redraw

# keys that do not change what a run finds: where it is and how it is started, where the same data are (what they are is
# checked by check_corpus), which machine does it with how many threads (beyond rounding), how much is written down.
# eval_interval and eval_iters stay in the hash (the best loss, and a target, depend on them); so do compile, dtype and
# ops, which are there to change the seconds, and seconds are a result
NOT_IN_HASH = {"out_dir", "overwrite", "init_from", "data_dir", "device", "threads", "num_workers", "parallel",
               "log_interval", "save_interval", "tensorboard_log", "wandb_log", "wandb_project", "wandb_run_name"}
SPEED = {"device", "threads", "num_workers", "parallel"}  # of these; with max_seconds they decide how many steps are made
OWN_KEYS = ("out_dir", "overwrite", "init_from", "seed", "threads")  # set by the sweep for each run

ROLES = ("baseline", "flat", "control", "mixed", "other")
COLUMNS = ("hash", "arm", "lr", "seed", "status", "dir", "step", "tokens", "train_seconds", "val_loss", "best_val_loss",
           "best_step", "parameters", "flops_per_token", "target_step", "target_tokens", "target_seconds", "attempts",
           "host", "finished_at", "overrides")
SLURM = {"partition": "slurm_partition", "account": "slurm_account", "qos": "slurm_qos",
         "constraint": "slurm_constraint", "time_min": "timeout_min", "gpus": "gpus_per_node", "cpus": "cpus_per_task",
         "mem_gb": "mem_gb"}  # the sweep file's names: submitit's


# ----------------------------------------------------------------------------------------------------------------------
# the sweep file

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


def check_seeds(seeds, where):
    check_type(seeds, list, "seeds", where)
    for seed in seeds:
        check_type(seed, int, "a seed", where)
    if not seeds:
        raise UserError(f"{where}: seeds is empty")


def load(path):
    """The assignments of a sweep file, checked; arms as a list of {name, config, role, overrides, grid, seeds}."""
    kinds = {"arms": dict, "grid": dict, "seeds": list, "runs": list, "budget": dict, "defaults": dict, "slurm": dict,
             "after": list}
    given = configurator.run_file(path, "sweep file")
    check_names(given, kinds, path)
    try:
        json.dumps(given)
    except (TypeError, ValueError):
        raise UserError(f"{path}: values must be text, numbers, True, False, None, lists or dicts") from None
    sweep = {**{name: kind() for name, kind in kinds.items()}, "seeds": [train.TrainConfig.seed], **given}
    if isinstance(sweep["arms"], list):
        for arm in sweep["arms"]:
            check_type(arm, dict, "an arm", path)
            if "name" not in arm:
                raise UserError(f"{path}: an arm of a list needs a name: dict(name='...', config='...')")
        named = [(arm["name"], {k: v for k, v in arm.items() if k != "name"}) for arm in sweep["arms"]]
    else:
        check_type(sweep["arms"], dict, "arms", path)
        named = list(sweep["arms"].items())
    for name in ("grid", "seeds", "runs", "budget", "defaults", "slurm", "after"):
        check_type(sweep[name], kinds[name], name, path)
    if not named:
        raise UserError(f"{path}: no arms; arms = {{'name': dict(config='config/x.py', key=value)}}")
    check_grid(sweep["grid"], path)
    check_seeds(sweep["seeds"], path)

    sweep["arms"] = []
    for name, arm in named:
        where = f"{path}, arm {name!r}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.+=-]+", name):
            raise UserError(f"{where}: a name has letters, digits and _ . + = - only (it is part of a folder's name)")
        if name in [a["name"] for a in sweep["arms"]]:
            raise UserError(f"{where}: there are two arms of this name")
        check_type(arm, dict, "the arm", where)
        arm = dict(arm)
        config, role = arm.pop("config", None), arm.pop("role", "other")
        if not isinstance(config, str):
            raise UserError(f"{where}: config is missing; config='config/x.py'")
        if role not in ROLES:
            raise UserError(f"{where}: role = {role!r}: must be one of {', '.join(ROLES)}")
        grid, seeds = arm.pop("grid", sweep["grid"]), arm.pop("seeds", sweep["seeds"])
        check_grid(grid, where)
        check_seeds(seeds, where)
        sweep["arms"].append({"name": name, "config": config, "role": role, "overrides": arm, "grid": grid,
                              "seeds": seeds})

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
    return sweep


# ----------------------------------------------------------------------------------------------------------------------
# its runs

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


def short(path):
    """Relative to the repository, where the commands run, if it is inside."""
    relative = os.path.relpath(path, HERE)
    return path if relative.startswith("..") else relative


def config_path(config):
    """A sweep's config files are named from the repository, wherever it is started."""
    return os.path.join(HERE, paths.expand(config))


def flags(overrides):
    return [f"--{key}={value if isinstance(value, str) else repr(value)}" for key, value in overrides.items()]


def resolve(config, overrides, where, refuse_idle=True):
    """(TrainConfig, the model's config) as train.py would have them."""
    path = config_path(config)
    try:
        return configurator.resolve([path, *flags(overrides)], train.TrainConfig, models.CONFIGS, "model", refuse_idle=refuse_idle)
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('command line: ').replace(path, config)}") from None


def idle(config, overrides, where):
    """The keys that the others leave without effect."""
    return set(configurator.without_effect(*resolve(config, overrides, where, refuse_idle=False)))


def config_hash(configs):
    """SHA-256 of the canonical JSON of (TrainConfig, the model's config), without NOT_IN_HASH (with a limit of seconds SPEED
    is in it) and what the data fill in."""
    left_out = NOT_IN_HASH if configs[0].max_seconds is None else NOT_IN_HASH - SPEED
    full = {k: v for c in configs for k, v in configurator.as_dict(c).items()
            if k in configurator.keys_of(c) and k not in left_out}
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
    for key in idle(arm["config"], overrides, where) - {*arm["overrides"], *point}:
        overrides.pop(key, None)  # a default for the other arms
    for key in OWN_KEYS:
        if key in overrides:
            raise UserError(f"{where}: {key} is set by the sweep itself" + ("; use seeds" if key == "seed" else ""))
    budget = budget_keys(sweep["budget"], arm["config"], overrides, where)
    for key in budget:
        if key in overrides:
            raise UserError(f"{where}: {key} = {overrides[key]!r}, but the sweep's budget sets {key}")
    overrides.update(budget, seed=seed)
    main, model = resolve(arm["config"], {**overrides, "threads": threads}, where)
    digest = config_hash((main, model))
    lr_key = "muon_lr" if "muon_lr" in point else "learning_rate"
    lr = getattr(main, lr_key)
    rest = "".join(f"-{k}={v}" for k, v in point.items() if k != lr_key)
    name = re.sub(r"[^A-Za-z0-9_.+=-]", "_", f"{arm['name']}-lr{lr:g}-seed{seed}{rest}-{digest[:8]}")
    return Run(arm["name"], lr, seed, arm["config"], overrides, digest, main.max_iters, main.max_seconds,
               os.path.join(folder, "runs", name))


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
    runs = {}
    for _, run in sorted(found, key=lambda pair: pair[0]):
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
            "arms": [{k: arm[k] for k in ("name", "config", "overrides", "role")} for arm in sweep["arms"]],
            "grid": grid, "seeds": list(dict.fromkeys(run.seed for run in runs)), "budget": sweep["budget"],
            "defaults": sweep["defaults"]}


def sweep_name(path):
    return os.path.splitext(os.path.basename(path))[0]


# ----------------------------------------------------------------------------------------------------------------------
# runs.csv

class Rows:
    """The rows of ended runs, by hash. Every change is the whole file, written under a lock and renamed."""

    def __init__(self, folder):
        self.folder = folder

    def _read(self, name):
        path = os.path.join(self.folder, name)
        if not os.path.exists(path):
            return {}
        with open(path, newline="", encoding="utf-8") as f:
            table = csv.DictReader(f)
            try:
                rows = list(table)
                whole = tuple(table.fieldnames or ()) == COLUMNS and not any(
                    None in row or None in row.values() for row in rows)  # too many or too few fields
            except (csv.Error, UnicodeDecodeError):
                whole = False
        if not whole:
            raise UserError(f"{path} is not a table of sweep.py; mend it, or move it away and have its runs done again")
        return {row["hash"]: row for row in rows}

    def _write(self, name, rows):
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, COLUMNS)
        table.writeheader()
        table.writerows(rows.values())
        write_file(os.path.join(self.folder, name), text.getvalue().encode("utf-8"))

    @contextlib.contextmanager
    def _locked(self):
        with open(os.path.join(self.folder, "runs.csv.lock"), "a") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    def read(self):
        return self._read("runs.csv")

    def known(self):
        """These and the rows that waited for the sweep to have their runs again."""
        return {**self._read("runs_before.csv"), **self.read()}

    def put(self, row):
        with self._locked():
            self._write("runs.csv", {**self.read(), row["hash"]: row})

    def sort_out(self, runs, retry_crashed):
        """runs.csv gets the rows of these runs alone, under the arms' names of today; others go to runs_before.csv and
        come back when the sweep has them again. Crashed ones that are to be tried again go altogether."""
        arms = {run.hash: run.arm for run in runs}
        with self._locked():
            rows = self.known()
            if retry_crashed:
                rows = {h: r for h, r in rows.items() if r["status"] != "crashed" or h not in arms}
            # a row that changes sides is in both for a moment, never in neither
            known = self._read("runs_before.csv")
            self._write("runs_before.csv", {**known, **{h: r for h, r in rows.items() if h not in arms}})
            self._write("runs.csv", {h: {**r, "arm": arms[h]} for h, r in rows.items() if h in arms})
            self._write("runs_before.csv", {h: r for h, r in rows.items() if h not in arms})


# ----------------------------------------------------------------------------------------------------------------------
# one run

def command_of(run, threads):
    """The arguments of train.py, run in HERE. 'auto': go on from a checkpoint if there is one, else start over."""
    return [short(config_path(run.config)), *flags(run.overrides), f"--threads={threads}",
            f"--out_dir={short(run.folder)}", "--init_from=auto"]


def progress(run):
    """{step, loss, ...} from the end of a run's metrics.jsonl; {} if there is none."""
    found = {}
    with contextlib.suppress(FileNotFoundError), open(os.path.join(run.folder, "metrics.jsonl"), "rb") as f:
        f.seek(max(0, os.path.getsize(f.name) - 2 ** 16))
        for line in f.read().splitlines():
            with contextlib.suppress(ValueError):  # a line cut by the seek, or not written to its end yet
                found.update(json.loads(line))
    return found


def log_of(run):
    return os.path.join(run.folder, "log.txt")


def log_lines(run):
    with contextlib.suppress(FileNotFoundError), open(log_of(run), errors="replace") as f:
        return [line.strip() for line in f if line.strip()]
    return []


def note(run, line):
    """A line of the sweep's own in the run's log."""
    with naming(log_of(run)), open(log_of(run), "a", encoding="utf-8") as f:
        print(line, file=f)


def crash_reason(run):
    """How a crashed run ended and the last line of what it said."""
    lines = log_lines(run)
    end = next((line for line in reversed(lines) if line.startswith("# ")), "# no log")
    said = next((line for line in reversed(lines) if not line.startswith("# ")), "it said nothing")
    return f"{end[2:]}: {said}"


def row_of(run, status, result):
    """The row of an ended run. result: its summary.json, or what progress() has."""
    row = {key: result.get(key) for key in COLUMNS}
    return {**row, "hash": run.hash, "arm": run.arm, "lr": run.lr, "seed": run.seed, "status": status,
            "dir": os.path.join("runs", os.path.basename(run.folder)), "host": platform.node(),
            "attempts": sum(line.startswith("# attempt ") for line in log_lines(run)),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "overrides": json.dumps(run.overrides)}


# A command before train.py's own, on Linux: when the sweep dies, even by kill -9, the kernel sends SIGTERM to the run.
# (Not preexec_fn of subprocess, which may lock up in a process that has threads.) 1 is PR_SET_PDEATHSIG.
DIE_WITH_PARENT = (sys.executable, "-c", "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
                   "os.execvp(sys.argv[1], sys.argv[1:])") if sys.platform == "linux" else ()


class Job:
    """A run in the care of this process: its lock, its attempts, its row.

    The lock is of the open file, which train.py inherits: it holds as long as either process lives.
    """

    def __init__(self, run, rows, command=TRAIN, threads=1, gpu=None):
        self.run, self.rows, self.command, self.threads, self.gpu = run, rows, command, threads, gpu
        self.process = self.lock = None
        self.tries, self.stopping = 0, False

    def start(self):
        """False: another process has this run in use."""
        os.makedirs(self.run.folder, exist_ok=True)
        self.lock = locks.try_lock(os.path.join(self.run.folder, LOCK))
        if self.lock is None:
            return False
        if self.run.hash not in self.rows.read():  # it may have ended elsewhere since we looked
            self._attempt()
        return True

    def _attempt(self):
        self.tries += 1
        arguments = command_of(self.run, self.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1",
                       locks.INHERITED: str(self.lock.fileno())}
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu
        note(self.run, f"# attempt of {time.strftime('%Y-%m-%dT%H:%M:%S%z')} on {platform.node()}: "
                       f"{shlex.join([*self.command, *arguments])}")
        with open(log_of(self.run), "ab") as log:
            # a session of its own: Ctrl-C reaches the sweep alone, which passes it on as SIGTERM
            self.process = subprocess.Popen([*DIE_WITH_PARENT, *self.command, *arguments], cwd=HERE, env=environment,
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                            start_new_session=True, pass_fds=[self.lock.fileno()])

    def poll(self):
        """None while it runs; then finished | diverged | crashed, and a row in runs.csv, or stopped, to go on later."""
        if self.process is None:
            self.lock.close()
            return self.rows.read()[self.run.hash]["status"]
        code = self.process.poll()
        if code is None:
            return None
        status, summary = self._outcome(code)
        if status == "crashed":
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            note(self.run, f"\n# {how}")
            if self.stopping:
                status = "stopped"
            elif self.tries < TRIES:  # whatever its exit status: 2 is bad input, but a full disk or memory too
                self._attempt()
                return None
        if status != "stopped":
            self.rows.put(row_of(self.run, status, progress(self.run) if status == "crashed" else summary))
        self.lock.close()
        return status

    def _outcome(self, code):
        """(status, summary.json) by train.py's contract; what does not keep to it crashed."""
        try:
            with open(os.path.join(self.run.folder, "summary.json"), encoding="utf-8") as f:
                summary = json.load(f)
        except (FileNotFoundError, ValueError):
            return "crashed", {}
        expected = {0: ("finished", "stopped"), 3: ("diverged",)}.get(code, ())
        return (summary["status"] if summary.get("status") in expected else "crashed"), summary

    def stop(self):
        """Ask it to save and end; poll() says when it has."""
        if self.process and not self.stopping:
            self.stopping = True
            self.process.send_signal(signal.SIGTERM)


def in_use(run):
    path = os.path.join(run.folder, LOCK)
    if not os.path.exists(path):
        return False
    lock = locks.try_lock(path)
    if lock is not None:
        lock.close()
    return lock is None


# ----------------------------------------------------------------------------------------------------------------------
# what the user sees

class Table:
    """On a terminal the running runs, redrawn in place under a line for each ended one; elsewhere those lines, and one
    of progress now and then."""

    def __init__(self, runs, ended):
        self.total, self.counts = len(runs), collections.Counter(ended)
        self.first = {}  # hash -> (time, step) when its job began: for the speed
        self.drawn, self.last = 0, time.monotonic()
        self.terminal = sys.stdout.isatty()

    def say(self, line):
        self._erase()
        print(line, flush=True)

    def ended(self, run, status, row=None):
        self.counts[status] += 1
        text = f"{status:8}  {run.arm}  lr {run.lr:g}  seed {run.seed}"
        if row and row["status"] != "crashed":
            text += f"  step {row['step']}" + (f"  val loss {float(row['val_loss']):.4f}" if row["val_loss"] else "")
        self.say(text + ("" if status in ("finished", "diverged") else f"  ({short(run.folder)}/log.txt)"))

    def _line(self, run):
        """(arm, lr, seed, step / all, loss, eta)"""
        now = progress(run)
        step, loss = now.get("step", 0), now.get("loss", now.get("val_loss"))
        began, at = self.first[run.hash]
        if step < at:  # gone back to a checkpoint from before the last line
            at = step
            self.first[run.hash] = began, at
        left = (run.max_iters - step) * (time.monotonic() - began) / (step - at) if step > at else None
        if left is not None and run.max_seconds is not None:
            left = min(left, max(0, run.max_seconds - now.get("train_seconds", 0)))
        eta = "-" if left is None else str(datetime.timedelta(seconds=int(left)))
        return (run.arm, f"{run.lr:g}", str(run.seed), f"{step}/{run.max_iters}",
                "-" if loss is None else f"{loss:.4f}", eta)

    def _erase(self):
        if self.drawn:
            print(f"\x1b[{self.drawn}A\x1b[J", end="")
            self.drawn = 0

    def show(self, running):
        """running: at every look; when each was first among them is when its speed is counted from."""
        self.first = {run.hash: self.first.get(run.hash) or (time.monotonic(), progress(run).get("step", 0))
                      for run in running}
        if time.monotonic() - self.last < (0.5 if self.terminal else REPORT_SECONDS):
            return
        self.last = time.monotonic()
        counts = ", ".join(f"{n} {status}" for status, n in self.counts.items()) or "none ended"
        title = f"{self.total} runs: {counts}, {len(running)} running"
        lines = [self._line(run) for run in running]
        if not self.terminal:
            print("; ".join([title] + [f"{a} lr {lr} seed {seed} step {step} loss {loss} eta {eta}"
                                       for a, lr, seed, step, loss, eta in lines]), flush=True)
            return
        size = shutil.get_terminal_size()
        lines = lines and [("arm", "lr", "seed", "step", "loss", "eta"), *lines[:max(1, size.lines - 4)]]
        widths = [max(map(len, column)) for column in zip(*lines)]
        text = [title] + ["  ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths)))
                          for line in lines]
        self._erase()
        print("\n".join(line[:size.columns - 1] for line in text), flush=True)
        self.drawn = len(text)


# ----------------------------------------------------------------------------------------------------------------------
# launchers: each runs what is missing and returns when every run has ended or a signal came

def gpus_of_this_machine():
    """Names for CUDA_VISIBLE_DEVICES, if there are several GPUs; else []."""
    if torch.cuda.device_count() < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def threads_of_a_run(options, slurm):
    return slurm.get("cpus", 1) if options.launcher == "slurm" else max(1, options.threads // options.jobs)


def run_local(runs, rows, options, command, table, stop):
    gpus = gpus_of_this_machine()
    threads = threads_of_a_run(options, {})
    waiting, jobs, told = collections.deque(runs), {}, set()  # jobs: slot -> Job
    try:
        while jobs or (waiting and not stop.signal):
            for slot in range(options.jobs) if not stop.signal else ():
                for _ in range(len(waiting) if slot not in jobs else 0):
                    run = waiting.popleft()
                    job = Job(run, rows, command, threads, gpus[slot % len(gpus)] if gpus else None)
                    if job.start():
                        jobs[slot] = job
                        break
                    waiting.append(run)
                    if run.hash not in told:
                        told.add(run.hash)
                        table.say(f"in use by another process, waited for: {short(run.folder)}")
            if stop.signal and not all(job.stopping for job in jobs.values()):
                table.say(f"{stop.signal}: saving {len(jobs)} runs")
                for job in jobs.values():
                    job.stop()
            for slot, job in list(jobs.items()):
                status = job.poll()
                if status:
                    del jobs[slot]
                    table.ended(job.run, status, rows.read().get(job.run.hash))
            table.show([job.run for job in jobs.values()])
            time.sleep(POLL_SECONDS)
    except Exception:  # the sweep's own, a full disk say: what is running saves first, as on a signal
        for job in jobs.values():
            job.stop()
        for job in jobs.values():
            if job.process:
                job.process.wait()
        raise


class Worker:
    """What a Slurm job does: one run, until it has ended. Pickled by submitit."""

    def __init__(self, folder, command, threads):
        self.folder, self.command, self.threads = folder, command, threads
        self.job = None

    def __call__(self, run):
        while True:
            self.job = Job(run, Rows(self.folder), self.command, self.threads)
            while not self.job.start():
                time.sleep(POLL_SECONDS)
            try:
                while (status := self.job.poll()) is None:
                    time.sleep(POLL_SECONDS)
            finally:
                self.job.stop()
            # train.py got a signal that was meant for us too (Slurm's go to all processes): if the job is really to
            # end, nothing is lost by going on until it does
            if status != "stopped":
                return status

    def checkpoint(self, run):
        """submitit calls this in its signal handler, before it queues the job again."""
        import submitit
        self.job.stop()
        if self.job.process:
            with contextlib.suppress(ChildProcessError):  # not Popen.wait(): we may have interrupted Popen.poll()
                os.waitid(os.P_PID, self.job.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Worker(self.folder, self.command, self.threads), run)


def run_submitit(runs, rows, options, command, table, stop, slurm):
    """Through submitit: one job array on Slurm, or (to try it) its local executor with at most --jobs processes."""
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read when submitit is imported; USR2 would kill train.py
    try:
        import submitit
    except ImportError:
        raise UserError(f"--launcher {options.launcher} needs submitit: pip install submitit==1.5.4") from None
    local = options.launcher == "local-submitit"
    threads = threads_of_a_run(options, slurm)
    # jobs import this file
    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])])
    executor = submitit.AutoExecutor(os.path.join(rows.folder, "submitit"), cluster="local" if local else "slurm",
                                     slurm_max_num_timeout=100)  # long runs are queued again as often as they need
    if local:  # Ctrl-C is for the sweep alone, which cancels its jobs; submitit would have them in the terminal's group
        said = open(os.path.join(rows.folder, "submitit", "controllers.log"), "a", encoding="utf-8")
        submitit.local.local.subprocess = types.SimpleNamespace(
            Popen=functools.partial(subprocess.Popen, start_new_session=True, stderr=said))
    executor.update_parameters(name=os.path.basename(rows.folder), slurm_array_parallelism=options.jobs,
                               **{SLURM[k]: v for k, v in {"time_min": 7 * 24 * 60, "cpus": 1, **slurm}.items()})
    worker = Worker(rows.folder, command, threads)
    waiting, jobs = collections.deque(runs), {}  # jobs: hash -> (Run, submitit's Job)
    tries = collections.Counter()  # by hash

    def submit(*these):
        try:
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # submitit repeats what sbatch says
                submitted = [executor.submit(worker, run) for run in these]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            reason = [line for line in str(error).splitlines() if line.strip()]
            raise UserError(f"sbatch refused the jobs: {reason[-1] if reason else type(error).__name__}") from None
        jobs.update({run.hash: (run, job) for run, job in zip(these, submitted)})
        tries.update(run.hash for run in these)
        return [job.job_id for job in submitted]

    def lost(run, job):
        """Its job ended without a result: node, memory, time. Once it is submitted again."""
        os.makedirs(run.folder, exist_ok=True)
        said = [line for line in (job.stderr() or "").splitlines() if line.strip()] or ["no message"]
        note(run, f"\n{said[-1]}\n# job {job.job_id} ended without a result")
        if tries[run.hash] < TRIES:
            try:
                submit(run)
                return
            except UserError as error:
                note(run, error)
        rows.put(row_of(run, "crashed", progress(run)))

    def cancel():
        for _, job in jobs.values():
            job.cancel(check=False)
        while any(in_use(run) for run, _ in jobs.values()):
            time.sleep(POLL_SECONDS)

    if not local:
        ids = submit(*runs)
        waiting.clear()
        table.say(f"submitted {len(jobs)} jobs: {ids[0]} to {ids[-1]}")
    try:
        while (waiting or jobs) and not stop.signal:
            while local and waiting and len(jobs) < options.jobs:
                submit(waiting.popleft())
            # a job that returned has written its row, wherever the file system has it by now
            failed = {h for h, (_, job) in jobs.items() if job.done() and job.exception() is not None}
            ended = rows.read()
            for run, job in list(jobs.values()):
                if run.hash in failed and run.hash not in ended and not in_use(run):
                    lost(run, job)
                    ended = rows.read()
                if run.hash in ended:
                    del jobs[run.hash]
                    table.ended(run, ended[run.hash]["status"], ended[run.hash])
            table.show([run for run, _ in jobs.values() if in_use(run)])
            time.sleep(POLL_SECONDS if local else 2)
    except Exception:  # as in run_local
        cancel()
        raise
    if jobs:
        table.say(f"{stop.signal}: cancelling {len(jobs)} jobs, which save their runs")
        cancel()


# ----------------------------------------------------------------------------------------------------------------------

def check_corpus(runs):
    """The data are there, and are what runs of this sweep were trained on before: a configuration names the data set,
    but its prepare.py may have had another text to read."""
    for run in runs:
        main, _ = resolve(run.config, run.overrides, f"arm {run.arm!r}")
        meta = load_meta(os.path.join(main.data_dir, main.dataset))
        if not os.path.exists(os.path.join(run.folder, "config.json")):
            continue
        before = checkpoint.load_config(run.folder)
        if before.get("corpus_sha256", meta.get("sha256")) != meta.get("sha256"):
            raise UserError(f"{short(run.folder)} was trained on another text ({before['corpus']}) than {main.dataset} "
                            f"is now ({meta['corpus']}); prepare it as it was, or give another --out")


def run_after(commands, folder, runs, rows):
    """Run the commands that come after the runs, each once for the same runs. True if all succeeded."""
    path = os.path.join(folder, "after.json")
    done = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as f:
        done = json.load(f)
    finished = [short(run.folder) for run in runs if rows[run.hash]["status"] == "finished"]
    for command in commands:
        words = []
        for word in shlex.split(command):
            words += finished if word == "{runs}" else [word.format(out=short(folder), runs=" ".join(finished))]
        if words in done:
            continue
        print(f"then: {shlex.join(words)}", flush=True)
        status = subprocess.run([sys.executable if words[0] == "python" else words[0], *words[1:]], cwd=HERE).returncode
        if status:
            print(f"error: that ended with status {status}; the next start of the sweep runs it again", file=sys.stderr)
            return False
        done.append(words)
        write_json(path, done)
    return True


def check_folder(folder, given):
    """A new folder, an empty one or that of a sweep. Raises UserError."""
    paths.folder_to_write(folder, f"--out {given}")
    found = os.listdir(folder) if os.path.isdir(folder) else []
    if found and not {"sweep.json", "runs", "runs.csv"}.intersection(found):
        raise UserError(f"--out {given} is not empty and holds no sweep (there is {min(found)}): choose another folder")


def parse(argv):
    parser = Parser("sweep.py", __doc__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("sweep", type=paths.expand, help="a sweep file")
    parser.add_argument("--out", type=paths.expand, help="folder of the sweep (default: out/sweeps/<name of the file>)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--threads", type=int, default=cores,
                        help="CPU threads of all jobs together (%(default)s); on Slurm each has the cpus of the file")
    parser.add_argument("--launcher", choices=("local", "slurm", "local-submitit"), default="local",
                        help="where the runs are done; local-submitit is there to try what slurm does (local)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and create nothing")
    parser.add_argument("--retry-crashed", action="store_true", help="run again what crashed before")
    options = parser.parse_args(argv)
    for name in ("jobs", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)}: must be at least 1")
    return options


@exit_cleanly
def main(argv, command=TRAIN):
    options = parse(argv)
    sweep = load(options.sweep)
    given = options.out or os.path.join("out", "sweeps", sweep_name(options.sweep))
    folder = os.path.abspath(given)
    check_folder(folder, given)
    threads = threads_of_a_run(options, sweep["slurm"])
    runs = make_runs(sweep, options.sweep, folder, threads)
    rows = Rows(folder)

    if options.dry_run:
        ended = {h: r for h, r in rows.known().items() if not (options.retry_crashed and r["status"] == "crashed")}
        missing = [run for run in runs if run.hash not in ended]
        print(f"# {len(runs)} runs, {len(missing)} to do, {options.jobs} at a time, {threads} threads each")
        for run in missing:
            print(shlex.join(["python", *command[1:], *command_of(run, threads)]))
        return 0

    if options.launcher == "slurm":
        if not shutil.which("sbatch"):
            raise UserError("--launcher slurm: there is no sbatch here; start it on the cluster's login node, or leave "
                            "the option out")
        if "time_min" not in sweep["slurm"]:
            raise UserError(f"{options.sweep}: --launcher slurm needs slurm = dict(time_min=...), the minutes of a job "
                            f"(a run that takes longer is queued again)")
    check_corpus(runs)
    os.makedirs(os.path.join(folder, "runs"), exist_ok=True)
    rows.sort_out(runs, options.retry_crashed)
    write_json(os.path.join(folder, "sweep.json"), description(sweep, options.sweep, runs))

    ended = rows.read()
    missing = [run for run in runs if run.hash not in ended]
    print(f"{sweep_name(options.sweep)}: {len(runs)} runs, {len(missing)} to do; everything is in {short(folder)}",
          flush=True)
    table = Table(runs, [row["status"] for row in ended.values()])
    stop = Stop()
    if missing and options.launcher == "local":
        run_local(missing, rows, options, command, table, stop)
    elif missing:
        run_submitit(missing, rows, options, command, table, stop, sweep["slurm"])

    ended = rows.read()
    crashed = [run for run in runs if run.hash in ended and ended[run.hash]["status"] == "crashed"]
    left = [run for run in runs if run.hash not in ended]
    for run in crashed:
        print(f"crashed: {short(run.folder)}: {crash_reason(run)}", file=sys.stderr)
    if crashed:
        print(f"{len(crashed)} runs crashed; --retry-crashed runs them again", file=sys.stderr)
    if left:
        print(f"{len(left)} runs are left. To go on: {shlex.join(['python', 'sweep.py', *argv])}")
        return 0 if stop.signal else 1
    succeeded = run_after(sweep["after"], folder, runs, ended)
    return 1 if crashed or not succeeded else 0


if __name__ == "__main__":
    from sweep import main  # as a module of that name, which the jobs of submitit import to unpickle its classes
    main(sys.argv[1:])
