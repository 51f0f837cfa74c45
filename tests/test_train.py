"""Runs of train.py: what they leave, the schedule, the optimizers' groups, what depends on the machine.

Most tests of runs call main() in this process, which exits through SystemExit as the script does; signals, limits and resume use
real processes (running.py).
"""
import importlib.util
import json
import math
import os
import shutil
import time

import pytest
import torch
from running import MIXED, one_line, records, run

import model
import model_baseline
import models
import train
from common.errors import UserError
from training import checkpoint
from training.optimizer import make_optimizers, parameter_groups


@pytest.mark.parametrize("arm", [[], ["--token_shift=smear"], MIXED + ["--dynamic_curvature=True"],
                                 ["--optimizer=muon"], MIXED + ["--optimizer=muon", "--curvature_mode=tied"]])
def test_a_run_learns_and_leaves_its_directory(arm, small_run, tmp_path, capsys):
    status, out, _ = run(train.main, small_run + arm + ["--max_iters=40", "--learning_rate=1e-2"], capsys)
    assert status == 0 and "corpus: test text" in out
    folder = tmp_path / "run"
    assert {"config.json", "env.json", "metrics.jsonl", "summary.json", "ckpt"} <= set(os.listdir(folder))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["step"] == 40 and summary["tokens"] == 40 * 4 * 16
    lines = records(folder)
    evals, steps = [r for r in lines if "val_loss" in r], [r for r in lines if "loss" in r]
    assert [r["step"] for r in evals] == [0, 6, 12, 18, 24, 30, 36, 40]
    assert [r["step"] for r in steps] == list(range(40))
    assert {"tokens", "lr", "grad_norm", "dt", "tok_per_s"} <= set(steps[0])
    assert summary["val_loss"] == evals[-1]["val_loss"] < evals[0]["val_loss"] - 0.2
    assert ("geometry/block1/edge_share" in evals[0]) == ("--model=mixed" in arm)
    config = json.loads((folder / "config.json").read_text())
    assert config["learning_rate"] == 1e-2 and config["n_embd"] == 16
    model, _ = checkpoint.load_model(str(folder), "last")
    assert not model.training


def test_losses_are_said_in_bits_a_byte_where_the_bytes_are_known(small_run, data_dir, tmp_path, capsys):
    """So that runs on other tokens of one text compare."""
    assert "bits a byte" not in run(train.main, small_run, capsys)[1]
    path = data_dir / "words" / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "val_bytes": 5 * meta["val_tokens"]}))
    status, out, _ = run(train.main, [*small_run, "--overwrite=True"], capsys)
    loss = json.loads((tmp_path / "run" / "summary.json").read_text())["val_loss"]
    assert status == 0 and f"which is {loss / math.log(2) / 5:.4f} bits a byte of the validation text (5.000 bytes a token)" in out
    path.write_text(json.dumps({**meta, "val_bytes": "many"}))
    one_line(run(train.main, [*small_run, "--overwrite=True"], capsys)[2], "meta.json is damaged")


def test_tensorboard_has_the_same_numbers(small_run, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    assert run(train.main, small_run + ["--tensorboard_log=True"], capsys)[0] == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    expected = [r["val_loss"] for r in records(tmp_path / "run") if "val_loss" in r]
    assert [e.value for e in events.Scalars("val_loss")] == pytest.approx(expected)


def test_accumulation_gives_the_step_of_the_large_batch(small_run, tmp_path, capsys):
    losses = []
    for i, shape in enumerate((["--batch_size=4"], ["--batch_size=2", "--gradient_accumulation_steps=2"])):
        args = small_run + shape + [f"--out_dir={tmp_path / str(i)}", "--learning_rate=1e-2"]
        assert run(train.main, args, capsys)[0] == 0
        losses.append([r["loss"] for r in records(tmp_path / str(i)) if "loss" in r])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_bf16_autocast_trains(small_run, capsys):
    assert run(train.main, small_run + MIXED + ["--dtype=bfloat16"], capsys)[0] == 0


def test_the_target_loss_stops_the_run(small_run, tmp_path, capsys):
    args = small_run + ["--max_iters=200", "--learning_rate=1e-2", "--target_val_loss=3.0"]
    status, out, _ = run(train.main, args, capsys)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert status == 0 and "reached after" in out and summary["target_reached"]
    assert summary["val_loss"] <= 3.0 and summary["step"] < 200
    assert summary["target_tokens"] == summary["step"] * 64
    assert 0 < summary["target_seconds"] <= summary["train_seconds"]


def test_the_clock_stands_still_during_evaluation(small_run, tmp_path, capsys):
    began = time.time()
    run(train.main, small_run + ["--eval_iters=100000", "--eval_interval=1", "--max_iters=3"], capsys)
    wall, counted = time.time() - began, json.loads((tmp_path / "run" / "summary.json").read_text())["train_seconds"]
    assert sum(r["dt"] for r in records(tmp_path / "run") if "dt" in r) == pytest.approx(counted, rel=0.02)
    assert counted < wall


def test_learning_rate_schedule():
    config = train.TrainConfig(learning_rate=1.0, min_lr=0.1, warmup_iters=10, max_iters=100)
    lrs = [train.lr_at(s, config) for s in range(101)]
    assert lrs[0] == pytest.approx(1 / 11) and lrs[10] == 1.0 and lrs[100] == 0.1
    assert lrs[55] == pytest.approx(0.55) and all(a >= b for a, b in zip(lrs[10:], lrs[11:]))
    config.decay_lr = False
    assert train.lr_at(99, config) == 1.0


@pytest.mark.parametrize("name, options", [
    ("baseline", {}), ("baseline", dict(token_shift="smear")), ("mixed", dict(curvature_mode="fixed")),
    ("mixed", dict(dynamic_curvature=True, use_embedding_curvature=True)), ("mixed", dict(curvature_mode="tied"))])
def test_groups_cover_every_parameter_once_and_muon_takes_block_matrices_alone(name, options):
    model = models.build(name, models.CONFIGS[name](vocab_size=30, block_size=8, n_layer=2, n_head=2, n_embd=8, bias=True,
                                                    **options))
    groups = parameter_groups(model)
    assert all("curvature" in n for n, _ in groups["curvature"])
    assert bool(groups["curvature"]) == (name == "mixed" and options.get("curvature_mode") != "fixed")
    assert {n for n, _ in groups["embeddings"]} >= {"transformer.wte.weight", "transformer.wpe.weight"}
    config = train.TrainConfig(optimizer="muon", curvature_lr_mult=3.0, weight_decay=0.5)
    *adamw, muon = make_optimizers(model, config, "cpu")
    assert isinstance(muon, torch.optim.Muon) and len(adamw) == 1 + bool(groups["curvature"])
    taken = [p for g in muon.param_groups for p in g["params"]]
    assert {id(p) for p in taken} == {id(p) for _, p in groups["matrices"]} and all(p.dim() == 2 for p in taken)
    total = [p for o in (*adamw, muon) for g in o.param_groups for p in g["params"]]
    assert len(total) == len({id(p) for p in total}) == len(list(model.parameters()))
    for optimizer, group in ((o, g) for o in adamw for g in o.param_groups):
        curved = {id(p) for _, p in groups["curvature"]} >= {id(p) for p in group["params"]}
        assert curved == (optimizer is not adamw[0])
        assert group["lr"] == pytest.approx(config.learning_rate * (3.0 if curved else 1.0))
        assert group["weight_decay"] == (0.5 if group["params"][0] is model.lm_head.weight else 0.0)


def test_what_depends_on_the_machine(monkeypatch):
    assert train.pick_device("cpu") == "cpu" and train.pick_dtype("float16", "cpu") == "float16"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for cuda, mps, expected in ((True, True, "cuda:0"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert train.pick_device("auto") == expected
        if cuda:  # set_device() takes no device without a number
            assert [torch.cuda._utils._get_device_index(train.pick_device(d)) for d in ("auto", "cuda", "cuda:1")] == [0, 0, 1]
            with pytest.raises(UserError, match="cuda:2"):
                train.pick_device("cuda:2")
    for amx, avx, expected in ((True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert train.pick_dtype("auto", "cpu") == expected
    assert train.pick_dtype("auto", "mps") == "float32"
    assert [train.padded_vocabulary(n) for n in (65, 1024, 1025, 50257)] == [65, 1024, 1088, 50304]
    assert train.pick_compile("auto", "cpu", 1e16, 60)[0] and not train.pick_compile("auto", "cpu", 1e12, 60)[0]
    assert train.pick_compile("auto", "cpu", 5e13, 60, 0.15)[0] and not train.pick_compile("auto", "cpu", 5e13, 60)[0]
    assert not train.pick_compile("auto", "mps", 1e20, 1)[0] and train.pick_compile(True, "mps", 0, 1) == (True, "as asked")
    monkeypatch.setattr(shutil, "which", lambda name: name)
    if importlib.util.find_spec("triton"):  # the Shakespeare configs on a GPU: all arms in the same mode
        for kind in (model.GPT, model_baseline.GPT):
            assert train.pick_compile("auto", "cuda", 5.8e15, kind.compile_seconds, kind.compile_saving["cuda"])[0]
    monkeypatch.setattr(shutil, "which", lambda name: None if name.startswith("nix") else name)
    monkeypatch.setenv("CC", "nix")  # the one that is named, or none
    monkeypatch.setenv("CXX", "nix++")
    assert train.pick_compile("auto", "cuda", 1e20, 1)[1] == "it needs a C compiler: there is no nix"
    assert train.pick_compile("auto", "cpu", 1e20, 1) == (False, "it needs a C++ compiler: there is no nix++")
    with pytest.raises(UserError, match="C.. compiler"):
        train.pick_compile(True, "cpu", 1e20, 1)
