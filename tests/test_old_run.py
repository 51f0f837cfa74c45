"""A run of an earlier version (commit 8e080af, of 27 files at the top level) goes on, and is what it would have been there."""
import json
import pathlib
import shutil

import pytest
from running import ROOT, one_line, records, run

import plot_runs
import sample
import train

OLD = pathlib.Path(ROOT) / "tests" / "old_run"  # model 'mixed', Muon, dropout: 4 of 8 steps, on the text of conftest.data_dir
# its losses there, had it gone on: of steps 4 to 7, and of the evaluation at 8
LOSSES = [3.5551304817199707, 3.5591940879821777, 3.5428061485290527, 3.5557501316070557]
VAL_LOSS = 3.537543773651123


@pytest.fixture
def old_run(tmp_path):
    shutil.copytree(OLD, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_of_an_earlier_version_is_resumed(old_run, data_dir, tmp_path, capsys):
    config = json.loads((old_run / "config.json").read_text())
    keys = ("model", "optimizer", "dataset", "n_layer", "n_head", "n_embd", "block_size", "batch_size", "dropout", "warmup_iters",
            "lr_decay_iters", "eval_interval", "eval_iters", "log_interval", "device", "dtype", "compile", "threads",
            "tensorboard_log")
    args = [f"--{key}={config[key]}" for key in keys] + [f"--data_dir={data_dir}", f"--out_dir={old_run}", "--max_iters=8"]
    status, _, err = run(train.main, [*args, "--init_from=resume"], capsys)
    assert status == 2  # a default that is another one since has to be said
    before = ["--max_distance=None", "--curvature_mode=random"]
    one_line(err, "max_distance was None there and is 1.5 now", "curvature_mode was 'random' there and is 'fixed' now", *before)
    status, out, _ = run(train.main, [*args, "--init_from=resume", *before], capsys)
    assert status == 0 and "resumed from step 4" in out
    assert [r["loss"] for r in records(old_run) if r["step"] >= 4 and "loss" in r] == pytest.approx(LOSSES, abs=2e-4)
    assert json.loads((old_run / "summary.json").read_text())["val_loss"] == pytest.approx(VAL_LOSS, abs=2e-4)


def test_a_run_of_an_earlier_version_is_sampled_and_plotted(old_run, tmp_path, capsys):
    for name in ("last", "best"):
        assert run(sample.main, [f"--out_dir={old_run}", f"--checkpoint={name}", "--max_new_tokens=3", "--device=cpu"], capsys)[0] == 0
    status, out, _ = run(plot_runs.main, [old_run, f"--out={tmp_path / 'x.png'}"], capsys)
    assert status == 0 and "3.5479" in out
