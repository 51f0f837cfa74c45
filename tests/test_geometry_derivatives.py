"""Derivatives of geometry/: finite differences, float32 against float64, 60 digits, and no kink at c = 0."""

import oracle as O
import pytest
import torch
from spaces import FUNCTIONS, GRADCHECK_CURVATURES, ORACLES, generator, gradients, midpoint_of_two, radius, random_rows, unit, within_bound
from torch.autograd import gradcheck, gradgradcheck

import geometry as G


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_gradcheck_of_every_argument_twice(name):
    f, kinds = FUNCTIONS[name]
    for i, c in enumerate(GRADCHECK_CURVATURES):
        rng = generator(20 + i)
        cases = [0.5 * row for row in random_rows(kinds, (1, 3), 1.0, rng)]
        # rows 1 to 3: the first row at the origin, all identical, all zero (a distance has no derivative where it is 0)
        extra = [torch.stack((row[0] * (k > 0), unit(generator(9), 3) * 0.4, torch.zeros(3)))[:1 if name == "dist" else 3]
                 for k, row in enumerate(cases)]
        cases = [torch.cat(pair) for pair in zip(cases, extra)]
        if name == "project" and c != 0:  # and one over the largest norm (at c = 0 that has no derivative by c)
            cases = [torch.cat((cases[0], 2.0 * G.max_norm(torch.tensor(c), torch.float64).clamp(max=1e3) * unit(rng, 1, 3)))]
        inputs = [row.requires_grad_() for row in cases] + [torch.tensor(c, dtype=torch.float64, requires_grad=True)]
        assert gradcheck(f, inputs, check_undefined_grad=False)
        if c in (-1.0, 0.0, 1.0):
            assert gradgradcheck(f, inputs, check_undefined_grad=False)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_gradcheck_of_curvature_per_head_and_per_token(name):
    f, kinds = FUNCTIONS[name]
    per_head = torch.tensor([[0.7], [-0.7]], dtype=torch.float64)
    per_token = torch.tensor([[[0.5], [0.0], [-0.5]]], dtype=torch.float64)
    for c, shape in ((per_head, (1, 1, 2, 2)), (per_token, (1, 3, 2))):
        inputs = [row.requires_grad_() for row in random_rows(kinds, shape, 1.0, generator(30))] + [c.requires_grad_()]
        assert gradcheck(f, inputs, check_undefined_grad=False)
        assert gradgradcheck(f, inputs, check_undefined_grad=False)


def test_gradcheck_with_a_limit_and_of_the_previous_token():
    """Half of the rows are over the limit."""
    x, v = (row.requires_grad_() for row in random_rows("pt", (1, 4, 3), 1.0, generator(33)))
    for c in (-1.0, 0.0, 1.0):
        c = torch.tensor(c, dtype=torch.float64, requires_grad=True)
        for f in (G.mobius_add, G.expmap, G.add_exp_0):
            lengths = f(x, v, c).norm(dim=-1).detach().flatten().sort().values
            limit = lengths[1:3].mean().requires_grad_()
            assert (f(x, v, c, limit).norm(dim=-1) <= limit * (1 + 1e-12)).all()
            assert gradcheck(f, (x, v, c, limit), check_undefined_grad=False)
            assert gradgradcheck(f, (x, v, c, limit), check_undefined_grad=False)
        assert torch.equal(G.log_previous(x, c), G.logmap(torch.nn.functional.pad(x, (0, 0, 1, -1)), x, c))
        assert gradcheck(G.log_previous, (x, c), check_undefined_grad=False)
        assert gradgradcheck(G.log_previous, (x, c), check_undefined_grad=False)


def test_rows_take_the_shape_that_c_gives_them():
    x, y = (row.requires_grad_() for row in random_rows("pp", (1, 3), 1.0, generator(34)))
    c = torch.linspace(-0.5, 0.5, 4, dtype=torch.float64).view(2, 2, 1).requires_grad_()
    for f in (G.mobius_add, G.expmap, G.add_exp_0, G.logmap):
        assert f(x, y, c).shape == (2, 2, 3)
        assert gradcheck(f, (x, y, c), check_undefined_grad=False)


def test_gradcheck_of_the_midpoint_by_its_weights():
    x = random_rows("p", (3, 2), 1.0, generator(31))[0].requires_grad_()
    w = torch.rand(2, 3, dtype=torch.float64, generator=generator(32)).requires_grad_()
    for c in GRADCHECK_CURVATURES:
        inputs = (x, w, torch.tensor(c, dtype=torch.float64, requires_grad=True))
        assert gradcheck(G.gyromidpoint, inputs, check_undefined_grad=False)
        assert gradgradcheck(G.gyromidpoint, inputs, check_undefined_grad=False)


def gradient_errors(f, rows, c, seed):
    """Errors of the float32 gradients against float64 at the same inputs, one for each argument. The gradient by
    c is one number, a sum over the random cotangent that can happen to be near 0: its scale is |d out / d c|.
    (The midpoint of neighbours hardly depends on c, so for it |out|/|c| is added.)"""
    rows64, c64 = [row.double() for row in rows], torch.tensor(c).double()
    _, got = gradients(f, rows, torch.tensor(c), seed)
    _, expected = gradients(f, rows64, c64, seed)
    out, slope = torch.autograd.functional.jvp(lambda c: f(*rows64, c), c64, torch.ones_like(c64))
    scales = [*(float(e.norm()) for e in expected[:-1]), float(slope.norm())]
    if f is midpoint_of_two and c:
        scales[-1] += float(out.norm()) / abs(c)
    return [float((g.double() - e).norm()) / max(scale, 1e-300) for g, e, scale in zip(got, expected, scales)]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_float32_gradients_agree_with_float64(name):
    f, kinds = FUNCTIONS[name]
    cases = []
    for i, c in enumerate((1.0, 0.1, 1e-6, 0.0, -1e-6, -0.1, -1.0)):
        for d in (3, 32, 384):
            rows = [row.float() for row in random_rows(kinds, (3, d), c, generator(40 + i))]
            for k, error in enumerate(gradient_errors(f, rows, c, seed=i)):
                bound = 2e-4 if name == "project" else 1e-5  # BALL_MARGIN, 2^-14 in float32, is another in float64
                cases.append((error, bound, (c, d, f"argument {k}")))
    within_bound(cases)


@pytest.mark.parametrize("name", ["mobius_add", "logmap", "dist", "gyration", "transport", "midpoint_of_two"])
def test_float32_gradients_of_neighbours_near_the_boundary(name):
    f, kinds = FUNCTIONS[name]
    cases = []
    for seed in range(4):
        for c in (1.0, 0.1, -0.1, -1.0):
            rng = generator(50 + seed)
            x = unit(rng, 1, 32) * 0.99 * radius(c)
            y = x + unit(rng, 1, 32) * 1e-3 * radius(c)
            v = unit(rng, 1, 32) * 1e-2 * radius(c)
            y = -y if name == "gyration" else y
            rows = [row.float() for row in (x, y, v)[:len(kinds)]]
            for k, error in enumerate(gradient_errors(f, rows, c, seed)):
                cases.append((error, 1e-3, (c, seed, f"argument {k}")))
    within_bound(cases)


@pytest.mark.parametrize("name", ["mobius_add", "logmap", "dist", "gyration", "transport", "midpoint_of_two"])
def test_float32_gradients_far_out_on_the_sphere(name):
    """There the terms of the chain rule are long and cancel."""
    f, kinds = FUNCTIONS[name]
    cases = []
    for seed in range(4):
        for length in (10.0, 100.0):
            x, *others = random_rows(kinds, (3, 8), -1.0, generator(60 + seed))
            x = x / x.norm(dim=-1, keepdim=True) * length
            rows = [row.float() for row in (x, *others)]
            for k, error in enumerate(gradient_errors(f, rows, -1.0, seed)):
                cases.append((error, 1e-3, (length, seed, f"argument {k}")))
    within_bound(cases)


@pytest.mark.parametrize("name", ["mobius_add", "expmap", "add_exp_0", "logmap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_of_c_against_60_digits(name, dtype):
    """Relative to |d out / d c|, which is of the order of the step or of its square: what the rows are long must cancel exactly. Far
    out on the sphere, too."""
    rng, cases = generator(9), []
    for c, length in ((1.0, 0.3), (1.0, 0.99), (1e-3, 0.9), (-0.1, 1.0), (-1.0, 10.0), (-1.0, 100.0)):
        for step in (1.0, 1e-2, 1e-4, 1e-6):
            x, direction, g = (unit(rng, 1, 8)[0] for _ in range(3))
            x = x * length * radius(c)
            v = direction * 0.5 * step * radius(c) * (abs(1 - c * float(x @ x)) if name == "expmap" else 1)
            if name == "logmap":
                v = x + 0.5 * step * direction * x.norm() * (1 - length ** 2 if c > 0 else 1)
            x, v, g = x.to(dtype), v.to(dtype), g.to(dtype)
            at = torch.tensor(c, dtype=torch.float64, requires_grad=True)
            got, = torch.autograd.grad(FUNCTIONS[name][0](x, v, at), at, g)
            slopes, h = [], O.mp.mpf(10) ** -20
            for above, below, w in zip(*(ORACLES[name](O.row(x), O.row(v), O.mp.mpf(c) + sign * h) for sign in (1, -1)), O.row(g)):
                slopes.append((above - below) / (2 * h) * w)
            error = float(abs(O.mp.mpf(got.item()) - O.mp.fsum(slopes)) / O.norm(slopes))
            rounding = 2e-16 * max(1.0, length ** 4)  # of N (M) on the sphere
            if name == "logmap":  # by the chain rule, and of the order of step^2
                rounding /= step ** 2
            bound = (2e-6 if dtype == torch.float32 else 1e-9) + min(rounding, 1e-3)
            cases.append((error, bound, (c, length, step)))
    within_bound(cases)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_values_and_derivatives_are_continuous_through_c_zero(name):
    f, kinds = FUNCTIONS[name]
    rows = random_rows(kinds, (3, 5), 1.0, generator(60))
    at_zero, (*_, slope) = gradients(f, rows, torch.tensor(0.0, dtype=torch.float64), seed=0)
    cotangent = torch.randn(at_zero.shape, generator=generator(0), dtype=torch.float64)
    for c in (1e-9, -1e-9):
        value, (*_, nearby_slope) = gradients(f, rows, torch.tensor(c, dtype=torch.float64), seed=0)
        assert (value - at_zero).abs().max() < 2e-8
        assert abs(nearby_slope - slope) < 1e-6
    for c in (1e-5, -1e-5):  # the one-sided difference quotients
        quotient = ((f(*rows, c) - at_zero) * cotangent).sum() / c
        assert abs(quotient - slope) < 1e-3 * (1 + abs(slope))
