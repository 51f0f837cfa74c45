"""kernels/scalar_attention.py in Triton's interpreter against scalar_attention/ in float64, and as machine code."""
import pytest
import torch
from compiled_kernels import machine_code
from conftest import TINY
from test_model_baseline import randomised

import models
import scalar_attention as S
from common.errors import UserError
from kernels import scalar_attention as K
from scalar_attention import shapes
from training.compiled import compile_parts


def inputs(T, T_all, group=1, D=16, scale=20.0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 2 * group, T, generator=rng), torch.rand(2, 2, T_all, generator=rng)
    return (a - 0.5) * scale, (b - 0.5) * scale, torch.randn(2, 2, T_all, D, generator=rng).to(dtype)


SLOPE = torch.tensor([0.5, 0.02])  # of the two key heads


def compare(a, b, v, bound, g=None, slope=None):
    """Output and gradients against the plain form in float64."""
    ours = [t.clone().requires_grad_() for t in (a, b, v)]
    exact = [t.double().requires_grad_() for t in (a, b, v)]
    out, expected = K.scalar_attention(*ours, slope), S.attend(*exact, "plain", None if slope is None else slope.double())
    g = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)) if g is None else g
    out.backward(g.to(out.dtype))
    expected.backward(g.to(out.dtype).double())
    assert out.dtype == v.dtype and [t.grad.dtype for t in ours] == [torch.float32, torch.float32, v.dtype]
    for name, got, want in [("out", out, expected), *((n, t.grad, e.grad) for n, t, e in zip("abv", ours, exact))]:
        assert torch.isfinite(got).all() and (got - want).norm() <= bound * (want.norm() + 0.1 * g.norm()), name


@pytest.mark.parametrize("T, T_all, group, D", [(1, 1, 1, 5), (63, 63, 1, 16), (65, 65, 2, 24), (100, 100, 1, 100), (1, 70, 2, 16),
                                                (40, 105, 1, 8)])
def test_against_the_plain_form(T, T_all, group, D):
    for scale, slope in ((20.0, None), (2 * shapes.NARROW, None), (1e3, None), (20.0, SLOPE)):  # the last two: the nearest key is kept
        compare(*inputs(T, T_all, group, D, scale), 3e-6 if scale < 1e3 else 1e-4, slope=slope)


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
    bound = 0.01 if dtype == torch.bfloat16 else 0.002
    compare(a, b, v, bound)
    compare(a[:, :, :40], b[:, :, :40], v[:, :, :40], 2 * bound, slope=SLOPE)  # fewer keys share a weight: what is rounded cancels less


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
    for slope in (SLOPE.double(), SLOPE[:1], torch.ones(4)[::2]):
        with pytest.raises(ValueError, match="slope is 2 float32 numbers"):
            K.scalar_attention(a, b, v, slope)
    with pytest.raises(ValueError, match="a is"):
        K.scalar_attention(a[:, :1], b, v)
    empty = K.scalar_attention(a[:0], b[:0], v[:0].requires_grad_())
    empty.sum().backward()
    assert empty.shape == (0, 2, 5, 16)


def test_operators_pass_opcheck():
    a, b, v = (t.requires_grad_() for t in inputs(7, 9, 2, 5))
    torch.library.opcheck(K._attention, (a, b, v))
    torch.library.opcheck(K._attention, (a, b, v, SLOPE))
    a, b, v = (t.detach() for t in (a, b, v))
    torch.library.opcheck(K._attention_grad, (torch.randn(2, 4, 5, 7).transpose(2, 3), a, b, v, *K._attention(a, b, v)))
    torch.library.opcheck(K._attention_grad, (torch.randn(2, 4, 7, 5), a, b, v, *K._attention(a, b, v, SLOPE), SLOPE))


def test_compiles_to_one_graph():
    found = []
    for f in (K.scalar_attention, torch.compile(K.scalar_attention, fullgraph=True, backend="aot_eager")):
        leaves = [t.requires_grad_() for t in inputs(20, 20)]
        f(*leaves).square().sum().backward()
        found.append([t.grad for t in leaves])
    assert all(torch.equal(x, y) for x, y in zip(*found))


@pytest.mark.parametrize("sizes", [
    (('--dtype=["float32"]', "--width=[64]", "--arch=[80]"), ('--dtype=["bfloat16"]', "--width=[128]", "--arch=[90]")),
    pytest.param((('--dtype=["float32","bfloat16","float16"]', "--width=[32,64,128]"),), marks=pytest.mark.exhaustive)],
    ids=["some", "all"])
def test_machine_code_has_no_spills(sizes, tmp_path):
    kernels = {f"distance attention {way}{age}" for way in ("o", "da", "db, dv") for age in ("", ", by age")}
    found = machine_code([(*arguments, '--kernel=["distance"]') for arguments in sizes], tmp_path)
    launches = {(row["dtype"], row["D"], row["arch"]) for row in found}
    assert len(launches) >= 2 and len(found) == len(kernels) * len(launches) and {row["kernel"] for row in found} == kernels
    for row in found:
        assert row["stack"] == 0 and row["local"] == 0 and row["atomics"] == 0 and row["loses_nan"] == 0, row


@pytest.mark.parametrize("options", [dict(), dict(position="alibi", n_kv_head=1), dict(laplacian="learned", value_residual="learned")])
def test_the_model_with_kernels_is_the_model_without(options, tokens):
    """Loss and gradients; generation with a cache; one graph when compiled."""
    built = []
    for ops in ("torch", "triton"):
        torch.manual_seed(0)
        net = randomised(models.build("tau", models.CONFIGS["tau"](**TINY, **options, ops=ops), "cpu"), scale=0.1)
        net(*tokens)[1].backward()
        built.append(net)
    for (name, p), (_, q) in zip(built[0].named_parameters(), built[1].named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6, msg=name)
    torch.testing.assert_close(built[0](*tokens)[1], built[1](*tokens)[1], rtol=1e-6, atol=1e-6)
    first, second = (torch.cat(list(net.generate(tokens[0][:1, :3], 6, temperature=0)), 1) for net in built)
    assert torch.equal(first, second) and "Triton" in built[1].attention_form()
    loss = compile_parts(built[1], backend="aot_eager")(*tokens)[1]
    torch.testing.assert_close(loss, built[1](*tokens)[1], rtol=1e-6, atol=1e-6)


def test_heads_too_wide_for_the_kernels_are_one_line():
    with pytest.raises(UserError, match="at most 128 numbers a head.*--ops=torch"):
        models.build("tau", models.CONFIGS["tau"](**{**TINY, "n_embd": 258}, ops="triton"), "cpu")
