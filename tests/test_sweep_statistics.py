"""The statistics of a sweep against SciPy, brute force and examples worked by hand."""
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_summarize import LRS

from common import plot_style
from experiments import statistics as ss


def test_the_interval_is_the_one_of_the_t_table():
    # n = 4, s = 1.29099, s / sqrt(n) = 0.645497, t_{3, 97.5%} = 3.182446 from any table
    e = ss.mean_interval([1, 2, 3, 4])
    assert (e.n, e.mean) == (4, 2.5)
    assert (e.high - e.mean, e.mean - e.low) == pytest.approx((3.182446 * 0.6454972,) * 2, rel=1e-6)
    assert ss.mean_interval([2.0]) == ss.Estimate(1, 2.0)
    assert ss.mean_interval([]) == ss.Estimate(0)
    assert ss.mean_interval([1.0, math.inf]) == ss.Estimate(2, math.inf)
    assert ss.mean_interval([0.7] * 3) == ss.Estimate(3, pytest.approx(0.7))  # no spread is not certainty


def test_paired_differences_are_scipys_over_the_shared_seeds():
    a, b = {1: 1.0, 2: 1.4, 3: 1.1, 4: 1.3, 9: 7.0, 10: math.inf}, {4: 1.5, 3: 1.2, 2: 1.55, 1: 1.2, 8: 0.0, 10: 1.0}
    d = ss.paired_difference(a, b)
    assert d.seeds == (1, 2, 3, 4) and d.differences == pytest.approx((-0.2, -0.15, -0.1, -0.2))
    truth = stats.ttest_rel([1.0, 1.4, 1.1, 1.3], [1.2, 1.55, 1.2, 1.5])
    interval = truth.confidence_interval(0.95)
    assert d.p == pytest.approx(truth.pvalue)
    assert (d.estimate.low, d.estimate.high) == pytest.approx((interval.low, interval.high))
    assert d.p_sign_flip is None  # four pairs
    assert ss.paired_difference({1: 1.0}, {2: 1.0}).estimate.n == 0


@pytest.mark.parametrize("a, b, p", [([1.5, 2.5, 3.5], [1, 2, 3], None), ([1, 2, 3], [1, 2, 3], 1.0),
                                     ([1.5], [1], None)])
def test_equal_differences_have_no_spread_and_do_not_fail(a, b, p):
    d = ss.paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    assert d.p == p and d.estimate.mean == a[0] - b[0]
    assert (d.estimate.low, d.estimate.high) == (None, None)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(-50, 50), min_size=5, max_size=9))
def test_sign_flips_are_counted_exactly(differences):
    total = abs(sum(differences))
    flips = [abs(sum(s * d for s, d in zip(signs, differences)))
             for signs in itertools.product((1, -1), repeat=len(differences))]
    assert ss.sign_flip_test(differences) == pytest.approx(min(1.0, np.mean([f >= total for f in flips])))


def test_holm_as_worked_by_hand():
    # Holm 1979: 4 x 0.005 = 0.02; 3 x 0.01 = 0.03; 2 x 0.03 = 0.06; 1 x 0.04 = 0.04, raised to 0.06
    assert ss.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert ss.holm([0.01, None, 0.02]) == [pytest.approx(0.02), None, pytest.approx(0.02)]
    assert ss.holm([0.9, 0.8]) == [1.0, 1.0] and ss.holm([]) == [] and ss.holm([None]) == [None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p, random):
    adjusted = ss.holm(p)
    for i, j in itertools.combinations(range(len(p)), 2):
        if p[i] <= p[j]:
            assert adjusted[i] <= adjusted[j]
    assert all(raw <= a <= min(1, len(p) * raw) + 1e-12 for raw, a in zip(p, adjusted))
    order = list(range(len(p)))
    random.shuffle(order)
    assert ss.holm([p[i] for i in order]) == [adjusted[i] for i in order]
    # its rejections at a level are those of the sequential procedure in the paper
    for level in (0.05, 0.3):
        rejected = set()
        for k, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[i] * (len(p) - k) > level:
                break
            rejected.add(i)
        assert {i for i, a in enumerate(adjusted) if a <= level} == rejected


def test_the_learning_rate_is_chosen_by_one_seed_and_measured_by_the_others():
    # by the mean 0.003 is best (1.0 on average against 1.1); seed 1 alone prefers 0.001
    losses = {0.001: {1: 0.8, 2: 1.2, 3: 1.3}, 0.003: {1: 1.2, 2: 0.9, 3: 0.9}, 0.01: {1: 0.1, 2: math.inf, 3: 0.1}}
    held = ss.choose_lr(losses, 1)
    assert (held.lr, held.selection_seed, held.losses) == (0.001, 1, {2: 1.2, 3: 1.3})
    same = ss.choose_lr(losses, None)
    assert (same.lr, same.selection_seed, set(same.losses)) == (0.003, None, {1, 2, 3})
    assert ss.choose_lr(losses, 7).lr == 0.003  # that seed did not run
    alone = ss.choose_lr({0.001: {1: 0.8}, 0.003: {1: 0.9, 2: 0.7}}, 1)
    assert (alone.lr, alone.selection_seed, alone.losses) == (0.001, None, {1: 0.8})
    # a seed that is high at every rate ran at one of them only: rates are ranked by the seed that both have
    assert ss.choose_lr({0.001: {1: 1.0, 2: 9.0}, 0.003: {1: 1.1}}, None).lr == 0.001
    assert ss.choose_lr({0.001: {1: math.inf}}, 1) is None and ss.choose_lr({}, None) is None
    assert ss.measuring_pair(held, alone) == (held.all_losses, {1: 0.8})
    assert ss.measuring_pair(held, held) == (held.losses, held.losses)


def test_holding_a_seed_out_removes_the_bias_of_choosing():
    """All rates are equal and the noise is 1: the least of four normals is 1.03 too low on average."""
    rng = np.random.default_rng(0)
    by_mean, held_out = [], []
    for _ in range(2000):
        losses = {lr: dict(enumerate(rng.normal(size=2))) for lr in (1, 2, 3, 4)}
        by_mean.append(np.mean(list(ss.choose_lr(losses, None).losses.values())))
        held_out.append(np.mean(list(ss.choose_lr(losses, 0).losses.values())))
    assert np.mean(by_mean) == pytest.approx(-1.0294 / math.sqrt(2), abs=0.05)
    assert np.mean(held_out) == pytest.approx(0, abs=0.08)


def test_small_ones():
    assert [ss.place_in_grid(lr, LRS) for lr in LRS] == ["lowest", "", "highest"]
    assert ss.place_in_grid(1e-3, [1e-3]) == "only"
    assert ss.value_at([0, 10, 20], [3.0, 2.0, 1.5], 15) == pytest.approx(1.75)
    assert ss.value_at([0, 10], [3.0, 2.0], 10) == 2.0 and ss.value_at([0, 10], [3.0, 2.0], 11) is None
    assert ss.censored_median([30, 10, None]) == 30 and ss.censored_median([10, None]) is None
    assert ss.censored_median([]) is None and ss.censored_median([1, 2]) == 1.5
    arm = {1: 1.0, 2: 2.0, 3: math.inf, 4: math.inf, 5: 1.0}
    reference = {1: 1.1, 2: 1.9, 3: 2.0, 4: math.inf, 5: math.inf}
    assert ss.wins(arm, reference) == (2, 5, False, ss.mean_interval([1.0 - 1.1, 2.0 - 1.9]))
    assert ss.wins({1: 1.0}, {1: math.inf})[2] and not ss.wins({1: math.inf}, {1: math.inf})[2]
    moved = plot_style.spread([1.0, 0.0, 1.01], 0.5)
    assert sorted(range(3), key=moved.__getitem__) == [1, 0, 2] and min(np.diff(sorted(moved))) >= 0.5 - 1e-12
