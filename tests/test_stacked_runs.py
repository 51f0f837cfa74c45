"""Runs that were trained as a stack are the runs that train.py makes: numbers, folders, checkpoints, endings."""
import json
import signal

import pytest
import torch
from conftest import wait_for_step
from forked import Forked
from running import MIXED, one_line, records, run
from safetensors.torch import load_file
from test_guard import Reads

import train
from training import stacked
from training.stacked_step import Step

RUNS = [(1, 1e-3), (7, 1e-2)]  # seed, learning rate
SECONDS = {"train_seconds", "dt", "tok_per_s", "data_wait"}


@pytest.fixture
def write(small_run, tmp_path):
    """write(kind, more...) -> the arguments of each run, in folders kind0, kind1, and those of the stack that they are."""
    def write(kind, *more, runs=RUNS):
        each = [[*small_run, "--max_iters=20", "--eval_interval=10", *more, f"--seed={seed}", f"--learning_rate={lr}",
                 f"--out_dir={tmp_path / f'{kind}{n}'}"] for n, (seed, lr) in enumerate(runs)]
        (tmp_path / "runs.json").write_text(json.dumps(each))
        return each, [f"--runs={tmp_path / 'runs.json'}"]
    return write


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def assert_same(stack, alone, within=1e-4):
    """Two folders of one run."""
    mine, theirs = records(stack), records(alone)
    assert [r.keys() for r in mine] == [r.keys() for r in theirs]
    for a, b in zip(mine, theirs):
        for key in a.keys() - SECONDS:
            assert abs(a[key] - b[key]) <= within * max(1, abs(b[key])), (key, a, b)
    for name in ("last", "best"):
        a, b = (load_file(folder / "ckpt" / name / "model.safetensors") for folder in (stack, alone))
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-2, atol=within)
    other = ("out_dir", "resolved_matmul")  # a stack multiplies all its matrices at once, by torch
    a, b = ({k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k not in other} for folder in (stack, alone))
    assert a == b
    assert {p.name for p in stack.iterdir()} == {p.name for p in alone.iterdir()}
    a, b = summary(stack), summary(alone)
    assert a.keys() - {"stacked"} == b.keys() and a["status"] == b["status"] and a["step"] == b["step"]


@pytest.mark.parametrize("more", [
    ["--dropout=0.1", "--gradient_accumulation_steps=2"], [*MIXED, "--dropout=0.1", "--bias=True", "--num_workers=0"],
    ["--model=controls"], ["--model=terms", "--write=constant"], ["--model=mhc"],
    ["--optimizer=muon", "--qk_clip=0.02", "--muon_lr=1e-4"],
    ["--model=stereographic", "--layers=mobius", "--attention=distance", "--head=lorentz",
     "--head_curvature_mode=parametric", "--dropout=0.1"],
    ["--model=mhc_mixed", "--hc_num_streams=2", "--n_layer=1"],
    ["--model=tau", "--tau=mean", "--dropout=0.1"]], ids=lambda v: v[0])
def test_each_run_of_a_stack_is_the_run_alone(more, write, tmp_path, capsys):
    short = ["--max_iters=10", "--eval_interval=5"]
    alone, _ = write("alone", *short, *more)
    _, stack = write("stack", *short, *more)
    for argv in alone:
        assert run(train.main, argv, capsys)[0] == 0
    status, out, err = run(stacked.main, stack, capsys)
    assert status == 0, err
    for n in range(2):
        assert_same(tmp_path / f"stack{n}", tmp_path / f"alone{n}")
        assert summary(tmp_path / f"stack{n}")["stacked"] == 2 and f"stack{n}: final: val loss" in out
    assert "runs at once; alone: python train.py " in json.loads((tmp_path / "stack0" / "env.json").read_text())["command"]


@pytest.mark.parametrize("more", [["--dropout=0.1"], [*MIXED, "--optimizer=muon", "--muon_momentum_warmup=15"],
                                  ["--model=mixed", "--curvature_warmup=17"]], ids=["dropout", "muon", "warmup"])
def test_it_goes_on_alone_and_a_run_alone_goes_on_in_a_stack(more, write, tmp_path, capsys):
    """From different steps, too: then there are two stacks."""
    more = [*more, "--lr_decay_iters=20"]
    within = 5e-3 if "--optimizer=muon" in more else 1e-4  # Newton-Schulz in bf16
    whole, _ = write("whole", *more)
    for argv in whole:
        assert run(train.main, argv, capsys)[0] == 0
    parts, stack = write("parts", *more)
    write("parts", *more, "--max_iters=10")
    assert run(stacked.main, stack, capsys)[0] == 0
    assert run(train.main, [*parts[0], "--init_from=resume", "--max_iters=14"], capsys)[0] == 0  # one of them goes on by itself
    write("parts", *more, "--init_from=auto")
    status, out, err = run(stacked.main, stack, capsys)
    assert status == 0 and "1 of them begin at step 10" in out and "1 of them begin at step 14" in out, err
    for n in range(2):
        mine, theirs = records(tmp_path / f"parts{n}"), records(tmp_path / f"whole{n}")
        for key in ("loss", "val_loss"):
            a, b = ({r["step"]: r[key] for r in rs if key in r and (key, r["step"]) != ("val_loss", 14)} for rs in (mine, theirs))
            assert a.keys() == b.keys() and max(abs(a[step] - b[step]) for step in a) < within, (a, b)
        assert run(train.main, [*parts[n], "--init_from=resume", "--max_iters=24"], capsys)[0] == 0  # and alone again


@pytest.mark.parametrize("where", ["in training", "in an evaluation"])
def test_a_run_that_diverges_is_reported_and_the_others_go_on(where, write, tmp_path, capsys):
    more = ["--grad_clip=0", "--min_lr=0", *(["--eval_interval=1"] if where == "in an evaluation" else ["--eval_interval=1000"])]
    runs = [(1, 1e-3), (7, 1e30), (3, 3e-3)]
    alone, _ = write("alone", *more, runs=runs)
    assert [run(train.main, argv, capsys)[0] for argv in alone] == [0, 3, 0]
    _, stack = write("stack", *more, runs=runs)
    status, out, err = run(stacked.main, stack, capsys)
    assert status == 3
    assert len(err.splitlines()) == 1 and err.startswith("stack1: diverged at step ") and "block 0" in err, err
    for n in (0, 2):
        assert_same(tmp_path / f"stack{n}", tmp_path / f"alone{n}")
    mine, theirs = summary(tmp_path / "stack1"), summary(tmp_path / "alone1")
    assert mine["status"] == "diverged" and {k: mine[k] for k in ("step", "where")} == {k: theirs[k] for k in ("step", "where")}


def test_as_on_a_gpu_nothing_is_read_off_the_device_where_it_is_not_logged(write, tmp_path, capsys, monkeypatch):
    """And the run, a divergence between two logged steps too, is the same."""
    more, runs = ["--grad_clip=0", "--min_lr=0", "--eval_interval=1000"], [(1, 1e-3), (7, 1e30)]
    _, stack = write("each", *more, runs=runs)
    assert run(stacked.main, stack, capsys)[0] == 3
    monkeypatch.setattr(stacked.Stack, "reads_every_step", lambda self: False)
    reads, counts, looks = Reads(), [], []
    finish, read = Step.finish, Step.read
    monkeypatch.setattr(Step, "finish", lambda self, step: (counts.append(reads.count), finish(self, step)))
    monkeypatch.setattr(Step, "read", lambda self: (looks.append(len(counts) - 1), read(self))[1])
    _, stack = write("few", *more, "--log_interval=8", runs=runs)
    with reads:
        assert run(stacked.main, stack, capsys)[0] == 3
    assert looks == [0, 8, 16, 19] and [step for step in range(19) if counts[step + 1] > counts[step]] in ([], [8])  # 8: to say where
    few, each = summary(tmp_path / "few1"), summary(tmp_path / "each1")
    assert few["status"] == "diverged" and few["step"] == each["step"] and few["where"] == each["where"]
    losses = [{r["step"]: r["loss"] for r in records(tmp_path / name) if "loss" in r} for name in ("few0", "each0")]
    assert losses[0] == {step: losses[1][step] for step in (0, 8, 16)}


def test_a_run_that_reaches_its_target_ends_and_the_others_go_on(write, tmp_path, capsys):
    _, stack = write("t", "--target_val_loss=3.1", "--eval_interval=5", runs=[(1, 1e-5), (7, 2e-2)])
    assert run(stacked.main, stack, capsys)[0] == 0
    slow, fast = summary(tmp_path / "t0"), summary(tmp_path / "t1")
    assert (slow["status"], slow["step"], slow["target_reached"]) == ("finished", 20, False)
    assert (fast["status"], fast["target_reached"]) == ("finished", True) and fast["step"] < 20 and fast["val_loss"] <= 3.1


def test_a_signal_saves_all(write, tmp_path, capsys):
    each, stack = write("s", "--max_iters=100000", "--lr_decay_iters=20")
    with Forked("training.stacked", stack) as child:
        wait_for_step(tmp_path / "s1", 5, child)
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate()
    assert child.returncode == 0 and "SIGTERM at step" in out and not err.strip().startswith("Traceback"), err
    steps = {(summary(tmp_path / f"s{n}")["status"], summary(tmp_path / f"s{n}")["step"]) for n in range(2)}
    assert len(steps) == 1 and steps.pop()[0] == "stopped"
    assert not any((tmp_path / f"s{n}" / "lock").exists() for n in range(2))
    assert run(train.main, [*each[1], "--init_from=resume", "--max_iters=100001", "--eval_only=True"], capsys)[0] == 0


def test_bad_input_is_one_line_and_nothing_is_written(write, small_run, tmp_path, capsys, monkeypatch):
    def refused(content, *parts):
        (tmp_path / "runs.json").write_text(content if isinstance(content, str) else json.dumps(content))
        status, _, err = run(stacked.main, [f"--runs={tmp_path / 'runs.json'}"], capsys)
        assert status == 2
        one_line(err, *parts)
        assert not list(tmp_path.glob("x*"))
    (first, second), _ = write("x")
    refused("no", "not JSON")
    refused([], "a list of runs is needed")
    refused([[1]], "a list of runs is needed")
    refused([first, [*second, "--n_layer=3"]], "n_layer is 2 and 3")
    refused([first, [*second, "--model=mixed"]], "model is 'baseline' and 'mixed'")
    refused([first, [*second, "--n_lyer=3"]], "n_lyer")
    refused([first, first], "is that of two runs")
    refused([[*first, "--freeze=['*wte*']"]], "cannot be stacked: freeze")
    status, _, err = run(stacked.main, [f"--runs={tmp_path / 'nothing.json'}"], capsys)
    assert status == 2
    one_line(err, "nothing.json")
    for key, value in dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="1").items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(stacked, "Parallel", lambda *_: type("Launched", (), {"launched": True})())
    refused([first, second], "without torchrun")
