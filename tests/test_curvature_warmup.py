"""curvature_warmup, and arms of a sweep that begin with another arm's weights: a baseline that is converted step by step."""
import glob
import pathlib

import pytest
import torch
from conftest import TINY
from running import ended, one_line, records, run
from safetensors.torch import load_file
from test_sweep_file import runs_of

import models
import sweep
import train
from common.errors import UserError
from experiments.launchers import never
from training import checkpoint, start

GROWN = ["--model=mixed", "--curvature_mode=fixed", "--curvature=0.4", "--curvature_warmup=8"]


def build(name="mixed", **options):
    torch.manual_seed(1)
    return models.build(name, models.CONFIGS[name](**TINY, **options))


@pytest.mark.parametrize("options", [{}, dict(per_head_curvature=False), dict(dynamic_curvature=True, curvature=-3.0),
                                     dict(use_embedding_curvature=True)])
def test_c_grows_from_zero_to_its_value(options, tokens):
    options = {"curvature": 5.0, **options}
    grown, there = (build(curvature_mode="fixed", curvature_warmup=n, **options) for n in (4, 0))
    flat = build(curvature_mode="fixed", **{**options, "curvature": 0.0})
    assert torch.equal(grown(*tokens)[0], flat(*tokens)[0])
    for step in range(1, 7):
        grown.end_of_step(lambda x: x)
        share = min(1, step / 4)
        middle = build(curvature_mode="fixed", **{**options, "curvature": options["curvature"] * share})
        assert torch.allclose(grown(*tokens)[0], middle(*tokens)[0], atol=1e-6), step
    assert torch.allclose(grown(*tokens)[0], there(*tokens)[0], atol=1e-6)
    assert not torch.allclose(grown(*tokens)[0], flat(*tokens)[0], atol=1e-4)


def test_a_resumed_run_goes_on_with_its_c_bit_for_bit(small_run, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    args = [*small_run, *GROWN, "--lr_decay_iters=12"]
    assert run(train.main, args + [f"--out_dir={whole}"], capsys)[0] == 0
    assert run(train.main, args + [f"--out_dir={parts}", "--max_iters=6"], capsys)[0] == 0
    assert ended("train", [*args, f"--out_dir={parts}", "--init_from=resume"])[0] == 0
    first, second = (load_file(d / "ckpt" / "last" / "model.safetensors") for d in (whole, parts))
    assert all(torch.equal(first[k], second[k]) for k in first)
    measured = [r["geometry/block0/curvature"] for r in records(whole) if "geometry/block0/curvature" in r]
    assert measured == pytest.approx([0, 0.3, 0.4])  # after 0, 6 and 12 steps


@pytest.mark.parametrize("source", [dict(curvature_mode="fixed", curvature=3.0, curvature_warmup=2), dict(curvature_mode="parametric")])
def test_it_begins_at_zero_with_the_weights_of_another_run(source, tokens):
    """c of a run that has grown, or learned, is not this run's."""
    before, after = build(**source), build(curvature_mode="fixed", curvature=-1.0, curvature_warmup=4)
    for _ in range(3):
        before.end_of_step(lambda x: x)
    lines = start.take(start.Source("x", checkpoint.weights_of(before), {}, {}), after, {})
    flat = build(curvature_mode="fixed", curvature=0.0)
    assert torch.equal(after(*tokens)[0], flat(*tokens)[0]) and after.curvature_steps == 0
    assert "new here: " in "".join(lines) and "block0" not in "".join(lines)
    for step in range(1, 5):
        after.end_of_step(lambda x: x)
        assert torch.allclose(after.transformer.h[1].curvature.c, torch.tensor(-step / 4))


def test_what_it_does_not_go_with():
    for keys, said in ((dict(curvature_mode="random", curvature_warmup=3), "'fixed', not 'random'"),
                       (dict(curvature_warmup=-1), "at least 0")):
        with pytest.raises(UserError, match=said):
            models.CONFIGS["mixed"](**keys)


START = """
arms = {'half': dict(config='config/demo_baseline.py', max_iters=20),
        'converted': dict(config='config/demo_mixed.py', curvature_mode='fixed', curvature=0.1, curvature_warmup=10,
                          reference='origin', start='half', max_iters=20)}
"""


def test_an_arm_begins_with_the_weights_of_another(sweep_file, folder, capsys):
    path = sweep_file("budget = {}", arms=START)
    half, converted = runs_of(path, folder)
    assert converted.start == half and len({half.hash, converted.hash}) == 2 and converted.folder.endswith(converted.hash[:8])
    other = runs_of(sweep_file("budget = {}", arms=START.replace("curvature=0.1", "curvature=0.1, weight_decay=0.2")), folder)
    half_other = runs_of(sweep_file("budget = {}", arms=START.replace("py', max", "py', weight_decay=0.2, max")), folder)
    assert other[0].hash == half.hash and half_other[1].hash not in (converted.hash, other[1].hash)  # its start's are its own
    path = sweep_file("budget = {}", arms=START)
    status, out, err = run(sweep.main, [path, f"--out={folder}", "--jobs", "2", "--threads", "2"], capsys)
    assert status == 0, err
    assert "weights: " in pathlib.Path(glob.glob(f"{folder}/runs/converted*/log.txt")[0]).read_text()
    end, = (r["val_loss"] for r in records(half.folder) if r["step"] == 20 and "val_loss" in r)
    start, = (r["val_loss"] for r in records(converted.folder) if r["step"] == 0 and "val_loss" in r)
    assert start == pytest.approx(end, abs=1e-6)


def test_a_start_without_weights_is_told(sweep_file, folder, stub, capsys):
    path = sweep_file("budget = {}", seeds=[5], arms=START)  # which diverges
    status, out, err = run(stub, [path, f"--out={folder}"], capsys)
    assert status == 1 and "1 runs are left" in out and "no trained weights to begin with" in err
    assert not glob.glob(f"{folder}/runs/converted*")
    for change, said in ((("'half', max", "'nobody', max"), "there are half, converted"),
                         (("'half', max", "'converted', max"), "another arm"),
                         (("py', max_iters=20)", "py', max_iters=20, grid=dict(learning_rate=[1e-3, 1e-2]))"), "2 runs of seed 5")):
        status, _, err = run(stub, [sweep_file("budget = {}", seeds=[5], arms=START.replace(*change)), f"--out={folder}"], capsys)
        assert status == 2
        one_line(err, said)


def test_what_waits_for_a_run_that_is_not_needed_is_not_made(sweep_file, folder):
    half, converted = runs_of(sweep_file("budget = {}", arms=START), folder)
    for needed, expected in ((lambda run: False, False), (lambda run: run == half, True), (lambda run: run == converted, True)):
        assert never(converted, {}, needed) == expected
    assert never(converted, {half.hash: {"status": "diverged"}}, lambda run: False)
    assert not never(half, {}, lambda run: run == converted)
