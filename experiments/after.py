"""The commands of a sweep file's `after`, when every run has ended."""
import contextlib
import json
import os
import shlex
import subprocess
import sys

from common.whole_files import write_json
from experiments.runs import short
from training.config import REPOSITORY


def run_after(commands, folder, runs, rows):
    """Run the commands that come after the runs, each once for the same runs. True if all succeeded."""
    path = os.path.join(folder, "after.json")
    done = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as f:
        done = json.load(f)
    finished = [short(run.folder) for run in runs if run.hash in rows and rows[run.hash]["status"] == "finished"]
    for command in commands:
        words = []
        for word in shlex.split(command):
            words += finished if word == "{runs}" else [word.format(out=short(folder), runs=" ".join(finished))]
        if words in done:
            continue
        print(f"then: {shlex.join(words)}", flush=True)
        status = subprocess.run([sys.executable if words[0] == "python" else words[0], *words[1:]], cwd=REPOSITORY).returncode
        if status:
            print(f"error: that ended with status {status}; the next start of the sweep runs it again", file=sys.stderr)
            return False
        done.append(words)
        write_json(path, done)
    return True
