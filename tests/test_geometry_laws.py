"""geometry/ against the laws of gyrovector spaces, for spaces that hypothesis picks."""
import torch
from hypothesis import given
from hypothesis import strategies as st
from spaces import generator, laws, radius, random_rows, rows_error, spaces, unit

import geometry as G


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
