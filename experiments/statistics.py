"""
The statistics of a sweep: pure functions of losses. summarize_sweep.py reads the files and writes the tables.

An arm's losses are {lr: {seed: validation loss}}: +inf where the run diverged, absent where it crashed or did not end.

What is honest about them:

  - The learning rate of an arm is chosen by its loss, so the loss of the chosen one on the same seeds is too good: a
    minimum over noise. Where there are seeds to spare, one of them chooses and the others measure (choose_lr).
  - Two arms are compared seed by seed: the same seed has the same batches and the same shared initial weights, so the
    differences vary less than the losses (paired_difference).
  - Several arms against one reference are several chances to be wrong: their p-values are corrected (holm).

References
    Student 1908, The probable error of a mean
    Fisher 1935, The Design of Experiments, section 21 (sign-flip test)
    Schuirmann 1987, A comparison of the two one-sided tests procedure (J. Pharmacokinet. Biopharm. 15, 657-680)
    Holm 1979, A simple sequentially rejective multiple test procedure (Scand. J. Statist. 6, 65-70)
"""
import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats

from common.intervals import Estimate, mean_interval

LEAST_FOR_SIGN_FLIPS = 5  # pairs; with fewer the smallest possible p-value is 2 / 2**4 = 0.125
MOST_SIGN_FLIPS = 2 ** 16  # all of them up to 16 pairs; beyond, this many at random


@dataclass(frozen=True)
class Difference:
    """Arm minus reference over the seeds that both have finished; negative: the arm's loss is lower."""
    seeds: tuple
    differences: tuple
    estimate: Estimate
    p: float | None  # paired t-test, two-sided
    p_sign_flip: float | None  # exact, two-sided; None for fewer than LEAST_FOR_SIGN_FLIPS pairs


@dataclass(frozen=True)
class Choice:
    """An arm at its own best learning rate."""
    lr: float
    selection_seed: int | None  # the seed that chose lr and is left out of `losses`; None: the same seeds did both
    selection_loss: float  # the loss by which lr was chosen
    losses: dict  # {seed: loss} at lr, for measuring
    all_losses: dict  # with the selection seed


# ----------------------------------------------------------------------------------------------------------------------
# one arm

def candidates(losses):
    """Those learning rates of {lr: {seed: loss}} that can be an arm's best: a seed finished there and none diverged."""
    return {lr: seeds for lr, seeds in losses.items() if seeds and all(math.isfinite(v) for v in seeds.values())}


LEAST_TO_PLAN = 5  # pairs, before more are planned with their mean and spread: with 2 or 3 both are chance


def choose_lr(losses, selection_seed):
    """The best learning rate of an arm, of those where no seed diverged.

    With a selection_seed, the one where that seed alone has the lowest loss; that seed then takes no part in measuring,
    unless the chosen rate has no other. Where it is None or finished at no rate, the one with the lowest mean over the
    seeds that all rates have (over each one's own, if there is none), and the same seeds measure. Ties go to the lower rate.
    losses: {lr: {seed: loss}}. Returns a Choice, or None when no learning rate is left.
    """
    possible = candidates(losses)
    if not possible:
        return None
    ranked = {lr: seeds[selection_seed] for lr, seeds in possible.items() if selection_seed in seeds}
    held_out = bool(ranked)
    if not held_out:
        shared = set.intersection(*(set(seeds) for seeds in possible.values()))
        ranked = {lr: float(np.mean([v for s, v in seeds.items() if s in shared or not shared]))
                  for lr, seeds in possible.items()}
    lr = min(ranked, key=lambda k: (ranked[k], k))
    others = {s: v for s, v in possible[lr].items() if s != selection_seed}
    if held_out and others:
        return Choice(lr, selection_seed, ranked[lr], others, dict(possible[lr]))
    return Choice(lr, None, ranked[lr], dict(possible[lr]), dict(possible[lr]))


def selection_seed_of(arms, seeds):
    """The seed that chooses learning rates: the lowest of those that ran at the most rates; None where no arm has two of them.
    arms: of results.py."""
    if all(len(arm.grid()) < 2 for arm in arms):
        return None
    return most_often(seeds, [seed for arm in arms for _, seed in arm.runs], [seed for arm in arms for _, seed in arm.planned])


def most_often(seeds, ran, planned):
    """Of seeds the one that ran most often, then that is planned most often, then the lowest. ran, planned: a seed for each run."""
    return min(seeds, key=lambda seed: (-ran.count(seed), -planned.count(seed), seed))


def measuring_pair(a, b):
    """The losses of two arms (Choice) to be compared seed by seed: those that measure, if both have a seed held out; if
    not, all at the chosen rates, for an arm with the selection seed alone has nothing else."""
    if a.selection_seed is None or b.selection_seed is None:
        return a.all_losses, b.all_losses
    return a.losses, b.losses


def place_in_grid(lr, grid):
    """'lowest' | 'highest' of the learning rates tried: the best may lie beyond; 'only': not tuned; '' inside."""
    if len(set(grid)) < 2:
        return "only"
    return "lowest" if lr == min(grid) else "highest" if lr == max(grid) else ""


# ----------------------------------------------------------------------------------------------------------------------
# two arms

def t_test(differences):
    """Two-sided p-value of the paired t-test. None for fewer than two pairs, and where all differences are equal but not
    zero: no spread at all is the resolution of what was measured (steps between evaluations), not certainty."""
    d = np.asarray(differences, dtype=float)
    if len(d) < 2:
        return None
    if np.ptp(d) == 0:
        return 1.0 if d[0] == 0 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy's remark that the values are nearly equal
        return float(stats.ttest_rel(d, np.zeros_like(d)).pvalue)


def equivalence_test(differences, margin):
    """p-value of two one-sided paired t-tests (TOST): that the mean difference is outside of +-margin is the null. None as for t_test()."""
    d = np.asarray(differences, dtype=float)
    if len(d) < 2 or np.ptp(d) == 0:
        return None
    return float(max(stats.ttest_1samp(d, -margin, alternative="greater").pvalue, stats.ttest_1samp(d, margin, alternative="less").pvalue))


def power_of_difference(n, effect, alpha=0.05):
    """Probability that the two-sided paired t-test of n pairs is below alpha. effect: mean over spread of a pair. Over the chance of the
    measured spread, as below: SciPy's noncentral t gives NaN for some large effects."""
    edge, shift, s = stats.t.ppf(1 - alpha / 2, n - 1), effect * math.sqrt(n), _measured_spreads(n)
    return float((stats.norm.cdf(shift - edge * s) + stats.norm.cdf(-shift - edge * s)).mean())


def power_of_equivalence(n, margin, alpha=0.05):
    """Probability that TOST of n pairs is below alpha where there is no difference. margin: in spreads of a pair. Over the chance of the
    measured spread s: P(|mean| < margin - t s / sqrt(n))."""
    edge, s = stats.t.ppf(1 - alpha, n - 1), _measured_spreads(n)
    room = math.sqrt(n) * margin - edge * s
    return float(np.where(room > 0, 2 * stats.norm.cdf(room) - 1, 0.0).mean())


def _measured_spreads(n, ranks=2000):
    """Equally likely values of the spread that n pairs show where the true one is 1."""
    return np.sqrt(stats.chi2.ppf((np.arange(ranks) + 0.5) / ranks, n - 1) / (n - 1))


def pairs_needed(power_at, wanted=0.8, most=100_000):
    """The least n of pairs with power_at(n) >= wanted, or None if `most` are too few. power_at grows with n."""
    low, high = 1, 2
    while power_at(high) < wanted:
        low, high = high, 2 * high
        if low >= most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(middle) >= wanted else (middle, high)
    return high


def sign_flip_test(differences):
    """Two-sided p-value of the paired permutation test: under the null every difference could as well have the other
    sign. Exact up to 16 pairs; its smallest value is 2 / 2**n. None for fewer than LEAST_FOR_SIGN_FLIPS pairs."""
    d = np.asarray(differences, dtype=float)
    if len(d) < LEAST_FOR_SIGN_FLIPS:
        return None
    return float(stats.permutation_test((d,), lambda x, axis: np.mean(x, axis=axis), permutation_type="samples",
                                        n_resamples=MOST_SIGN_FLIPS, vectorized=True, rng=0).pvalue)


def paired_difference(arm, reference, sign_flips=True):
    """arm, reference: {seed: loss} -> Difference over the seeds that both have, diverged runs left out. sign_flips: with the test by sign
    flips, which takes a tenth of a second with many pairs."""
    seeds = sorted(s for s in arm.keys() & reference.keys() if math.isfinite(arm[s]) and math.isfinite(reference[s]))
    d = tuple(arm[s] - reference[s] for s in seeds)
    return Difference(tuple(seeds), d, mean_interval(d), t_test(d), sign_flip_test(d) if sign_flips else None)


def holm(p_values):
    """Holm's adjusted p-values, in the order given: sorted p_(1) <= ... <= p_(m), adjusted p_(k) = max over j <= k of
    min(1, (m - j + 1) p_(j)). None (no test was possible) stays None and does not count in m."""
    tested = [i for i, p in enumerate(p_values) if p is not None]
    p = np.array([p_values[i] for i in tested], dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]).clip(max=1.0)
    adjusted = [None] * len(p_values)
    for place, value in zip(order, steps):
        adjusted[tested[place]] = float(value)
    return adjusted


def wins(arm, reference):
    """At one learning rate: (seeds where the arm's loss is lower, seeds both have, whether its mean over them is lower,
    Estimate of the difference where both finished). A diverged run loses against one that finished, a mean with one in it
    is infinite, and where both diverged nobody wins."""
    seeds = arm.keys() & reference.keys()
    lower = sum(arm[s] for s in seeds) < sum(reference[s] for s in seeds)
    return sum(arm[s] < reference[s] for s in seeds), len(seeds), lower, paired_difference(arm, reference).estimate


# ----------------------------------------------------------------------------------------------------------------------
# curves

def value_at(xs, ys, x):
    """y at x on a curve of evaluations, linear in between. None outside of it."""
    if len(xs) == 0 or not xs[0] <= x <= xs[-1]:
        return None
    return float(np.interp(x, xs, ys))


def censored_median(values):
    """Median of times to a target, None for those that did not reach it (they count as later than any other). None
    when it falls among these."""
    if not values:
        return None
    median = float(np.median([math.inf if v is None else v for v in values]))
    return median if math.isfinite(median) else None
