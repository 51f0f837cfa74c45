"""Runs of train.py that are stopped, killed or resumed: the end is that of the run that was never stopped."""
import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from running import MIXED, ended, files_of, one_line, process, records, run, started
from safetensors.torch import load_file

import train
from training import checkpoint


@pytest.mark.parametrize("arm", [["--dropout=0.1"], MIXED + ["--optimizer=muon"]])
def test_a_resumed_run_is_the_run_that_was_never_stopped(arm, small_run, tmp_path, capsys):
    """Bit for bit, in another process, dropout's random numbers included."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    args = [*small_run, *arm, "--lr_decay_iters=12"]
    assert run(train.main, args + [f"--out_dir={whole}"], capsys)[0] == 0
    assert run(train.main, args + [f"--out_dir={parts}", "--max_iters=6"], capsys)[0] == 0
    status, out, err = ended("train", [*args, f"--out_dir={parts}", "--init_from=resume"])
    assert status == 0 and "resumed from step 6" in out, err
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
                more = lines() + chance.randrange(8) if kill else -1
                while lines() < more and not os.path.exists(out_dir + "/summary.json"):  # where steps are quick it may have ended
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


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])  # SIGUSR1: test_parallel.py
def test_a_signal_saves_and_says_how_to_go_on(name, small_run, tmp_path):
    with started([*small_run, "--max_iters=1000000", "--eval_interval=100000"]) as child:
        child.send_signal(getattr(signal, name))
        rest, _ = child.communicate()
        assert child.returncode == 0
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
    """Were the file mapped into memory, cutting it short would kill the process with SIGBUS."""
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
