"""Runs of train.py without permission, and on disks that are full."""
import contextlib
import errno
import os
import shutil
import subprocess

import pytest
import torch
from running import ended, files_of, one_line, run
from safetensors.torch import load_file

import train
from training import checkpoint


@contextlib.contextmanager
def nobody():
    """Root may read and write everything; nobody may not. (Others than root: as they are.)"""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_files_without_permission_are_named_and_nothing_begins_again(small_run, tmp_path, capsys, monkeypatch):
    assert run(train.main, small_run, capsys)[0] == 0
    monkeypatch.chdir(tmp_path)  # the folders above it are root's
    tmp_path.chmod(0o755)
    args = [*small_run, "--data_dir=data", "--out_dir=run"]
    last = tmp_path / "run" / "ckpt" / "last"
    (last / "model.safetensors").chmod(0o644)
    (tmp_path / "run").chmod(0o777)
    for path, how, part in ((last / "model.safetensors", "--init_from=resume", "run/ckpt/last/model.safetensors: no permission"),
                            (last / "state.pt", "--init_from=resume", "run/ckpt/last/state.pt: no permission"),
                            (last.parent, "--init_from=resume", "run/ckpt/last: no permission"),
                            (last.parent, "--init_from=auto", "run/ckpt/last: no permission"),
                            (last, "--overwrite=True", "run/ckpt/last: no permission")):
        mode = path.stat().st_mode
        path.chmod(0o500 if path == last else 0)
        before = files_of(tmp_path / "run") if os.geteuid() == 0 else None
        with nobody():
            status, _, err = run(train.main, [*args, how], capsys)
        assert status == 2
        one_line(err, part)
        assert before is None or files_of(tmp_path / "run") == before
        path.chmod(mode)


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_from_the_start_is_named_and_has_no_run(small_run, tmp_path, capsys, monkeypatch):
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, function, full_disk)
            status, _, err = run(train.main, small_run, capsys)
        assert status == 2
        one_line(err, str(tmp_path / "run"), "the disk is full")
        assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_does_not_fit_is_said_to_leave_one_before_it_where_there_is_one(small_run, capsys, monkeypatch):
    for before in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "save_file", full_disk)
            status, _, err = run(train.main, small_run + ["--init_from=auto", "--max_iters=14"], capsys)
        assert status == 2
        one_line(err, "ckpt/last: the disk is full")
        assert ("the one before it is untouched" in err) == before
        assert run(train.main, small_run + ["--init_from=auto"], capsys)[0] == 0


def test_a_full_disk_keeps_the_checkpoint_before(small_run, tmp_path, capsys):
    """RLIMIT_FSIZE stands for the disk: the second run's checkpoint does not fit."""
    assert run(train.main, small_run, capsys)[0] == 0
    last = tmp_path / "run" / "ckpt" / "last" / "model.safetensors"
    before = last.read_bytes()
    status, _, err = ended("train", [*small_run, "--init_from=resume", "--max_iters=24"], largest_file=20000)
    assert status == 2, err
    assert "could not write the checkpoint" in err and "Traceback" not in err
    assert last.read_bytes() == before
    assert sorted(os.listdir(last.parent.parent)) == ["best", "last"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root (the test before this one limits file sizes instead)")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_full_and_then_has_room_again(small_run, small_disk, tmp_path, capsys):
    args, here, whole = [*small_run, "--lr_decay_iters=12"], f"--out_dir={small_disk / 'run'}", tmp_path / "whole"
    assert run(train.main, args + [f"--out_dir={whole}"], capsys)[0] == 0
    assert run(train.main, args + [here, "--max_iters=6"], capsys)[0] == 0
    last = small_disk / "run" / "ckpt" / "last" / "state.pt"
    before = last.read_bytes()
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(bytes(free - 24 * 1024))
    status, _, err = run(train.main, args + [here, "--init_from=resume"], capsys)
    assert status == 2
    one_line(err, "the disk is full", "untouched")
    assert last.read_bytes() == before
    (small_disk / "other").unlink()
    assert run(train.main, args + [here, "--init_from=resume"], capsys)[0] == 0
    first, second = (load_file(d / "ckpt" / "last" / "model.safetensors") for d in (whole, small_disk / "run"))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("room", [0, 12 * 1024])
def test_a_full_disk_at_the_start_leaves_no_run_and_no_traceback(room, small_run, small_disk, capsys):
    """With TensorBoard, whose thread meets the full disk by itself."""
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(bytes(free - room))
    args = [*small_run, "--tensorboard_log=True", f"--out_dir={small_disk / 'run'}"]
    status, _, err = ended("train", args)
    assert status == 2 and "Traceback" not in err, err
    line = next(line for line in err.splitlines() if line.startswith("error"))
    assert line.count("the disk is full") == 1 and str(small_disk / "run") in line and "untouched" not in line
    (small_disk / "other").unlink()
    if not room:
        assert not (small_disk / "run").exists()
        assert run(train.main, args, capsys)[0] == 0
