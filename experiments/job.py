"""One run in the care of a process: its command, its lock, its log, its attempts, its end."""
import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time

from common import locks
from common.whole_files import naming
from experiments.rows import COLUMNS
from experiments.runs import config_path, flags, short
from training import checkpoint
from training.config import REPOSITORY
from training.run_directory import LOCK, holds_run

TRAIN = (sys.executable, "train.py")  # the trainer's command; it runs in REPOSITORY
TRIES = 2  # a crashed run is started again once


def command_of(run, threads):
    """The arguments of train.py, run in REPOSITORY. 'auto': go on from a checkpoint if there is one, else start over."""
    begin = ["--init_from=auto"]
    if run.start and not checkpoint.exists(run.folder, "last"):
        begin = [f"--init_from={short(run.start.folder)}", *(["--overwrite=True"] if holds_run(run.folder) else [])]
    return [short(config_path(run.config)), *flags(run.overrides), f"--threads={threads}", f"--out_dir={short(run.folder)}", *begin]


def readiness(run, ended):
    """'ready', 'waiting' for the run that gives it its weights, or 'impossible', since that one has none to give. ended: rows by hash."""
    if run.start is None:
        return "ready"
    if run.start.hash not in ended:
        return "waiting"
    return "ready" if ended[run.start.hash]["status"] == "finished" and checkpoint.exists(run.start.folder, "best") else "impossible"


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
    with naming(log_of(run)), open(log_of(run), "a", encoding="utf-8", errors="backslashreplace") as f:
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


def spawn(command, log, held, threads, gpu):
    """A trainer's process. log: the file that gets what it says. held: open files that hold the locks of its runs, which it inherits:
    they hold as long as either process lives. gpu: for CUDA_VISIBLE_DEVICES, or None."""
    numbers = [lock.fileno() for lock in held]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", locks.INHERITED: " ".join(map(str, numbers))}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    with open(log, "ab") as out:
        # a session of its own: Ctrl-C reaches the sweep alone, which passes it on as SIGTERM
        return subprocess.Popen([*DIE_WITH_PARENT, *command], cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=out,
                                stderr=subprocess.STDOUT, start_new_session=True, pass_fds=numbers)


def summary_of(run):
    """Its summary.json; {} if there is none."""
    try:
        with open(os.path.join(run.folder, "summary.json"), encoding="utf-8") as f:
            return json.load(f)
    except (FileNotFoundError, ValueError):
        return {}


def how_it_ended(code):
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


class Job:
    """A run in the care of this process: its lock, its attempts, its row.

    What launchers.run_local asks of it StackJob has, too: start(), left, runs, ended(), stop(), stopping, process.
    """

    left = ()  # of its runs, those that start() did not take

    def __init__(self, run, rows, command=TRAIN, threads=1, gpu=None):
        self.run, self.rows, self.command, self.threads, self.gpu = run, rows, command, threads, gpu
        self.process = self.lock = None
        self.tries, self.stopping = 0, False

    @property
    def runs(self):
        return [self.run]

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
        note(self.run, f"# attempt of {time.strftime('%Y-%m-%dT%H:%M:%S%z')} on {platform.node()}: "
                       f"{shlex.join([*self.command, *arguments])}")
        self.process = spawn([*self.command, *arguments], log_of(self.run), [self.lock], self.threads, self.gpu)

    def ended(self):
        """None while it runs; then [(run, what poll() says)]."""
        status = self.poll()
        return status and [(self.run, status)]

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
            note(self.run, f"\n# {how_it_ended(code)}")
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
        summary = summary_of(self.run)
        expected = {0: ("finished", "stopped"), 3: ("diverged",)}.get(code, ())
        return (summary["status"] if summary.get("status") in expected else "crashed"), summary

    def stop(self):
        """Ask it to save and end; poll() says when it has."""
        if self.process and not self.stopping:
            self.stopping = True
            self.process.send_signal(signal.SIGTERM)


def in_use(run):
    return locks.is_held(os.path.join(run.folder, LOCK))
