"""
Looking at a comparison after every pair, and stopping early, without more false positives: a confidence sequence.

d_1, d_2, ... are paired differences, independent and normal with a mean m and a spread s that nobody knows. The e-value of a mean m is a
Bayes factor: the chance of the t-statistics so far with an effect size (mean - m) / s drawn from N(0, 1 / g), over that with none.

    e_n(m) = sqrt(r) ((1 + t^2 / (n - 1)) / (1 + r t^2 / (n - 1)))^{n / 2},    r = g / (n + g),    t = (mean - m) / (s_n / sqrt(n))

For the true m it is a martingale of mean 1 that is never negative, so it reaches 1 / alpha with a probability of at most alpha, over
all n together (Ville). The means m with e_n(m) < 1 / alpha are an interval, and all of these hold together with a probability of 1 - alpha:

    |mean - m| < s_n / sqrt(n) sqrt((n - 1) (K - 1) / (1 - r K)),    K = (alpha sqrt(r))^{-2/n};    all m where r K >= 1

References
    Lai 1976, On confidence sequences (Annals of Statistics 4, 265-280)
    Hendriksen, de Heide, Grunwald 2021, Optional stopping with Bayes factors (Bayesian Analysis 16, 961-989)
    Wang, Ramdas 2025, Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance (Sequential Analysis 44)
"""
import math

import numpy as np

EFFECT = 1.0  # g: one over the variance of the effect size. A wrong guess costs pairs, not validity


def e_values(differences, mean=0.0, g=EFFECT):
    """e_n(mean) for n = 1, 2, ... along the last axis. (..., N) -> (..., N). 1 for n = 1; where all differences so far are equal, inf
    (0 spread), or 1 if they are equal to the mean."""
    n, means, spread = _running(differences)
    with np.errstate(divide="ignore", invalid="ignore"):
        t_squared = (means - mean) ** 2 * n / spread ** 2
        r, degrees = g / (n + g), np.maximum(n - 1, 1)
        log_e = 0.5 * np.log(r) + n / 2 * (np.log1p(t_squared / degrees) - np.log1p(r * t_squared / degrees))
        e = np.exp(log_e)
    e = np.where((n > 1) & (spread == 0), np.where(means == mean, 1.0, np.inf), e)
    return np.where(n == 1, 1.0, e)


def confidence_sequence(differences, alpha, g=EFFECT):
    """(low, high) for n = 1, 2, ... along the last axis; infinite where nothing is excluded yet. Where all differences so far are equal
    there is no spread to go by: infinite, too."""
    n, means, spread = _running(differences)
    r = g / (n + g)
    K = np.exp(-2 / n * np.log(alpha * np.sqrt(r)))
    room = 1 - r * K
    with np.errstate(divide="ignore", invalid="ignore"):
        half = spread / np.sqrt(n) * np.sqrt((n - 1) * (K - 1) / room)
    half = np.where((room > 0) & (n > 1) & (spread > 0), half, np.inf)
    return means - half, means + half


def _running(differences):
    """n, means and spreads (with n - 1) of the first n, for every n."""
    d = np.asarray(differences, dtype=float)
    n = np.arange(1, d.shape[-1] + 1)
    means = np.cumsum(d, -1) / n
    # Welford's sum of squares: d^2 minus n mean^2 would lose all digits of a small spread
    before = np.concatenate((np.zeros_like(means[..., :1]), means[..., :-1]), -1)
    squares = np.cumsum((d - before) * (d - means), -1)
    return n, means, np.sqrt(np.maximum(squares, 0) / np.maximum(n - 1, 1))


MOST_SIMULATED = 4_000  # pairs


def pairs_needed_with_looks(effect, alpha, power=0.8, equivalence=False):
    """After how many pairs the interval, looked at after each, has shown with this probability that a mean of `effect` spreads is not 0, or
    (equivalence) that a mean of 0 is within +-effect. By simulation, to some 3%. None where it takes more than MOST_SIMULATED."""
    n, rng = 16, np.random.default_rng(0)
    while n <= MOST_SIMULATED:
        d = rng.standard_normal((min(4000, 2_000_000 // n), n)) + (0 if equivalence else effect)
        low, high = confidence_sequence(d, alpha)
        shown = (low > -effect) & (high < effect) if equivalence else low > 0
        first = np.where(shown.any(1), shown.argmax(1) + 1, n + 1)
        needed = math.ceil(np.quantile(first, power))
        if needed <= n:
            return needed
        n *= 2
    return None


def verdict(low, high, margin):
    """What an interval of a difference says: 'lower', 'higher' (by more than the margin), 'equivalent' (within it), 'lower, not known by
    how much', 'higher, not known by how much', or 'open'. An end is None or infinite where it is not known."""
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if high < -margin:
        return "lower"
    if low > margin:
        return "higher"
    if -margin < low and high < margin:
        return "equivalent"
    if high < 0:
        return "lower, not known by how much"
    if low > 0:
        return "higher, not known by how much"
    return "open"


DECIDED = ("lower", "higher", "equivalent")
