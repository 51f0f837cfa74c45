"""How the tests run the scripts, and read what a run leaves."""
import json
import pathlib
import signal
import subprocess
import sys

import pytest
from conftest import wait_for_step
from forked import ROOT, Forked

MIXED = ["--model=mixed", "--curvature_mode=random"]  # c is learned


def run(main, args, capsys, **options):
    """(exit status, stdout, stderr) of a script's main. options: of it."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in args], **options)
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def ended(module, args, **options):
    """(exit status, stdout, stderr) of a script's main in a process of its own."""
    child = Forked(module, args, **options)
    out, err = child.communicate()
    return child.returncode, out, err


def process(args, **kwargs):
    return subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=300, **kwargs)


def records(out_dir):
    return [json.loads(line) for line in (pathlib.Path(out_dir) / "metrics.jsonl").read_text().splitlines()]


def one_line(err, *parts):
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for part in parts:
        assert part in lines[0], (part, lines[0])


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def started(args):
    """A training process, given back when it has done some steps."""
    child = Forked("train", args)
    out_dir = next(a for a in args if a.startswith("--out_dir=")).partition("=")[2]
    wait_for_step(out_dir, 5, child)
    return child
