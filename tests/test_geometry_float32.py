"""The form of geometry/ without float64 (geometry/float32.py): its arithmetic, its accuracy against 60 digits and against the
form in float64, and that there is no float64 in it. What the tests of geometry/ ask of float32 rows is asked here, too, where it
holds."""
import itertools

import mpmath as mp
import oracle as O
import pytest
import test_geometry as accuracy
import test_geometry_compiled as compiled
import test_geometry_rows as rows_borne
import torch
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from spaces import (
    CURVATURES,
    FUNCTIONS,
    ORACLES,
    USED,
    check_finite,
    curvatures,
    exactly,
    expmap_case,
    extreme_rows,
    generator,
    gradients,
    half_angle,
    laws,
    neighbours,
    radius,
    random_rows,
    relative,
    unit,
    within_bound,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import geometry as G
import models
from common.errors import UserError
from geometry import float32 as F
from geometry.rows import _wide

EPS = 2.0 ** -24


@pytest.fixture(autouse=True)
def float32_row_scalars():
    G.use_row_scalars("float32")
    yield
    G.use_row_scalars("auto")


# ---- the arithmetic ----------------------------------------

def parts_and_complement(x, c):
    high, low = F.norm2_parts(x)
    return high, low, F.one_minus(c, high, low)


def check_parts(x, c, got):
    for row, high, low, a in zip(x, *got):
        exact = O.dot(O.row(row), O.row(row))
        assert abs((mp.mpf(high.item()) + mp.mpf(low.item())) / exact - 1) < 2.0 ** -31
        complement = 1 - mp.mpf(c.item()) * exact
        assert abs(mp.mpf(a.item()) / complement - 1) < 2 * EPS + 2.0 ** -31 / abs(complement)


def rows_near_the_edge(d, c, n=24):
    lengths = torch.tensor([0.3, 0.9, 0.99, 0.999, 0.9999, 1 - 2.0 ** -14]).repeat(n // 6)[:, None]
    return (unit(generator(d), n, d) * lengths * radius(c)).float()


@pytest.mark.parametrize("d", [1, 2, 7, 64, 384, 4096])
def test_squared_norms_are_good_to_31_bits(d):
    for c in (1.0, 3.0, 1e-4, 1e6, -1.0):
        ct = torch.tensor(c)
        x = rows_near_the_edge(d, c, 24 if d < 4096 else 6)
        check_parts(x, ct, parts_and_complement(x, ct))


@laws
@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40), st.floats(1e-6, 1e6), st.booleans())
def test_squared_norms_of_rows_that_hypothesis_picks(numbers, c, negative):
    x, ct = torch.tensor([numbers], dtype=torch.float64), torch.tensor(-c if negative else c)
    if x.norm() > 1e-6:
        x = (x / x.norm() * 0.9999 * radius(c)).float()
        if x.abs().max() > 1e-15:
            check_parts(x, ct, parts_and_complement(x, ct))


@laws
@given(st.floats(2.0 ** -40, 2.0 ** 40, width=32), st.floats(-2.0 ** 40, 2.0 ** 40, width=32))
def test_products_in_two_parts(a, b):
    p, e = F.product(torch.tensor([a]), torch.tensor([b]))
    exact = mp.mpf(a) * mp.mpf(b)
    if abs(exact) > 1e-25:
        assert abs(mp.mpf(p.item()) + mp.mpf(e.item()) - exact) < 2.0 ** -34 * abs(exact)


@pytest.mark.parametrize("contract", ["off", "fast"])
def test_generated_code_with_and_without_fused_multiply_adds(contract):
    """Inductor's code for a CPU, as it makes it and with the compiler free to fuse, as compilers for GPUs are."""
    torch._dynamo.reset()
    # (other flags need a precompiled header of their own, which takes longer than one file does without)
    options = {"cpp.enable_floating_point_contract_flag": contract, "cpp_cache_precompile_headers": contract == "off"}
    c = torch.tensor(3.0)
    x = rows_near_the_edge(64, 3.0)
    a, b, d = (torch.rand(4096, generator=generator(i)) + 0.5 for i in range(3))

    def everything(x, c, a, b, d):  # in one: each compilation takes seconds
        return *parts_and_complement(x, c), *F.product(a, b), b * d + a
    *parts, p, e, fused = torch.compile(everything, fullgraph=True, dynamic=False, options=options)(x, c, a, b, d)
    check_parts(x, c, parts)
    assert ((p.double() + e.double()) / (a.double() * b.double()) - 1).abs().max() < 2.0 ** -34
    assert torch.equal(fused, b * d + a) is (contract == "off" or not torch.cpu.get_capabilities().get("fma3", False))


# ---- the maps against 60 digits ----------------------------------------

def of_kind(name, c, x, y, rng):
    kinds = FUNCTIONS[name][1]
    v = (unit(rng, len(x)) * 0.3 * radius(c)).float()
    y = -y if name == "gyration" else y
    return {"p": (x,), "pp": (x, y), "pt": (x, v), "ppt": (x, y, v), "t": (v,)}[kinds]


# worst relative error allowed for c > 0 and for c < 0 over the grid, rows up to 0.999 of the radius
BOUNDS = {"mobius_add": (5e-7, None), "logmap": (5e-7, 5e-7), "dist": (5e-7, 5e-7), "add_exp_0": (5e-7, 2e-6),
          "exp_0": (5e-7, 5e-7), "log_0": (5e-7, 5e-7), "conformal_factor": (5e-7, 5e-7), "transport": (1e-6, 1e-6),
          "gyration": (1e-6, 1e-6), "expmap": (2e-6, 2e-6)}


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_accuracy_up_to_the_edge(name):
    """For c > 0 that of one or two roundings, as with float64."""
    cases, rng = [], generator(5)
    for i, (c, x, y) in enumerate(neighbours(3)):
        rows, (ct, cm) = of_kind(name, c, x, y, rng), exactly(c)
        bound = BOUNDS[name][c < 0]
        if bound is None or (name == "expmap" and c < 0 and half_angle(c, *rows) > 1.5) or (i % 2 and len(rows) == 3):
            continue
        error = O.relative_error(FUNCTIONS[name][0](*rows, ct), ORACLES[name](*(O.row(row) for row in rows), cm))
        cases.append((error, bound, (c, float(x.norm()), len(x))))
    assert len(cases) > 100
    within_bound(cases)


def test_long_exponential_maps_to_the_other_side():
    """The end of the step is rounded, and its rounding is magnified by 1/(1 - c|y|^2) where it is nearly -x: far_step()
    keeps it."""
    cases = []
    for c, x, y in neighbours(1):
        if c > 0 and len(x) > 1:
            v = G.logmap(x.double(), y.double(), exactly(c)[0]).float()
            cases.append(expmap_case(c, x, v))
    assert len(cases) > 100
    within_bound(cases)


def test_on_the_sphere_sums_near_the_antipode_lose_what_the_row_loses():
    """x (+) y for neighbours at the equator is far out: the row w + (c|w|^2/A) x that gives N cancels."""
    cases = []
    for c, x, y in neighbours(3):
        if c < 0:
            ct, cm = exactly(c)
            expected = O.mobius_add(O.row(x), O.row(y), cm)
            cancelled = 1 + abs(c) * float(O.dot(expected, expected))
            cases.append((O.relative_error(G.mobius_add(x, y, ct), expected), 2e-7 + 8 * EPS * cancelled ** 0.5, (c, len(x))))
    within_bound(cases)


def test_logmap_for_near_inverses():
    accuracy.test_float32_logmap_is_accurate_for_near_inverses(lost=2.0 ** -22)


@pytest.mark.parametrize("test", [accuracy.test_float32_logmap_is_accurate_for_neighbours_up_to_the_boundary,
                                  accuracy.test_float32_logmap_of_antipodal_pairs,
                                  accuracy.test_float32_expmap_is_accurate_for_long_steps,
                                  accuracy.test_float32_expmap_is_accurate_for_steps_through_the_ball_to_the_other_side,
                                  rows_borne.test_no_nan_or_inf_for_rows_a_subnormal_number_apart], ids=lambda t: t.__name__)
def test_what_holds_with_float64_holds_here(test):
    test()


# ---- derivatives ----------------------------------------

@laws
@given(st.sampled_from(sorted({**FUNCTIONS, **USED})), curvatures, st.sampled_from(((5, 123), (3, 4, 7), (2, 1, 32))),
       st.floats(0.1, 1.4), st.integers(0, 1000))
def test_results_and_gradients_are_those_of_float64_rows(name, c, shape, size, seed):
    """Rows up to 0.98 of the radius, c of both signs; the gradient of c relative to the length of what it is the sum of. How close
    to the edge a row may come depends on its dtype: there the form in float64 of the same rows is what to compare with."""
    f, kinds = {**FUNCTIONS, **USED}[name]
    rows = [size * row for row in random_rows(kinds, shape, c, generator(seed))]
    rows = [row.float() for row in rows]
    ct = torch.tensor(c)
    out, grads = gradients(f, rows, ct, seed)
    if name == "project" or "limited" in name:
        G.use_row_scalars("float64")
        expected_out, expected = gradients(f, rows, ct, seed)
        G.use_row_scalars("float32")
    else:
        expected_out, expected = gradients(f, [row.double() for row in rows], ct.double(), seed)
    assert out.dtype == torch.float32
    loose = 1 if c >= 0 else 30  # the sphere: N and M cancel towards the antipode
    assert relative(out, expected_out) < 2e-6 * loose
    cotangent = torch.randn(out.shape, generator=generator(seed), dtype=torch.float64)
    for got, grad in zip(grads[:-1], expected):
        floor = 1e-3 * float(cotangent.norm())
        assert float((got.double() - grad.double()).norm()) < 2e-5 * loose * max(float(grad.norm()), floor), name
    if abs(c) > 1e-3 and name not in ("project", "midpoint_of_two") and "limited" not in name:
        step = 1e-5 * c
        slopes = [f(*(row.double() for row in rows), ct.double() + sign * step) for sign in (1, -1)]
        scale = float(((slopes[0] - slopes[1]) / (2 * step) * cotangent).norm())
        scale += 1e-3 * float(cotangent.norm()) * float(out.norm())
        assert abs(float(grads[-1]) - float(expected[-1])) < 2e-5 * loose * scale


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_second_derivatives_are_those_of_float64_rows(name):
    f, kinds = FUNCTIONS[name]
    for c in (-0.8, 0.0, 0.8):
        found = []
        for dtype in (torch.float32, torch.float64):
            rows = [row.float().to(dtype).requires_grad_() for row in random_rows(kinds, (3, 5), 1.0, generator(7))]
            ct = torch.tensor(c, dtype=torch.float32).to(dtype).requires_grad_()
            out = f(*rows, ct)
            cotangent = torch.randn(out.shape, generator=generator(1)).to(dtype)
            first = torch.autograd.grad(out, [*rows, ct], cotangent, create_graph=True, allow_unused=True)
            total = sum((g * torch.randn(g.shape, generator=generator(2)).to(dtype)).sum() for g in first if g is not None)
            found.append(torch.autograd.grad(total, [*rows, ct], allow_unused=True) if total.requires_grad else [])
        for got, expected in zip(*found, strict=True):
            assert (got is None) == (expected is None)
            if got is not None:
                assert float((got.double() - expected).norm()) < 3e-5 * (1 + float(expected.norm())), (name, c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted({**FUNCTIONS, **USED}))
def test_no_nan_or_inf_forward_or_backward(name, dtype):
    for d in (1, 3, 32):
        rows = extreme_rows(d, dtype, seed=d)
        for c in CURVATURES:
            check_finite(name, rows, c, seed=d)


# ---- edges, dtypes, tracing ----------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_at_the_edge_stay_inside(dtype):
    for name in ("mobius_add", "expmap", "add_exp_0"):
        rows_borne.test_a_limited_sum_is_inside_however_its_terms_cancel(name, dtype)
    rows_borne.test_project_keeps_the_stored_row_strictly_inside_the_ball(dtype)
    rows_borne.test_project_is_idempotent(dtype)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"project"}))
def test_dtypes_and_tracing(name):
    for dtype in (torch.bfloat16, torch.float16):
        rows_borne.test_low_precision_is_float32_rounded_once(name, dtype)
    rows_borne.test_mixed_dtypes_promote(name)
    if name in ("add_exp_0", "expmap", "logmap", "log_0", "midpoint_of_two"):  # what models use, and each way that a map is written
        compiled.test_every_function_is_traced_whole_and_agrees_with_eager(name)
    compiled.test_nothing_waits_for_the_device(name)


def test_generated_code_agrees_with_eager():
    rows = [row.float() for row in random_rows("pt", (3, 2, 7), 1.0, generator(91))]
    errors = compiled.compiled_errors(G.add_exp_0, rows, torch.tensor([[0.9], [-0.9]]))
    assert max(errors) < 1e-5, errors


class Float64(TorchDispatchMode):
    """Names of operations that give float64 tensors"""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in tree_leaves(out)):
            self.names.add(func.name())
        return out


@pytest.mark.parametrize("options", [dict(reference=r, residual=s, dynamic_curvature=d) for r, s, d in (
    ("previous", "origin", False), ("origin", "reference", True), ("ema", "transport", True), ("window", "reference", False))],
                         ids=str)
def test_a_training_step_has_no_float64(options, tokens):
    for choice, expected in (("float32", False), ("float64", True)):
        torch.manual_seed(0)
        net = models.build("mixed", models.CONFIGS["mixed"](**TINY, **options, row_scalars=choice))
        assert F.row_scalars() == choice
        with Float64() as found:
            net(*tokens)[1].backward()
        assert bool(found.names) is expected, found.names


def test_a_model_computes_the_same(tokens):
    results = {}
    for choice in ("float64", "float32"):
        torch.manual_seed(0)
        net = models.build("mixed", models.CONFIGS["mixed"](**TINY, row_scalars=choice, use_embedding_curvature=True))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            loss = net(*tokens)[1]
            loss.backward()
            optimizer.step()
        results[choice] = loss.item(), torch.cat([p.detach().flatten() for p in net.parameters()])
    assert not torch.equal(results["float32"][1], results["float64"][1])  # other roundings
    assert abs(results["float32"][0] - results["float64"][0]) < 1e-3


# ---- the choice ----------------------------------------

def test_the_choice_by_device(monkeypatch):
    cpu, cuda, mps = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))
    assert "float32, compensated" in G.use_row_scalars("float32")
    assert all(F.wide_on(device) == torch.float32 for device in (cpu, cuda, mps))
    assert _wide(torch.zeros(2, dtype=torch.float64)) == torch.float64  # such rows say what they want
    assert "float64" in G.use_row_scalars("float64")
    assert F.wide_on(cpu) == F.wide_on(cuda) == torch.float64
    with pytest.raises(UserError, match="mps has no float64"):
        F.wide_on(mps)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, dtype in (((7, 0), torch.float64), ((8, 0), torch.float64), ((9, 0), torch.float64), ((10, 0), torch.float64),
                              ((7, 5), torch.float32), ((8, 6), torch.float32), ((8, 9), torch.float32), ((10, 3), torch.float32),
                              ((12, 0), torch.float32)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        line = G.use_row_scalars("auto")
        assert (F.wide_on(cuda), F.wide_on(cpu), F.wide_on(mps)) == (dtype, torch.float64, torch.float32), capability
        assert ("on this GPU" in line) is (dtype == torch.float32)
    with pytest.raises(UserError, match="row_scalars = 'double'"):
        G.use_row_scalars("double")


def test_a_backward_pass_is_of_the_form_of_its_forward_pass():
    for first, second in itertools.permutations(("float32", "float64")):
        x, v = (row.float().requires_grad_() for row in random_rows("pt", (3, 5), 1.0, generator(1)))
        for f in (G.add_exp_0, G.logmap, lambda x, v, c: G.log_0(x, c) + v, lambda x, v, c: G.log_previous(x[None], c)[0] + v):
            G.use_row_scalars(first)
            out = f(x, v, torch.ones(1))
            expected = torch.autograd.grad(out.sum(), (x, v), retain_graph=True)
            G.use_row_scalars(second)
            assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(out.sum(), (x, v)), expected))
