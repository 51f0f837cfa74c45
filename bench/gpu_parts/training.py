"""Runs of train.py as commands, on the text that is at hand: this repository's own files, by characters."""

import glob
import json
import os
import subprocess
import sys
import tempfile

from gpu_parts import ROOT

TEXT = ("README.md", "docs/*.md", "*.py", *(f"{folder}/*.py" for folder in (
    "analysis", "bench", "bench/gpu_parts", "common", "config", "data", "data/*", "experiments", "geometry", "kernels", "sweeps", "tests",
    "training")))


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def command(arguments, environment=(), script="train.py"):
    """Runs a script of this repository; returns its output. Raises RuntimeError with the line that says why it failed."""
    done = subprocess.run(
        [sys.executable, os.path.join(ROOT, script), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **dict(environment)},
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise RuntimeError(
            f"{script}, exit status {done.returncode}: {last_line(done.stderr)}; if a package is missing, docs/gpu.md says "
            "how to bring it"
        )
    return done.stdout


def text_data(settings):
    """The folder with the data set 'text'. Made once; whichever process is first has made it."""
    folder = os.path.join(settings.work, "data")
    if not os.path.isdir(folder):
        files = sorted(
            {path for pattern in (TEXT[:1] if settings.quick else TEXT) for path in glob.glob(os.path.join(ROOT, pattern))}
        )
        with tempfile.TemporaryDirectory(dir=settings.work) as own:
            path = os.path.join(own, "text.txt")
            with open(path, "w", encoding="utf-8") as out:
                for name in files:
                    with open(name, encoding="utf-8") as f:
                        out.write(f.read())
            command(
                [f"--input={path}", f"--out_dir={os.path.join(own, 'data', 'text')}"], script="data/shakespeare_char/prepare.py"
            )
            try:
                os.rename(os.path.join(own, "data"), folder)
            except OSError:  # another process was first
                if not os.path.isdir(folder):
                    raise
    return folder


def flags(**keys):
    return [f"--{key}={value}" for key, value in keys.items()]


def train(settings, name, environment=(), script="train.py", config=None, **keys):
    """A run; config: a file. -> (lines of its metrics.jsonl, its summary, its output)"""
    out = os.path.join(settings.work, "runs", name)
    said = command(
        ([config] if config else [])
        + flags(data_dir=text_data(settings), dataset="text", out_dir=out, device=settings.device, tensorboard_log=False, **keys),
        environment,
        script,
    )
    with open(os.path.join(out, "metrics.jsonl")) as f:
        metrics = [json.loads(line) for line in f]
    with open(os.path.join(out, "summary.json")) as f:
        return metrics, json.load(f), said


def losses_of(metrics):
    """step -> training loss"""
    return {line["step"]: line["loss"] for line in metrics if "loss" in line}
