"""The commands of a sweep file's `after`, when every run has ended."""
import json
import os
import shlex
import subprocess
import sys

from common import locks
from common.whole_files import write_json
from experiments.runs import short
from training.config import REPOSITORY


def run_after(commands, folder, runs, rows):
    """Run the commands that come after the runs, each once for the same runs, by one of the sweep's processes at a time. True if all
    succeeded, or another process is at it."""
    if not commands:
        return True
    file = locks.try_lock(os.path.join(folder, "after.lock"))
    if file is None:
        print("another process of this sweep runs the commands that come after its runs", flush=True)
        return True
    with file:
        return _run(commands, folder, runs, rows)


def _done(path):
    """The commands that after.json lists. One that is damaged lists none: they are run again."""
    try:
        with open(path, encoding="utf-8") as f:
            done = json.load(f)
    except (FileNotFoundError, ValueError):
        return []
    return done if isinstance(done, list) else []


def _run(commands, folder, runs, rows):
    path = os.path.join(folder, "after.json")
    done = _done(path)
    finished = [short(run.folder) for run in runs if run.hash in rows and rows[run.hash]["status"] == "finished"]
    for command in commands:
        words = []
        for word in shlex.split(command):
            words += finished if word == "{runs}" else [word.format(out=short(folder), runs=" ".join(finished))]
        if words in done:
            continue
        print(f"then: {shlex.join(words)}", flush=True)
        try:
            status = subprocess.run([sys.executable if words[0] == "python" else words[0], *words[1:]], cwd=REPOSITORY).returncode
        except OSError as error:  # no such program
            status = f"{error.strerror or error}: {words[0]}"
        if status:
            how = f"ended with status {status}" if isinstance(status, int) else f"did not start ({status})"
            print(f"error: that {how}; the next start of the sweep runs it again", file=sys.stderr)
            return False
        done.append(words)
        write_json(path, done)
    return True
