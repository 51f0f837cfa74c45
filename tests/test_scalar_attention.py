"""scalar_attention/: every form against a double loop, at all ranges; gradients, causality, graphs, memory."""
import functools
import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import scalar_attention as S
from scalar_attention import divide, plain, running, shapes, sources, tiled

LENGTHS = (1, 2, 127, 128, 129, 1000, 2048)
FORMS = tuple(S.FORMS)
KINDS = ("narrow", "ties", "equal", "grouped", "1e3", "1e6", "at the limit")


@functools.lru_cache
def inputs(T, kind, D=2, seed=0):
    """a, b, v in float32 numbers, (1, 1 or 4, T), (1, 1 or 2, T), (1, 1 or 2, T, D)."""
    rng = torch.Generator().manual_seed(seed)
    heads, n_kv = (4, 2) if kind == "grouped" else (1, 1)
    a, b, v = torch.rand(1, heads, T, generator=rng), torch.rand(1, n_kv, T, generator=rng), torch.randn(1, n_kv, T, D, generator=rng)
    scale = {"ties": 8, "1e3": 1e3, "1e6": 1e6, "at the limit": 2 * shapes.NARROW}.get(kind, 20)
    a, b = (a - 0.5) * scale, (b - 0.5) * scale
    if kind == "ties":
        a, b = a.round(), b.round()
    if kind == "equal":
        a, b = torch.full_like(a, 0.3), torch.full_like(b, 0.3)
    if kind == "1e6" and T > 3:  # far from every key, between two that are as far; and far beyond all
        b = b.abs()
        a[..., 1::3] *= -1
        a[..., -1] = (b[..., 0] + b[..., 1]) / 2
    return a, b, v


@functools.lru_cache
def double_loop(T, kind):
    a, b, v = inputs(T, kind)
    group = a.size(1) // b.size(1)
    out = torch.empty(1, a.size(1), T, v.size(-1), dtype=torch.float64)
    for head in range(a.size(1)):
        queries, keys = a[0, head].tolist(), b[0, head // group].tolist()
        left, right = v[0, head // group].double().t().tolist()
        for i, query in enumerate(queries):
            nearest = min(abs(query - key) for key in keys[:i + 1])
            weight = first = second = 0.0
            for j in range(i + 1):
                w = math.exp(nearest - abs(query - keys[j]))
                weight += w
                first += w * left[j]
                second += w * right[j]
            out[0, head, i, 0], out[0, head, i, 1] = first / weight, second / weight
    return out


@pytest.mark.parametrize("T, kind", [(T, "narrow") for T in LENGTHS] + [(T, k) for T in (129, 1000) for k in KINDS[1:]] + [(2, "1e6")])
def test_every_form_against_a_double_loop(T, kind):
    a, b, v = inputs(T, kind)
    exact = double_loop(T, kind)
    for form in FORMS:
        assert (S.attend(a.double(), b.double(), v.double(), form) - exact).abs().max() < 1e-10, form
        out = S.attend(a, b, v, form)
        assert out.dtype == torch.float32 and (out - exact).abs().max() < 1e-5, form


@pytest.mark.parametrize("form", FORMS)
def test_equal_scalars_give_the_causal_mean(form):
    a, b, v = (t.double() for t in inputs(1000, "equal"))
    mean = v.cumsum(2) / torch.arange(1, 1001).view(-1, 1)
    assert (S.attend(a, b, v, form) - mean).abs().max() < 1e-13
    assert (S.attend(a + 5e5, b + 5e5, v, form) - mean).abs().max() < 1e-13


def gradients(form, a, b, v, g):
    leaves = [t.detach().clone().requires_grad_() for t in (a, b, v)]
    S.attend(*leaves, form).backward(g)
    return [t.grad for t in leaves]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["tiled", "divide"])
def test_gradients_of_a_b_and_v(form, kind):
    """Against the plain form in float64. Where one weight is all but 1, gradients of a and b cancel to nothing: relative to what they
    are made of, too."""
    for T in (2, 129, 1000):
        a, b, v = inputs(T, kind, D=5)
        g = torch.randn(*a.shape, 5, generator=torch.Generator().manual_seed(1))
        exact = gradients("plain", *(t.double() for t in (a, b, v, g)))
        for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
            for name, got, want in zip("abv", gradients(form, *(t.to(dtype) for t in (a, b, v, g))), exact):
                assert got.dtype == dtype
                assert (got - want).norm() <= bound * (want.norm() + (1e-2 * g.norm() if name != "v" else 0)), (T, name)


@pytest.mark.parametrize("form", ["tiled", "divide"])
def test_gradients_of_what_makes_the_scalars(form):
    """q, k, v and a temperature for each head, with several key heads for it."""
    rng = torch.Generator().manual_seed(0)
    B, nh, n_kv, T, D = 2, 4, 2, 700, 8
    start = [torch.randn(B, heads, T, D, generator=rng) for heads in (nh, n_kv, n_kv)] + [torch.tensor([0.05, 0.1, 0.2, 0.07])]
    w, g = torch.randn(D, generator=rng), torch.randn(B, nh, T, D, generator=rng)
    found = {}
    for name, dtype in ((form, torch.float64), (form, torch.float32), ("plain", torch.float64)):
        q, k, v, temperature = leaves = [t.to(dtype).clone().requires_grad_() for t in start]
        per_key_head = temperature.view(n_kv, -1)[:, :1]
        a = torch.sigmoid(q @ w.to(dtype)) / per_key_head.repeat_interleave(2, 0).view(nh, 1)
        b = torch.sigmoid(k @ w.to(dtype)) / per_key_head
        S.attend(a, b, v, name).backward(g.to(dtype))
        found[name, dtype] = [t.grad for t in leaves]
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        for got, want in zip(found[form, dtype], found["plain", torch.float64]):
            assert want.norm() > 0.1 and (got - want).norm() <= bound * want.norm()


@pytest.fixture
def many_levels(monkeypatch):
    """Leaves of 8, running sums of 2 numbers at a time: all steps of the recursion with a few tokens."""
    monkeypatch.setattr(divide, "LEAF", 8)
    monkeypatch.setattr(running, "DENSE", 4)
    monkeypatch.setattr(running, "CHUNK", 3)


@pytest.mark.parametrize("scale", [3.0, 100.0])
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form, scale, many_levels):
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.rand(1, heads, 21, generator=rng, dtype=torch.float64).mul_(scale).requires_grad_() for heads in (2, 1))
    v = torch.randn(1, 1, 21, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    # scaled: weights of e^-100 have no derivative that a finite difference sees
    assert torch.autograd.gradcheck(lambda a, b, v: S.attend(a, b, v, form), (a, b, v), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("kind", ["narrow", "ties", "1e3"])
def test_all_steps_of_the_recursion(kind, many_levels):
    for T in (9, 64, 100, 333):
        a, b, v = (t.double() for t in inputs(T, kind, D=3))
        g = torch.randn(*a.shape, 3, dtype=torch.float64)
        assert (S.attend(a, b, v, "divide") - S.attend(a, b, v, "plain")).abs().max() < 1e-12
        for got, want in zip(gradients("divide", a, b, v, g), gradients("plain", a, b, v, g)):
            assert (got - want).norm() < 1e-11 * g.norm()


def test_a_tie_has_no_gradient():
    a, b, v = (t.double() for t in inputs(400, "equal", D=3))
    for form in FORMS:
        da, db, dv = gradients(form, a, b, v, torch.randn(*a.shape, 3, dtype=torch.float64))
        assert not da.any() and not db.any() and dv.any()


@pytest.mark.parametrize("n", [1, 4, 128, 129, 1000, 5000])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_running_sums_against_a_loop(n, scale):
    rng = torch.Generator().manual_seed(0)
    u, rows = torch.randn(2, n, generator=rng, dtype=torch.float64) * scale, torch.randn(2, n, 3, generator=rng, dtype=torch.float64)
    reference, sums = running.running_sums(u, rows, 32, narrow=scale == 1)
    expected, state = torch.empty_like(rows), torch.zeros(2, 3, dtype=torch.float64)
    before = u[:, 0]
    for i in range(n):
        largest = torch.maximum(before, u[:, i])
        state = state * (before - largest).exp()[:, None] + (u[:, i] - largest).exp()[:, None] * rows[:, i]
        expected[:, i], before = state, largest
    assert torch.equal(reference, u.cummax(-1).values)
    assert (sums - expected).abs().max() < 1e-11


def test_sources_and_targets_that_coincide():
    """Both sides of a target, weights of sources, signs: against the definition."""
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, 5, (2, n), generator=rng).double() for n in (6, 9))
    w, z, rows = -torch.rand(2, 6, generator=rng), -torch.rand(2, 9, generator=rng), torch.randn(12, 3, generator=rng)
    w, z, rows = w.double(), z.double(), rows.double()
    index = torch.randperm(12, generator=rng).view(2, 6)
    weights = torch.exp(-(y[:, :, None] - x[:, None]).abs() + w[:, None] + z[:, :, None])
    for narrow in (True, False):
        total, signed = sources.Sorted(x, y).sums(rows, index, w, z, 4, narrow, True)
        assert torch.allclose(total.view(2, 9, 3), weights @ rows[index])
        assert torch.allclose(signed.view(2, 9, 3), (weights * (y[:, :, None] - x[:, None]).sign()) @ rows[index])
    assert torch.equal(sources.Sorted(x, y).nearest(), (y[:, :, None] - x[:, None]).abs().amin(-1))


@pytest.mark.parametrize("t", [1, 100, 128, 511, 640])
def test_the_future_does_not_change_the_past(t):
    """Bit for bit in the tiled form; the others to 1e-6. Also where the range grows with the future."""
    for kind, later in (("narrow", 1.0), ("1e3", 1.0), ("narrow", 100.0)):
        a, b, v = inputs(700, kind, D=4)
        changed = [x.clone() for x in (a, b, v)]
        for x in changed:
            x[:, :, t:] = x[:, :, t:].flip(2) * later + 0.5
        for form in FORMS:
            past, same = (S.attend(*x, form)[:, :, :t] for x in ((a, b, v), changed))
            assert torch.equal(past, same) if form == "tiled" and later == 1 else (past - same).abs().max() < 1e-6, form


@pytest.mark.parametrize("form", ["plain", "tiled"])
def test_new_tokens_after_cached_ones(form):
    a, b, v = inputs(1000, "grouped", D=4)
    whole = S.attend(a, b, v)
    for new in (1, 3, 300):
        leaves = [t.clone().requires_grad_() for t in (a[:, :, -new:], b, v)]
        out = S.attend(*leaves, form)
        assert (out - whole[:, :, -new:]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="as many queries as keys"):
        S.attend(a[:, :, -3:], b, v, "divide")


def test_gradients_of_new_tokens_after_cached_ones():
    a, b, v = (t.double() for t in inputs(400, "grouped", D=4))
    g = torch.randn(1, 4, 150, 4, dtype=torch.float64)
    for got, want in zip(gradients("tiled", a[:, :, -150:], b, v, g), gradients("plain", a[:, :, -150:], b, v, g)):
        assert (got - want).norm() <= 1e-9 * want.norm()


def test_which_form_is_chosen():
    assert [S.choose(T) for T in (1, 128, S.DIVIDE_FROM - 1, S.DIVIDE_FROM)] == ["tiled", "tiled", "tiled", "divide"]
    assert [S.choose(T, 5000) for T in (1, S.PLAIN_UP_TO, 17, 4999, 5000)] == ["plain", "plain", "tiled", "tiled", "divide"]


@pytest.mark.parametrize("form", FORMS)
def test_16_bit_values(form):
    """They are summed in float32, under autocast, too: one rounding, at the end."""
    a, b, v = inputs(1000, "grouped", D=4)
    for dtype, unit in ((torch.bfloat16, 2.0 ** -8), (torch.float16, 2.0 ** -11)):
        exact = S.attend(a.double(), b.double(), v.to(dtype).double(), "plain")
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                leaves = [t.clone().requires_grad_() for t in (a, b, v.to(dtype))]
                out = S.attend(*leaves, form)
            assert out.dtype == dtype and ((out - exact).abs() <= unit * exact.abs() + 1e-5).all()
            out.sum().backward()
            assert [t.grad.dtype for t in leaves] == [torch.float32, torch.float32, dtype]
            assert all(torch.isfinite(t.grad).all() and t.grad.any() for t in leaves)


def test_autocast_does_not_reach_the_sums():
    a, b, v = inputs(1000, "narrow", D=4)
    for form in FORMS:
        expected = S.attend(a, b, v, form)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(S.attend(a, b, v, form), expected), form


@pytest.mark.parametrize("form", FORMS)
def test_no_tokens_no_columns_and_strides(form):
    for shape in ((0, 2, 5), (2, 2, 0)) if form != "plain" else ((0, 2, 5),):
        leaves = [torch.zeros(size, requires_grad=True) for size in (shape, shape, (*shape, 3))]
        out = S.attend(*leaves, form)
        assert out.shape == (*shape, 3)
        out.sum().backward()
        assert leaves[0].grad.shape == shape
    a, b, v = inputs(300, "grouped", D=6)
    turned = [a.transpose(1, 2).contiguous().transpose(1, 2), b.expand(2, -1, -1)[1:], v.transpose(1, 3).contiguous().transpose(1, 3)]
    g = torch.randn(1, 4, 6, 300).transpose(2, 3)
    for got, want in zip(gradients(form, *turned, g), gradients(form, a, b, v, g.contiguous())):
        assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_what_does_not_go_together_is_refused(form):
    a, b, v = inputs(6, "grouped")
    for wrong in ((a[0], b, v), (a, b, v[..., 0]), (a, b[:, :, 1:], v), (a[:, :3], b, v), (a, b[:, :, :3], v[:, :, :3])):
        with pytest.raises(ValueError, match="a is"):
            S.attend(*wrong, form)
    for wrong in ((a.bfloat16(), b.bfloat16(), v), (a.double(), b, v), (a, b, v.long())):
        with pytest.raises(TypeError):
            S.attend(*wrong, form)


def test_nan_is_not_lost():
    for form in FORMS:
        for place in (0, 500):
            a, b, v = (t.clone() for t in inputs(1000, "narrow"))
            b[..., place] = float("nan")
            assert torch.isnan(S.attend(a, b, v, form)[:, :, place:]).any(), form


@pytest.mark.parametrize("form", ["tiled", "divide"])
def test_compiles_to_one_graph(form):
    a, b, v = inputs(400, "grouped", D=4)

    def f(a, b, v, temperature):
        return S.attend(a / temperature, b / temperature, v, form).square()
    found = []
    for function in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        leaves = [t.detach().clone().requires_grad_() for t in (a, b, v, torch.tensor(0.5))]
        out = function(*leaves)
        out.sum().backward()
        found.append([out, *(t.grad for t in leaves)])
    for eager, compiled in zip(*found):
        assert torch.allclose(eager, compiled, rtol=1e-4, atol=1e-5)


def test_operators_pass_opcheck():
    a, b, v = (t.clone().requires_grad_() for t in inputs(300, "grouped", D=3))
    torch.library.opcheck(divide._divide, (a, b, v, True))
    torch.library.opcheck(tiled._tiled, (a, b, v))
    a, b, v = (t.detach() for t in (a, b, v))
    torch.library.opcheck(divide._divide, (a, b, v, False))
    torch.library.opcheck(tiled._tiled, (a[:, :, -9:], b, v.bfloat16()))
    g = torch.randn(1, 4, 3, 300).transpose(2, 3)
    torch.library.opcheck(divide._divide_grad, (g, a, b, v, *divide._divide(a, b, v, True)))
    torch.library.opcheck(tiled._tiled_grad, (g, a, b, v, *tiled._tiled(a, b, v)))


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return result


def largest(form, T):
    """Forward and backward, inside the operators."""
    rng = torch.Generator().manual_seed(0)
    a, b, v = (torch.rand(*shape, generator=rng) for shape in ((1, 1, T), (1, 1, T), (1, 1, T, 8)))
    with Largest() as mode:
        if form == "plain":
            plain.attend(a, b, v)
        elif form == "tiled":
            tiled._tiled_grad._init_fn(v, a, b, v, *tiled._tiled._init_fn(a, b, v))
        else:
            divide._divide_grad._init_fn(v, a, b, v, *divide._divide._init_fn(a, b, v, True))
    return mode.numel


def test_there_is_no_matrix_of_all_pairs():
    T = 4096
    assert largest("plain", T) >= T * T  # so it is seen where there is one
    assert largest("tiled", T) <= tiled.STRIP * T
    assert largest("divide", T) <= max(sources.SLAB, T * running.DENSE)
    # beyond leaves, whose share is bounded, the largest tensor grows as T does
    assert largest("divide", 8 * T) <= 2.1 * largest("divide", 4 * T)


@pytest.mark.parametrize("T", [2, 129, 500, 1000])
@pytest.mark.parametrize("kind", ["narrow", "ties", "grouped", "1e3"])
def test_ages_in_every_form_with_gradients(T, kind):
    """Slopes from 1e-3 to 2 a head: against the definition in float64, where e^{slope T} overflows float32 and float64."""
    a, b, v = inputs(T, kind, D=3)
    slope = torch.tensor([2.0, 1e-3])[:b.size(1)]
    g = torch.randn(*a.shape, 3, generator=torch.Generator().manual_seed(1))
    found = {}
    for form, dtype in [("plain", torch.float64), *itertools.product(("tiled", "divide"), (torch.float64, torch.float32))]:
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (a, b, v)]
        out = S.attend(*leaves, form, slope)
        found[form, dtype] = out, *torch.autograd.grad(out, leaves, g.to(dtype))
    for (_, dtype), results in found.items():
        for got, exact in zip(results, found["plain", torch.float64]):
            size = exact.norm() if T > 2 else g.norm()  # both keys on one side of a query: gradients of 0
            assert (got - exact).norm() <= (1e-10 if dtype == torch.float64 else 1e-5) * size
    # the definition once by hand, and a slope of 0 is none
    if kind == "narrow" and T == 129:
        weights = torch.tensor([math.exp(-abs(a[0, 0, 128].item() - b[0, 0, j].item()) - 2.0 * (128 - j)) for j in range(T)]).double()
        torch.testing.assert_close(found["divide", torch.float64][0][0, 0, 128].detach(), weights @ v[0, 0].double() / weights.sum())
        assert (S.attend(a, b, v, "divide", torch.zeros(1)) - S.attend(a, b, v, "divide")).abs().max() < 1e-5


def test_ages_of_new_tokens_after_cached_ones_and_opcheck():
    a, b, v = inputs(150, "grouped", D=3)
    slope = torch.tensor([0.5, 0.01])
    full = S.attend(a, b, v, "plain", slope)
    for form in ("plain", "tiled"):
        torch.testing.assert_close(S.attend(a[:, :, -7:], b, v, form, slope), full[:, :, -7:], rtol=1e-5, atol=1e-6)
    a, b, v = (t.requires_grad_() for t in (a.clone(), b.clone(), v.clone()))
    torch.library.opcheck(divide._divide, (a, b, v, True, slope))
    torch.library.opcheck(tiled._tiled, (a, b, v, slope))
