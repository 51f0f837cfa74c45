"""One folder, one process: the lock, and every command that writes into a folder beside another one that does."""
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import wait_for_step
from forked import Forked
from running import ROOT, ended, files_of, one_line, run

import analyze_representations
import summarize_sweep
import train
from common import locks
from common.errors import UserError
from data import sources

# holds a lock until its standard input ends
HOLDER = """import sys
from common import locks
with locks.held(sys.argv[1], 'taken', sys.argv[2]):
    print('have it', flush=True)
    sys.stdin.read()
"""


def holder(folder, name=".lock"):
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), name], cwd=ROOT, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "have it\n"
    return child


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    folder = tmp_path / "a" / "b"
    child = holder(folder)
    with pytest.raises(UserError, match="in use"), locks.held(folder, "in use"):
        pass
    child.kill()
    child.wait()
    assert (folder / ".lock").exists()  # nobody tidied up, and that does not matter
    with locks.held(folder, "in use"):
        pass
    assert os.listdir(folder) == []


def test_what_was_made_for_a_lock_alone_goes_again(tmp_path):
    with locks.held(tmp_path / "a" / "b", "in use"):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert os.listdir(tmp_path) == []
    with locks.held(tmp_path / "a" / "b", "in use"):
        (tmp_path / "a" / "file").write_text("")
    assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a") == ["file"]


def test_a_lock_file_that_is_removed_by_its_holder_is_not_locked_twice(tmp_path, monkeypatch):
    """Between our opening the file and our locking it, its holder may remove it: a lock on it would keep nobody out."""
    path, real, calls = tmp_path / "lock", fcntl.flock, []

    def flock(file, how):
        if not calls:
            path.unlink()
        calls.append(how)
        return real(file, how)
    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.try_lock(path):
        assert len(calls) == 2 and locks.try_lock(path) is None


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.held(tmp_path, "in use"):
        pass
    assert "has no locks" in capsys.readouterr().err


def test_a_lock_that_the_parent_holds_for_us_is_ours(tmp_path, monkeypatch):
    file = locks.try_lock(tmp_path / "lock")
    with pytest.raises(UserError), locks.held(tmp_path, "in use", "lock"):
        pass
    monkeypatch.setenv(locks.INHERITED, str(file.fileno()))
    with locks.held(tmp_path, "in use", "lock"):
        pass
    assert (tmp_path / "lock").exists()  # it is the parent's to remove
    with pytest.raises(UserError), locks.held(tmp_path / "other", "in use", "lock"):  # another run's is not ours
        locks.try_lock(tmp_path / "other" / "lock")
        raise UserError("not inherited")


def test_two_runs_in_one_folder_are_refused_whatever_they_are(small_run, tmp_path, capsys):
    out_dir = tmp_path / "run"
    child = Forked("train", [*small_run, "--max_iters=1000000", "--eval_interval=1000000"])
    try:
        wait_for_step(out_dir, 3, child)
        before = (out_dir / "config.json").read_bytes()
        for more in ([], ["--seed=2", "--n_embd=32"], ["--init_from=auto"], ["--init_from=resume"], ["--overwrite=True"]):
            status, out, err = run(train.main, [*small_run, *more], capsys)
            assert status == 2 and out == ""
            one_line(err, str(out_dir), "another process is training in this folder")
        assert (out_dir / "config.json").read_bytes() == before
        status, out, _ = run(train.main, [*small_run, "--init_from=resume", "--eval_only=True"], capsys)  # a look is no run
        assert status == 0 and "resumed from step 0" in out
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert run(train.main, [*small_run, "--init_from=auto"], capsys)[0] == 0
    finally:
        child.kill()
        child.wait()
    assert not (out_dir / "lock").exists()
    assert json.loads((out_dir / "summary.json").read_text())["status"] == "finished"


def test_a_run_that_is_refused_for_another_reason_leaves_no_folder(small_run, tmp_path, capsys):
    status, _, err = run(train.main, [*small_run, "--dataset=none"], capsys)
    assert status == 2 and not (tmp_path / "run").exists()
    one_line(err, "no prepared data")


@pytest.mark.parametrize("script", ["shakespeare_char", "shakespeare", "fineweb"])
def test_two_preparations_of_one_folder(script, tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be\n" * 100)
    option = "source" if script == "fineweb" else "input"
    with locks.held(tmp_path / "data", "taken"):
        status, _, err = ended(f"data.{script}.prepare", [f"--{option}={tmp_path / 'text.txt'}", f"--out_dir={tmp_path / 'data'}"])
    assert status == 2
    one_line(err, "another process is preparing data there")


def test_two_analyses_into_one_folder(small_run, tmp_path, capsys):
    with locks.held(tmp_path, "taken", ".report.lock"):
        status, _, err = run(analyze_representations.main, [tmp_path / "run", "--out", tmp_path / "report"], capsys)
    assert status == 2
    one_line(err, "another process is writing an analysis there")


def test_two_summaries_into_one_folder(tmp_path, capsys):
    results = os.path.join(ROOT, "results", "shakespeare_lr")
    with locks.held(tmp_path / "summary", "taken"):
        status, _, err = run(summarize_sweep.main, [results, "--out", tmp_path / "summary"], capsys)
    assert status == 2
    one_line(err, "another process is writing a summary there")
    (tmp_path / "config.py").write_text("")
    status, _, err = run(summarize_sweep.main, [results, "--out", tmp_path], capsys)
    assert status == 2 and os.listdir(tmp_path) == ["config.py"]
    one_line(err, "is not empty and holds no summary (there is config.py)")


def test_what_a_killed_preparation_had_begun_is_removed_and_foreign_data_are_not(tmp_path):
    for name in (".train.bin.12.tmp", ".meta.json.12.old", "notes.txt"):
        (tmp_path / name).write_text("x")
    with sources.preparing(str(tmp_path)):
        assert sorted(os.listdir(tmp_path)) == [".lock", "notes.txt"]
    (tmp_path / "val.bin").write_text("x")
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="val.bin"), sources.preparing(str(tmp_path)):
        pass
    assert files_of(tmp_path) == before
