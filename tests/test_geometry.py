"""
geometry/ against 60-digit arithmetic (oracle.py), against geoopt, against the laws of gyrovector spaces, and at the
edges of floating point. Bounds on accuracy are relative errors of whole rows.
"""
import itertools
import math

import geoopt
import mpmath as mp
import oracle as O
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._inductor.utils import run_and_get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import geometry as G
from geometry import coefficients, scalar_functions

torch.set_num_threads(1)

DIMENSIONS = (1, 2, 7, 32, 123, 384)
CURVATURES = (10.0, 1.0, 0.1, 1e-3, 1e-6, 1e-12, 0.0, -1e-12, -1e-6, -1e-3, -0.1, -1.0, -10.0)
GRADCHECK_CURVATURES = (-1.0, -1e-3, 0.0, 1e-3, 1.0)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def midpoint_of_two(x, y, c):
    """gyromidpoint as a function of rows like the others, weights 1 : 2."""
    weights = torch.tensor([[1.0, 2.0]], device=x.device)
    c = c[..., None] if isinstance(c, torch.Tensor) else c
    return G.gyromidpoint(torch.stack((x, y), dim=-2), weights, c).squeeze(-2)


def limited(f):
    """f with the projection that models ask for; the limit depends on c as well."""
    return lambda *rows_and_c: f(*rows_and_c, limit=G.max_norm(rows_and_c[-1], rows_and_c[0].dtype))


# every public function of rows, and what its rows are: p a point, t a tangent vector, f a row that may be anything
FUNCTIONS = {
    "mobius_add": (G.mobius_add, "pp"), "expmap": (G.expmap, "pt"), "add_exp_0": (G.add_exp_0, "pt"), "logmap": (G.logmap, "pp"),
    "exp_0": (G.exp_0, "t"),
    "log_0": (G.log_0, "p"), "dist": (G.dist, "pp"), "gyration": (G.gyration, "ppt"),
    "transport": (G.transport, "ppt"), "project": (G.project, "f"), "conformal_factor": (G.conformal_factor, "p"),
    "midpoint_of_two": (midpoint_of_two, "pp"),
}

# what models make of them
USED = {
    "add_exp": (G.add_exp, "ppt"), "log_previous": (lambda x, c: G.log_previous(x[None], c)[0], "p"),
    **{f"{name}, limited": (limited(f), kinds) for name, f, kinds in (
        ("mobius_add", G.mobius_add, "pp"), ("expmap", G.expmap, "pt"), ("add_exp_0", G.add_exp_0, "pt"), ("add_exp", G.add_exp, "ppt"))},
}

ORACLES = {
    "mobius_add": O.mobius_add, "expmap": O.expmap, "add_exp_0": lambda x, v, c: O.mobius_add(x, O.exp_0(v, c), c),
    "logmap": O.logmap, "exp_0": O.exp_0, "log_0": O.log_0,
    "dist": lambda x, y, c: [O.dist(x, y, c)], "gyration": O.gyration, "transport": O.transport,
    "conformal_factor": lambda x, c: [O.conformal(x, c)],
    "midpoint_of_two": lambda x, y, c: O.gyromidpoint((x, y), (1, 2), c),
}


def radius(c):
    """The length that c sets; at c = 0 there is none and 1 does."""
    return 1 / math.sqrt(abs(c)) if c else 1.0


def generator(seed):
    return torch.Generator().manual_seed(seed)


def unit(rng, *shape):
    v = torch.randn(*shape, dtype=torch.float64, generator=rng)
    return v / v.norm(dim=-1, keepdim=True)


def random_rows(kinds, shape, c, rng):
    """float64 rows of moderate size: points within 0.7 radii, tangent vectors that do not reach the antipode."""
    longest = {"p": 0.7, "t": 0.5, "f": 2.0}
    lengths = (torch.rand(*shape[:-1], 1, dtype=torch.float64, generator=rng) for _ in kinds)
    return [unit(rng, *shape) * length * longest[kind] * radius(c) for kind, length in zip(kinds, lengths)]


def within(y, limit, c):
    """y, shortened to `limit` ball radii where c > 0 and it is longer."""
    return y * min(1.0, limit * radius(c) / float(y.norm())) if c > 0 else y


def exactly(c):
    """c as a float32 scalar and that same number for the oracle."""
    c = torch.tensor(c)
    return c, mp.mpf(c.item())


def neighbours(seed, near_inverse=False):
    """(c, x, y) in float32 over all curvatures, norms up to 0.999 and gaps from 1e-6 to 1 (in ball radii), through all
    dimensions. near_inverse: y = -x + gap."""
    rng = generator(seed)
    turn = seed
    for c in CURVATURES:
        for fraction in (0.0, 0.5, 0.9, 0.99, 0.999):
            for gap in (1e-6, 1e-4, 1e-2, 0.1, 1.0):
                d = DIMENSIONS[turn % len(DIMENSIONS)]
                turn += 1
                x = unit(rng, d) * fraction * radius(c)
                y = (-x if near_inverse else x) + unit(rng, d) * gap * radius(c)
                x, y = x.float(), within(y, 0.999, c).float()
                if not torch.equal(x, y):
                    yield c, x, y


def within_bound(cases):
    """Of (error, bound, description): the case that uses up most of its bound is below it."""
    error, bound, description = max(cases, key=lambda case: case[0] / case[1])
    assert error <= bound, f"error {error:.2e} exceeds {bound:.2e} at {description}"


def relative(got, expected):
    """Relative distance of two tensors as whole tensors, in float64."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm().clamp(min=1e-300))


def rows_error(got, expected, floor=0.0):
    """The largest relative distance of two rows."""
    difference = (got.double() - expected.double()).norm(dim=-1)
    return float((difference / expected.double().norm(dim=-1).clamp(min=max(floor, 1e-300))).max())


def gradients(f, rows, c, seed):
    """Output and gradients by all rows and c of a float tensor c, for the random cotangent of this seed."""
    rows = [row.detach().clone().requires_grad_() for row in rows]
    c = c.detach().clone().requires_grad_()
    out = f(*rows, c)
    cotangent = torch.randn(out.shape, generator=generator(seed), dtype=torch.float64)
    return out.detach(), torch.autograd.grad(out, [*rows, c], cotangent.to(out.dtype))


# ---- accuracy ----------------------------------------

def test_float32_logmap_is_accurate_for_neighbours_up_to_the_boundary():
    cases = []
    for c, x, y in neighbours(0):
        ct, cm = exactly(c)
        error = O.relative_error(G.logmap(x, y, ct), O.logmap(O.row(x), O.row(y), cm))
        cases.append((error, 2e-6, (c, x.norm(), (y - x).norm(), len(x))))
    within_bound(cases)


def test_float32_logmap_is_accurate_for_near_inverses(lost=2.0 ** -23):
    """On the sphere those near the boundary are near the antipode, too, where d and rho x in d + rho x nearly cancel: there
    relative to what their digits are to the rest."""
    cases = []
    for c, x, y in neighbours(0, near_inverse=True):
        ct, cm = exactly(c)
        error = O.relative_error(G.logmap(x, y, ct), O.logmap(O.row(x), O.row(y), cm))
        d = O.axpby(1, O.row(y), -1, O.row(x))
        rho = -cm * O.dot(d, d) / (1 - cm * O.dot(O.row(x), O.row(x)))
        cancelled = float(O.norm(d) / O.norm(O.axpby(1, d, rho, O.row(x))))
        cases.append((error, 2e-6 if c >= 0 else 2e-6 + lost * cancelled, (c, x.norm(), (y + x).norm(), len(x))))
    within_bound(cases)


def expmap_case(c, x, v):
    ct, cm = exactly(c)
    error = O.relative_error(G.expmap(x, v, ct), O.expmap(O.row(x), O.row(v), cm))
    return error, 2e-6, (c, x.norm(), v.norm(), len(x))


def half_angle(c, x, v):
    """sqrt|c| lambda_x |v| / 2: beyond pi/2 on the sphere SPHERE_CAP ends the exponential map, by design."""
    return math.sqrt(abs(c)) * float(v.double().norm()) / (1 - c * float(x.double().square().sum()))


def test_float32_expmap_is_accurate_for_steps_to_neighbours():
    cases = []
    for c, x, y in neighbours(1):
        v = G.logmap(x.double(), y.double(), exactly(c)[0]).float()
        if c >= 0 or half_angle(c, x, v) < 1.5:
            cases.append(expmap_case(c, x, v))
    assert len(cases) > 300
    within_bound(cases)


def test_float32_expmap_is_accurate_for_long_steps():
    # v as long as the gap, without the factor 1/lambda: near the boundary up to 1000 radii of geodesic length
    cases = []
    for c, x, y in neighbours(2):
        v = y - x
        if len(x) > 2 and (c >= 0 or half_angle(c, x, v) < 1.5):
            cases.append(expmap_case(c, x, v))
    assert len(cases) > 200
    within_bound(cases)


def test_float32_expmap_is_accurate_for_steps_through_the_ball_to_the_other_side():
    # v points at the antipode, where the boundary seen from x is stretched by (1 + r)/(1 - r)
    cases = []
    for c in (c for c in CURVATURES if c > 0):
        for fraction in (0.5, 0.9, 0.99, 0.999):
            x = (unit(generator(33), 2) * fraction * radius(c)).float()
            cases.append(expmap_case(c, x, -x))
    within_bound(cases)


def test_float32_mobius_add_is_accurate_to_its_condition_number():
    cases = []
    for near_inverse in (False, True):
        for c, x, y in neighbours(3, near_inverse):
            ct, cm = exactly(c)
            condition = 1 / (1 - c * float(x.double().square().sum()))
            error = O.relative_error(G.mobius_add(x, y, ct), O.mobius_add(O.row(x), O.row(y), cm))
            cases.append((error, 1e-6 * condition, (c, x.norm(), (x + y).norm(), len(x))))
    within_bound(cases)


def test_c_given_as_a_number_is_not_rounded_to_float32():
    # near the boundary that rounding would be magnified: 2e-5 in logmap
    rng = generator(34)
    for c in (1e-3, 0.1, -0.1):
        x = (unit(rng, 16) * 0.999 * radius(c)).float()
        y = (-0.5 * x + 0.1 * unit(rng, 16) * radius(c)).float()
        v = G.logmap(x.double(), y.double(), c).float()
        for name, rows in (("logmap", (x, y)), ("expmap", (x, v)), ("mobius_add", (x, -y))):
            error = O.relative_error(FUNCTIONS[name][0](*rows, c), ORACLES[name](*(O.row(row) for row in rows), mp.mpf(c)))
            assert error < 5e-7, (name, c, error)


def test_float32_logmap_of_antipodal_pairs():
    rng = generator(4)
    cases = []
    for c in (c for c in CURVATURES if c):
        for d in DIMENSIONS:
            ct, cm = exactly(c)
            x = (unit(rng, d) * 0.9999 * radius(c)).float()
            error = O.relative_error(G.logmap(x, -x, ct), O.logmap(O.row(x), O.row(-x), cm))
            cases.append((error, 1e-3, (c, d)))
    within_bound(cases)


@pytest.mark.parametrize("name", ["dist", "exp_0", "log_0", "transport", "gyration", "conformal_factor"])
def test_float32_accuracy_of_the_other_functions(name):
    f, kinds = FUNCTIONS[name]
    rng = generator(5)
    cases = []
    for i, (c, x, y) in enumerate(neighbours(6)):
        if i % 3:  # a third of the cases is enough for these
            continue
        ct, cm = exactly(c)
        v = (unit(rng, len(x)) * 0.3 * radius(c)).float()
        y = -y if name == "gyration" else y  # gyr[x, -y] turns by little; gyr[x, y] is singular at the sphere's equator
        rows = {"p": (x,), "pp": (x, y), "ppt": (x, y, v), "t": (v,)}[kinds]
        error = O.relative_error(f(*rows, ct), ORACLES[name](*(O.row(row) for row in rows), cm))
        cases.append((error, 2e-6, (c, x.norm(), (y - x).norm(), len(x))))
    within_bound(cases)


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_float64_against_60_digits(name):
    f, kinds = FUNCTIONS[name]
    rng = generator(7)
    cases = []
    for i, c in enumerate(CURVATURES):
        for d in (DIMENSIONS[i % 6], 5):
            rows = random_rows(kinds, (d,), c, rng)
            error = O.relative_error(f(*rows, c), ORACLES[name](*(O.row(row) for row in rows), mp.mpf(c)))
            cases.append((error, 1e-13, (c, d)))
    within_bound(cases)


def test_float64_against_geoopt():
    rng = generator(8)
    cases = []
    for c in (10.0, 1.0, 0.1, -0.1, -1.0, -10.0):
        for d in DIMENSIONS:
            x, y, v = random_rows("ppt", (5, d), c, rng)
            space = geoopt.Stereographic(k=torch.tensor(-c, dtype=torch.float64))
            pairs = {
                "mobius_add": (G.mobius_add(x, y, c), space.mobius_add(x, y)),
                "expmap": (G.expmap(x, v, c), space.expmap(x, v)),
                "logmap": (G.logmap(x, y, c), space.logmap(x, y)),
                "exp_0": (G.exp_0(v, c), space.expmap0(v)),
                "log_0": (G.log_0(x, c), space.logmap0(x)),
                "dist": (G.dist(x, y, c), space.dist(x, y, keepdim=True)),
                "transport": (G.transport(x, y, v, c), space.transp(x, y, v)),
                "gyration": (G.gyration(x, y, v, c), space.gyration(x, y, v)),
                "conformal_factor": (G.conformal_factor(x, c), space.lambda_x(x, keepdim=True)),
            }
            for name, (got, expected) in pairs.items():
                cases.append((rows_error(got, expected), 1e-10, (name, c, d)))
    within_bound(cases)


def test_gyromidpoint_against_geoopt():
    rng = generator(9)
    cases = []
    for c in (10.0, 1.0, 0.1, -0.1, -1.0, -10.0):
        for n, d in ((1, 3), (2, 1), (5, 7), (9, 123)):
            x = 0.5 * random_rows("p", (n, d), c, rng)[0]  # geoopt clamps sum w (lambda - 1), which must stay positive
            w = torch.rand(4, n, dtype=torch.float64, generator=rng)
            space = geoopt.Stereographic(k=torch.tensor(-c, dtype=torch.float64))
            expected = torch.stack([space.weighted_midpoint(x, row, reducedim=[0]) for row in w])
            # geoopt itself is good to 1e-7 here: its clamps; test_float64_against_60_digits is the sharper one
            cases.append((rows_error(G.gyromidpoint(x, w, c), expected), 1e-7, (c, n, d)))
    within_bound(cases)


def test_gyromidpoint_of_points_all_over_the_sphere_against_60_digits():
    # points beyond the equator, where the textbook's 1/2 (x) takes the wrong half of the circle
    rng = generator(10)
    cases = []
    for c in (-0.1, -1.0, -10.0):
        for n, d in ((3, 2), (6, 7)):
            x = unit(rng, n, d) * radius(c) * 3
            w = torch.rand(1, n, dtype=torch.float64, generator=rng)
            expected = O.gyromidpoint([O.row(row) for row in x], O.row(w[0]), mp.mpf(c))
            cases.append((O.relative_error(G.gyromidpoint(x, w, c)[0], expected), 1e-12, (c, n, d)))
    within_bound(cases)


def test_the_gram_form_of_the_textbooks_is_wrong_for_neighbours():
    # why geometry/ is written in the difference: same inputs, same float32, 1000 times the error
    rng = generator(11)
    textbook, ours = [], []
    for d in (32, 384) * 4:
        x = (unit(rng, d) * 0.9).float()
        y = (x.double() + unit(rng, d) * 1e-3 / 2 * (1 - 0.9 ** 2)).float()  # dist 1e-3
        minus = -x
        xy, x2, y2 = minus @ y, minus @ minus, y @ y
        gram = ((1 + 2 * xy + y2) * minus + (1 - x2) * y) / (1 + 2 * xy + x2 * y2)
        gram = (1 - x2) * torch.atanh(gram.norm()) / gram.norm() * gram
        expected = O.logmap(O.row(x), O.row(y), mp.mpf(1))
        textbook.append(O.relative_error(gram, expected))
        ours.append(O.relative_error(G.logmap(x, y, 1.0), expected))
    assert max(textbook) > 1e-3
    assert max(ours) < 2e-6


# ---- tanc and artanc ----------------------------------------

def exact_tanc(z):
    return O.tan_c(mp.mpf(1), z)


def exact_artanc(z):
    return O.artan_c(mp.mpf(1), z)


def around_the_series(sign):
    edge = sign * scalar_functions.SERIES_BELOW
    return [edge * (1 + k * 1e-6) for k in (-1000, -1, -0.1, 0, 0.1, 1, 1000)] + [edge * f for f in (1e-6, 0.1, 0.5, 2)]


TANC_Z = [0.0, *around_the_series(1), *around_the_series(-1), *torch.linspace(-2.4, 50, 80).tolist(), -2.4, 50.0, 1e-30]
ARTANC_Z = [0.0, *around_the_series(1), *around_the_series(-1), *torch.linspace(-1, 0.99, 60).tolist(), 0.999, 0.999999,
            -3.0, -30.0, -1e3, -1e6, 1e-30, -1e-30]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("f, exact, zs", [(G.tanc, exact_tanc, TANC_Z), (G.artanc, exact_artanc, ARTANC_Z)],
                         ids=["tanc", "artanc"])
def test_tanc_and_artanc_are_good_to_a_few_ulp(f, exact, zs, dtype):
    z = torch.tensor(zs, dtype=dtype)
    cases = []
    for zi, got in zip(z.double().tolist(), f(z).double().tolist()):
        expected = exact(mp.mpf(zi))
        # the relative condition number z f'/f: 36 at -2.4, near the pole of tan
        condition = max(1.0, float(abs(zi * mp.diff(exact, zi) / expected)))
        cases.append((float(abs(got / expected - 1)), 3 * torch.finfo(dtype).eps * condition, zi))
    within_bound(cases)


CLOSED_Z = [sign * z for sign in (1, -1)
            for z in (1e-300, 1e-30, 1e-12, 1e-8, 1e-5, 0.999e-4, 1e-4, 1.001e-4, 1e-2, 0.5, 0.9, 2.3)]


@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_the_coefficients_of_the_maps_and_their_slopes_in_closed_form(stored):
    # what the maps use where autograd does not differentiate them, on both sides of the slopes' own power series
    z = torch.tensor(CLOSED_Z, dtype=torch.float64)
    with torch.no_grad():
        k, rest = coefficients._exp_coefficient(z, stored)
        exp_slope, rest_slope = coefficients._exp_slope(z, k, rest, stored)
        inside = z[z < 1]
        log_k = coefficients._log_coefficient(inside, 1 - inside)
        log_slope = scalar_functions._artanc_slope(inside, 1 - inside, log_k)
    cases, slopes = [], []
    for zi, *got in zip(CLOSED_Z, k.tolist(), rest.tolist(), exp_slope.tolist(), rest_slope.tolist()):
        (value, slope), (r, r_slope) = (mp.taylor(f, zi, 1) for f in (exact_tanc, lambda t: 1 - t * exact_tanc(t) ** 2))
        condition = max(1.0, float(abs(zi * slope / value)))
        cases += [(float(abs(got[0] / value - 1)), 1e-15 * condition, ("exp", zi)),
                  (float(abs(got[1] - r)), 4e-15 * condition * max(1.0, float(abs(r))), ("1 - z k^2", zi))]
        slopes += [(float(abs(got[2] / slope - 1)), 3e-12, ("exp", zi)),
                   (float(abs(got[3] - r_slope)), 1e-12 * max(1.0, float(abs(r_slope))), ("1 - z k^2", zi))]
    for zi, *got in zip(inside.tolist(), log_k.tolist(), log_slope.tolist()):
        value, slope = mp.taylor(exact_artanc, zi, 1)
        cases.append((float(abs(got[0] / value - 1)), 1e-15 * max(1.0, float(abs(zi * slope / value))), ("log", zi)))
        slopes.append((float(abs(got[1] / slope - 1)), 3e-12, ("log", zi)))
    within_bound(cases)
    within_bound(slopes)


# float32: just outside the series the slope of tan(s)/s is a difference of numbers 30 times larger
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 5e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("f, exact, zs", [(G.tanc, exact_tanc, TANC_Z), (G.artanc, exact_artanc, ARTANC_Z)],
                         ids=["tanc", "artanc"])
def test_first_derivatives_of_tanc_and_artanc(f, exact, zs, dtype, bound):
    z = torch.tensor(zs, dtype=dtype, requires_grad=True)
    slopes, = torch.autograd.grad(f(z).sum(), z)
    cases = []
    for zi, got in zip(z.double().tolist(), slopes.double().tolist()):
        expected = mp.taylor(exact, zi, 2)[1:]
        condition = max(1.0, float(abs(2 * zi * expected[1] / expected[0])))
        cases.append((float(abs(got / expected[0] - 1)), bound * condition, zi))
    within_bound(cases)


def test_artanc_takes_the_complement_it_is_given():
    # at z = 1 - 1e-10 float32 knows z only as 1: the value comes from one_minus_z
    got = G.artanc(torch.tensor(1.0), torch.tensor(1e-10))
    expected = mp.atanh(mp.sqrt(1 - mp.mpf("1e-10")))
    assert float(abs(got.item() / expected - 1)) < 1e-6


# ---- laws ----------------------------------------

curvatures = st.sampled_from(CURVATURES) | st.builds(
    lambda sign, exponent: sign * 10.0 ** exponent, st.sampled_from((1, -1)), st.floats(-12, 1))


@st.composite
def spaces(draw, kinds):
    """c of either sign or 0 and float64 rows of one shape."""
    c = draw(curvatures)
    shape = draw(st.sampled_from(((5, 123), (3, 4, 7), (6, 1), (2,), (1, 1, 32))))
    return c, random_rows(kinds, shape, c, generator(draw(st.integers(0, 2 ** 32))))


laws = settings(deadline=None, max_examples=50, derandomize=True)


@laws
@given(spaces("pp"))
def test_law_left_cancellation(space):
    c, (x, y) = space
    assert rows_error(G.mobius_add(-x, G.mobius_add(x, y, c), c), y, floor=radius(c)) < 1e-12


@laws
@given(spaces("p"))
def test_law_the_inverse_and_the_identity(space):
    c, (x,) = space
    zero = torch.zeros_like(x)
    assert torch.equal(G.mobius_add(-x, x, c), zero)
    assert rows_error(G.mobius_add(x, zero, c), x) < 1e-14
    assert torch.equal(G.mobius_add(zero, x, c), x)


@laws
@given(spaces("ppt"))
def test_law_gyration_is_what_addition_fails_to_associate_by(space):
    c, (x, y, v) = space
    left = -G.mobius_add(x, y, c)
    right = G.mobius_add(x, G.mobius_add(y, v, c), c)
    assert rows_error(G.gyration(x, y, v, c), G.mobius_add(left, right, c), floor=radius(c)) < 1e-11


@laws
@given(spaces("ppt"))
def test_law_gyration_is_an_isometry(space):
    c, (x, y, v) = space
    assert rows_error(G.gyration(x, y, v, c).norm(dim=-1, keepdim=True), v.norm(dim=-1, keepdim=True)) < 1e-12


@laws
@given(spaces("pp"))
def test_law_gyrocommutativity(space):
    c, (x, y) = space
    swapped = G.gyration(x, y, G.mobius_add(y, x, c), c)
    assert rows_error(G.mobius_add(x, y, c), swapped, floor=radius(c)) < 1e-11


@laws
@given(spaces("pp"))
def test_law_exp_undoes_log(space):
    c, (x, y) = space
    assert rows_error(G.expmap(x, G.logmap(x, y, c), c), y, floor=radius(c)) < 1e-12
    assert rows_error(G.exp_0(G.log_0(x, c), c), x) < 1e-13


@laws
@given(spaces("pt"))
def test_law_log_undoes_exp(space):
    c, (x, v) = space
    assert rows_error(G.logmap(x, G.expmap(x, v, c), c), v, floor=radius(c)) < 1e-11
    assert rows_error(G.log_0(G.exp_0(v, c), c), v) < 1e-13


@laws
@given(spaces("pp"))
def test_law_dist_is_the_length_of_log(space):
    c, (x, y) = space
    length = G.conformal_factor(x, c) * G.logmap(x, y, c).norm(dim=-1, keepdim=True)
    assert rows_error(length, G.dist(x, y, c)) < 1e-12
    assert rows_error(G.dist(y, x, c), G.dist(x, y, c)) < 1e-12


@laws
@given(spaces("ppp"))
def test_law_left_translation_is_an_isometry(space):
    c, (x, y, z) = space
    moved = G.dist(G.mobius_add(z, x, c), G.mobius_add(z, y, c), c)
    assert rows_error(moved, G.dist(x, y, c)) < 1e-11


@laws
@given(spaces("ppt"))
def test_law_transport_is_an_isometry(space):
    c, (x, y, v) = space
    before = G.conformal_factor(x, c) * v.norm(dim=-1, keepdim=True)
    after = G.conformal_factor(y, c) * G.transport(x, y, v, c).norm(dim=-1, keepdim=True)
    assert rows_error(after, before) < 1e-12


@laws
@given(spaces("ppt"))
def test_law_transport_there_and_back(space):
    c, (x, y, v) = space
    assert rows_error(G.transport(y, x, G.transport(x, y, v, c), c), v) < 1e-12


@laws
@given(spaces("pp"))
def test_law_transport_carries_the_geodesic_along(space):
    # the velocity of the geodesic from x to y arrives as minus the velocity of the one from y to x
    c, (x, y) = space
    arrived = G.transport(x, y, G.logmap(x, y, c), c)
    assert rows_error(arrived, -G.logmap(y, x, c), floor=1e-3 * radius(c)) < 1e-10


@laws
@given(spaces("p"), st.floats(1e-3, 1e3))
def test_law_the_midpoint_of_one_point_is_that_point(space, weight):
    c, (x,) = space
    middle = G.gyromidpoint(x.unsqueeze(-2), torch.full((1, 1), weight, dtype=x.dtype), c).squeeze(-2)
    assert rows_error(middle, x) < 1e-12


@laws
@given(spaces("pp"))
def test_law_the_midpoint_of_two_points_halves_the_geodesic(space):
    c, (x, y) = space
    middle = G.gyromidpoint(torch.stack((x, y), -2), torch.ones(1, 2, dtype=x.dtype), c).squeeze(-2)
    half = 0.5 * G.dist(x, y, c)
    assert rows_error(G.dist(x, middle, c), half) < 1e-11
    assert rows_error(G.dist(y, middle, c), half) < 1e-11


@laws
@given(spaces("ppp"), st.integers(0, 1000))
def test_law_the_midpoint_moves_with_the_points(space, seed):
    c, (x, y, z) = space
    rng = generator(seed)
    d = x.shape[-1]
    rotation = torch.linalg.qr(torch.randn(d, d, dtype=x.dtype, generator=rng))[0]
    weights = torch.rand(2, 2, dtype=x.dtype, generator=rng)
    points = torch.stack((x, y), -2)
    middle = G.gyromidpoint(points, weights, c)
    assert rows_error(G.gyromidpoint(points @ rotation, weights, c), middle @ rotation) < 1e-11
    shift = z.unsqueeze(-2)
    translated = G.gyromidpoint(G.mobius_add(shift, points, c), weights, c)
    assert rows_error(translated, G.mobius_add(shift, middle, c), floor=1e-3 * radius(c)) < 1e-9


def test_at_c_zero_everything_is_flat():
    x, y, v = random_rows("ppt", (4, 7), 0.0, generator(12))
    w = torch.rand(3, 4, dtype=torch.float64, generator=generator(13))
    flat = {
        "mobius_add": (G.mobius_add(x, y, 0.0), x + y), "expmap": (G.expmap(x, v, 0.0), x + v),
        "logmap": (G.logmap(x, y, 0.0), y - x), "exp_0": (G.exp_0(v, 0.0), v), "log_0": (G.log_0(x, 0.0), x),
        "dist": (G.dist(x, y, 0.0), 2 * (y - x).norm(dim=-1, keepdim=True)), "project": (G.project(x, 0.0), x),
        "gyration": (G.gyration(x, y, v, 0.0), v), "transport": (G.transport(x, y, v, 0.0), v),
        "gyromidpoint": (G.gyromidpoint(x, w, 0.0), (w @ x) / w.sum(-1, keepdim=True)),
    }
    for name, (got, expected) in flat.items():
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-15, msg=lambda m: f"{name}: {m}")


def test_the_midpoint_with_no_weights_is_the_origin():
    x = random_rows("p", (3, 5), 1.0, generator(14))[0]
    for c in (1.0, 0.0, -1.0):
        assert torch.equal(G.gyromidpoint(x, torch.zeros(2, 3), c), torch.zeros(2, 5, dtype=x.dtype))


def test_the_midpoint_under_a_causal_weighting_does_not_see_the_future():
    x = random_rows("p", (6, 5), 1.0, generator(15))[0]
    w = torch.rand(6, 6, dtype=x.dtype, generator=generator(16)).tril()
    changed = x.clone()
    changed[4:] *= -0.5
    for c in (1.0, 0.0, -1.0):
        before, after = G.gyromidpoint(x, w, c), G.gyromidpoint(changed, w, c)
        assert torch.equal(before[:4], after[:4])
        assert (before[4:] != after[4:]).any()


def test_the_midpoint_of_boundary_points_stays_inside_the_ball():
    rng = generator(17)
    for dtype in (torch.float32, torch.float64):
        for d in (2, 123):
            x = G.project(unit(rng, 8, d).to(dtype) * 5, 1.0)
            x = torch.cat((x, x[:1].expand(8, d)))  # with many copies of one point rounding has the most to push
            w = torch.rand(16, 16, dtype=dtype, generator=rng)
            assert G.gyromidpoint(x, w, 1.0).double().norm(dim=-1).max() < 1


# ---- derivatives ----------------------------------------

@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_gradcheck_of_every_argument_twice(name):
    f, kinds = FUNCTIONS[name]
    for i, c in enumerate(GRADCHECK_CURVATURES):
        rng = generator(20 + i)
        cases = [0.5 * row for row in random_rows(kinds, (2, 3), 1.0, rng)]
        # rows 2 to 4: the first row at the origin, all identical, all zero (a distance has no derivative where it is 0)
        extra = [torch.stack((row[0] * (k > 0), unit(generator(9), 3) * 0.4, torch.zeros(3)))[:1 if name == "dist" else 3]
                 for k, row in enumerate(cases)]
        cases = [torch.cat(pair) for pair in zip(cases, extra)]
        if name == "project" and c != 0:  # and one over the largest norm (at c = 0 that has no derivative by c)
            cases = [torch.cat((cases[0], 2.0 * G.max_norm(torch.tensor(c), torch.float64).clamp(max=1e3) * unit(rng, 1, 3)))]
        inputs = [row.requires_grad_() for row in cases] + [torch.tensor(c, dtype=torch.float64, requires_grad=True)]
        assert gradcheck(f, inputs, check_undefined_grad=False)
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


# ---- nothing is NaN or Inf ----------------------------------------

def extreme_rows(d, dtype, seed):
    """Rows from 0 over everything between to finfo.max in every component, stored in dtype."""
    rng = generator(seed)
    largest = torch.finfo(dtype).max
    g = torch.randn(1, d, dtype=torch.float64, generator=rng)
    other = torch.randn(1, d, dtype=torch.float64, generator=rng) * 1e3
    scales = (0.0, 1e-30, 1e-8, 0.1, 1.0, 1e3, -1e3, 1e12, 1e38, float("inf"))
    rows = [(g * s).nan_to_num(0.0) if s != float("inf") else g.sign() * largest for s in scales]
    return torch.cat([*rows, other]).clamp(-largest, largest).to(dtype)


def check_finite(name, rows, c, seed):
    """Forward and backward of one function over all pairs of rows, points being projected first."""
    f, kinds = {**FUNCTIONS, **USED}[name]
    n = len(rows)
    first, second = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    picks = (first.flatten(), second.flatten(), first.flatten().flip(0))
    c = torch.tensor(c, dtype=torch.promote_types(rows.dtype, torch.float32))
    points = G.project(rows, c)
    assert points.isfinite().all(), ("project", c, rows.dtype)
    picks = picks if len(kinds) > 1 else (torch.arange(n),)
    arguments = [(points if kind == "p" else rows)[pick] for kind, pick in zip(kinds, picks)]
    if name == "midpoint_of_two":
        arguments = [points[pick] for pick in picks[:2]]
    out, grads = gradients(f, arguments, c, seed)
    assert out.isfinite().all(), (name, c, rows.dtype, (~out.isfinite()).any(-1).nonzero().flatten().tolist()[:4])
    for k, grad in enumerate(grads):
        assert grad.isfinite().all(), (name, f"gradient {k}", c, rows.dtype, (~grad.isfinite()).nonzero()[:3].tolist())


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


# ---- tracing ----------------------------------------

def compiled_errors(f, rows, c, **options):
    """Differences of the compiled function from the eager one: output and gradients by all rows and c."""
    torch._dynamo.reset()
    eager_out, eager = gradients(f, rows, c, seed=1)
    out, grads = gradients(torch.compile(f, fullgraph=True, dynamic=False, **options), rows, c, seed=1)
    assert out.dtype == eager_out.dtype
    return [relative(got, expected) for got, expected in zip((out, *grads), (eager_out, *eager))]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_is_traced_whole_and_agrees_with_eager(name):
    # the whole of torch.compile (graph capture, joint backward) but the generated code, which takes 10 s a function
    f, kinds = FUNCTIONS[name]
    rows = [row.half() for row in random_rows(kinds, (3, 2, 7), 1.0, generator(90))]  # float16: with _FiniteCast
    errors = compiled_errors(f, rows, torch.tensor([[0.9], [-0.9]]), backend="aot_eager")
    assert max(errors) < 1e-6, errors


def test_generated_code_agrees_with_eager():
    # one function, since each costs 10 s: logmap calls the most helpers
    rows = [row.float() for row in random_rows("pp", (3, 2, 7), 1.0, generator(91))]
    errors = compiled_errors(G.logmap, rows, torch.tensor([[0.9], [-0.9]]))
    assert max(errors) < 1e-5, errors


@pytest.mark.parametrize("shape, dtype", [((4096, 128), torch.float32), ((8, 64, 2, 64), torch.bfloat16)])
def test_generated_loops_start_their_threads_once(shape, dtype):
    """And not for every row, as Inductor's do where it makes fewer sums of a row than a vector register has lanes."""
    x, v = (torch.full(shape, 0.01, dtype=dtype, requires_grad=True) for _ in range(2))
    c = torch.full((shape[-2] if len(shape) > 2 else 1, 1), 0.9)
    compiled = torch.compile(G.add_exp_0, fullgraph=True, dynamic=False, options={"cpp.threads": 2})
    code = "".join(run_and_get_code(lambda: compiled(x, v, c).sum().backward())[1])
    indents = [len(line) - len(line.lstrip()) for line in code.splitlines() if line.strip() == "#pragma omp parallel num_threads(2)"]
    assert indents and max(indents) == 4, "a parallel region inside of a loop"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_nothing_waits_for_the_device(name):
    # a fake tensor has no data: .item(), bool() and shapes that depend on values raise
    f, kinds = FUNCTIONS[name]
    for dtype in DTYPES:
        with FakeTensorMode():
            rows = [torch.randn(2, 3, 4, dtype=dtype, requires_grad=True) for _ in kinds]
            for c in (torch.randn(3, 1, requires_grad=True), 0.5):
                out = f(*rows, c)
                torch.autograd.grad(out.sum(), rows)
