"""Runs of train.py that diverge: where a NaN came from, and no traceback."""
import json

import pytest
import torch
from running import MIXED, one_line, run

import models
import train
from training import diagnose


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
