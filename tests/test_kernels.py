"""
kernels/ and model_triton.py in Triton's interpreter against geometry/ in float64, and as machine code for GPUs that are not here.
conftest.py sets TRITON_INTERPRET=1 before Triton is imported; the ahead-of-time compilation is in a process of its own.
"""
import itertools
import os
import subprocess
import sys

import pytest
import torch
from compiled_kernels import check_machine_code, machine_code
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from running import run
from test_model_baseline import randomised
from torch.nn import functional as F
from triton.runtime import interpreter

import geometry as G
import kernels as K
import models
import train
from common.errors import UserError
from kernels import launch, layernorm, logarithm, scalar_functions, sums
from training.compiled import compile_parts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WIDTHS = (1, 7, 64, 100, 123, 384, 768, 1000)
CURVATURES = (-1.0, 0.0, 1e-6, 0.1, 1.0)
OPERATIONS = {"mobius_add": 2, "expmap": 2, "add_exp_0": 2, "add_exp": 3, "logmap": 2}  # -> how many rows each takes


def rows(shape, c, longest=0.6, seed=0):
    """Points within `longest` radii (of 1 at c = 0)."""
    rng = torch.Generator().manual_seed(seed)
    v = torch.randn(shape, generator=rng)
    size = torch.rand((*shape[:-1], 1), generator=rng) * longest
    return v / v.norm(dim=-1, keepdim=True).clamp(min=1e-6) * size / max(abs(c), 1e-2 if c else 1) ** 0.5


def several(name, shape, c, longest=0.6, seed=1):
    return [rows(shape, c, longest, seed + i) for i in range(OPERATIONS[name])]


def compare(name, inputs, g, bound, limit=None):
    """Output and every gradient of a kernel against float64, relative to each one's norm."""
    more = [] if limit is None else [torch.tensor(limit)]
    ours = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (*inputs, *more)]
    exact = [t.detach().double().requires_grad_() for t in ours]
    out, expected = getattr(K, name)(*ours), getattr(G, name)(*exact)
    out.backward(g)
    expected.backward(g.double())
    pairs = [("output", out, expected)] + [(f"gradient {i}", a.grad, b.grad) for i, (a, b) in enumerate(zip(ours, exact))]
    for what, a, b in pairs:
        assert torch.isfinite(a).all(), (name, what)
        # a gradient of c is a sum over rows that may cancel, and that of a row of one number over its limit is 0: relative to
        # what they are made of
        scale = b.norm() + (0 if what == "output" else float(g.norm()) * (0.05 if a.numel() > 1 else 1))
        assert (a.double() - b).norm() <= bound * scale, (name, what, float((a.double() - b).norm() / scale))


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["some", "all"])
@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_outputs_and_gradients_against_float64(name, D, every):
    """Each launch takes the interpreter its time, and the formula is one at all widths: curvatures, limits and ways to give c take
    turns. Every pair of them: make test-all."""
    n = 3 if D < 500 else 2
    for i, c in enumerate(CURVATURES if D in (1, 7, 64) or every else (-1.0, 0.1)):
        points = several(name, (n, 2, D), c)
        g = torch.randn(n, 2, D)
        limits = [None] if name == "logmap" else [None, 0.2] if every or D == 64 else [(None, 0.2)[(i + D) % 2]]
        for limit in limits:
            compare(name, (*points, torch.tensor(c)), g, 3e-5, limit)
        if every or c == -1.0 and D < 300:
            compare(name, (*points, torch.tensor([[c], [0.5 * c]])), g, 3e-5, limit=None if name == "logmap" else [[0.2], [1.0]])
        if every or c == 0.1 and D < 300:
            compare(name, (*points, torch.full((n, 1, 1), c)), g, 3e-5)


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(sorted(OPERATIONS)), D=st.integers(1, 200), lead=st.lists(st.integers(1, 4), max_size=3),
       c=st.floats(-2, 2), kind=st.sampled_from(["one", "last", "all", "first"]), seed=st.integers(0, 1000))
def test_any_shape_and_any_way_to_give_c(name, D, lead, c, kind, seed):
    points = several(name, (*lead, D), c, 0.4, seed)
    shape = {"one": (), "last": (*lead[-1:], 1), "all": (*lead, 1), "first": (*lead[:1], *[1] * len(lead))}[kind]
    factor = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.5
    compare(name, (*points, c * factor), torch.randn(*lead, D), 2e-5)


@pytest.mark.parametrize("c", [1.0, 0.1, -1.0])
def test_rows_at_the_edge(c):
    """Projected points: errors grow as 1/(1 - c|x|^2), 2^13 at the float32 margin; on the sphere, far from the origin, as |c||x|^2."""
    x = G.project(rows((8, 32), c) * 100, c)
    y = G.project(rows((8, 32), c, seed=5) * 100, c)
    room = 1 - c * x.double().square().sum(-1)
    worst = max(1 / room.min().item(), room.max().item())  # 8,000; on the sphere 2,800
    each = torch.full((8, 1), c)  # for each row: a sum over rows may cancel
    g = torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    for name, *more in (("mobius_add", y * 0.5), ("add_exp_0", y * 1e-3), ("expmap", y * 1e-4), ("add_exp", y * 0.5, y * 1e-4),
                        ("logmap", y)):
        ours = [t.clone().requires_grad_() for t in (x, *more, each)]
        exact = [t.detach().double().requires_grad_() for t in ours]
        out, expected = getattr(K, name)(*ours), getattr(G, name)(*exact)
        out.backward(g)
        expected.backward(g.double())
        for what, a, b in [("output", out, expected), *((i, a.grad, b.grad) for i, (a, b) in enumerate(zip(ours, exact)))]:
            assert (a.double() - b).norm() < 2.0 ** -23 * worst * b.norm(), (name, what)


@pytest.mark.parametrize("c, length, step", [
    (1, 0.5, 1e-2), (1, 0.5, 1e-4), (0.1, 1.5, 3e-3), (1e-6, 600, 6), (0, 1, 1e-3), (1, 0.99, 0.9), (-1, 1.5, 1), (-1, 10, 1e-1),
    (-1, 40, 30)])
def test_gradient_of_c_keeps_its_digits(c, length, step):
    """Where it is much smaller than what the chain rule adds it from: short vectors (it is of the order of their length, for
    the maps at x of its square), and far out on the sphere. For each row, relative to itself."""
    rng = torch.Generator().manual_seed(0)
    long = lambda size: F.normalize(torch.randn(8, 32, generator=rng), dim=-1) * size
    x, r, v, g = long(length), long(length), long(min(step, 20)), long(1)
    for name, *points in (("mobius_add", x, v), ("expmap", x, v), ("add_exp_0", x, v if c >= 0 else v / length), ("add_exp", x, r, v),
                          ("logmap", x, G.expmap(x, v, float(c)))):
        points = [G.project(p, float(c)) for p in points] if name != "expmap" else points
        for limit in (None, 0.5 * length) if name != "logmap" else (None,):
            more = {} if limit is None else dict(limit=limit)
            ours = torch.full((8, 1), float(c), requires_grad=True)
            exact = ours.detach().double().requires_grad_()
            getattr(K, name)(*points, ours, **more).backward(g)
            getattr(G, name)(*(t.double() for t in points), exact, **more).backward(g.double())
            condition = max(float(1 / (1 - c * p.square().sum(-1)).min()) for p in points if p is not v) if c > 0 else 1
            if c < 0 and name == "add_exp":  # exp_r(v) is rounded
                condition = 1 - c * length ** 2
            assert (ours.grad - exact.grad).norm() <= 2e-6 * condition * exact.grad.norm(), (name, limit)


def test_rows_and_weights_of_other_shapes_are_refused():
    """The kernels would read, and write, beyond the smaller one."""
    x, weight = torch.zeros(2, 5, 2, 4), torch.ones(8)
    for arguments in ((x, 1.0, weight, None, "given", x[:1, :1]), (x, 1.0, weight[:4]), (x, 1.0, weight, weight[:4]),
                      (x, 1.0, torch.ones(16))):
        with pytest.raises(ValueError, match="has shape"):
            K.log_layernorm(*arguments)
    with pytest.raises(ValueError, match="has shape"):
        sums._sum(x, None, x[:1], torch.tensor(1.0), None, "add")


def test_no_tokens_and_no_columns():
    for shape in ((1, 0, 2, 4), (0, 3, 2, 4)):
        x = torch.zeros(shape, requires_grad=True)
        for c_shape in ((*shape[:3], 1), (*shape[:2], 1, 1), (2, 1), ()):
            c = torch.zeros(c_shape, requires_grad=True)
            K.log_layernorm(x, c, torch.ones(8)).sum().backward()
            assert c.grad.shape == c.shape
    empty = torch.zeros(3, 0)
    assert K.logmap(empty, empty, 1.0).shape == K.expmap(empty, empty, 1.0).shape == (3, 0)


def test_arithmetic_is_float32_whatever_the_default_dtype_is():
    x, weight = rows((1, 6, 2, 8), 0.7), torch.ones(16)
    results = []
    for default in (torch.float32, torch.bfloat16, torch.float64):
        torch.set_default_dtype(default)
        try:
            leaf = x.clone().requires_grad_()
            K.log_layernorm(leaf, 0.7, weight).square().sum().backward()
            results.append((leaf.grad, K.logmap(x, x.flip(1), 0.7)))
        finally:
            torch.set_default_dtype(torch.float32)
    for other in results[1:]:
        for a, b in zip(other, results[0]):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["mobius_add", "expmap", "add_exp_0"])
def test_a_limited_sum_is_inside_however_its_terms_cancel(name):
    x = F.normalize(torch.randn(500, 3), dim=-1)
    stored, limit = G.project(3 * x, 1.0), G.max_norm(torch.tensor(1.0), torch.float32)
    for length in (0.5, 1, 5, 8, 9, 10, 12, 20):
        v = (-x + 1e-3 * torch.rand(500, 1) * torch.randn(500, 3)) * length
        v = G.project(v, 1.0) if name == "mobius_add" else v * 1e-4 if name == "expmap" else v
        out = getattr(K, name)(stored, v, 1.0, limit)
        assert (out.norm(dim=-1) <= limit * (1 + 2 * G.ROUNDING[torch.float32])).all(), length


@pytest.mark.parametrize("dtype, part", [(torch.bfloat16, slice(0, None, 2)), (torch.float16, slice(1, None, 2)), *(
    pytest.param(dtype, slice(None), marks=pytest.mark.exhaustive) for dtype in (torch.bfloat16, torch.float16))])
@pytest.mark.parametrize("name", OPERATIONS)
def test_16_bit_rows_err_at_most_twice_as_much_as_pytorch(name, dtype, part):
    """Rows of several curvatures in one launch, which is what takes the interpreter its time; each curvature's for themselves. The
    other widths take turns with the dtypes."""
    edge = [(c, 30.0) for c in CURVATURES if c > 0]  # projected
    others = [(D, 3, [(c, 0.6)]) for c, D in ((1.0, 1), (-1.0, 100), (0.1, 123), (1.0, 384), (-1.0, 768), (0.1, 1000))]
    for D, n, each in [(7, 16, [(c, 0.6) for c in CURVATURES]), (64, 16, [*((c, 0.6) for c in CURVATURES), *edge]), *others[part]]:
        parts = [[G.project(t.to(dtype), c) for t in several(name, (n, D), c, longest)] for c, longest in each]
        points, curvatures = [torch.cat(t) for t in zip(*parts)], torch.tensor([[c] for c, _ in each]).repeat_interleave(n, 0)
        g = torch.randn(n * len(each), D).to(dtype)
        results = []
        # the interpreter truncates to bfloat16, where a GPU rounds: so the kernel also runs on the same numbers in float32,
        # and what it gives is rounded here
        for f, cast in ((getattr(K, name), lambda t: t), (getattr(K, name), torch.Tensor.float), (getattr(G, name), lambda t: t),
                        (getattr(G, name), torch.Tensor.double)):
            leaves = [cast(t).clone().requires_grad_() for t in points]
            of_rows = curvatures.to(torch.promote_types(leaves[0].dtype, torch.float32), copy=True).requires_grad_()
            out = f(*leaves, of_rows)
            out.backward(cast(g))
            results.append([out.detach()] + [t.grad for t in leaves] + [of_rows.grad])
        for i, ((c, _), points) in enumerate(zip(each, parts)):
            mine = slice(i * n, (i + 1) * n)
            check_16_bit_rows(name, c, points, g[mine], [[t[mine] for t in found] for found in results])


def check_16_bit_rows(name, c, points, g, results):
    dtype, D = g.dtype, g.size(-1)
    truncation = 2.0 ** -7 if dtype == torch.bfloat16 else 1e-6  # an ulp more
    margin = min(float((1 - c * t.double().square().sum(-1)).min()) for t in points)
    arithmetic = 1e-6 / min(1, max(margin, 1e-4))  # float32, and float64 in geometry/
    *of_rows, (_, ours, theirs, exact) = zip(*results)
    # a row's gradient of c may happen to be much smaller than the terms that it is the sum of
    above, below = (getattr(G, name)(*map(torch.Tensor.double, points), c + h) for h in (1e-5, -1e-5))
    terms = g.double() * (above - below) / 2e-5
    assert (ours - exact).norm() <= 2 * (theirs - exact).norm() + arithmetic * terms.norm(), (name, c, D)
    for stored, ours, theirs, exact in of_rows:
        assert stored.dtype == dtype
        as_stored, error, allowed = ((t.to(dtype).double() - exact).norm() for t in (stored, ours, theirs))
        assert error <= 2 * allowed + arithmetic * exact.norm(), (name, c, D)
        assert as_stored <= 2 * allowed + (truncation + arithmetic) * exact.norm(), (name, c, D)


@pytest.mark.parametrize("name", OPERATIONS)
def test_non_contiguous_rows_and_cotangents(name):
    whole = rows((4, 3, 2 * 10), 1.0)
    points = (whole[..., :10], rows((3, 4, 10), 1.0, seed=3).transpose(0, 1), whole[..., 10:])[:OPERATIONS[name]]
    compare(name, (*points, torch.tensor([[0.5], [1.0], [-1.0]])), torch.randn(10, 3, 4).permute(2, 1, 0), 1e-5)
    expanded = torch.randn(1, 1, 10).expand(4, 3, 10)
    compare(name, (*points, torch.tensor(0.7)), expanded, 1e-5)


def test_every_output_number_is_written(monkeypatch):
    """Outputs start as NaN: what a kernel leaves out shows."""
    real = torch.empty

    def poisoned(*args, **kwargs):
        tensor = real(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor
    monkeypatch.setattr(torch, "empty", poisoned)
    for D in (1, 7, 100):
        for name in OPERATIONS:
            compare(name, (*several(name, (5, D), 1.0, 0.4), torch.rand(5, 1)), torch.randn(5, D), 1e-5)
    for reference, c in itertools.product(K.REFERENCES, (torch.rand(3, 1), torch.rand(1, 10, 1, 1))):
        compare_log_layernorm((1, 10, 3, 5), c, reference, 2e-5)


def test_no_rows_and_too_long_rows():
    for name in OPERATIONS:
        x = torch.zeros(0, 8, requires_grad=True)
        getattr(K, name)(x, *[torch.zeros(0, 8)] * (OPERATIONS[name] - 1), 1.0).sum().backward()
        assert x.grad.shape == (0, 8)
    with pytest.raises(ValueError, match="at most 8192"):
        K.logmap(torch.zeros(1, 8193), torch.zeros(1, 8193), 1.0)
    with pytest.raises(TypeError, match="float64"):
        K.logmap(torch.zeros(1, 8, dtype=torch.float64), torch.zeros(1, 8), 1.0)


@pytest.mark.parametrize("c_shape", [(3, 1, 1), (3, 4, 1), (4, 1), (1, 1, 1, 1)])
def test_rows_take_the_shape_of_c_as_in_geometry(c_shape):
    rng = torch.Generator().manual_seed(0)
    points, c = [0.2 * torch.randn(1, 8, generator=rng) for _ in range(3)], torch.rand(c_shape, generator=rng)
    for name in OPERATIONS:
        ours = [t.clone().requires_grad_() for t in (*points[:OPERATIONS[name]], c)]
        exact = [t.detach().double().requires_grad_() for t in ours]
        out, expected = getattr(K, name)(*ours), getattr(G, name)(*exact)
        assert out.shape == expected.shape
        grads, wanted = (torch.autograd.grad(o.square().sum(), i) for o, i in ((out, ours), (expected, exact)))
        for a, b in zip((out, *grads), (expected, *wanted)):
            assert a.shape == b.shape and (a.double() - b).norm() <= 1e-5 * b.norm().clamp(min=0.1), (name, c_shape)


def test_a_c_that_is_not_one_number_a_row_is_refused():
    x = torch.zeros(3, 8)
    for c in (torch.ones(8), torch.ones(3, 8)):
        with pytest.raises(ValueError, match="one number a row"):
            K.logmap(x, x, c)
    with pytest.raises(ValueError, match="one number a row"):
        K.mobius_add(x, x, 1.0, torch.ones(8))
    for c in (torch.ones(5, 1), torch.ones(2, 1, 3, 2, 1)):
        with pytest.raises(ValueError, match="one number a head"):
            K.log_layernorm(torch.zeros(1, 3, 2, 4), c, torch.ones(8))


@pytest.mark.parametrize("c_shape", [(1, 2, 1), (1, 1, 2, 1), (1, 1, 1, 1), (1, 5, 1, 1), (3, 1, 2, 1)])
def test_log_layernorm_gives_the_gradient_of_c_in_any_shape(c_shape):
    rng = torch.Generator().manual_seed(0)
    x, g = 0.2 * torch.randn(3, 5, 2, 4, generator=rng), torch.randn(3, 5, 2, 4, generator=rng)
    c = torch.rand(c_shape, generator=rng).requires_grad_()
    exact = c.detach().double().requires_grad_()
    K.log_layernorm(x, c, torch.ones(8)).backward(g)
    u = G.log_previous(x.double(), exact).flatten(2)
    F.layer_norm(u, (8,)).view(x.shape).backward(g.double())
    assert c.grad.shape == c.shape and (c.grad - exact.grad).norm() <= 2e-5 * exact.grad.norm().clamp(min=0.05)


def test_a_model_whose_padded_rows_are_too_long_is_refused_at_once():
    config = models.CONFIGS["mixed"](**{**TINY, "n_layer": 1, "n_head": 5, "n_embd": 8000}, ops="triton")
    with pytest.raises(UserError, match="5 x 1600 numbers.* 16,384 .*--ops=torch"):
        models.build("mixed", config)


def compare_log_layernorm(shape, c, reference, bound, longest=0.6, layout=lambda t: t, more=(), seed=0):
    """Output and every gradient against float64. shape: (B, T, heads, head size). layout: of x, r and the cotangent."""
    B, T, H, D = shape
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(size, generator=rng)
    each = torch.as_tensor(c)
    x, r = (layout(rows(shape, float(each.abs().max()), longest, seed + i)) for i in range(2))
    if longest > 1:
        x, r = G.project(x, each), G.project(r, each)
    g, weight, bias = layout(draw(*shape)), draw(H * D), draw(H * D)
    ours = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, each, weight, bias, r)]
    exact = [t.double().requires_grad_() for t in (x, each, weight, bias, r)]
    out = K.log_layernorm(*ours[:4], reference, ours[4] if reference == "given" else None, *more)
    base = {"previous": F.pad(exact[0], (0, 0, 0, 0, 1, -1)), "origin": exact[0] * 0, "given": exact[4]}[reference]
    u = G.logmap(base, exact[0], exact[1]).flatten(2)
    expected = F.layer_norm(u, (H * D,), exact[2], exact[3]).view(shape)
    out.backward(g.to(out.dtype))
    expected.backward(g.to(out.dtype).double())
    pairs = [(out, expected)] + [(a.grad, b.grad) for a, b in zip(ours, exact) if a.grad is not None]
    assert len(pairs) == (6 if reference == "given" else 5)
    for i, (a, b) in enumerate(pairs):
        # what cancels in a sum over rows (the gradient of c), and the gradients of a row of one number, which are 0
        small = float(g.norm()) * (0.01 if H * D > 1 else 1)
        assert (a.double() - b).norm() <= bound * b.norm().clamp(min=small), (i, float((a.double() - b).norm() / b.norm()))


# every two of a reference, a way to give c and a shape; every three: make test-all
@pytest.mark.parametrize("reference, kind, shape", [
    pytest.param(*case, marks=[] if (i // 3 + i) % 3 == 0 else pytest.mark.exhaustive) for i, case in enumerate(itertools.product(
        ["previous", "origin", "given"], ["one", "head", "token", "both"], [(2, 5, 3, 5), (1, 9, 1, 32), (3, 1, 2, 4)]))] + [
    ("previous", "head", (1, 2, 2, 1100))])  # padded to 4,096: the bias's gradient is summed outside of the kernel
def test_log_and_layernorm_in_one_kernel(reference, kind, shape):
    B, T, H, D = shape
    c_shape = {"one": (), "head": (H, 1), "token": (B, T, 1, 1), "both": (B, T, H, 1)}[kind]
    c = torch.randn(c_shape, generator=torch.Generator().manual_seed(0))
    compare_log_layernorm(shape, 0.4 * c, reference, 2e-5)


@pytest.mark.parametrize("D", [*WIDTHS, 4096, 8192])
def test_log_and_layernorm_at_all_widths_and_curvatures(D):
    for c in CURVATURES if D < 200 else (-1.0, 0.1):
        compare_log_layernorm((1, 3 if D < 1000 else 2, 1, D), c, "previous", 2e-5)
    if D == 64:
        for c in (1.0, 0.1):  # projected: errors grow as 1/(1 - c|x|^2)
            compare_log_layernorm((1, 9, 2, 32), c, "previous", 2e-5 + 2.0 ** -23 * 2 ** 13, longest=30.0)


def test_log_and_layernorm_of_rows_that_are_not_contiguous_and_of_16_bits():
    turned = lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)
    expanded = lambda t: t[:, :, :, :1].expand(t.shape)
    for layout, reference in itertools.product((turned, expanded), K.REFERENCES):
        compare_log_layernorm((2, 5, 3, 8), torch.tensor([[0.5], [1.0], [-1.0]]), reference, 5e-5, layout=layout)
    for dtype, ulp in ((torch.bfloat16, 2.0 ** -7), (torch.float16, 2.0 ** -10)):
        # the result in the dtype that autocast's matrix products read; and rows of that dtype (the interpreter truncates to bfloat16)
        compare_log_layernorm((1, 5, 3, 8), 0.7, "previous", 2 * ulp, more=(dtype,))
        compare_log_layernorm((1, 5, 3, 8), 0.7, "given", 2 * ulp, layout=lambda t: t.to(dtype))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_longest_rows(name):
    for D, c in ((4096, 0.1), (8192, -1.0)):
        compare(name, (*several(name, (2, D), c), torch.tensor(c)), torch.randn(2, D), 3e-5, limit=None if name == "logmap" else 0.2)


def test_gradients_of_c_are_the_same_bits_each_time():
    x, y = rows((300, 16), 1.0), rows((300, 16), 1.0, seed=1)
    grads = []
    for _ in range(3):
        c = torch.tensor(0.7, requires_grad=True)
        K.logmap(x, y, c).square().sum().backward()
        grads.append(c.grad)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def exact_functions():
    import mpmath as mp
    tanc = lambda z: mp.tanh(mp.sqrt(z)) / mp.sqrt(z) if z > 0 else mp.tan(mp.sqrt(-z)) / mp.sqrt(-z) if z < 0 else mp.mpf(1)
    artanc = lambda z: mp.atanh(mp.sqrt(z)) / mp.sqrt(z) if z > 0 else mp.atan(mp.sqrt(-z)) / mp.sqrt(-z) if z < 0 else mp.mpf(1)
    return mp, tanc, artanc


def test_tanc_and_artanc_are_accurate_to_2_ulp():
    """Through kernels of their own, against mpmath, up to the pole of tan; their slopes, which subtract, to 6."""
    import triton
    import triton.language as tl

    @triton.jit
    def evaluate(z_ptr, out_ptr, N: tl.constexpr):
        i = tl.arange(0, N)
        z = tl.load(z_ptr + i)
        k, rest = scalar_functions._tanc(z)
        tl.store(out_ptr + i, k)
        tl.store(out_ptr + N + i, scalar_functions._tanc_slope(z, k, rest))
        z = tl.minimum(z, 0.999)
        k = scalar_functions._artanc(z, 1.0 - z)
        tl.store(out_ptr + 2 * N + i, k)
        tl.store(out_ptr + 3 * N + i, scalar_functions._artanc_slope(z, 1.0 - z, k))
    mp, exact_tanc, exact_artanc = exact_functions()
    z = torch.cat((torch.linspace(-2.46, 2.46, 1024), torch.linspace(2.5, 1000, 128), torch.linspace(-0.7, 1, 512),
                   -torch.logspace(0.4, 4, 384)))
    found = torch.empty(4, z.numel())
    evaluate[(1,)](z, found, z.numel())
    worst = [0.0] * 4
    for i, zi in enumerate(map(mp.mpf, z.tolist())):
        capped = mp.mpf(z[i].clamp(max=0.999).item())
        tanc, artanc = exact_tanc(zi), exact_artanc(capped)
        exact = (tanc, (1 - zi * tanc ** 2 - tanc) / (2 * zi), artanc, (1 / (1 - capped) - artanc) / (2 * capped))
        for j in range(4) if zi > -2.465 else (2, 3):
            worst[j] = max(worst[j], abs(float(found[j, i].item() / exact[j] - 1)) / 2 ** -23)
    assert worst[0] <= 2 and worst[2] <= 2 and worst[1] <= 6 and worst[3] <= 6, worst


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["some", "all"])
def test_operators_pass_opcheck(every):
    x, y, c = rows((4, 6), 1.0).requires_grad_(), rows((4, 6), 1.0, seed=1).requires_grad_(), torch.tensor(0.7, requires_grad=True)
    limit = torch.tensor(0.3, requires_grad=True)
    r = rows((4, 6), 1.0, seed=2).requires_grad_()
    # with and without r, each with and without a limit
    cases = itertools.product(K.KINDS, (None, limit)) if every else zip([*K.KINDS, "exp_r"], itertools.cycle((None, limit)))
    for kind, bound in cases:
        torch.library.opcheck(sums._sum, (x, r if kind == "exp_r" else None, y, c, bound, kind))
    torch.library.opcheck(logarithm._logmap, (x, y, c))
    tokens = rows((1, 3, 2, 4), 1.0).requires_grad_()
    weight = torch.ones(8, requires_grad=True)
    torch.library.opcheck(layernorm._log_layernorm, (tokens, None, torch.rand(2, 1).requires_grad_(), weight, None, "previous",
                                                     torch.float32))
    torch.library.opcheck(layernorm._log_layernorm, (tokens, tokens.detach().clone(), c, weight, weight.detach().clone(), "given",
                                                     torch.float32))
    # the backward operators themselves; strides and 16 bits
    x, r, y, c, limit = (t.detach() for t in (x, r, y, c, limit))
    turned = rows((6, 4), 1.0).t()
    torch.library.opcheck(sums._sum_grad, (turned, x, r, y.bfloat16(), c, limit, "exp_r"))
    torch.library.opcheck(sums._sum_grad, (x, turned, None, y, torch.rand(4, 1), None, "exp_0"))
    torch.library.opcheck(logarithm._logmap_grad, (turned, x, y.half(), c))
    statistics = torch.rand(3), torch.rand(3)
    for r in (None, tokens.detach().clone()):
        torch.library.opcheck(layernorm._log_layernorm_grad, (tokens.detach(), tokens.detach(), r, torch.rand(2, 1), weight.detach(),
                                                              *statistics, True, "previous" if r is None else "given"))


SMALL = {**TINY, "n_layer": 1}  # the interpreter takes 0.1 s a token and layer


@pytest.fixture
def few(tokens):
    """9 tokens: one more than a program of log_layernorm walks along."""
    return tuple(t[:1, :9] for t in tokens)


MODELS = [dict(), dict(per_head_curvature=False), dict(dynamic_curvature=True), dict(dynamic_curvature=True, per_head_curvature=False),
          dict(residual="transport", reference="mean"), dict(residual="reference", curvature_mode="tied", bias=True),
          dict(reference="origin", use_embedding_curvature=True, curvature_mode="fixed", curvature=-0.5)]


@pytest.mark.parametrize("options", MODELS)
def test_the_model_on_kernels_is_the_same_model(options, few):
    """Logits, loss, gradients and cached logits."""
    def build(ops):
        torch.manual_seed(1)
        return randomised(models.build("mixed", models.CONFIGS["mixed"](**SMALL, **options, ops=ops)), scale=0.05)
    plain, fast = build("torch"), build("triton")
    assert type(fast) is not type(plain)
    results = []
    for net in (plain, fast):
        logits, loss = net(*few)
        loss.backward()
        results.append((logits, dict(net.named_parameters())))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    for key, p in results[0][1].items():
        torch.testing.assert_close(results[1][1][key].grad, p.grad, rtol=1e-3, atol=1e-5 * float(p.grad.abs().max()) + 1e-7, msg=key)
    a, b = (torch.cat(list(net.eval().generate(few[0][:, :3], 3, temperature=0))) for net in (plain, fast))
    assert torch.equal(a, b)


def test_training_steps_with_the_kernels_follow_the_plain_ones(few):
    curves = []
    for ops in ("torch", "triton"):
        torch.manual_seed(1)
        net = models.build("mixed", models.CONFIGS["mixed"](**SMALL, ops=ops))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            loss = net(*(t[:, :5] for t in few))[1]
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert curves[0][-1] < 0.9 * curves[0][0]


@pytest.mark.parametrize("options, dtype", [  # every value that MODELS has, and every shape of c
    (dict(), torch.bfloat16),
    (dict(dynamic_curvature=True, residual="transport", reference="mean"), torch.float32),
    (dict(dynamic_curvature=True, per_head_curvature=False, residual="reference", curvature_mode="tied", bias=True), torch.bfloat16),
    (dict(per_head_curvature=False, reference="origin", use_embedding_curvature=True, curvature_mode="fixed", curvature=-0.5),
     torch.float32)])
def test_the_model_on_kernels_compiles_to_one_graph(options, dtype, few):
    torch._dynamo.reset()
    torch.manual_seed(1)
    net = randomised(models.build("mixed", models.CONFIGS["mixed"](**SMALL, **options, ops="triton")), scale=0.05)
    few = tuple(t[:, :2] for t in few)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        backend = "eager" if options else "aot_eager"  # (each operator goes through AOT autograd in test_operators_pass_opcheck)
        loss, expected = compile_parts(net, backend=backend)(*few)[1], net(*few)[1]
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    torch.testing.assert_close(loss, expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=0)


def test_triton_without_a_gpu_or_the_interpreter_is_one_line(small_run):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, os.path.join(ROOT, "train.py"), *small_run, "--model=mixed", "--ops=triton"],
                          capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "needs a CUDA GPU" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_interpreter_takes_over_tritons_language_once_a_launch_and_gives_it_back(monkeypatch):
    """kernels/interpreter.py: not again for every device function that a kernel calls."""
    load, times, calls = interpreter.tl.load, [], []
    core, call = interpreter._patch_lang_core, interpreter.InterpretedFunction.__call__
    monkeypatch.setattr(interpreter, "_patch_lang_core", lambda module, scope: (times.append(module), core(module, scope))[1])
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", lambda *args, **more: (calls.append(1), call(*args, **more))[1])
    x = rows((3, 8), 1.0)
    with monkeypatch.context() as patched, pytest.raises(Exception, match="KeyError"):  # a launch that fails
        patched.setattr(interpreter.interpreter_builder, "set_grid_idx", lambda *place: {}["nothing"])
        K.logmap(x, x.flip(0), 1.0)
    assert times == [interpreter.tl] and interpreter.tl.load is load
    for _ in range(2):
        torch.testing.assert_close(K.logmap(x, x.flip(0), 1.0), G.logmap(x, x.flip(0), 1.0), rtol=1e-4, atol=1e-6)
        assert interpreter.tl.load is load
    # the kernel's own module, and those of tl.sum; one by one they would be as many as the calls
    assert len(times) - 1 <= 3 * 2 and len(calls) >= 8 * 2


def test_which_devices_are_accepted(monkeypatch):
    assert K.check_device("mps") is None and K.check_device("cuda") is None  # in the interpreter
    for module in (launch, K):  # check_device() reads the one, models.py the other
        monkeypatch.setattr(module, "INTERPRETED", False)
    assert "TRITON_INTERPRET=1" in K.check_device("mps") and K.check_device("cuda") is None
    if not torch.cuda.is_available():  # "0 active drivers": what a driver that cannot be built looks like
        assert "Triton cannot build its launcher" in K.check_launcher()
        with pytest.raises(UserError, match="gcc, python3-dev"):
            models.build("mixed", models.CONFIGS["mixed"](**TINY, ops="triton"), "cuda")


@pytest.mark.parametrize("model", ["mixed", "mhc"])
def test_training_with_the_kernels_from_the_command_line(model, small_run, capsys):
    status, out, err = run(train.main, [*small_run, f"--model={model}", "--ops=triton", "--max_iters=2", "--eval_interval=2",
                                        "--block_size=8", "--eval_iters=1", "--batch_size=1", "--n_layer=1"], capsys)
    assert status == 0, err
    assert "ops: Triton kernels" in out and "final: val loss" in out


# residual streams: test_kernels_streams.py; attention by distance: test_scalar_attention_kernels.py
MAPS = '--kernel=["add","exp","log"]'


@pytest.mark.parametrize("sizes", [
    (('--dtype=["float32"]', "--width=[4096]", "--arch=[90]", '--kernel=["add","exp","log forward","log backward"]'),
     ('--dtype=["float32"]', "--width=[2048]", "--arch=[90]", '--kernel=["LayerNorm"]'),  # 4096 has 4 layouts of its heads
     ('--dtype=["bfloat16"]', "--width=[64]", "--arch=[80]", MAPS), ('--dtype=["float16"]', "--width=[128]", "--arch=[90]", MAPS),
     ('--dtype=["float32"]', "--width=[1024]", '--kernel=["exp_0 backward, c per row","given"]'),
     ('--dtype=["bfloat16"]', "--width=[768]", "--arch=[80]", '--kernel=["LayerNorm backward"]'),
     ('--dtype=["float32"]', "--width=[40]", "--arch=[80]", '--kernel=["exp_r backward","exp_0 backward"]')),
    pytest.param(([MAPS],), marks=pytest.mark.exhaustive)], ids=["some", "all"])
def test_machine_code_for_gpus_has_no_spills_and_the_passes_counted(sizes, tmp_path):
    """Every kernel in every dtype, and on sm_80 and sm_90: from the compiled artefact. (A second for each: not every pair of the two.)"""
    found = machine_code(sizes, tmp_path)
    kernels = {f"{kind} {way}" for kind in (*K.KINDS, "log", "log + LayerNorm") for way in ("forward", "backward")}
    for what, values in (("dtype", ("float32", "bfloat16", "float16")), ("arch", (80, 90))):
        assert {(row["kernel"], row[what]) for row in found} >= set(itertools.product(kernels, values))
    assert check_machine_code(found) >= kernels
