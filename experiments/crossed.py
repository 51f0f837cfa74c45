"""
An interval for the mean of a table whose rows and columns are both samples: seeds of training by pieces of text.

    d_sg = m + a_s + b_g + e_sg        a: of the seed, b: of the piece of text, e: of both

The mean over the table varies with var_a / S + var_b / G + var_e / (S G). With the mean squares of the two-way analysis of variance
without replication that is estimated by

    (MS_S + MS_G - MS_e) / (S G)

with Satterthwaite's degrees of freedom. The interval is the widest of this one, that over seeds alone (MS_S) and that over texts alone
(MS_G): over both kinds it is not to be shorter than over either. So the answer is for other seeds and other texts of this kind.

References
    Satterthwaite 1946, An Approximate Distribution of Estimates of Variance Components (Biometrics Bulletin 2)
    Clark 1973, The Language-as-Fixed-Effect Fallacy (Journal of Verbal Learning and Verbal Behavior 12)
    Westfall, Kenny, Judd 2014, Statistical Power and Optimal Design in Experiments in Which Samples of Participants Respond to Samples of
    Stimuli (Journal of Experimental Psychology: General 143)
"""
import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from common.intervals import LEVEL, Estimate, mean_interval


@dataclass(frozen=True)
class Crossed:
    """Of the mean of a table: over seeds alone (these texts), over texts alone (these seeds), over both; p: that it is 0, over both.
    shares: of the mean's variance, from seeds, texts and their interaction."""
    over_seeds: Estimate
    over_texts: Estimate
    over_both: Estimate
    p: float | None
    shares: tuple


def crossed(table):
    """table: (S, G) differences, one for each seed and piece of text, S, G >= 2 -> Crossed. Without intervals where a row or column is
    all there is, or nothing varies."""
    d = np.asarray(table, dtype=float)
    seeds, pieces = d.shape
    over_seeds, over_texts, mean = mean_interval(d.mean(1)), mean_interval(d.mean(0)), float(d.mean())
    if min(d.shape) < 2 or np.ptp(d) == 0:
        return Crossed(over_seeds, over_texts, Estimate(min(d.shape), mean), None, (None, None, None))
    of_seed, of_piece = d.mean(1, keepdims=True) - mean, d.mean(0, keepdims=True) - mean
    of_both = d - mean - of_seed - of_piece
    squares = pieces * float(np.sum(of_seed ** 2)), seeds * float(np.sum(of_piece ** 2)), float(np.sum(of_both ** 2))
    degrees = seeds - 1, pieces - 1, (seeds - 1) * (pieces - 1)
    by_seed, by_piece, rest = (square / free for square, free in zip(squares, degrees))
    candidates = [(by_seed, degrees[0]), (by_piece, degrees[1])]
    if (both := by_seed + by_piece - rest) > 0:
        candidates.append((both, both ** 2 / sum(ms ** 2 / free for ms, free in zip((by_seed, by_piece, rest), degrees))))
    widest = max(candidates, key=lambda found: found[0] * stats.t.ppf((1 + LEVEL) / 2, found[1]) ** 2)
    error, free = math.sqrt(widest[0] / d.size), widest[1]
    if error == 0:  # all of it interaction, to the last digit
        return Crossed(over_seeds, over_texts, Estimate(min(d.shape), mean), None, (0.0, 0.0, 1.0))
    # the largest of theirs, as the interval is the widest: below 0.05 together, and never less than seeds or pieces alone say
    p = max(float(2 * stats.t.sf(abs(mean) / math.sqrt(ms / d.size), df)) for ms, df in candidates if ms > 0)
    half = float(stats.t.ppf((1 + LEVEL) / 2, free)) * error
    parts = max(by_seed - rest, 0.0), max(by_piece - rest, 0.0), rest
    return Crossed(over_seeds, over_texts, Estimate(min(d.shape), mean, mean - half, mean + half),
                   p, tuple(part / sum(parts) for part in parts))
