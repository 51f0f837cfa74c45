"""
The files that a run leaves in its out_dir, but for the checkpoints (checkpoint.py): config.json, env.json, metrics.jsonl,
summary.json and tensorboard/. What they are is said in train.py. While a run is under way its process holds the lock of the file
`lock` there.
"""
import contextlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import threading
import time

import torch

import models
from common import locks, paths
from common.errors import UserError
from common.whole_files import is_temporary, naming, write_file, write_json
from training import checkpoint
from training.config import ADDED_SINCE, REPOSITORY

LOCK = "lock"
# what may be in a run's folder before the run has a config.json: left by a run that was killed early, or by its sweep
OWN_FILES = {"config.json", "env.json", "metrics.jsonl", "summary.json", "tensorboard", "ckpt", "wandb", "log.txt", LOCK}


def environment(command, device, threads, world):
    """env.json: what the run ran on."""
    def git(*args):
        done = subprocess.run(["git", "-C", REPOSITORY, *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None
    try:
        commit, dirty = git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except FileNotFoundError:  # no git on this machine
        commit, dirty = None, None
    return {"command": command, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": platform.node(),
            "platform": platform.platform(), "processor": platform.processor() or platform.machine(), "cpu": cpu_name(),
            "cpus": os.cpu_count(), "threads": threads, "processes": world, "python": platform.python_version(),
            "torch": torch.__version__, "cuda": torch.version.cuda, "git_commit": commit, "git_dirty": dirty,
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device}


def cpu_name():
    """The model of the CPU and the instructions that torch uses on it: rented machines are often called alike."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            told = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", f.read().split("\n\n")[0], re.M))
    except OSError:  # not Linux
        told = {}
    kind = ", ".join(f"{key} {told[name]}" for key, name in (("family", "cpu family"), ("model", "model")) if name in told)
    return ", ".join(filter(None, [told.get("model name") or platform.processor(), kind, torch.backends.cpu.get_cpu_capability()]))


@contextlib.contextmanager
def hold_run(config, parallel):
    """out_dir is this run's alone until its process ends. Of several processes the first one holds it. A look at a run that is
    there (eval_only) writes nothing and needs no lock."""
    looking = config.eval_only and config.init_from in ("resume", "auto") and holds_run(config.out_dir)
    with contextlib.ExitStack() as held:
        def take():
            if config.init_from == "resume":
                checkpoint.load_config(config.out_dir)  # without a run there is nothing to hold
            check_place(config.out_dir)
            held.enter_context(locks.held(config.out_dir, f"{config.out_dir}: another process is training in this folder; wait for "
                                          "it, stop it, or choose another --out_dir", LOCK))
        parallel.on_main(take if not looking else lambda: None)
        yield


def check_place(out_dir):
    """May a run be in this folder? Raises UserError where it is not one or holds what is not a run's."""
    paths.folder_to_write(out_dir, f"out_dir = '{out_dir}'")
    foreign = [] if holds_run(out_dir) or not os.path.isdir(out_dir) else sorted(
        name for name in os.listdir(out_dir) if name not in OWN_FILES and not is_temporary(name))
    if foreign:
        raise UserError(f"{out_dir} is not empty and holds no run (there is {foreign[0]}): choose another --out_dir, such as "
                        f"{os.path.join(out_dir, 'run')}")


def holds_run(out_dir):
    return os.path.lexists(os.path.join(out_dir, "config.json"))


def check_run(out_dir, init_from, overwrite, full, fixed):
    """May this run begin, or go on, in out_dir? Writes nothing. full: the resolved configuration as a dict. fixed: its keys
    that a resumed run keeps. -> (resume?, is there a checkpoint to resume from?)"""
    if init_from == "resume" or (init_from == "auto" and holds_run(out_dir)):
        before = checkpoint.load_config(out_dir)
        before = {**models.added_since(before.get("model")), **ADDED_SINCE, "tokenizer": full["tokenizer"], **before}
        if before.get("model") != full["model"]:
            fixed = ["model"]  # the others are another model's
        for key in fixed:
            if key not in before:
                raise UserError(f"cannot resume {out_dir}: its config.json has no {key!r}; it is damaged or from another version")
        others = [key for key in fixed if before[key] != full[key]]
        if "tokenizer" in others and "dataset" not in others:
            raise UserError(f"cannot resume {out_dir}: {full['dataset']} has other tokens now than those it was trained on; prepare that "
                            "data again as it was")
        if others:
            again = " ".join(shlex.quote(f"--{key}={before[key]}") for key in others
                             if key not in ("corpus_sha256", "tokenizer", "vocab_size"))  # the data's
            said = ", ".join(f"{key} was {before[key]!r} there and is {full[key]!r} now" for key in others if key != "tokenizer")
            raise UserError(f"cannot resume {out_dir}: {said}" + (f"; add {again}" if again else ""))
        return True, checkpoint.can_resume(out_dir)
    if holds_run(out_dir) and not overwrite:
        raise UserError(f"{out_dir} holds a run already: --init_from=resume goes on with it, "
                        f"--overwrite=True replaces it, or choose another --out_dir")
    if any(checkpoint.exists(out_dir, name) for name in ("last", "best")) and not overwrite:
        raise UserError(f"{out_dir} holds checkpoints of a run whose config.json is gone: --overwrite=True replaces them, or "
                        "choose another --out_dir")
    return False, False


@contextlib.contextmanager
def start_run(out_dir, resume, full):
    """Make out_dir this run's: what an earlier run left goes, unless it is resumed. The body makes the rest of its files; if
    that fails (a full disk), no run is left that the next attempt would have to overwrite."""
    if not resume:
        # the checkpoints first: what is left if this is interrupted is a run that has not come far
        checkpoint.remove_all(out_dir)
        shutil.rmtree(os.path.join(out_dir, "tensorboard"), ignore_errors=True)
        for name in ("metrics.jsonl", "summary.json", "env.json", "config.json"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(out_dir, name))
    os.makedirs(out_dir, exist_ok=True)
    try:
        with naming(out_dir):
            write_json(os.path.join(out_dir, "config.json"), full)
            yield
    except OSError:
        if not resume:
            shutil.rmtree(os.path.join(out_dir, "tensorboard"), ignore_errors=True)
            for name in ("metrics.jsonl", "env.json", "config.json"):
                with contextlib.suppress(OSError):
                    os.remove(os.path.join(out_dir, name))
        raise


def start_wandb(config, full):
    """A run of Weights & Biases."""
    try:
        import wandb
    except ImportError:
        raise UserError("wandb_log = True needs Weights & Biases: pip install wandb") from None
    name = config.wandb_run_name or os.path.basename(os.path.normpath(config.out_dir))
    own = os.path.join(config.out_dir, "wandb")  # its files go there, too
    is_new = not os.path.lexists(own)
    try:
        return wandb.init(project=config.wandb_project, name=name, config=full, dir=config.out_dir)
    except Exception as error:  # whatever its network, login or settings raise
        if is_new:
            shutil.rmtree(own, ignore_errors=True)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"Weights & Biases did not start: {reason}; log in with 'wandb login', or use --wandb_log=False"
                        ) from None


class Metrics:
    """metrics.jsonl, TensorBoard and W&B: the same numbers three times."""

    def __init__(self, config, start, wandb=None):
        self.path = os.path.join(config.out_dir, "metrics.jsonl")
        self._forget_after(start)
        self.file = open(self.path, "a", encoding="utf-8")
        self.tensorboard, self.wandb = None, wandb
        if config.tensorboard_log:
            from torch.utils.tensorboard import SummaryWriter
            # its thread's error (a full disk) is raised again where it is next written to: no traceback in between
            shown = threading.excepthook
            threading.excepthook = lambda args: None if issubclass(args.exc_type, OSError) else shown(args)
            self.tensorboard = SummaryWriter(os.path.join(config.out_dir, "tensorboard"), purge_step=start)

    def _forget_after(self, start):
        """A resumed run repeats the steps since its checkpoint: their lines go."""
        if not os.path.exists(self.path):
            return
        with open(self.path, encoding="utf-8", errors="replace") as f:
            lines = f.readlines()
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut by a crash
                record = json.loads(line)
                # the evaluation at `start` is repeated too, and so is the line of the step that begins there
                if record["step"] < start:
                    kept.append(line if line.endswith("\n") else line + "\n")
        write_file(self.path, "".join(kept).encode("utf-8"))

    def log(self, record):
        numbers = {k: v for k, v in record.items() if k != "step"}
        with naming(os.path.dirname(self.path)):
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
            for key, value in numbers.items() if self.tensorboard else ():
                self.tensorboard.add_scalar(key, value, record["step"])
        if self.wandb:
            self.wandb.log(numbers, step=record["step"])

    def close(self):
        self.file.close()
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()


def read_metrics(path):
    """The lines of a metrics.jsonl, a list of dicts; a last line that a kill cut off is no line. Raises FileNotFoundError and,
    for what train.py does not write, ValueError."""
    with open(path, encoding="utf-8", errors="replace") as f:
        *whole, last = f.read().split("\n")
    records = [json.loads(line) for line in whole]
    try:
        records += [json.loads(last)] if last else []
    except ValueError:
        pass  # train.py ends every line: this one was cut
    if not all(isinstance(record, dict) for record in records):
        raise ValueError("a line is not a JSON object")
    return records


class NoMetrics:
    """Of the processes that are not the first: they compute the same numbers and write none."""

    def log(self, record):
        pass

    def close(self):
        pass
