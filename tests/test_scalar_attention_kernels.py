"""kernels/scalar_attention.py in Triton's interpreter against scalar_attention/ in float64, and as machine code."""
import json
import os
import subprocess
import sys

import pytest
import torch

import scalar_attention as S
from kernels import scalar_attention as K
from scalar_attention import shapes

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def inputs(T, T_all, group=1, D=16, scale=20.0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2 * group, T, generator=rng), torch.rand(2, 2, T_all, generator=rng)
    return (a - 0.5) * scale, (b - 0.5) * scale, torch.randn(2, 2, T_all, D, generator=rng).to(dtype)


def compare(a, b, v, bound, g=None):
    """Output and gradients against the plain form in float64."""
    ours = [t.clone().requires_grad_() for t in (a, b, v)]
    exact = [t.double().requires_grad_() for t in (a, b, v)]
    out, expected = K.scalar_attention(*ours), S.attend(*exact, "plain")
    g = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)) if g is None else g
    out.backward(g.to(out.dtype))
    expected.backward(g.to(out.dtype).double())
    assert out.dtype == v.dtype and [t.grad.dtype for t in ours] == [torch.float32, torch.float32, v.dtype]
    for name, got, want in [("out", out, expected), *((n, t.grad, e.grad) for n, t, e in zip("abv", ours, exact))]:
        assert torch.isfinite(got).all() and (got - want).norm() <= bound * (want.norm() + 0.1 * g.norm()), name


@pytest.mark.parametrize("T, T_all, group, D", [(1, 1, 1, 5), (63, 63, 1, 16), (65, 65, 2, 24), (100, 100, 1, 100), (1, 70, 2, 16),
                                                (40, 105, 1, 8)])
def test_against_the_plain_form(T, T_all, group, D):
    for scale in (20.0, 2 * shapes.NARROW, 1e3):  # the last with a nearest key for each query
        compare(*inputs(T, T_all, group, D, scale), 3e-6 if scale < 1e3 else 1e-4)


def test_ties_and_equal_scalars():
    a, b, v = inputs(70, 70)
    compare(a.round(), b.round(), v, 3e-6)
    a, b = torch.full_like(a, 0.3), torch.full_like(b, 0.3)
    compare(a, b, v, 3e-6)
    leaves = [t.clone().requires_grad_() for t in (a, b, v)]
    K.scalar_attention(*leaves).backward(torch.randn(2, 2, 70, 16))
    assert not leaves[0].grad.any() and not leaves[1].grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [20.0, 200.0])
def test_16_bit_values_err_at_most_twice_as_much_as_pytorch(dtype, scale):
    """As a product of weights and values in that dtype does; gradients of a and b: as sums of float32 do of the rounded output."""
    a, b, v = inputs(100, 100, 2, 32, scale, dtype)
    exact = S.attend(a.double(), b.double(), v.double(), "plain")
    weights = torch.softmax((-(a.unsqueeze(-1) - b.repeat_interleave(2, 1).unsqueeze(-2)).abs()).masked_fill(
        torch.ones(100, 100, dtype=torch.bool).triu(1), -torch.inf), -1)
    pytorch = weights.to(dtype) @ v.repeat_interleave(2, 1)
    ours = K.scalar_attention(a, b, v)
    assert (ours - exact).norm() <= 2 * (pytorch - exact).norm()
    compare(a, b, v, 0.01 if dtype == torch.bfloat16 else 0.002)


def test_strides_and_cotangents_that_are_not_contiguous():
    a, b, v = inputs(40, 40)
    a, v = a.transpose(1, 2).contiguous().transpose(1, 2), v.transpose(1, 3).contiguous().transpose(1, 3)
    compare(a, b[:, :1].expand(-1, 2, -1), v, 3e-6, torch.randn(2, 2, 16, 40).transpose(2, 3))


def test_the_future_does_not_change_the_past_and_bits_repeat():
    a, b, v = inputs(100, 100)
    later = [t.clone() for t in (a, b, v)]
    for t in later:
        t[:, :, 70:] = t[:, :, 70:].flip(2) + 0.5
    past = K.scalar_attention(a, b, v)
    assert torch.equal(past[:, :, :70], K.scalar_attention(*later)[:, :, :70])
    assert torch.equal(past, K.scalar_attention(a, b, v))


def test_every_number_is_written(monkeypatch):
    """Outputs are NaN before."""
    def poisoned(make):
        return lambda *args, **kwargs: t.fill_(float("nan")) if (t := make(*args, **kwargs)).is_floating_point() else t
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    compare(*inputs(33, 70, 2, 20), 3e-6)


def test_what_the_kernels_do_not_take_is_refused():
    a, b, v = inputs(5, 5)
    with pytest.raises(TypeError, match="float32 a and b"):
        K.scalar_attention(a.double(), b.double(), v)
    with pytest.raises(TypeError, match="float64"):
        K.scalar_attention(a, b, v.double())
    with pytest.raises(ValueError, match="at most 128"):
        K.scalar_attention(*inputs(5, 5, D=129))
    with pytest.raises(ValueError, match="a is"):
        K.scalar_attention(a[:, :1], b, v)
    empty = K.scalar_attention(a[:0], b[:0], v[:0].requires_grad_())
    empty.sum().backward()
    assert empty.shape == (0, 2, 5, 16)


def test_operators_pass_opcheck():
    a, b, v = (t.requires_grad_() for t in inputs(7, 9, 2, 5))
    torch.library.opcheck(K._attention, (a, b, v))
    a, b, v = (t.detach() for t in (a, b, v))
    torch.library.opcheck(K._attention_grad, (torch.randn(2, 4, 5, 7).transpose(2, 3), a, b, v, *K._attention(a, b, v)))


def test_compiles_to_one_graph():
    found = []
    for f in (K.scalar_attention, torch.compile(K.scalar_attention, fullgraph=True, backend="aot_eager")):
        leaves = [t.requires_grad_() for t in inputs(20, 20)]
        f(*leaves).square().sum().backward()
        found.append([t.grad for t in leaves])
    assert all(torch.equal(x, y) for x, y in zip(*found))


@pytest.mark.parametrize("sizes", [
    (('--dtype=["float32"]', "--width=[64]", "--arch=[80]"), ('--dtype=["bfloat16"]', "--width=[128]", "--arch=[90]")),
    pytest.param(('--dtype=["float32","bfloat16","float16"]', "--width=[32,64,128]"), marks=pytest.mark.exhaustive)], ids=["some", "all"])
def test_machine_code_has_no_spills(sizes, tmp_path):
    path = tmp_path / "code.json"
    environment = {**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    for arguments in sizes if isinstance(sizes[0], tuple) else (sizes,):
        run = subprocess.run([sys.executable, os.path.join(ROOT, "bench", "machine_code.py"), *arguments, '--kernel=["distance"]',
                              f"--json={path}"], capture_output=True, text=True, env=environment)
        assert run.returncode == 0, run.stderr
        found = json.loads(path.read_text())
        assert {row["kernel"] for row in found} == {"distance attention o", "distance attention da", "distance attention db, dv"}
        for row in found:
            assert row["stack"] == 0 and row["local"] == 0 and row["atomics"] == 0 and row["loses_nan"] == 0, row
