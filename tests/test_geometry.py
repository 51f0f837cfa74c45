"""Accuracy of geometry/ against 60-digit arithmetic (oracle.py) and geoopt. Bounds are relative errors of whole rows."""

import geoopt
import mpmath as mp
import oracle as O
import pytest
import torch
from spaces import (
    CURVATURES,
    DIMENSIONS,
    FUNCTIONS,
    ORACLES,
    exactly,
    expmap_case,
    generator,
    half_angle,
    neighbours,
    radius,
    random_rows,
    rows_error,
    unit,
    within_bound,
)

import geometry as G
from geometry import coefficients, scalar_functions

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


def around_the_series(sign, edge=scalar_functions.SERIES_BELOW):
    edge = sign * edge
    return [edge * (1 + k * 1e-6) for k in (-1000, -1, -0.1, 0, 0.1, 1, 1000)] + [edge * f for f in (1e-6, 0.1, 0.5, 2)]


TANC_EDGE = scalar_functions.TANC_SERIES_BELOW[torch.float32]
TANC_Z = [0.0, *around_the_series(1), *around_the_series(-1), *around_the_series(1, TANC_EDGE), *around_the_series(-1, TANC_EDGE),
          *torch.linspace(-2.4, 50, 80).tolist(), -2.4, 50.0, 1e-30]
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


# float32: just outside the series the slope of artanc is a difference of numbers 30 times larger
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
