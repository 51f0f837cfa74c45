"""Runs of train.py and sample.py: what they leave, resume, divergence, and what bad input gets.

Most call main() in this process, which exits through SystemExit as the script does; signals, limits and resume use real
processes.
"""
import contextlib
import errno
import importlib.util
import io
import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import wait_for_step, write_dataset
from safetensors.torch import load_file, save_file

import model
import model_baseline
import models
import sample
import train
from common.errors import UserError, exit_cleanly
from training import checkpoint, diagnose
from training.optimizer import make_optimizers, parameter_groups

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIXED = ["--model=mixed"]


def run(main, args, capsys):
    """(exit status, stdout, stderr) of a script's main."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in args])
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def process(args, **kwargs):
    return subprocess.run([sys.executable, *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=300, **kwargs)


def records(out_dir):
    return [json.loads(line) for line in (pathlib.Path(out_dir) / "metrics.jsonl").read_text().splitlines()]


def one_line(err, *parts):
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for part in parts:
        assert part in lines[0], (part, lines[0])


# ----------------------------------------------------------------------------------------------------------------------
# what a run leaves

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


# ----------------------------------------------------------------------------------------------------------------------
# resume, signals

@pytest.mark.parametrize("arm", [["--dropout=0.1"], MIXED + ["--optimizer=muon"]])
def test_a_resumed_run_is_the_run_that_was_never_stopped(arm, small_run, tmp_path, capsys):
    """Bit for bit, in another process, dropout's random numbers included."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    args = [*small_run, *arm, "--lr_decay_iters=12"]
    assert run(train.main, args + [f"--out_dir={whole}"], capsys)[0] == 0
    assert run(train.main, args + [f"--out_dir={parts}", "--max_iters=6"], capsys)[0] == 0
    done = process(["train.py", *args, f"--out_dir={parts}", "--init_from=resume"], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "resumed from step 6" in done.stdout, done.stderr
    keep = ("step", "loss", "val_loss", "grad_norm", "lr")
    a, b = ([{k: r[k] for k in keep if k in r} for r in records(d)] for d in (whole, parts))
    assert a == b
    first, second = (load_file(d / "ckpt" / "last" / "model.safetensors") for d in (whole, parts))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_run_killed_twenty_times_is_the_run_that_was_never_killed(small_run, tmp_path, capsys):
    """SIGKILL at random moments of training and saving, each time resumed in a new process. Bit for bit."""
    args = [*small_run, *MIXED, "--dropout=0.1", "--optimizer=muon", "--max_iters=120", "--eval_interval=40",
            "--save_interval=3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(train.main, args + [f"--out_dir={whole}"], capsys)[0] == 0
    # 20 processes of train.py take a minute to import torch: one process imports it and forks a child for each start
    script = """if True:
        import os, random, signal, sys, time
        sys.path.insert(0, ".")
        import torch._dynamo  # which the optimizers import at their first step
        import train
        from training import checkpoint
        out_dir, chance, found = sys.argv[1], random.Random(5), []
        def lines():
            try:
                with open(out_dir + "/metrics.jsonl") as f:
                    return f.read().count("\\n")
            except FileNotFoundError:
                return 0
        for kill in range(21):
            child = os.fork()
            if not child:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                train.main(sys.argv[2:] + ["--out_dir=" + out_dir, "--init_from=auto"])
            if kill < 20:
                # after some steps, at any moment of a step, an evaluation or a checkpoint; once before anything is written
                more = lines() + chance.randrange(12) if kill else -1
                while lines() < more:
                    time.sleep(0.001)
                time.sleep(chance.uniform(0, 0.03))
                os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if checkpoint.exists(out_dir, "last"):
                found.append(checkpoint.load_state(checkpoint.folder(out_dir, "last"))["step"])
        sys.exit(f"status {status}, {len(set(found))} places")
        """
    done = process(["-c", script, parts, *args], env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stderr.startswith("status 0, "), done.stderr
    assert int(done.stderr.split()[2]) >= 5, done.stderr  # it was killed all along the way
    assert [{k: r[k] for k in ("step", "loss", "val_loss", "grad_norm") if k in r} for r in records(parts)] == \
        [{k: r[k] for k in ("step", "loss", "val_loss", "grad_norm") if k in r} for r in records(whole)]
    for name in ("last", "best"):
        first, second = (load_file(d / "ckpt" / name / "model.safetensors") for d in (whole, parts))
        assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("extra", [["--activation_checkpointing=True", "--dtype=bfloat16"], ["--dtype=float16"]])
def test_resume_with_low_precision_and_recomputed_activations(extra, small_run, tmp_path, capsys):
    """Bit for bit, the scaler of float16 included: its scale grows at its own pace."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    args = [*small_run, *MIXED, *extra, "--dropout=0.1", "--lr_decay_iters=12"]
    assert run(train.main, args + [f"--out_dir={whole}"], capsys)[0] == 0
    assert run(train.main, args + [f"--out_dir={parts}", "--max_iters=6"], capsys)[0] == 0
    assert run(train.main, args + [f"--out_dir={parts}", "--init_from=resume"], capsys)[0] == 0
    states = [checkpoint.load_state(d / "ckpt" / "last") for d in (whole, parts)]
    assert states[0]["scaler"] == states[1]["scaler"] and bool(states[0]["scaler"]) == ("--dtype=float16" in extra)
    first, second = (load_file(d / "ckpt" / "last" / "model.safetensors") for d in (whole, parts))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_recomputing_activations_changes_nothing(small_run, tmp_path, capsys):
    for arm in (["--dropout=0.2"], [*MIXED, "--dropout=0.2"]):
        runs = []
        for value in (True, False):
            out_dir = tmp_path / f"{len(arm)}{value}"
            assert run(train.main, [*small_run, *arm, f"--activation_checkpointing={value}", f"--out_dir={out_dir}"],
                       capsys)[0] == 0
            runs.append([r.get("loss") for r in records(out_dir)])
        assert runs[0] == runs[1]


def test_a_run_killed_before_its_first_checkpoint_starts_again(small_run, tmp_path, capsys):
    assert run(train.main, small_run + ["--init_from=auto"], capsys)[0] == 0  # nothing there: a new run
    shutil.rmtree(tmp_path / "run" / "ckpt")
    status, out, _ = run(train.main, small_run + ["--init_from=resume"], capsys)
    assert status == 0 and "no checkpoint yet" in out
    assert [r["step"] for r in records(tmp_path / "run")] == sorted([*range(12), 0, 6, 12])


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_damaged_or_missing_last_checkpoint_never_begins_a_run_again(small_run, tmp_path, capsys):
    """Only where no checkpoint was ever completed does it begin again."""
    out_dir, kept = tmp_path / "run", tmp_path / "kept"
    assert run(train.main, small_run, capsys)[0] == 0
    shutil.copytree(out_dir, kept)
    last, away = out_dir / "ckpt" / "last", tmp_path / "away"

    def a_folder():
        (last / "model.safetensors").unlink()
        (last / "model.safetensors").mkdir()

    def a_link_to_nowhere():
        (out_dir / "ckpt").rename(away)
        (out_dir / "ckpt").symlink_to(tmp_path / "unmounted")
    for damage, part in ((lambda: (last / "model.safetensors").unlink(), "last/model.safetensors is missing"),
                         (lambda: (last / "state.pt").unlink(), "last/state.pt is missing"),
                         (a_folder, "last/model.safetensors: is a folder"), (lambda: shutil.rmtree(last), "last is gone"),
                         (a_link_to_nowhere, "ckpt is a link to"),
                         (lambda: (last.rename(away), last.symlink_to(tmp_path / "unmounted")), "model.safetensors is missing")):
        shutil.rmtree(out_dir)
        shutil.copytree(kept, out_dir)
        shutil.rmtree(away, ignore_errors=True)
        damage()
        before = files_of(out_dir)
        for how in ("resume", "auto"):
            status, _, err = run(train.main, small_run + [f"--init_from={how}", "--max_iters=14"], capsys)
            assert status == 2, part
            one_line(err, part)
        assert files_of(out_dir) == before
    shutil.rmtree(out_dir)
    shutil.copytree(kept, out_dir)
    last.rename(last.with_name("last.old"))  # killed between two renames
    assert "resumed from step 12" in run(train.main, small_run + ["--init_from=resume", "--max_iters=14"], capsys)[1]
    shutil.rmtree(out_dir / "ckpt" / "best")
    last.rename(last.with_name("last.new"))  # killed in its first save
    assert "no checkpoint yet" in run(train.main, small_run + ["--init_from=resume"], capsys)[1]


@pytest.mark.parametrize("steps", [0, 6, 12])
def test_a_run_killed_between_last_and_best_has_both_when_it_is_resumed(steps, small_run, tmp_path, capsys, monkeypatch):
    """In its first save, its second and its third: the best weights are those of the run that was never killed."""
    args, whole, parts = [*small_run, f"--max_iters={steps}", "--learning_rate=1e-2"], tmp_path / "whole", tmp_path / "run"
    saved, save = [], checkpoint.save
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", lambda *what: (saved.append(what[1]), save(*what)))
        assert run(train.main, args + [f"--out_dir={whole}"], capsys)[0] == 0
    assert saved == ["last", "best"] * (1 + steps // 6)

    class Killed(BaseException):
        pass

    def save_or_die(*what):
        saved.pop()
        if not saved:
            raise Killed
        save(*what)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(checkpoint, "save", save_or_die)
        run(train.main, args, capsys)
    assert run(train.main, args + ["--init_from=auto"], capsys)[0] == 0
    for name in ("last", "best"):
        first, second = (load_file(d / "ckpt" / name / "model.safetensors") for d in (whole, parts))
        assert all(torch.equal(first[k], second[k]) for k in first)
        states = [checkpoint.load_state(d / "ckpt" / name) for d in (whole, parts)]
        assert states[0]["step"] == states[1]["step"] == steps and states[0]["best"] == states[1]["best"]


def test_a_budget_of_seconds_ends_the_run_with_an_evaluation(small_run, tmp_path, capsys):
    assert run(train.main, small_run + ["--max_iters=100000", "--eval_interval=100000", "--max_seconds=0.5"], capsys)[0] == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and 0.5 <= summary["train_seconds"] < 5 and summary["step"] < 100000
    assert records(tmp_path / "run")[-1]["val_loss"] == summary["val_loss"]


def started(args):
    """A training process, given back when it has done some steps."""
    child = subprocess.Popen([sys.executable, "train.py", *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    out_dir = next(a for a in args if a.startswith("--out_dir=")).partition("=")[2]
    wait_for_step(out_dir, 5, child)
    return child


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])  # SIGUSR1: test_parallel.py
def test_a_signal_saves_and_says_how_to_go_on(name, small_run, tmp_path):
    with started([*small_run, "--max_iters=1000000", "--eval_interval=100000"]) as child:
        child.send_signal(getattr(signal, name))
        rest = child.stdout.read()
        assert child.wait() == 0
    assert "--init_from=resume" in rest and name in rest
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"
    assert checkpoint.load_state(tmp_path / "run" / "ckpt" / "last")["step"] >= 6


def test_an_evaluation_at_the_step_of_the_resumed_checkpoint_keeps_the_best_model(small_run, tmp_path, capsys, monkeypatch):
    """Stopped at step 1, where there was no evaluation, and resumed to end there: that evaluation is the best one."""
    args = [*small_run, "--eval_interval=100"]
    with monkeypatch.context() as patched:
        patched.setattr(train, "Stop", lambda: SimpleNamespace(signal="SIGTERM"))
        assert run(train.main, [*args, "--max_iters=2"], capsys)[0] == 0
    assert checkpoint.load_state(tmp_path / "run" / "ckpt" / "best")["step"] == 0
    assert run(train.main, [*args, "--max_iters=1", "--init_from=resume"], capsys)[0] == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["best_step"] == 1
    assert checkpoint.load_state(tmp_path / "run" / "ckpt" / "best")["step"] == 1


@pytest.mark.parametrize("how", ["cut", "swapped"])
def test_data_that_change_under_a_run_stop_it_with_one_line(how, small_run, data_dir, tmp_path):
    """Cut short, the mapped file would kill the process with SIGBUS."""
    path = data_dir / "words" / "train.bin"
    with started([*small_run, "--max_iters=1000000", "--eval_interval=100000", "--save_interval=2"]) as child:
        if how == "cut":
            os.truncate(path, 64)
        else:
            (tmp_path / "other").write_bytes(path.read_bytes()[::-1])
            os.replace(tmp_path / "other", path)
        _, err = child.communicate()
        assert child.returncode == 2
    one_line(err, "train.bin was changed or removed while this run reads it")
    assert checkpoint.load_state(tmp_path / "run" / "ckpt" / "last")["step"] >= 4


def test_resume_refuses_another_model_and_other_data(small_run, capsys):
    assert run(train.main, small_run + MIXED, capsys)[0] == 0
    for change, key in ((["--n_embd=32"], "n_embd"), (["--curvature=0.2"], "curvature"), (["--seed=9"], "seed"),
                        (["--optimizer=muon"], "optimizer"), (["--batch_size=3"], "batch_size was 4")):
        status, _, err = run(train.main, small_run + MIXED + change + ["--init_from=resume"], capsys)
        assert status == 2
        one_line(err, "cannot resume", key)


# ----------------------------------------------------------------------------------------------------------------------
# divergence

def test_a_nan_stops_the_run_with_status_3_and_names_block_and_operation(small_run, tmp_path, capsys, monkeypatch):
    """A NaN that the second block's MLP makes at step 4."""
    build = models.build

    def sabotaged(name, config, device_type):
        model = build(name, config, device_type)
        calls = []
        gelu = torch.nn.functional.gelu

        def mlp_forward(x, state=None):
            calls.append(1)
            h = gelu(mlp.c_fc(x))
            return mlp.c_proj(torch.log(h.abs() * 0 - 1) if model.training and len(calls) > 4 else h)
        mlp = model.transformer.h[1].mlp
        mlp.forward = mlp_forward
        return model
    monkeypatch.setattr(models, "build", sabotaged)
    status, _, err = run(train.main, small_run + MIXED + ["--eval_interval=1000"], capsys)
    assert status == 3
    one_line(err, "diverged", "block 1, mlp", "log")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "diverged" and "block 1" in summary["where"]


@pytest.mark.parametrize("arm", [[], MIXED])
def test_a_nan_in_an_evaluation_names_block_and_operation(arm, small_run, tmp_path, capsys):
    status, _, err = run(train.main, small_run + arm + ["--learning_rate=1e30", "--min_lr=0", "--grad_clip=0", "--eval_interval=1"],
                         capsys)
    assert status == 3
    line = next(line for line in err.splitlines() if line.startswith("error: diverged"))
    assert "in the evaluation; the first NaN or Inf is in block 0" in line and "forward)" in line
    where = json.loads((tmp_path / "run" / "summary.json").read_text())["where"]
    assert line.endswith(where)


def test_a_nan_of_the_backward_pass_is_located(tokens):
    torch.manual_seed(0)
    model = models.build("baseline", models.CONFIGS["baseline"](vocab_size=37, block_size=12, n_layer=3, n_head=2, n_embd=8))
    block = model.transformer.h[2]
    forward = block.attn.forward
    # sqrt at 0: finite forward, infinite slope
    block.attn.forward = lambda x, state=None: forward(x, state) + torch.sqrt((x - x.detach()).square())
    where = diagnose.first_non_finite(model, [tokens], lambda: torch.autocast("cpu", enabled=False))
    assert where.startswith("block 2, attn") and "backward" in where
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("name, method", [("mixed", "project_entry"), ("mixed", "limit"), ("controls", "bound")])
def test_what_a_block_does_outside_of_its_forward_pass_is_its(name, method, tokens, monkeypatch):
    options = dict(control="bound") if name == "controls" else {}
    model = models.build(name, models.CONFIGS[name](vocab_size=37, block_size=12, n_layer=2, n_head=2, n_embd=8, **options))
    block = model.transformer.h[0]
    good = getattr(type(block), method)

    def bad(self, *args):
        out = good(self, *args)
        return out + torch.log(out - out) if self is block else out
    monkeypatch.setattr(type(block), method, bad)
    where = diagnose.first_non_finite(model, [tokens], lambda: torch.autocast("cpu", enabled=False))
    assert where.startswith("block 0: log"), where
    assert method not in vars(block)


def test_a_finite_step_is_reported_as_such_and_a_bad_parameter_by_name(tokens):
    model = models.build("mixed", models.CONFIGS["mixed"](vocab_size=37, block_size=12, n_layer=1, n_head=2, n_embd=8))
    plain = lambda: torch.autocast("cpu", enabled=False)
    assert "gave finite numbers" in diagnose.first_non_finite(model, [tokens], plain)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = float("inf")
    assert "block 0, mlp.c_fc.weight" in diagnose.first_non_finite(model, [tokens], plain)


def test_a_huge_learning_rate_never_ends_in_a_traceback(small_run, capsys):
    status, _, err = run(train.main, small_run + ["--learning_rate=1e30", "--min_lr=0", "--grad_clip=0"], capsys)
    assert status in (0, 3)
    if status == 3:
        one_line(err, "diverged")


# ----------------------------------------------------------------------------------------------------------------------
# bad input

def test_a_directory_that_holds_a_run_is_not_overwritten(small_run, tmp_path, capsys):
    assert run(train.main, small_run, capsys)[0] == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    status, _, err = run(train.main, small_run, capsys)
    assert status == 2
    one_line(err, "holds a run already", "--overwrite=True")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert run(train.main, small_run + ["--overwrite=True"], capsys)[0] == 0


@pytest.mark.parametrize("args, parts", [
    (["--init_from=resume", "--batch_size=8", "--learning_rate=0.5"], ["batch_size was 4"]),
    (["--init_from=resume", "--n_embd=32"], ["n_embd was 16"]),
    (["--init_from=resume", "--max_iters=3"], ["at step 12 already", "max_iters = 3"]),
    (["--overwrite=True", "--wandb_log=True"], ["pip install wandb"]),
])
def test_what_is_refused_changes_no_file_of_the_run(args, parts, small_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(train.main, small_run, capsys)[0] == 0
    before = files_of(tmp_path / "run")
    status, _, err = run(train.main, small_run + args, capsys)
    assert status == 2
    one_line(err, *parts)
    assert files_of(tmp_path / "run") == before


def test_looking_at_a_run_changes_no_file_of_it(small_run, tmp_path, capsys):
    assert run(train.main, small_run, capsys)[0] == 0
    before = files_of(tmp_path / "run")
    status, out, _ = run(train.main, small_run + ["--init_from=resume", "--eval_only=True"], capsys)
    assert status == 0 and "val loss" in out
    assert files_of(tmp_path / "run") == before


def test_no_run_inherits_the_checkpoints_of_another(small_run, tmp_path, capsys):
    """Overwritten where ckpt is a link to another disk; and where config.json is gone."""
    out_dir, disk = tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    out_dir.mkdir()
    (out_dir / "ckpt").symlink_to(disk)
    assert run(train.main, small_run, capsys)[0] == 0
    assert (disk / "last").is_dir()
    assert run(train.main, small_run + ["--overwrite=True", "--seed=2", "--max_iters=0"], capsys)[0] == 0
    assert all(checkpoint.load_state(disk / name)["step"] == 0 for name in ("last", "best"))
    assert sorted(p.name for p in disk.iterdir()) == ["best", "last"]
    assert run(train.main, small_run + ["--overwrite=True"], capsys)[0] == 0
    (out_dir / "config.json").unlink()
    for how in ("auto", "scratch"):
        status, _, err = run(train.main, small_run + [f"--init_from={how}", "--seed=2"], capsys)
        assert status == 2
        one_line(err, "holds checkpoints of a run", "--overwrite=True")


def test_a_finished_budget_of_seconds_stays_finished(small_run, tmp_path, capsys):
    args = small_run + ["--max_iters=100000", "--eval_interval=100000", "--max_seconds=0.05", "--init_from=auto"]
    steps = []
    for _ in range(2):
        assert run(train.main, args, capsys)[0] == 0
        steps.append(json.loads((tmp_path / "run" / "summary.json").read_text())["step"])
    assert steps[0] == steps[1]


def test_odd_files_of_a_run_get_one_line_or_are_read_over(small_run, tmp_path, capsys):
    assert run(train.main, small_run, capsys)[0] == 0
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as f:
        f.write(b"3\n{}\n\xff\xfe{\n")
    assert run(train.main, small_run + ["--init_from=resume", "--max_iters=14"], capsys)[0] == 0
    assert records(tmp_path / "run")[-1]["step"] == 14
    state = tmp_path / "run" / "ckpt" / "last" / "state.pt"
    torch.save({"step": 3}, state)
    one_line(run(train.main, small_run + ["--init_from=resume"], capsys)[2], "state.pt", "has no 'optimizers'")
    (tmp_path / "run" / "config.json").write_text("null")
    one_line(run(train.main, small_run + ["--init_from=resume"], capsys)[2], "config.json is damaged")


def test_a_damaged_or_foreign_state_is_refused_before_the_optimizer_reads_it(small_run, tmp_path, capsys):
    assert run(train.main, small_run, capsys)[0] == 0
    assert run(train.main, small_run + ["--n_embd=8", f"--out_dir={tmp_path / 'other'}"], capsys)[0] == 0
    path, resume = tmp_path / "run" / "ckpt" / "last" / "state.pt", small_run + ["--init_from=resume", "--max_iters=14"]
    good = torch.load(path)
    name = next(iter(good["optimizers"]))

    def moments(**change):
        return {**good, "optimizers": {**good["optimizers"], name: {**good["optimizers"][name], **change}}}
    other = torch.load(tmp_path / "other" / "ckpt" / "last" / "state.pt")
    nan = torch.full_like(good["optimizers"][name]["exp_avg"], float("nan"))
    for state, part in ((other, "the parameter's shape"), ({**good, "step": "x"}, "step = 'x'"), ({**good, "step": -3}, "step = -3"),
                        ({**good, "best": None}, "best = None"), ({**good, "seconds": None}, "seconds = None"),
                        ({**good, "optimizers": []}, "optimizers = []"), (moments(exp_avg=nan), "a NaN or an Inf"),
                        (moments(exp_avg=3), "the parameter's shape"), (moments(more=nan), "another optimizer's"),
                        ({**good, "optimizers": {**good["optimizers"], name: 3}}, "another optimizer's")):
        torch.save(state, path)
        status, _, err = run(train.main, resume, capsys)
        assert status == 2, part
        one_line(err, part)
    torch.save(good, path)
    whole = path.read_bytes()
    number = good["optimizers"][name]["exp_avg"].numpy().tobytes()[-4:]
    assert number in whole
    place = whole.index(number)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
    one_line(run(train.main, resume, capsys)[2], "damaged", "checksum")
    path.write_bytes(whole)
    weights = path.with_name("model.safetensors")
    tensors = load_file(weights)
    key = next(iter(tensors))
    tensors[key].view(-1)[0] = float("nan")
    save_file(tensors, weights)
    status, _, err = run(train.main, resume, capsys)
    assert status == 2
    one_line(err, "damaged", key, "a NaN or an Inf")


def test_a_float32_run_goes_on_in_float16(small_run, capsys):
    assert run(train.main, small_run, capsys)[0] == 0
    assert run(train.main, small_run + ["--init_from=resume", "--dtype=float16", "--max_iters=14"], capsys)[0] == 0


def test_a_float16_step_with_infinite_gradients_is_skipped_by_every_optimizer(small_run, tmp_path, capsys, monkeypatch):
    """And such a run, of which Muon has no state yet, can be resumed."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kwargs: scaler(*args, init_scale=2.0 ** 40, **kwargs))
    args = [*small_run, *MIXED, "--optimizer=muon", "--dtype=float16", "--max_iters=1"]
    assert run(train.main, args, capsys)[0] == 0
    weights = load_file(tmp_path / "run" / "ckpt" / "last" / "model.safetensors")
    torch.manual_seed(1337)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    start = models.build("mixed", models.config_from_dict("mixed", config))
    assert all(torch.equal(weights[name], p) for name, p in start.named_parameters())
    assert run(train.main, args + ["--init_from=resume", "--max_iters=2"], capsys)[0] == 0


def test_weights_with_a_nan_never_replace_a_checkpoint(small_run, tmp_path, capsys):
    args = small_run + ["--save_interval=1", "--eval_interval=100", "--warmup_iters=0", "--learning_rate=1e38", "--min_lr=1"]
    status, _, err = run(train.main, args, capsys)
    assert status == 3
    one_line(err, "diverged at step")
    folder = tmp_path / "run" / "ckpt" / "last" / "model.safetensors"
    assert not folder.exists() or all(torch.isfinite(w).all() for w in load_file(folder).values())


@pytest.mark.parametrize("args, parts", [
    (["--dataset=nothing"], ["no prepared data"]),
    (["--block_size=5000"], ["block_size = 5000", "lower block_size"]),
    (["--device=tpu9"], ["device = 'tpu9'"]),
    (["--device=cuda:77"], ["not available"]),
    (["--parallel=fsdp"], ["torchrun --nproc-per-node"]),
    (["--save_interval=0"], ["save_interval = 0"]),
    (["--seed=99999999999999999999"], ["seed", "between -2^63 and 2^63"]),
    (["--optimizer=muon", "--muon_ns_steps=100"], ["muon_ns_steps", "less than 100"]),
    (["--overwrite=True", "--init_from=auto"], ["overwrite = True", "auto"]),
    (["--threads=3000000000"], ["threads", "less than"]),
    (MIXED + ["--curvature=1e300"], ["curvature", "1e+30"]),
    (MIXED + ["--reference=window", "--reference_window=" + "9" * 23], ["reference_window"]),
    (["--out_dir="], ["out_dir is empty"]),
    (["--init_from=resume"], ["no such run"]),
    (["--wandb_log=True"], ["pip install wandb"]),
])
def test_bad_options_get_one_line_and_leave_nothing(args, parts, small_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, err = run(train.main, small_run + args, capsys)
    assert status == 2
    one_line(err, *parts)
    assert not (tmp_path / "run").exists()


def test_a_token_outside_the_vocabulary_is_named(small_run, data_dir, capsys):
    write_dataset(data_dir / "words", [1, 2, 60000] * 100, [1, 2] * 100)
    status, _, err = run(train.main, small_run, capsys)
    assert status == 2
    one_line(err, "token 60000", "outside the vocabulary")


def test_data_that_are_refused_leave_no_run(small_run, data_dir, tmp_path, capsys):
    path = data_dir / "words" / "val.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\xff\xff")  # the last token: in no window of the first steps
    status, _, err = run(train.main, small_run, capsys)
    assert status == 2
    one_line(err, "65535", "outside the vocabulary")
    assert not (tmp_path / "run").exists()
    path.write_bytes(whole)
    assert run(train.main, small_run, capsys)[0] == 0  # the same command


class FakeWandb:
    """Stands for the package: its init fails, or records what it gets."""

    def __init__(self, error=None):
        self.error, self.logged, self.ended = error, [], False

    def init(self, **how):
        if self.error:
            raise self.error
        self.how = how
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.ended = True


def test_weights_and_biases_gets_the_numbers_or_nothing_is_touched(small_run, tmp_path, capsys, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert run(train.main, small_run + ["--wandb_log=True"], capsys)[0] == 0
    assert fake.how["name"] == "run" and fake.how["config"]["n_layer"] == 2 and fake.ended
    assert [(s, n["val_loss"]) for s, n in fake.logged if "val_loss" in n] == [
        (r["step"], r["val_loss"]) for r in records(tmp_path / "run") if "val_loss" in r]
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(RuntimeError("api_key not configured\nmore")))
    status, _, err = run(train.main, small_run + ["--wandb_log=True", "--overwrite=True"], capsys)
    assert status == 2
    one_line(err, "api_key not configured", "--wandb_log=False")
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*")) == before
    status, _, err = run(train.main, small_run + ["--wandb_log=True", f"--out_dir={tmp_path / 'new'}"], capsys)
    assert status == 2 and not (tmp_path / "new").exists()


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


def test_an_out_dir_that_cannot_be_written(small_run, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    status, _, err = run(train.main, small_run + [f"--out_dir={tmp_path / 'file' / 'run'}"], capsys)
    assert status == 2
    one_line(err, "file")


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


def test_a_full_disk_keeps_the_checkpoint_before(small_run, tmp_path):
    """RLIMIT_FSIZE stands for the disk: the second run's checkpoint does not fit."""
    args = ["train.py", *small_run]
    assert process(args).returncode == 0
    last = tmp_path / "run" / "ckpt" / "last" / "model.safetensors"
    before = last.read_bytes()
    limited = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
              "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); sys.argv = sys.argv[1:]; " \
              "runpy.run_path('train.py', run_name='__main__')"
    done = process(["-c", limited, *args, "--init_from=resume", "--max_iters=24"])
    assert done.returncode == 2, done.stderr
    assert "could not write the checkpoint" in done.stderr and "Traceback" not in done.stderr
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
    args = ["train.py", *small_run, "--tensorboard_log=True", f"--out_dir={small_disk / 'run'}"]
    done = process(args)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("error"))
    assert line.count("the disk is full") == 1 and str(small_disk / "run") in line and "untouched" not in line
    (small_disk / "other").unlink()
    if not room:
        assert not (small_disk / "run").exists()
        assert run(train.main, args[1:], capsys)[0] == 0


# ----------------------------------------------------------------------------------------------------------------------
# checkpoints and sampling

@pytest.fixture
def finished(small_run, tmp_path, capsys):
    assert run(train.main, small_run + MIXED, capsys)[0] == 0
    return tmp_path / "run"


def test_sample_writes_text_that_the_seed_decides(finished, tmp_path, capsys):
    args = [f"--out_dir={finished}", "--start=the king", "--max_new_tokens=40", "--device=cpu"]
    status, out, _ = run(sample.main, args + ["--num_samples=2"], capsys)
    assert status == 0 and out.startswith("the king") and out.count("the king") >= 2
    assert len(out) >= 2 * 48
    assert run(sample.main, args + ["--num_samples=2"], capsys)[1] == out
    assert run(sample.main, args + ["--num_samples=2", "--seed=2"], capsys)[1] != out
    (tmp_path / "prompt.txt").write_text("the king")
    assert run(sample.main, [args[0], f"--start=FILE:{tmp_path / 'prompt.txt'}", *args[2:], "--num_samples=2"],
               capsys)[1] == out


@pytest.mark.parametrize("args, parts", [
    (["--start="], ["prompt is empty"]),
    (["--start=FILE:/nowhere/x.txt"], ["no such file"]),
    (["--start=Ω"], ["not among the"]),
    (["--top_k=0"], ["top_k"]),
    (["--temperature=-1"], ["temperature"]),
    (["--seed=99999999999999999999999"], ["seed", "between -2^63 and 2^63"]),
    (["--checkpoint=first"], ["'best' | 'last'"]),
    (["--out_dir=/nowhere/run"], ["no such run"]),
])
def test_bad_sampling_options_get_one_line(args, parts, finished, capsys):
    status, _, err = run(sample.main, [f"--out_dir={finished}", "--device=cpu", *args], capsys)
    assert status == 2
    one_line(err, *parts)


def test_characters_that_the_output_cannot_show_are_question_marks(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))  # PYTHONIOENCODING=ascii
    with pytest.raises(SystemExit) as stop:
        exit_cleanly(lambda: print("caf\u00e9"))()
    assert raw.getvalue() == b"caf?\n" and stop.value.code == 0


def test_reading_a_run_of_the_kernels_says_that_it_is_computed_without_them(finished, capsys):
    args = [f"--out_dir={finished}", "--device=cpu", "--max_new_tokens=1"]
    assert run(sample.main, args, capsys)[2] == ""
    config = json.loads((finished / "config.json").read_text())
    (finished / "config.json").write_text(json.dumps({**config, "ops": "triton"}))
    status, _, err = run(sample.main, args, capsys)
    assert status == 0 and len(err.splitlines()) == 1
    assert "trained with ops = 'triton'" in err and "ops = 'torch' here" in err


def test_damaged_foreign_and_missing_checkpoints_get_one_line(finished, tmp_path, capsys):
    args = [f"--out_dir={finished}", "--device=cpu", "--max_new_tokens=1"]
    weights = finished / "ckpt" / "best" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:len(good) // 2])
    status, _, err = run(sample.main, args, capsys)
    assert status == 2
    one_line(err, "damaged")
    for byte in (len(good) - 1, len(good) - 4001):  # one bit of a weight
        weights.write_bytes(good[:byte] + bytes([good[byte] ^ 1]) + good[byte + 1:])
        one_line(run(sample.main, args, capsys)[2], "damaged", "checksum")
    tensors = load_file(finished / "ckpt" / "last" / "model.safetensors")
    name = "transformer.h.0.attn.c_attn.weight"
    save_file({**tensors, name: torch.zeros(3, 3)}, weights)
    one_line(run(sample.main, args, capsys)[2], "from another model", name)
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    one_line(run(sample.main, args, capsys)[2], "from another model", name)
    save_file({**tensors, "extra": torch.zeros(1)}, weights)
    one_line(run(sample.main, args, capsys)[2], "from another model", "extra")
    shutil.rmtree(weights.parent)
    one_line(run(sample.main, args, capsys)[2], "no checkpoint 'best'", "there is 'last'")
    config = json.loads((finished / "config.json").read_text())
    for key, value in (("n_embd", "16"), ("n_layer", 2.0), ("model", ["mixed"]), ("tokenizer", "char"), ("curvature", "x"),
                       ("reference", "foo"), ("n_head", None)):
        (finished / "config.json").write_text(json.dumps({**config, key: value}))
        status, _, err = run(sample.main, args, capsys)
        assert status == 2
        one_line(err, key)
    for text in ("{", "[" * 100_000):
        (finished / "config.json").write_text(text)
        one_line(run(sample.main, args, capsys)[2], "not JSON")


class Payload:
    def __reduce__(self):
        return os.system, ("touch hostile-was-here",)


def test_a_checkpoint_that_holds_code_does_not_run_it(finished, small_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(finished / "ckpt" / "last" / "state.pt", "wb") as f:
        pickle.dump(Payload(), f)
    status, _, err = run(train.main, small_run + MIXED + ["--init_from=resume"], capsys)
    assert status == 2
    one_line(err, "state.pt", "not safe to load")
    assert not (tmp_path / "hostile-was-here").exists()


def test_the_previous_checkpoint_survives_a_crash_between_the_renames(finished):
    target = finished / "ckpt" / "best"
    os.rename(target, str(target) + ".old")  # save() stopped right after its first rename
    model, _ = checkpoint.load_model(str(finished), "best")
    assert next(model.parameters()) is not None
