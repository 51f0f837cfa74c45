"""torch.func on the maps of geometry/: vmap, grad, jacrev, jacfwd, jvp, hessian, against loops and finite differences."""
import pytest
import torch
from spaces import FUNCTIONS, GRADCHECK_CURVATURES, USED, generator, random_rows
from test_model_baseline import randomised
from test_models import build
from test_stereographic import CURVED_HEADS, EVERYTHING
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import geometry as G

MAPS = {**FUNCTIONS, **USED}
every_map = pytest.mark.parametrize("name", sorted(MAPS))


def inputs_of(name, c, shape=(2, 3), dtype=torch.float64):
    f, kinds = MAPS[name]
    rows = [0.5 * row.to(dtype) for row in random_rows(kinds, shape, c or 1.0, generator(3))]
    return f, (*rows, torch.tensor(c, dtype=torch.float64))


def differences(f, inputs, which, step=1e-6):
    """The Jacobian by central differences: (shape of the result, shape of the input)."""
    columns = []
    for i in range(inputs[which].numel()):
        moved = []
        for sign in (1, -1):
            changed = [t.clone() for t in inputs]
            changed[which].view(-1)[i] += sign * step
            moved.append(f(*changed))
        columns.append((moved[0] - moved[1]) / (2 * step))
    result = torch.stack(columns, -1)
    return result.reshape((*result.shape[:-1], *inputs[which].shape))


@every_map
def test_jacobians_are_finite_differences(name):
    for c in GRADCHECK_CURVATURES:
        f, inputs = inputs_of(name, c)
        every = tuple(range(len(inputs)))
        for jacobian in (jacrev, jacfwd):
            found = jacobian(f, every)(*inputs)
            for i in every:
                torch.testing.assert_close(found[i], differences(f, inputs, i), rtol=1e-6, atol=1e-7, msg=f"{jacobian.__name__}, c = {c}")


@pytest.mark.parametrize("scalars, name", [*(("float64", name) for name in sorted(MAPS)),
                                           *(("float32", name) for name in sorted(MAPS) if "limited" in name)])
def test_rows_of_zeros_and_sums_that_are_zero_have_derivatives(scalars, name):
    """Where square roots have an infinite slope: the same numbers as by the closed forms, which do not take roots."""
    dtype = torch.float64 if scalars == "float64" else torch.float32
    close = dict(rtol=1e-7, atol=1e-9) if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-5)
    G.use_row_scalars(scalars)
    try:
        for c in (1.0, 0.0, -1.0):
            f, (*rows, ct) = inputs_of(name, c, (1, 3), dtype)
            zero = torch.zeros(1, 3, dtype=dtype)
            cases = [[zero if i in at else row for i, row in enumerate(rows)] for at in ((0,), (1,), tuple(range(len(rows))))]
            cases += [[row if i % 2 else -rows[1] for i, row in enumerate(rows)]] if len(rows) > 1 else []  # x (+) -x
            for case in cases[1 if name == "dist" else 0:2 if name == "dist" else None]:  # its derivative at x = y is a convention
                every = tuple(range(len(rows) + 1))
                weights = torch.randn(f(*case, ct).shape, dtype=dtype, generator=generator(6))

                def loss(*inputs):
                    return (f(*inputs) * weights).sum()
                leaves = [t.clone().requires_grad_() for t in (*case, ct)]
                expected = torch.autograd.grad(loss(*leaves), leaves)
                recorded = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
                for found in (grad(loss, every)(*case, ct), recorded):
                    for a, b in zip(found, expected):
                        torch.testing.assert_close(a.detach().double(), b.double(), **close, msg=f"c = {c}, {case}")
                for jacobian, g in zip(jacfwd(f, every)(*case, ct), expected):
                    a = torch.tensordot(weights.double(), jacobian.double(), weights.dim())
                    torch.testing.assert_close(a, g.double(), **close, msg=f"forward mode, c = {c}, {case}")
    finally:
        G.use_row_scalars("float64")


@every_map
def test_hessians_are_differences_of_gradients(name):
    for c in (-1.0, 0.0, 1.0):
        f, inputs = inputs_of(name, c, (1, 3))
        for i in range(len(inputs)):
            def norm(*args):
                return f(*args).square().sum()
            torch.testing.assert_close(hessian(norm, i)(*inputs), differences(lambda *args: grad(norm, i)(*args), inputs, i),
                                       rtol=1e-5, atol=1e-6)


@every_map
def test_forward_mode_is_the_jacobian_times_the_tangent(name):
    f, inputs = inputs_of(name, 0.7)
    tangents = tuple(torch.randn(t.shape, dtype=t.dtype, generator=generator(4)) for t in inputs)
    expected = sum(torch.tensordot(J, t, t.dim()) for J, t in zip(jacrev(f, tuple(range(len(inputs))))(*inputs), tangents))
    value, moved = jvp(f, inputs, tangents)
    torch.testing.assert_close(moved, expected)
    torch.testing.assert_close(value, f(*inputs))
    with forward_ad.dual_level():
        out = f(*(forward_ad.make_dual(t, tangent) for t, tangent in zip(inputs, tangents)))
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, expected)


@every_map
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_vmap_is_a_loop(name, dtype):
    """Over rows with one c, over rows and c's together, over c's alone; nested; with gradients inside."""
    f, (*rows, _) = inputs_of(name, 1.0, (4, 5, 3), dtype)
    cs = torch.tensor([0.6, 0.0, -0.4, 1e-3])
    close = dict(rtol=2e-2, atol=2e-2) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-6) if dtype == torch.float32 else {}

    def check(found, expected):
        torch.testing.assert_close(found, torch.stack(expected), **close)
    dims = (0,) * len(rows)
    check(vmap(f, (*dims, None))(*rows, cs[0]), [f(*each, cs[0]) for each in zip(*rows)])
    check(vmap(f, (*dims, 0))(*rows, cs), [f(*each) for each in zip(*rows, cs)])
    first = [row[0] for row in rows]
    check(vmap(f, (*[None] * len(rows), 0))(*first, cs), [f(*first, c) for c in cs])
    if name not in ("log_previous",):  # whose rows know one another
        check(vmap(vmap(f, (*dims, None)), (*dims, 0))(*rows, cs), [f(*each) for each in zip(*rows, cs)])
    weights = torch.randn(f(*first, cs[0]).shape, generator=generator(5)).to(dtype)

    def loss(*inputs):
        return (f(*inputs) * weights).sum().to(torch.float32)
    every = tuple(range(len(rows) + 1))
    each = [grad(loss, every)(*inputs) for inputs in zip(*rows, cs)]
    for found, *expected in zip(vmap(grad(loss, every))(*rows, cs), *each):
        check(found, expected)
    for inputs, found in zip(zip(*rows, cs), each):  # and by the derivatives in closed form
        leaves = [t.clone().requires_grad_() for t in inputs]
        loss(*leaves).backward()
        for leaf, g in zip(leaves, found):
            torch.testing.assert_close(g, leaf.grad, **(close if dtype != torch.float32 else dict(rtol=1e-4, atol=1e-5)))


def test_float32_row_scalars_under_transforms():
    G.use_row_scalars("float32")
    try:
        for name in sorted(MAPS):
            f, inputs = inputs_of(name, 0.7, dtype=torch.float32)
            exact = tuple(t.double() for t in inputs)
            every = tuple(range(len(inputs)))
            for jacobian in (jacrev, jacfwd):
                for found, expected in zip(jacobian(f, every)(*inputs), jacobian(f, every)(*exact)):
                    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4, msg=f"{jacobian.__name__}, {name}")
    finally:
        G.use_row_scalars("float64")


def test_closed_forms_are_used_where_no_transform_is_at_work(monkeypatch):
    x, v = (0.1 * torch.randn(3, 4, requires_grad=True) for _ in range(2))
    names = {G.add_exp_0(x, v, 0.5).grad_fn.name(), G.logmap(x, v, 0.5).grad_fn.name()}
    assert names == {"_SumBackward", "_LogBackward"}
    vmap(lambda a: G.add_exp_0(a, a, 0.5))(x)
    assert G.add_exp_0(x, v, 0.5).grad_fn.name() == "_SumBackward"


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # flash attention, one sequence at a time
@pytest.mark.parametrize("model, options", [
    ("mixed", {}), ("mixed", dict(dynamic_curvature=True, reference="mean", residual="transport")),
    ("baseline", dict(bounded_rows=True, token_shift="likeness")), ("controls", {}), ("terms", {}), ("tau", {}),
    *[("mhc", options) for options in ({}, dict(hc_maps="dynamic"), dict(hc="altup"))], ("mhc_mixed", {}),
    ("stereographic", EVERYTHING), ("stereographic", dict(EVERYTHING, curvature_mode="fixed", curvature=0.0)),
    *[("stereographic", dict(head=head)) for head in CURVED_HEADS]])
def test_gradients_of_each_sequence_of_a_batch(model, options, tokens):
    """Per-example gradients of a whole model, as influence functions and gradient noise scales take them."""
    net = randomised(build(model, options), scale=0.05).double()
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters, idx, targets):
        return functional_call(net, parameters, (idx[None], targets[None]))[1]
    found = vmap(grad(loss), (None, 0, 0))(parameters, *tokens)
    for i, (idx, targets) in enumerate(zip(*tokens)):
        net.zero_grad()
        net(idx[None], targets[None])[1].backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(found[name][i], p.grad, rtol=1e-6, atol=1e-9, msg=name)
