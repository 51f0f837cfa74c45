"""Gromov's delta against its definition, metrics whose delta is known, and geoopt's distances."""
import itertools
import math

import geoopt
import numpy as np
import oracle
import pytest
import torch
from scipy.sparse.csgraph import shortest_path
from scipy.spatial.distance import pdist, squareform

from analysis import hyperbolicity as hyp


def random_metric(n, seed):
    return squareform(pdist(np.random.default_rng(seed).normal(size=(n, 3)), "cityblock"))


def by_definition(d):
    """Largest over quadruples of half the difference of the two largest sums."""
    worst = 0
    for x, y, z, w in itertools.combinations(range(len(d)), 4):
        sums = sorted((d[x, y] + d[z, w], d[x, z] + d[y, w], d[x, w] + d[y, z]))
        worst = max(worst, (sums[2] - sums[1]) / 2)
    return worst


def by_products(d, base):
    """The max-min formula at one base point: max of (G o G) - G, G the Gromov products."""
    products = (d[base][:, None] + d[base][None] - d) / 2
    return (np.minimum(products[:, :, None], products[None]).max(1) - products).max()


@pytest.mark.parametrize("n", [4, 5, 11])
def test_delta_is_that_of_the_definition_and_of_all_base_points(n):
    metrics = np.stack([random_metric(n, seed) for seed in range(6)])
    found = hyp.gromov_delta(metrics)
    for d, delta in zip(metrics, found):
        assert delta == pytest.approx(by_definition(d), abs=1e-12)
        at = [by_products(d, base) for base in range(n)]
        assert delta == pytest.approx(max(at), abs=1e-12) and delta <= 2 * min(at) + 1e-12


def test_three_points_have_no_delta():
    assert hyp.gromov_delta(random_metric(3, 0)) == 0


def test_the_metric_of_a_tree_has_delta_zero():
    rng = np.random.default_rng(0)
    for n in (8, 40):
        edges = np.zeros((n, n))
        for child in range(1, n):
            edges[rng.integers(child), child] = rng.uniform(0.1, 2)
        d = shortest_path(edges, directed=False)
        assert hyp.relative_delta(d) < 1e-13
        d[0, 1] = d[1, 0] = d[0, 1] * 0.5 + d[0, 2] + d[1, 2]  # no longer a tree
        assert hyp.relative_delta(d) > 0.01


@pytest.mark.parametrize("n", [4, 8, 20])
def test_points_on_a_circle_have_the_largest_relative_delta(n):
    """Arc lengths of n = 4 k equally spaced points: a quarter of the circumference, half of the diameter."""
    step = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    arcs = np.minimum(step, n - step) * 2 * np.pi / n
    assert hyp.gromov_delta(arcs) == pytest.approx(np.pi / 2) and hyp.relative_delta(arcs) == pytest.approx(1)


def test_a_euclidean_square():
    corners = np.array([[[0.0, 0], [0, 1], [1, 1], [1, 0]]])
    d = hyp.euclidean_distances(corners)
    assert hyp.gromov_delta(d)[0] == pytest.approx(math.sqrt(2) - 1)
    assert hyp.relative_delta(d)[0] == pytest.approx(2 * (math.sqrt(2) - 1) / math.sqrt(2))
    assert hyp.relative_delta(7 * d)[0] == pytest.approx(hyp.relative_delta(d)[0])  # no unit


@pytest.mark.parametrize("c", [0.25, 1.0])
def test_the_hyperbolic_plane_is_log_2_hyperbolic(c):
    """Nica and Spakula 2016; an ideal square reaches it. Distances of curvature -c are those of -1 over sqrt(c)."""
    s = 1 / math.sqrt(c)
    far = 0.99999 * s * np.array([[[[1.0, 0]], [[0, 1]], [[-1, 0]], [[0, -1]]]])  # (1, 4, 1, 2)
    assert hyp.gromov_delta(hyp.geodesic_distances(far, [c]))[0] == pytest.approx(s * math.log(2), rel=1e-4)
    rng = np.random.default_rng(0)
    radius = s * np.tanh(rng.uniform(0, 4, size=(3, 30, 1, 1)))
    angle = rng.uniform(0, 2 * np.pi, size=(3, 30, 1))
    points = radius * np.stack((np.cos(angle), np.sin(angle)), -1)
    found = hyp.gromov_delta(hyp.geodesic_distances(points, [c]))
    assert (found <= s * math.log(2)).all() and (found > 0.3 * s).all()


def test_geodesic_distance_of_a_product_is_that_of_geoopt_by_head():
    c = [0.3, 1.0, 2.5]
    tangent = 0.5 * np.random.default_rng(0).normal(size=(2, 6, 12))  # not near the edge, where geoopt loses digits
    points = hyp.points_from_tangent(tangent, c)
    found = hyp.geodesic_distances(points, c)
    for s, i, j in itertools.product(range(2), range(6), range(6)):
        x, y = torch.tensor(points[s, i]), torch.tensor(points[s, j])
        parts = [geoopt.PoincareBallExact(c=k).dist(x[h], y[h]).item() for h, k in enumerate(c)]
        assert found[s, i, j] == pytest.approx(math.hypot(*parts), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("c", [-0.5, 0.0, 0.8])
def test_geodesic_distance_in_either_curvature_is_that_of_60_digits(c):
    points = hyp.points_from_tangent(np.random.default_rng(1).normal(size=(1, 5, 4)) * (4 if c > 0 else 0.5), [c])
    found = hyp.geodesic_distances(points, [c])[0]
    k = oracle.mp.mpf(c)
    for i, j in itertools.combinations(range(5), 2):
        x, y = (oracle.row(torch.tensor(points[0, n, 0])) for n in (i, j))
        u = oracle.logmap(x, y, k)
        assert found[i, j] == pytest.approx(float(oracle.conformal(x, k) * oracle.norm(u)), rel=1e-12)


def test_points_from_tangent_are_the_exponential_map_by_head():
    c, v = [0.5, 2.0], np.array([[0.3, -0.4, 0.0, 1.2]])
    found = hyp.points_from_tangent(v, c)[0]
    for h, k in enumerate(c):
        of_head = oracle.row(torch.tensor(v[0, 2 * h:2 * h + 2]))
        expected = oracle.expmap([oracle.mp.mpf(0)] * 2, of_head, oracle.mp.mpf(k))
        assert found[h] == pytest.approx([float(e) for e in expected], rel=1e-12)
    assert np.linalg.norm(hyp.points_from_tangent(np.full((1, 4), 1e6), c)[0, 1]) < 1 / math.sqrt(2)  # still inside


# ----------------------------------------------------------------------------------------------------------------------
# null sets

def test_the_gaussian_null_has_the_mean_and_covariance_asked_for():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    mean, covariance = np.array([1.0, -2, 5]), root @ root.T
    drawn = hyp.gaussian_null(mean, covariance, 40, 500, rng)
    assert drawn.shape == (40, 500, 3)
    flat = drawn.reshape(-1, 3)
    scale = np.sqrt(np.diag(covariance))
    assert np.abs(flat.mean(0) - mean).max() < 0.05 * scale.max()
    assert np.abs(np.cov(flat.T) - covariance).max() < 0.05 * scale.max() ** 2


def test_the_shuffled_null_keeps_marginals_and_nothing_else():
    rng = np.random.default_rng(0)
    line = np.repeat(rng.normal(size=(2, 400, 1)), 3, axis=-1)  # three equal coordinates
    shuffled = hyp.shuffled_null(line, rng)
    assert np.array_equal(np.sort(shuffled, axis=1), np.sort(line, axis=1))
    for sample in shuffled:
        assert np.abs(np.corrcoef(sample.T) - np.eye(3)).max() < 0.2
    assert not np.array_equal(shuffled[0, :, 0].argsort(), shuffled[0, :, 1].argsort())


def test_compare_tells_a_line_from_its_null_sets():
    """Points of a line in 20 dimensions: a tree. Its shuffled coordinates are not."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(4, 24, 1)) * np.ones(20)
    found = hyp.compare(points, np.zeros(20), np.eye(20), hyp.euclidean_distances, rng)
    assert set(found) == {"tokens", "diameter", "gaussian", "shuffled", "equidistant"}
    assert all(v.shape == (4,) for v in found.values())
    assert (found["tokens"] < 1e-13).all() and (found["equidistant"] == 0).all()
    assert (found["gaussian"] > 0.1).all() and (found["shuffled"] > 0.1).all()
    assert found["diameter"] == pytest.approx(np.ptp(points[..., 0], axis=1) * math.sqrt(20))


def test_many_dimensions_alone_make_delta_small():
    """Why the null sets are there: independent normal points have no hierarchy."""
    rng = np.random.default_rng(0)
    small, large = (hyp.relative_delta(hyp.euclidean_distances(rng.normal(size=(4, 30, C)))).mean() for C in (500, 2))
    assert small < 0.15 < 0.4 < large


def test_points_that_coincide_have_no_relative_delta():
    assert np.isnan(hyp.relative_delta(np.zeros((2, 5, 5)))).all()
