"""Isotropy measures and the bootstrap against closed forms, the published IsoScore package and plain loops."""
import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.spatial.distance import cosine

from analysis import isotropy
from analysis.group_bootstrap import GroupMeans, draw_weights, group_of, interval, sequences_of


def spectrum_of(points):
    return np.linalg.eigvalsh(np.cov(points.T))[::-1].clip(min=0)


def equal(k, C):
    """k equal eigenvalues of C."""
    return np.r_[np.full(k, 3.7), np.zeros(C - k)]


PAIRS = np.array([[0, 8, 70, 21, 42, 63, 33], [40, 81, 20, 83, 3, 30, 35]])  # rows of grouped(), no two of one sequence


def grouped(B=12, T=7, C=5, G=4, seed=0):
    """Rows of B sequences, their groups and token ids; the coordinates are correlated and off centre."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(B, T, C)) @ rng.normal(size=(C, C)) + rng.normal(size=C)
    return rows, group_of(np.arange(B), B, G), rng.integers(3, size=(B, T))


def repeated(rows, group, weights):
    """The sequences as often as their group was drawn: what a bootstrap sample is."""
    return np.concatenate([np.repeat(rows[i:i + 1], int(weights[g]), axis=0) for i, g in enumerate(group)])


# ----------------------------------------------------------------------------------------------------------------------
# spectrum

@pytest.mark.parametrize("C, decay", [(2, 0.3), (8, 0.9), (16, 0.5), (64, 0.97)])
def test_isoscore_is_that_of_the_published_package(C, decay):
    published = pytest.importorskip("IsoScore.IsoScore")
    rng = np.random.default_rng(C)
    points = rng.normal(size=(500, C)) * decay ** np.arange(C) @ np.linalg.qr(rng.normal(size=(C, C)))[0] + 3
    assert isotropy.isoscore(spectrum_of(points)) == pytest.approx(float(published.IsoScore(points)), abs=2e-5)


@pytest.mark.parametrize("C", [2, 7, 100])
def test_a_spectrum_of_k_equal_values_has_closed_forms(C):
    for k in sorted({1, 2, C // 2 or 1, C}):
        found = isotropy.spectrum_measures(equal(k, C))
        assert found["isoscore"] == pytest.approx((k - 1) / (C - 1), abs=1e-12)  # Rudman et al. 2022, section 4
        assert found["effective_rank"] == pytest.approx(k) and found["participation_ratio"] == pytest.approx(k)
        assert found["singular_value_entropy"] == pytest.approx(math.log(k) / math.log(C), abs=1e-12)
        for top in isotropy.TOP:
            assert found[f"top{top}_variance"] == pytest.approx(min(1, top / k))


def test_effective_rank_uses_singular_values_and_participation_variances():
    eigenvalues = np.array([9.0, 1.0])  # singular values 3 and 1
    assert isotropy.effective_rank(eigenvalues) == pytest.approx(math.exp(stats.entropy([3, 1])))
    assert isotropy.participation_ratio(eigenvalues) == pytest.approx(100 / 82)
    assert isotropy.top_share(eigenvalues, 1) == pytest.approx(0.9)


def test_an_isotropic_gaussian_has_the_spectrum_of_marchenko_and_pastur():
    N, C = 6000, 60
    gamma = C / N
    low, high = (1 - math.sqrt(gamma)) ** 2, (1 + math.sqrt(gamma)) ** 2

    def mean_of(f):
        density = lambda l: math.sqrt((high - l) * (l - low)) / (2 * math.pi * gamma * l)
        return integrate.quad(lambda l: f(l) * density(l), low, high)[0]

    root = mean_of(math.sqrt)
    entropy = math.log(C * root) - mean_of(lambda l: math.sqrt(l) * math.log(math.sqrt(l))) / root
    found = isotropy.spectrum_measures(spectrum_of(np.random.default_rng(1).normal(size=(N, C))))
    assert found["effective_rank"] == pytest.approx(math.exp(entropy), rel=2e-4)
    assert found["participation_ratio"] == pytest.approx(C / (1 + gamma), rel=2e-3)
    assert found["top1_variance"] == pytest.approx(high / C, rel=0.05)
    assert 0.97 < found["isoscore"] < 1


def test_a_cloud_of_one_point_has_no_spectrum():
    found = isotropy.spectrum_measures(np.zeros(4))
    assert all(np.isnan(found[k]) for k in ("isoscore", "participation_ratio", "top1_variance"))


# ----------------------------------------------------------------------------------------------------------------------
# vectors

def all_measures(rows, group, tokens, weights, pairs):
    """isotropy.measures() with every token kept."""
    G, (B, T, C) = weights.shape[1], rows.shape
    moments, types = isotropy.Moments(G, C), isotropy.TypeSums(G, C, np.unique(tokens))
    for i in range(0, B, 3):  # in batches
        moments.add(rows[i:i + 3], group[i:i + 3])
        types.add(rows[i:i + 3], tokens[i:i + 3], group[i:i + 3])
    of_token = np.repeat(group, T)
    pair_weights = weights[:, of_token[pairs[0]]] * weights[:, of_token[pairs[1]]]
    return isotropy.measures(moments, types, rows.reshape(-1, C), of_token, pairs,
                             pair_weights / pair_weights.sum(1, keepdims=True), weights)


def test_mean_cosines_are_those_of_plain_loops():
    rows, group, tokens = grouped()
    weights = draw_weights(4, 5, np.random.default_rng(3))
    found, _ = all_measures(rows, group, tokens, weights, PAIRS)
    flat = rows.reshape(-1, rows.shape[-1])
    standard = stats.zscore(flat)
    of_token = np.repeat(group, rows.shape[1])
    for r, w in enumerate(weights):
        factors = [w[of_token[i]] * w[of_token[j]] for i, j in PAIRS.T]
        for name, values in (("mean_cosine", flat), ("mean_cosine_standardised", standard)):
            cosines = [1 - cosine(values[i], values[j]) for i, j in PAIRS.T]
            assert found[name][r] == pytest.approx(np.average(cosines, weights=factors), abs=1e-12)


def test_points_on_a_circle_are_isotropic():
    n = 40
    angle = 2 * np.pi * np.arange(n) / n
    rows = np.stack((np.cos(angle), np.sin(angle)), axis=1).reshape(n, 1, 2)
    pairs = np.array(list(itertools.combinations(range(n), 2))).T
    found, spectrum = all_measures(rows, np.arange(n), np.zeros((n, 1), int), np.ones((2, n)), pairs)
    assert found["mean_cosine"][0] == pytest.approx(-1 / (n - 1))  # the n unit vectors sum to 0
    assert found["isoscore"][0] == pytest.approx(1) and found["effective_rank"][0] == pytest.approx(2)
    assert found["partition_isotropy"][0] == pytest.approx(1)  # symmetric under a quarter turn
    assert found["rogue_share"][0] == pytest.approx(0.5) and found["rogue_dimensions"][0] == 0
    assert found["rms_length"][0] == pytest.approx(1) and spectrum == pytest.approx([0.5, 0.5])
    assert found["self_similarity"][0] == pytest.approx(-1 / (n - 1))


def test_a_rank_one_cloud_is_as_anisotropic_as_can_be():
    rng = np.random.default_rng(0)
    direction = np.array([3.0, 0.0, 4.0]) / 5
    rows = (rng.uniform(1, 2, size=(20, 1, 1)) * direction)
    pairs = np.array(list(itertools.combinations(range(20), 2))).T
    found, _ = all_measures(rows, np.arange(20), np.zeros((20, 1), int), np.ones((2, 20)), pairs)
    assert found["mean_cosine"][0] == pytest.approx(1) and found["isoscore"][0] == pytest.approx(0, abs=1e-12)
    # the other eigenvalues are 0 to rounding, 1e-16, and their roots 1e-8
    assert found["effective_rank"][0] == pytest.approx(1, abs=1e-5) and found["top1_variance"][0] == pytest.approx(1)
    assert found["rogue_share"][0] == pytest.approx(16 / 25)  # of the cosine 1 the last coordinate makes 0.8^2
    assert found["self_similarity"][0] == pytest.approx(1) and found["self_similarity_adjusted"][0] == pytest.approx(0)


def test_partition_isotropy_of_one_repeated_vector_is_exp_of_minus_two_lengths():
    for length in (0.1, 2.0, 40.0, 3000.0):  # exp(3000) is beyond float64
        rows = np.tile(np.array([0.6, 0.8]) * length, (6, 1))
        directions = np.array([[0.6, -0.8], [0.8, 0.6]])
        found = isotropy.partition_isotropy(rows, directions, np.arange(6) % 3, np.ones((1, 3)))[0]
        assert found == pytest.approx(math.exp(-2 * length), rel=1e-9)


def test_partition_isotropy_is_that_of_the_definition_also_in_replicates():
    rows, group, tokens = grouped()
    weights = draw_weights(4, 6, np.random.default_rng(1))
    found, _ = all_measures(rows, group, tokens, weights, PAIRS)
    flat = rows.reshape(-1, 5)
    directions = np.linalg.svd(flat)[2]  # rows; eigenvectors of the second moments by another way
    for r, w in enumerate(weights):
        sample = repeated(rows, group, w).reshape(-1, 5)
        z = [np.exp(sign * sample @ d).sum() for d in directions for sign in (1, -1)]
        assert found["partition_isotropy"][r] == pytest.approx(min(z) / max(z), rel=1e-9)
        rms = math.sqrt(np.square(flat).sum(-1).mean())
        z = [np.exp(sign * sample @ d / rms).sum() for d in directions for sign in (1, -1)]
        assert found["partition_isotropy_scaled"][r] == pytest.approx(min(z) / max(z), rel=1e-9)


def test_a_rogue_dimension_is_found():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(30, 4, 32))
    rows[..., 7] += 60
    found, _ = all_measures(rows, np.arange(30), np.zeros((30, 4), int), np.ones((2, 30)),
                            rng.integers(120, size=(2, 4000)))
    assert found["rogue_dimensions"][0] == 1 and found["rogue_share"][0] > 0.99
    assert found["mean_cosine"][0] > 0.9 and abs(found["mean_cosine_standardised"][0]) < 0.05


# ----------------------------------------------------------------------------------------------------------------------
# streamed sums

def test_moments_of_a_replicate_are_those_of_the_repeated_sequences():
    rows, group, tokens = grouped()
    weights = draw_weights(4, 8, np.random.default_rng(0))
    found, spectrum = all_measures(rows, group, tokens, weights, PAIRS)
    for r, w in enumerate(weights):
        sample = repeated(rows, group, w).reshape(-1, 5)
        singular = np.linalg.svd(sample - sample.mean(0), compute_uv=False)
        assert found["effective_rank"][r] == pytest.approx(math.exp(stats.entropy(singular)))
        assert found["isoscore"][r] == pytest.approx(isotropy.isoscore(np.square(singular)))
        assert found["rms_length"][r] == pytest.approx(math.sqrt(np.square(sample).sum(-1).mean()))
    singular = np.linalg.svd(rows.reshape(-1, 5) - rows.reshape(-1, 5).mean(0), compute_uv=False)
    assert spectrum == pytest.approx(singular / singular.sum())


def test_self_similarity_is_that_of_a_double_loop_also_in_replicates():
    rows, group, tokens = grouped()
    tokens[2:, :] = np.where(tokens[2:, :] == 2, 1, tokens[2:, :])  # token 2 is in two sequences only: left out
    weights = draw_weights(4, 6, np.random.default_rng(4))
    found, _ = all_measures(rows, group, tokens, weights, PAIRS)
    for r, w in enumerate(weights):
        means = []
        for token in (0, 1):
            occurrences = [(s, rows[s, t]) for s, t in np.argwhere(tokens == token) for _ in range(int(w[group[s]]))]
            cosines = [1 - cosine(x, y) for (a, x), (b, y) in itertools.combinations(occurrences, 2) if a != b]
            means.append(np.mean(cosines))
        assert found["self_similarity"][r] == pytest.approx(np.mean(means), abs=1e-12)
    assert found["self_similarity_adjusted"] == pytest.approx(found["self_similarity"] - found["mean_cosine"])


def test_without_a_token_in_enough_contexts_there_is_no_self_similarity():
    types = isotropy.TypeSums(2, 3, np.array([0]))
    types.add(np.ones((4, 6, 3)), np.zeros((4, 6), int), np.array([0, 0, 1, 1]))
    assert np.isnan(types.self_similarity(np.ones((3, 2)))).all()


# ----------------------------------------------------------------------------------------------------------------------
# groups and intervals

@pytest.mark.parametrize("total, groups", [(16, 16), (17, 16), (512, 64), (100, 7)])
def test_groups_are_runs_of_neighbours_of_nearly_equal_length(total, groups):
    group = group_of(np.arange(total), total, groups)
    assert (np.diff(group) >= 0).all() and set(group) == set(range(groups))
    assert np.ptp(np.bincount(group)) <= 1
    for g in range(groups):
        assert list(np.flatnonzero(group == g)) == list(range(*sequences_of(g, total, groups)))


def test_weights_draw_as_many_groups_as_there_are():
    weights = draw_weights(10, 50, np.random.default_rng(0))
    assert weights.shape == (51, 10) and (weights[0] == 1).all() and (weights.sum(1) == 10).all()
    assert weights[1:].std() > 0.5


def test_an_interval_contains_its_estimate_where_replicates_are_biased():
    found = interval(np.r_[10.0, np.linspace(8, 9, 101)], 64)
    wider = (64 / 63) ** 0.5 * stats.t.ppf(0.975, 63) / stats.norm.ppf(0.975)
    assert found["low"] == pytest.approx(10 - 0.475 * wider) and found["high"] == pytest.approx(10 + 0.475 * wider)
    assert interval(np.r_[0.0, 0.0, 2.0, 0.0], 64)["low"] == 0  # a count is not negative
    assert interval(np.r_[0.0, np.zeros(199), 1.0], 64) == {"value": 0, "low": 0, "high": 0}
    assert interval(np.r_[np.nan, 1.0, 2.0], 64) == {"value": None, "low": None, "high": None}
    assert interval(np.r_[1.0, np.nan, 1.0], 64)["value"] == 1


@pytest.mark.parametrize("groups", [12, 64])
def test_intervals_of_few_groups_hold_the_truth_as_often_as_they_say(groups):
    rng, held, n = np.random.default_rng(6), 0, 600
    weights = draw_weights(groups, 200, rng)
    for _ in range(n):
        found = interval(weights @ rng.standard_normal(groups) / groups, groups)
        held += found["low"] <= 0 <= found["high"]
    assert held / n > 0.925  # 0.895 with 12 groups where they are not widened


def test_intervals_cover_the_truth_where_tokens_depend_on_each_other():
    """Sequences with a mean of their own, neighbours alike: the truth is 0. Tokens drawn one by one would give
    intervals that miss it most of the time."""
    rng = np.random.default_rng(0)
    covered, naive, trials, S, T = 0, 0, 200, 128, 16
    for _ in range(trials):
        of_two = np.repeat(rng.normal(size=S // 2), 2)  # two neighbouring sequences share it
        values = of_two[:, None, None] + 0.1 * rng.normal(size=(S, T, 1))
        means = GroupMeans(32)
        means.add(values, group_of(np.arange(S), S, 32))
        found = means.result(draw_weights(32, 150, rng))
        assert found["value"] == pytest.approx(values.mean())
        covered += found["low"] <= 0 <= found["high"]
        naive += abs(values.mean()) < 1.96 * values.std() / math.sqrt(values.size)
    assert 0.88 * trials < covered < 0.99 * trials
    assert naive < 0.5 * trials


def test_means_by_head_leave_out_heads_for_which_the_quantity_does_not_exist():
    values = np.arange(24.0).reshape(2, 4, 3)
    values[..., 1] = np.nan
    means = GroupMeans(2)
    for i in range(2):
        means.add(values[i:i + 1], np.array([i]))
    found = means.result(np.ones((3, 2)))
    assert found["value"] == pytest.approx(np.nanmean(values)) and (found["min"], found["max"]) == (0, 23)
    assert [h["value"] for h in found["by_head"]] == [pytest.approx(values[..., 0].mean()), None,
                                                      pytest.approx(values[..., 2].mean())]
    none = GroupMeans(2)
    none.add(np.full((2, 4, 3), np.nan), np.array([0, 1]))
    assert none.result(np.ones((3, 2)))["value"] is None
