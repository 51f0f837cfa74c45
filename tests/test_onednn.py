"""float32 products by oneDNN (training/onednn.py) against torch's own."""
import json
import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import MIXED, one_line, run
from torch import nn

import models
import train
from common.errors import UserError
from training import compiled, machine, onednn
from training.compiled import compile_parts

# every torch for x86 has oneDNN: there it has to work, and wherever a torch says that it has it; elsewhere matmul = 'onednn' is refused
multiplies = pytest.mark.skipif(not (platform.machine().lower() in ("x86_64", "amd64") or onednn.is_there()),
                                reason="this torch has no oneDNN")


@multiplies
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.booleans(), st.booleans(), st.integers(0, 2 ** 32 - 1))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_products_and_both_gradients_of_every_shape_and_stride(m, k, n, x_turned, w_turned, seed):
    draw = torch.Generator().manual_seed(seed)
    x, w, g = (torch.randn(size, generator=draw, dtype=torch.float64) for size in ((m, k), (n, k), (m, n)))

    def as_given(value, turned):
        value = value.float()
        return (value.t().contiguous().t() if turned else value).requires_grad_()
    x_in, w_in = as_given(x, x_turned), as_given(w, w_turned)
    y = onednn.product(x_in, w_in)
    y.backward(g.float().t().contiguous().t())
    for found, true, size in ((y, x @ w.t(), k), (x_in.grad, g @ w, n), (w_in.grad, g.t() @ x, m)):
        assert found.shape == true.shape
        # an error of each of `size` terms of size 1
        torch.testing.assert_close(found.double(), true, rtol=1e-6, atol=4e-7 * size ** 0.5 * 4)


@multiplies
def test_the_operator_is_registered_as_torch_wants_it():
    x, w = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    torch.library.opcheck(onednn.product, (x, w))
    torch.library.opcheck(onednn.product, (x.detach(), w))


@multiplies
def test_second_derivatives():
    x, w = torch.randn(5, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    found = []
    for y in (onednn.product(x, w), x @ w.t()):
        first, = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.pow(2).sum(), (x, w)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@multiplies
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_of_any_input(bias):
    plain, fast = nn.Linear(6, 4, bias=bias), onednn.Linear(6, 4, bias=bias)
    fast.load_state_dict(plain.state_dict())
    for shape in ((6,), (3, 6), (2, 3, 6), (0, 6), (2, 0, 6)):
        x = torch.randn(shape)
        torch.testing.assert_close(fast(x), plain(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):  # (not used there, but right)
        torch.testing.assert_close(fast(x).float(), plain(x).float(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(fast.double()(torch.ones(2, 6, dtype=torch.float64)), plain.double()(torch.ones(2, 6, dtype=torch.float64)))


def loss_and_gradients(model, x, y, run=None):
    loss = (run or model)(x, y)[1]
    named = dict(model.named_parameters())
    return loss, dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True)))


@multiplies
@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_is_the_same_to_rounding(name):
    torch.manual_seed(0)
    config = models.CONFIGS[name](vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32, bias=True)
    model = models.build(name, config, "cpu").train()
    x, y = torch.randint(65, (2, 3, 16))
    loss, gradients = loss_and_gradients(model, x, y)
    assert any(type(module) is onednn.Linear for module in onednn.use_in(model).modules())
    assert not any(type(module) is nn.Linear for module in model.modules())
    fast_loss, fast_gradients = loss_and_gradients(model, x, y)
    torch.testing.assert_close(fast_loss, loss, rtol=1e-6, atol=0)
    for key, expected in gradients.items():
        assert (expected is None) == (fast_gradients[key] is None)
        if expected is not None:
            torch.testing.assert_close(fast_gradients[key], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-9, msg=key)


@multiplies
def test_compiled_in_one_graph_and_the_same(monkeypatch):
    """(The other parts of the forward pass: test_models.py.)"""
    monkeypatch.setattr(compiled, "PARTS", ("run_block", "head"))
    torch.manual_seed(0)
    config = models.CONFIGS["baseline"](vocab_size=65, block_size=16, n_layer=2, n_head=2, n_embd=32)
    model = models.build("baseline", config, "cpu").train()
    x, y = torch.randint(65, (2, 3, 16))
    loss, gradients = loss_and_gradients(model, x, y)
    onednn.use_in(model)
    fast_loss, fast_gradients = loss_and_gradients(model, x, y, compile_parts(model))
    torch.testing.assert_close(fast_loss, loss, rtol=1e-6, atol=0)
    for key, expected in gradients.items():
        torch.testing.assert_close(fast_gradients[key], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()), msg=key)


@pytest.mark.parametrize("capability, vendor, expected", [
    ("AVX512", "AuthenticAMD", "onednn"), ("AVX512", "GenuineIntel", "torch"), ("AVX2", "AuthenticAMD", "torch"), ("AVX512", "", "torch")])
def test_auto_takes_it_where_mkl_leaves_half_of_the_cpu_idle(monkeypatch, capability, vendor, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(onednn, "vendor", lambda: vendor)
    monkeypatch.setattr(onednn, "is_there", lambda: True)
    assert machine.pick_matmul("auto", "cpu", "float32") == expected
    assert machine.pick_matmul("auto", "cpu", "bfloat16") == machine.pick_matmul("auto", "cuda", "float32") == "torch"
    assert machine.pick_matmul("torch", "cpu", "float32") == "torch" and machine.pick_matmul("onednn", "cpu", "float32") == "onednn"


def test_where_the_system_does_not_say_whose_cpu_it_is(monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError
    monkeypatch.setattr("builtins.open", refused)
    assert onednn.vendor.__wrapped__() == ""


def test_asked_for_where_it_is_not(monkeypatch):
    for device, dtype in (("cuda", "float32"), ("cpu", "bfloat16")):
        with pytest.raises(UserError, match=f"float32 on a CPU, not {dtype} on {device}"):
            machine.pick_matmul("onednn", device, dtype)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UserError, match="without oneDNN; use --matmul=torch"):
        machine.pick_matmul("onednn", "cpu", "float32")
    assert machine.pick_matmul("auto", "cpu", "float32") == "torch"


@multiplies
def test_a_run_says_so_and_is_the_same_to_rounding(small_run, tmp_path, capsys):
    losses = {}
    for name in ("torch", "onednn"):
        out_dir = tmp_path / name
        status, out, _ = run(train.main, [*small_run, *MIXED, "--dtype=float32", f"--matmul={name}", f"--out_dir={out_dir}"], capsys)
        assert status == 0 and ("products: oneDNN" in out) == (name == "onednn")
        assert json.loads((out_dir / "config.json").read_text())["resolved_matmul"] == name
        losses[name] = json.loads((out_dir / "summary.json").read_text())["val_loss"]
    assert losses["onednn"] == pytest.approx(losses["torch"], abs=1e-4)


def test_asked_for_in_16_bits_it_is_one_line(small_run, tmp_path, capsys):
    status, _, err = run(train.main, [*small_run, "--dtype=bfloat16", "--matmul=onednn", f"--out_dir={tmp_path / 'run'}"], capsys)
    assert status == 2 and not (tmp_path / "run").exists()
    one_line(err, "matmul = 'onednn'", "float32")
