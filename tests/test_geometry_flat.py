"""Rows and updates of a largest length, and how alike two rows are: options of the plain GPT (geometry/flat.py)."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jvp, vmap
from torch.nn import functional as F

from geometry import flat

R, L = 0.64, 0.5
LENGTHS = [0.0, 1e-20, 1e-4, 0.1, 0.6, 3.0, 1e6]
FLOATS = st.sampled_from([torch.float32, torch.float64])


def rows(shape, length, seed, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (length * F.normalize(x, dim=-1)).to(dtype)


def summed(x, v):
    return flat.bounded_sum(x, v, R, L)


def autograd_of(f, *inputs):
    inputs = [i.detach().clone().requires_grad_() for i in inputs]
    out = f(*inputs)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out, torch.autograd.grad((out * weight).sum(), inputs)


@settings(max_examples=60, deadline=None)
@given(lead=st.sampled_from([(), (1,), (3,), (2, 5), (2, 3, 4)]), n=st.integers(1, 9), long_x=st.sampled_from([*LENGTHS, 1e18]),
       long_v=st.sampled_from([*LENGTHS, 1e18]), seed=st.integers(0, 99), dtype=FLOATS, transposed=st.booleans())
def test_the_gradient_in_closed_form_is_that_of_autograd_s_rules(lead, n, long_x, long_v, seed, dtype, transposed):
    x, v = (rows((*lead, n), length, seed + i, dtype) for i, length in enumerate((long_x, long_v)))
    if transposed and len(lead) > 1:
        x, v = x.transpose(0, 1), v.transpose(0, 1)
    got, grads = autograd_of(summed, x, v)
    # float64, for the expression in float32 rounds more than the closed form
    want, expected = autograd_of(lambda x, v: flat._bounded_sum(x, v, R, L)[0], x.double(), v.double())
    digits = dict(rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
    torch.testing.assert_close(got.double(), want, **digits)
    for grad, reference in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad.double(), reference, **digits)
    assert got.norm(dim=-1).max() <= R * (1 + 1e-6)


@pytest.mark.parametrize("long_x, long_v", [(0.1, 0.2), (0.6, 0.3), (5.0, 5.0), (0.64, 1e-3)])
def test_derivatives_against_finite_differences(long_x, long_v):
    """All rows within, some of them and all beyond the bound; of second order, too."""
    x, v = (rows((4, 3), length, seed, torch.float64).requires_grad_() for seed, length in enumerate((long_x, long_v)))
    length = (x + v / (1 + (v.norm(dim=-1, keepdim=True) / L) ** 2).sqrt()).norm(dim=-1)
    assert (length / R - 1).abs().min() > 1e-4  # nobody where it has a corner
    assert torch.autograd.gradcheck(summed, (x, v), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(summed, (x, v))


def test_under_torch_func_and_compiled_it_is_the_same():
    x, v = rows((6, 4), 0.6, 0, torch.float64), rows((6, 4), 0.4, 1, torch.float64)
    torch.testing.assert_close(vmap(summed)(x, v), summed(x, v), rtol=0, atol=1e-15)
    assert torch.equal(jvp(summed, (x, v), (v, x))[0], summed(x, v))
    got, grads = autograd_of(torch.compile(summed, fullgraph=True), x, v)
    want, expected = autograd_of(summed, x, v)
    for a, b in zip((got, *grads), (want, *expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(long_x=st.sampled_from(LENGTHS), long_r=st.sampled_from(LENGTHS), seed=st.integers(0, 99), dtype=FLOATS)
def test_how_alike_rows_are_is_torch_s_cosine(long_x, long_r, seed, dtype):
    """Rows of 0 and of 1e-20 among them, which count as 1e-8 long. (The gradient of rows over 1e12 is lost in float32.)"""
    x, r = rows((5, 8), long_x, seed, dtype), rows((5, 8), long_r, seed + 1, dtype)
    got, grads = autograd_of(lambda x, r: flat.cosine(x, r, flat.inverse_length(x), flat.inverse_length(r)).squeeze(-1), x, r)
    want, expected = autograd_of(lambda x, r: F.cosine_similarity(x, r, dim=-1), x.double(), r.double())
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
    for grad, reference in zip(grads, expected, strict=True):
        assert grad.isfinite().all()
        torch.testing.assert_close(grad.double(), reference, rtol=0, atol=float(2e-6 * reference.abs().max()) + 1e-30)
