"""The loop as a GPU runs it, on the CPU: no number is read off the device but where the run logs, evaluates or saves, and a NaN in between
is skipped by the optimizers and found afterwards."""
import json

import pytest
import torch
from running import MIXED, one_line, records, run
from torch.utils._python_dispatch import TorchDispatchMode

import models
import train
from training import schedule
from training.guard import Guard


class GpuGuard(Guard):
    """As on a GPU with AdamW in bf16 or float32."""

    def must_wait(self, device_type, optimizers):
        return False


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(train, "Guard", GpuGuard)


def test_the_run_is_the_same_and_resumes(small_run, tmp_path, capsys, monkeypatch):
    args = [*small_run, *MIXED, "--dropout=0.1", "--log_interval=5", "--lr_decay_iters=12"]
    assert run(train.main, [*args, f"--out_dir={tmp_path / 'whole'}"], capsys)[0] == 0
    monkeypatch.setattr(train, "Guard", GpuGuard)
    assert run(train.main, [*args, f"--out_dir={tmp_path / 'parts'}", "--max_iters=7"], capsys)[0] == 0
    assert run(train.main, [*args, f"--out_dir={tmp_path / 'parts'}", "--init_from=resume"], capsys)[0] == 0
    kept = ("step", "loss", "val_loss", "grad_norm", "tokens")
    whole, parts = ([{k: r[k] for k in kept if k in r} for r in records(tmp_path / name)] for name in ("whole", "parts"))
    assert parts == whole and [r["step"] for r in whole if "loss" in r] == [0, 5, 10]


class Reads(TorchDispatchMode):
    """Counts the numbers that the host reads off tensors."""
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_number_is_read_off_the_device_within_a_step_that_is_not_logged(small_run, capsys, monkeypatch, as_on_a_gpu):
    reads, seen = Reads(), {}
    seed = train.seed_micro_batch
    monkeypatch.setattr(train, "seed_micro_batch", lambda s, k: (seen.update({k: reads.count}), seed(s, k)))
    with reads:
        assert run(train.main, [*small_run, *MIXED, "--log_interval=4", "--eval_interval=12", "--max_iters=13"], capsys)[0] == 0
    new = {k: seen[k + 1] - seen[k] for k in range(12)}
    assert [k for k, n in new.items() if n] == [0, 4, 8, 11]  # logged; before the evaluation


@pytest.mark.parametrize("bad", [4, 5, 7])
def test_a_nan_between_two_logged_steps_is_found_with_the_weights_of_before_it(bad, small_run, tmp_path, capsys, monkeypatch, as_on_a_gpu):
    """And says the same as a run that looks at every step."""
    build = models.build

    def sabotaged(name, config, device_type):
        model = build(name, config, device_type)
        block, state = model.transformer.h[1], {"step": -1}
        model.sabotage = state

        def forward(x, *rest):
            y = type(block.mlp).forward(block.mlp, x, *rest)
            return torch.log(y.abs() * 0 - 1) if state["step"] == bad else y
        block.mlp.forward = forward
        made.append(model)
        return model
    made = []
    monkeypatch.setattr(models, "build", sabotaged)
    seed = schedule.seed_micro_batch

    def seed_and_note(s, k):  # one micro-batch a step
        made[-1].sabotage["step"] = k
        if k == bad and not kept:
            kept.update({n: p.detach().clone() for n, p in made[-1].named_parameters()})
        seed(s, k)
    for module in (train, schedule):  # the loop; and whoever repeats its step
        monkeypatch.setattr(module, "seed_micro_batch", seed_and_note)
    said = []
    for guard, more in ((GpuGuard, ["--log_interval=4"]), (Guard, ["--log_interval=1"])):
        kept = {}
        monkeypatch.setattr(train, "Guard", guard)
        status, _, err = run(train.main, [*small_run, "--eval_interval=1000", "--overwrite=True", *more], capsys)
        assert status == 3
        one_line(err, f"diverged at step {bad} ", "block 1, mlp", "log")
        said.append(err)
        assert all(torch.equal(p, kept[n]) for n, p in made[-1].named_parameters())
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"
    assert said[0] == said[1]
