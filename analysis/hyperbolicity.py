"""
How tree-like is a set of points? Gromov's delta, relative to the diameter, beside sets that have no such structure.

Four points x, y, z, w have three sums of opposite distances, d(x,y) + d(z,w) and so on. Half the difference of the two
largest is their delta; the delta of a set is the largest over its quadruples (Gromov 1987). It is 0 for the metric of a
tree and at most log 2 in the hyperbolic plane of curvature -1 (Nica and Spakula 2016).

    delta_rel = 2 delta / diameter, in [0, 1]   (Khrulkov et al. 2020)

Base point: none. The usual shortcut, Gromov products at one fixed base point, gives a delta that is exact only up to a
factor of 2. Here all quadruples of a small sample are gone through, which is the maximum over all base points; it is
repeated over several samples.

A small delta_rel does not show a hierarchy by itself: distances of independent random points in many dimensions are
nearly equal, and a set of equidistant points has delta 0. And the largest of all quadruples grows with the number of
points. So every number stands beside those of null sets of the same size:

    gaussian      independent normal vectors with the tokens' mean and covariance
    shuffled      the sample with each coordinate permuted over its points: the same marginals, no joint structure
    equidistant   all distances 1: delta 0

References
    Gromov 1987, Hyperbolic Groups
    Khrulkov, Mirvakhabova, Ustinova, Oseledets, Lempitsky 2020, Hyperbolic Image Embeddings, arXiv:1904.02239
    Nica, Spakula 2016, Strong Hyperbolicity, arXiv:1408.0250
"""
import numpy as np
import torch
from scipy.spatial.distance import pdist, squareform

import geometry

POINTS = 60  # of a sample: 487,635 quadruples


def gromov_delta(distances):
    """The four-point delta, exactly: the maximum over all quadruples. distances: (..., n, n) of metric spaces -> (...),
    in their unit; 0 for n < 4. Time n^4/12, memory n^3."""
    distances = np.asarray(distances, dtype=float)
    n = distances.shape[-1]
    deltas = [_delta_of_one(d) for d in distances.reshape(-1, n, n)]
    return np.array(deltas).reshape(distances.shape[:-2])


def _delta_of_one(d):
    n, largest = len(d), 0.0
    # i < j < k, l: vectorised over i, k and l (k = l gives 0, by the triangle inequality)
    for j in range(1, n - 2):
        first = d[:j, j, None, None] + d[j + 1:, j + 1:]  # (i, k, l): d(i, j) + d(k, l)
        second = d[:j, j + 1:, None] + d[j, None, j + 1:]  # d(i, k) + d(j, l)
        third = d[:j, None, j + 1:] + d[j, j + 1:, None]  # d(i, l) + d(j, k)
        larger, smaller = np.maximum(second, third), np.minimum(second, third, out=second)
        # of three numbers: largest minus second largest
        gap = np.subtract(larger, np.maximum(first, smaller, out=first), out=first)
        largest = max(largest, np.abs(gap, out=gap).max())
    return largest / 2


def relative_delta(distances):
    """2 delta / diameter, in [0, 1]; NaN where all points coincide. (..., n, n) -> (...)."""
    diameter = distances.max((-1, -2))
    with np.errstate(invalid="ignore"):
        return 2 * gromov_delta(distances) / np.where(diameter > 0, diameter, np.nan)


# ----------------------------------------------------------------------------------------------------------------------
# distances

def euclidean_distances(samples):
    """(S, n, C) -> (S, n, n)."""
    return np.stack([squareform(pdist(sample)) for sample in samples])


def geodesic_distances(points, c):
    """In the product of H spaces, sqrt(sum of squared distances). points: (S, n, H, D), inside; c: (H,) -> (S, n, n).
    A flat factor (c = 0) counts with 2|y - x|, the limit of the family (geometry.dist)."""
    c = torch.as_tensor(c, dtype=torch.float64)[:, None]
    samples = torch.as_tensor(points, dtype=torch.float64)
    by_head = [geometry.dist(s[:, None], s[None], c).squeeze(-1) for s in samples]  # each (n, n, H)
    return np.stack([d.square().sum(-1).sqrt().numpy() for d in by_head])


def points_from_tangent(vectors, c):
    """exp_0 per head. vectors: (..., H D) at the origin; c: (H,) -> (..., H, D), inside the balls."""
    c = torch.as_tensor(c, dtype=torch.float64)[:, None]
    rows = torch.as_tensor(vectors, dtype=torch.float64).unflatten(-1, (len(c), -1))
    return geometry.project(geometry.exp_0(rows, c), c).numpy()


# ----------------------------------------------------------------------------------------------------------------------
# null sets

def gaussian_null(mean, covariance, samples, n, rng):
    """(samples, n, C) independent normal vectors."""
    return rng.multivariate_normal(mean, covariance, size=(samples, n), method="eigh", check_valid="ignore")


def shuffled_null(samples, rng):
    """Each coordinate of each sample permuted over its points. (S, n, C) -> (S, n, C)."""
    return rng.permuted(samples, axis=1)


def equidistant_null(n):
    """Distances 1; all samples are the same. (1, n, n)."""
    return 1.0 - np.eye(n)[None]


def compare(samples, mean, covariance, distances_of, rng):
    """delta_rel and diameters of samples of tokens, and delta_rel of the null sets.

    samples: (S, n, C) vectors; mean, covariance: of all tokens in the same coordinates; distances_of: (S, n, C) -> (S,
    n, n). -> name -> (S,)
    """
    S, n, _ = samples.shape
    own = distances_of(samples)
    return {"tokens": relative_delta(own), "diameter": own.max((-1, -2)),
            "gaussian": relative_delta(distances_of(gaussian_null(mean, covariance, S, n, rng))),
            "shuffled": relative_delta(distances_of(shuffled_null(samples, rng))),
            "equidistant": np.repeat(relative_delta(equidistant_null(n)), S)}
