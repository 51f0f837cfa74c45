"""What exists can be resumed, sampled, plotted, analysed and ablated, in every state that a run can be in: a table of states and
commands. What a command does in a state is an exit status and, where that is 2, a part of its one line."""
import json
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import wait_for_step
from forked import Forked
from running import MIXED, one_line, records, run

import ablate_curvature
import analyze_representations
import models
import plot_runs
import sample
import train
from training import checkpoint


class Killed(BaseException):
    """As kill -9: nothing that the run would do at its end is done."""


def killed_in_its_first_save(args, capsys, monkeypatch):
    def die(*what):
        raise Killed
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(checkpoint, "save", die)
        run(train.main, args, capsys)


def killed_later(args, capsys, monkeypatch):
    save, saved = checkpoint.save, []

    def save_or_die(*what):
        saved.append(what)
        if len(saved) > 3:
            raise Killed
        save(*what)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(checkpoint, "save", save_or_die)
        run(train.main, [*args, "--save_interval=2"], capsys)


def stopped(args, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(train, "Stop", lambda: SimpleNamespace(signal="SIGTERM"))
        assert run(train.main, args, capsys)[0] == 0


def trained(*more, status=0):
    def make(args, capsys, monkeypatch):
        assert run(train.main, [*args, *more], capsys)[0] == status
    return make


def nan_at_the_start(args, capsys, monkeypatch):
    build = models.build

    def broken(*given):
        model = build(*given)
        with torch.no_grad():
            model.transformer.ln_f.weight[0] = float("nan")
        return model
    with monkeypatch.context() as patched:
        patched.setattr(models, "build", broken)
        assert run(train.main, args, capsys)[0] == 3


def nothing(args, capsys, monkeypatch):
    pass


def empty(args, capsys, monkeypatch):
    pass


DIVERGES = ["--learning_rate=1e30", "--min_lr=0", "--grad_clip=0"]
ALL_WORK = dict(resume=0, auto=0, scratch="holds a run already", best=0, last=0, plot=0, analyze=0, ablate=0)
NO_RUN = dict(auto=0, scratch=0)
MAKE = {  # state -> (how it is made, what each command does in it)
    "not begun": (nothing, dict(NO_RUN, **dict.fromkeys(("resume", "best", "last", "plot", "analyze", "ablate"), "no such run"))),
    "an empty folder": (empty, dict(NO_RUN, **dict.fromkeys(("resume", "best", "last", "plot", "analyze", "ablate"),
                                                            "is not a run"))),
    "killed before its first checkpoint": (killed_in_its_first_save, dict(
        ALL_WORK, plot=0, **dict.fromkeys(("best", "last", "analyze", "ablate"), "no checkpoint"))),
    "killed later": (killed_later, ALL_WORK),
    "stopped": (stopped, ALL_WORK),
    "diverged": (trained(*DIVERGES, status=3), dict(ALL_WORK, resume=3, auto=3)),
    "diverged in its first evaluation": (nan_at_the_start, dict(
        ALL_WORK, resume=0, auto=0, **dict.fromkeys(("best", "last", "analyze", "ablate"), "no checkpoint"), plot="nothing to draw")),
    "finished": (trained(), ALL_WORK),
    "finished at step 0": (trained("--max_iters=0"), ALL_WORK),
    "evaluated only": (trained("--eval_only=True"), ALL_WORK),
    "never better than at its start": (trained("--learning_rate=3", "--decay_lr=False"), ALL_WORK),
}


def command(name, args, out_dir, tmp_path):
    """(main, arguments) of a command on the run of out_dir. args: those of train.py."""
    if name in ("resume", "auto", "scratch"):
        return train.main, [*args, f"--init_from={name}"]
    if name in ("best", "last"):
        return sample.main, [f"--out_dir={out_dir}", f"--checkpoint={name}", "--max_new_tokens=3", "--device=cpu"]
    if name == "plot":
        return plot_runs.main, [out_dir, f"--out={tmp_path / 'plot.png'}"]
    if name == "ablate":
        return ablate_curvature.main, [out_dir, "--batches=1"]
    return analyze_representations.main, [out_dir, "--out", tmp_path / "analysis", "--bootstrap=20", "--pairs=100", "--tokens=1984",
                                          "--delta_samples=2", "--device=cpu"]


@pytest.mark.parametrize("state", MAKE)
def test_every_command_in_every_state(state, small_run, tmp_path, capsys, monkeypatch):
    make, expected = MAKE[state]
    args, out_dir = [*small_run, *MIXED, "--n_layer=1"], tmp_path / "run"
    if make is empty:
        out_dir.mkdir()
    make(args, capsys, monkeypatch)
    if make is killed_later:
        assert not (out_dir / "summary.json").exists() and records(out_dir)[-1]["step"] >= 2
    if state == "diverged":
        args += DIVERGES
    kept = tmp_path / "kept"
    if out_dir.exists():
        shutil.copytree(out_dir, kept)
    # what only reads comes first: it has to leave the run as it was
    for name in sorted(expected, key=lambda name: name in ("scratch", "auto", "resume")):
        if name == "analyze" and state not in ("finished at step 0", "killed before its first checkpoint", "not begun"):
            monkeypatch.setattr(analyze_representations.report, "write", lambda *what: None)  # seconds of plots, as in test_analyze.py
        main, arguments = command(name, args, out_dir, tmp_path)
        status, _, err = run(main, arguments, capsys)
        wanted = expected[name] if isinstance(expected[name], int) else 2
        assert status == wanted, (state, name, err)
        if wanted == 2:
            one_line(err, expected[name])
        if name in ("auto", "resume", "scratch"):
            shutil.rmtree(out_dir, ignore_errors=True)
            if kept.exists():
                shutil.copytree(kept, out_dir)


def test_a_run_that_is_under_way_can_be_looked_at(small_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(analyze_representations.report, "write", lambda *what: None)  # as above
    args, out_dir = [*small_run, *MIXED, "--n_layer=1"], tmp_path / "run"
    child = Forked("train", [*args, "--max_iters=1000000", "--eval_interval=1000000"])
    try:
        wait_for_step(out_dir, 3, child)
        for name in ("best", "last", "plot", "ablate", "analyze"):
            status, out, _ = run(*command(name, args, out_dir, tmp_path), capsys)
            assert status == 0 and (name != "plot" or "running" in out), name
        for name in ("resume", "auto", "scratch"):
            status, _, err = run(*command(name, args, out_dir, tmp_path), capsys)
            assert status == 2
            one_line(err, "another process is training")
        assert child.poll() is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


@pytest.mark.parametrize("how, step", [(["--max_iters=0"], 0), (["--eval_only=True"], 0), (["--learning_rate=3", "--decay_lr=False"], 0),
                                       ([], 12)])
def test_the_best_loss_that_is_printed_is_that_of_a_checkpoint(how, step, small_run, tmp_path, capsys):
    status, out, _ = run(train.main, [*small_run, *how], capsys)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert status == 0 and summary["best_step"] == step
    assert f"(best {summary['best_val_loss']:.4f}, step {step})" in out.splitlines()[-1]
    state = checkpoint.load_state(tmp_path / "run" / "ckpt" / "best")
    assert state["step"] == step and state["best"] == summary["best_val_loss"]
    assert out.count("step 0:") == 1  # one line says what was found there


def test_best_is_made_anew_where_its_files_are_gone(small_run, tmp_path, capsys):
    """As in runs of earlier versions, whose best could be that of step 0, of which they kept no checkpoint."""
    assert run(train.main, [*small_run, "--learning_rate=3", "--decay_lr=False"], capsys)[0] == 0
    shutil.rmtree(tmp_path / "run" / "ckpt" / "best")
    status, out, _ = run(train.main, [*small_run, "--learning_rate=3", "--decay_lr=False", "--init_from=resume", "--max_iters=18"],
                         capsys)
    assert status == 0
    summary, state = (json.loads((tmp_path / "run" / "summary.json").read_text()),
                      checkpoint.load_state(tmp_path / "run" / "ckpt" / "best"))
    assert state["step"] == summary["best_step"] and summary["best_step"] in (12, 18)
    assert f"(best {summary['best_val_loss']:.4f}, step {summary['best_step']})" in out
