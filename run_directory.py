"""
The files that a run leaves in its out_dir, but for the checkpoints (checkpoint.py): config.json, env.json, metrics.jsonl,
summary.json and tensorboard/. What they are is said in train.py.
"""
import contextlib
import json
import os
import platform
import shutil
import subprocess
import threading
import time

import torch

import checkpoint
from errors import UserError
from whole_files import naming, write_file, write_json

HERE = os.path.dirname(os.path.abspath(__file__))


def environment(command, device, threads, world):
    """env.json: what the run ran on."""
    def git(*args):
        done = subprocess.run(["git", "-C", HERE, *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None
    try:
        commit, dirty = git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except FileNotFoundError:  # no git on this machine
        commit, dirty = None, None
    return {"command": command, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": platform.node(),
            "platform": platform.platform(), "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(), "threads": threads, "processes": world, "python": platform.python_version(),
            "torch": torch.__version__, "cuda": torch.version.cuda, "git_commit": commit, "git_dirty": dirty,
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device}


def check_run(out_dir, init_from, overwrite, full, fixed):
    """May this run begin, or go on, in out_dir? Writes nothing. full: the resolved configuration as a dict. fixed: its keys
    that a resumed run keeps. -> (resume?, is there a checkpoint to resume from?)"""
    holds_run = os.path.exists(os.path.join(out_dir, "config.json"))
    if init_from == "resume" or (init_from == "auto" and holds_run):
        before = checkpoint.load_config(out_dir)
        for key in fixed:
            if key not in before:
                raise UserError(f"cannot resume {out_dir}: its config.json has no {key!r}; it is damaged or from another version")
            if before[key] != full[key]:
                raise UserError(f"cannot resume {out_dir}: {key} was {before[key]!r} there and is {full[key]!r} now")
        return True, checkpoint.can_resume(out_dir)
    if holds_run and not overwrite:
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
    is_new = not os.path.isdir(out_dir)
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
        if is_new:
            shutil.rmtree(out_dir, ignore_errors=True)
        elif not resume:
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
    is_new = not os.path.isdir(config.out_dir)
    os.makedirs(config.out_dir, exist_ok=True)  # its own files go there, too
    try:
        return wandb.init(project=config.wandb_project, name=name, config=full, dir=config.out_dir)
    except Exception as error:  # whatever its network, login or settings raise
        if is_new:
            shutil.rmtree(config.out_dir)
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


class NoMetrics:
    """Of the processes that are not the first: they compute the same numbers and write none."""

    def log(self, record):
        pass

    def close(self):
        pass
