"""A mean with its interval, as numbers and as text."""
import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval, unless its maker says another


@dataclass(frozen=True)
class Estimate:
    """A mean over n values with its interval. None: not defined (no values; one value, or equal ones, have no interval)."""
    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def mean_interval(values, level=LEVEL):
    """Mean and its t-interval, mean -+ t_{n-1, (1 + level) / 2} s / sqrt(n), s with n - 1. values: n numbers -> Estimate. Without an
    interval where all are equal, as t_test() is without a p: no spread is not certainty."""
    values = np.asarray(list(values), dtype=float)
    n = len(values)
    if n == 0:
        return Estimate(0)
    mean = float(values.mean())
    if n == 1 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return Estimate(n, mean)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * stats.sem(values))
    return Estimate(n, mean, mean - half, mean + half)


def interval_text(estimate, digits=4, sign=True):
    """'+0.0123 [+0.0100, +0.0146]'; of one value the mean alone, of equal ones '+0.0123 [no interval]'."""
    if estimate.mean is None:
        return "-"
    form = f"{'+' if sign else ''}.{digits}f"
    text = f"{estimate.mean:{form}}"
    if estimate.low is None:
        return text if estimate.n == 1 or not math.isfinite(estimate.mean) else f"{text} [no interval]"
    return f"{text} [{estimate.low:{form}}, {estimate.high:{form}}]"
