"""Rows that geometry/ must bear: extreme and subnormal ones, rows at the edge, every dtype, shape and stride."""
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spaces import (
    CURVATURES,
    DIMENSIONS,
    DTYPES,
    FUNCTIONS,
    USED,
    check_finite,
    curvatures,
    extreme_rows,
    generator,
    laws,
    radius,
    random_rows,
    rows_error,
    unit,
)

import geometry as G
from geometry import checks
from stereographic.head import logits

# ---- nothing is NaN or Inf ----------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted({**FUNCTIONS, **USED}))
def test_no_nan_or_inf_forward_or_backward(name, dtype):
    for d in (1, 3, 32):
        rows = extreme_rows(d, dtype, seed=d)
        for c in (*CURVATURES, 1e-30, -1e-30):
            check_finite(name, rows, c, seed=d)


@laws
@given(st.sampled_from(sorted({**FUNCTIONS, **USED})), st.sampled_from(DTYPES),
       st.lists(st.floats(-1, 1) | st.sampled_from((0.0, 1.0, -1.0)), min_size=4, max_size=12),
       st.lists(st.integers(-45, 308), min_size=4, max_size=4),
       curvatures, st.integers(0, 1000))
def test_no_nan_or_inf_for_rows_that_hypothesis_picks(name, dtype, numbers, exponents, c, seed):
    d = len(numbers) // 4
    largest = torch.finfo(dtype).max
    rows = torch.tensor(numbers[:4 * d], dtype=torch.float64).view(4, d)
    rows = rows * torch.tensor([10.0 ** e for e in exponents], dtype=torch.float64)[:, None]
    check_finite(name, rows.clamp(-largest, largest).to(dtype), c, seed)


def test_no_nan_or_inf_for_rows_a_subnormal_number_apart():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for gap in (1e-45, 1e-39, 3e-39, 1e-32, 1e-25):
            for name in ("dist", "logmap", "mobius_add"):
                x = torch.zeros(1, 4, dtype=dtype, requires_grad=True)
                FUNCTIONS[name][0](x, torch.full((1, 4), gap, dtype=dtype), 1.0).sum().backward()
                assert x.grad.isfinite().all(), (name, dtype, gap)


# ---- project ----------------------------------------

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["mobius_add", "expmap", "add_exp_0"])
def test_a_limited_sum_is_inside_however_its_terms_cancel(name, dtype):
    """x at the edge and a step back through the origin, nearly to -x: both terms of the sum are up to 1e7 times longer than it."""
    rng = generator(3)
    for c, d in itertools.product((1.0, 1e-3, 5.0, -1.0), (1, 2, 3, 32)):
        x = unit(rng, 500, d)
        limit = G.max_norm(torch.tensor(c), dtype)
        stored = G.project((3 * radius(c) * x).to(dtype), c)
        for length in (0.5, 1, 5, 8, 9, 10, 12, 20):
            v = ((-x + 1e-3 * torch.rand(500, 1, generator=rng, dtype=x.dtype) * unit(rng, 500, d)) * length * radius(c)).to(dtype)
            if name == "expmap" and c > 0:
                v = v * (1 - c * stored.double().square().sum(-1, keepdim=True)).to(dtype)
            v = G.project(v, c) if name == "mobius_add" else v
            out = FUNCTIONS[name][0](stored, v, c, limit).double()
            # float64 may end above the limit by what rounding adds, far less than the margin that the limit leaves
            assert (out.norm(dim=-1) <= limit * (1 + max(2 * G.ROUNDING[dtype], 1e-8))).all(), (c, d, length)


@pytest.mark.parametrize("v", [1.5, 1.57079, 20.0])
def test_float64_exponential_maps_at_the_origin_agree_up_to_the_antipode(v):
    v = torch.tensor([[v, 0.0]], dtype=torch.float64)
    for f in (G.expmap, G.add_exp_0):
        torch.testing.assert_close(f(torch.zeros_like(v), v, -1.0), G.exp_0(v, -1.0), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_project_keeps_the_stored_row_strictly_inside_the_ball(dtype):
    for d in DIMENSIONS:
        rows = torch.cat((extreme_rows(d, dtype, seed=d), (unit(generator(d), 50, d) * 2e3).to(dtype)))
        for c in (c for c in CURVATURES if c > 0):
            out = G.project(rows, c)
            assert out.dtype == dtype
            ct = float(torch.tensor(c, dtype=torch.promote_types(dtype, torch.float32)))
            assert out.double().norm(dim=-1).max() * math.sqrt(ct) < 1, (c, d)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_project_leaves_rows_inside_bit_for_bit(dtype):
    margin = G.BALL_MARGIN[dtype]
    for c in CURVATURES:
        for d in DIMENSIONS:
            x = (unit(generator(d), 20, d) * min(radius(c), 1e3) * (1 - 3 * margin)).to(dtype)
            assert torch.equal(G.project(x, c), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_project_is_idempotent(dtype):
    for c in CURVATURES:
        for d in DIMENSIONS:
            once = G.project(torch.cat((extreme_rows(d, dtype, seed=d), unit(generator(d), 20, d).to(dtype) * 9)), c)
            assert torch.equal(G.project(once, c), once), (c, d)


def test_project_keeps_the_direction():
    for c in (10.0, 1.0, -1.0):
        x = unit(generator(70), 5, 7) * 1e4
        out = G.project(x, c)
        bound = float(G.max_norm(torch.tensor(c, dtype=torch.float64), torch.float64))
        expected = unit(generator(70), 5, 7) * min(bound, 1e4)
        assert rows_error(out, expected) < 1e-14


# ---- dtypes, shapes, strides ----------------------------------------

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"project"}))
def test_low_precision_is_float32_rounded_once(name, dtype):
    f, kinds = FUNCTIONS[name]
    for c in (1.0, 1e-3, 0.0, -1e-3, -1.0):
        for d in (1, 7, 123):
            rows = [row.to(dtype) for row in random_rows(kinds, (4, d), c, generator(80))]
            got, expected = f(*rows, c), f(*(row.float() for row in rows), c)
            if name in ("dist", "conformal_factor"):  # row scalars stay in float32
                assert got.dtype == torch.float32
            else:
                assert got.dtype == dtype
                expected = expected.to(dtype)
            assert torch.equal(got, expected), (c, d)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_mixed_dtypes_promote(name):
    f, kinds = FUNCTIONS[name]
    rows = random_rows(kinds, (3, 7), 1.0, generator(81))
    mixed = [rows[0].bfloat16(), *(row.float() for row in rows[1:])]
    expected = torch.float32 if len(rows) > 1 or name == "conformal_factor" else torch.bfloat16
    assert f(*mixed, 1.0).dtype == expected
    assert f(*(row.double() for row in mixed), 1.0).dtype == torch.float64


def test_rows_must_be_of_a_float_dtype():
    with pytest.raises(TypeError, match="int64"):
        G.exp_0(torch.zeros(2, 3, dtype=torch.int64), 1.0)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_curvature_per_head_equals_one_head_at_a_time(name):
    f, kinds = FUNCTIONS[name]
    c = torch.tensor([[1.0], [0.0], [-0.3], [1e-4]], dtype=torch.float64)
    rows = random_rows(kinds, (2, 3, 4, 5), 1.0, generator(82))
    together = f(*rows, c)
    for head in range(4):
        alone = f(*(row[:, :, head] for row in rows), c[head, 0])
        torch.testing.assert_close(together[:, :, head], alone, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_curvature_per_token_equals_one_token_at_a_time(name):
    f, kinds = FUNCTIONS[name]
    c = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3, 1)
    rows = random_rows(kinds, (2, 3, 5), 1.0, generator(83))
    together = f(*rows, c)
    for b in range(2):
        for t in range(3):
            alone = f(*(row[b, t] for row in rows), c[b, t, 0])
            torch.testing.assert_close(together[b, t], alone, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_python_number_equals_a_tensor(name):
    f, kinds = FUNCTIONS[name]
    for dtype in DTYPES:
        for c in (1.0, 0.1, 0.0, -0.1, -1.0):
            rows = [row.to(dtype) for row in random_rows(kinds, (3, 5), c, generator(84))]
            assert torch.equal(f(*rows, c), f(*rows, torch.tensor(c, dtype=torch.float64)))


@laws
@given(st.sampled_from(sorted(FUNCTIONS)), st.sampled_from((torch.float64, torch.float32)),
       st.sampled_from(((5, 123), (3, 4, 7), (6, 1), (2, 2, 2, 9))), curvatures, st.integers(0, 1000))
def test_strides_do_not_matter(name, dtype, shape, c, seed):
    f, kinds = FUNCTIONS[name]
    rows = [row.to(dtype) for row in random_rows(kinds, shape, c, generator(seed))]
    expected = f(*rows, c)
    transposed = [row.transpose(-1, -2).contiguous().transpose(-1, -2) for row in rows]
    sliced = [torch.stack((row, row * 0.5), -1).flatten(-2)[..., ::2] for row in rows]
    assert sliced[0].stride(-1) == 2
    scale = 16 * torch.finfo(dtype).eps
    for strided in (transposed, sliced):
        assert rows_error(f(*strided, c), expected) < 100 * scale
    one = [row[:1].expand_as(row) for row in rows]
    assert rows_error(f(*one, c), expected[:1].expand_as(expected)) < 100 * scale


@pytest.mark.parametrize("name", ["mobius_add", "expmap", "logmap", "exp_0", "log_0", "dist", "project", "add_exp_0"])
@pytest.mark.parametrize("c, error, message", [
    (torch.tensor(1), TypeError, "c is a tensor of torch.int64"), (torch.tensor(True), TypeError, "c is a tensor of torch.bool"),
    (True, TypeError, "c = True"), ("1", TypeError, "c = '1'"), (None, TypeError, "c = None"), (float("nan"), ValueError, "c is NaN"),
    (float("-inf"), ValueError, "c is -inf"), (10 ** 400, ValueError, "c is beyond"),
    (torch.tensor([1.0, 1.0, -1.0]), ValueError, r"c of shape \(3,\): .* must be 1")])
def test_what_is_no_curvature_is_named(name, c, error, message):
    rows = [torch.full((2, 3), 0.1)] * (1 if name in ("exp_0", "log_0", "project") else 2)
    with pytest.raises(error, match=message):
        getattr(G, name)(*rows, c)


@pytest.mark.parametrize("c, error, message", [
    (torch.tensor(1), TypeError, "c is a tensor of torch.int64"), (torch.tensor(True), TypeError, "c is a tensor of torch.bool"),
    (True, TypeError, "c = True"), ("1", TypeError, "c = '1'"), (float("nan"), ValueError, "c is (NaN|not finite)")])
def test_what_is_no_curvature_is_named_beside_the_maps(c, error, message):
    x = torch.full((2, 3), 0.1)
    for f in (lambda: G.max_norm(c, torch.float32), lambda: G.check(x, c), lambda: checks.check_tangent(x, c),
              lambda: logits("stereographic", x, x, c), lambda: logits("lorentz", x, x, c)):
        with pytest.raises(error, match=message):
            f()


def test_numbers_of_other_kinds_are_curvatures():
    x = torch.full((2, 3), 0.1)
    for dtype in (torch.float32, torch.float64):
        assert G.max_norm(4, dtype) == G.max_norm(torch.tensor(4.0), dtype)
    G.check(x, 1)
    expected = G.exp_0(x, 0.5)
    for c in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16)):
        torch.testing.assert_close(G.exp_0(x, c), expected)
    torch.testing.assert_close(G.exp_0(x, 1), G.exp_0(x, 1.0))


@pytest.mark.parametrize("name", sorted(set(checks.ROWS) - {"gyromidpoint"}))
def test_a_nan_in_c_is_one_in_the_result(name):
    """Of the rows that it belongs to, in every map: none hides it."""
    f = getattr(G, name)
    rows = {key: 0.1 * torch.randn(3, 5) for key in checks.ROWS[name]}
    c = torch.tensor([[1.0], [float("nan")], [-1.0]])
    if name == "log_previous":  # (of a sequence)
        rows = {"x": rows["x"].expand(3, 3, 5)}
        c = c.unsqueeze(-1)
    out = f(**rows, c=c)
    assert out[1].isnan().all() and out[::2].isfinite().all()
