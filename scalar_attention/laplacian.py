"""
lambda of a vector: how rough it is over a graph of its coordinates, as a number from 0 to 1.

    lambda(x) = E / (E + tau)        E = x^T L x / (x^T x + eps)

L is a graph Laplacian: symmetric, rows that sum to 0, no negative eigenvalue. So E >= 0, and E = 0 for a vector of equal coordinates
and for x = 0; E(c x) = E(x). eps is the smallest number that keeps 0/0 away.

    chain      coordinates in a row: x^T L x = sum_i (x_{i+1} - x_i)^2      L has 1 at both ends and 2 inside
    matrix     a given L
    factor     a learned L = C C^T, C the factor less the mean of its rows, so that L 1 = 0: x^T L x = |C^T x|^2

Sums of squares have no terms that cancel; a given L has, at vectors that are nearly constant.
"""
import torch

EPS = 1e-30


def chain(m, dtype=torch.float64):
    """The Laplacian of m coordinates in a row, (m, m)."""
    step = torch.eye(m, dtype=dtype).diff(dim=0)  # (m - 1, m)
    return step.t() @ step


def laplacian_of(factor):
    """L of a learned factor. (..., m, r) -> (..., m, m)."""
    centred = factor - factor.mean(-2, keepdim=True)
    return centred @ centred.transpose(-1, -2)


def energy(x, kind, matrix=None):
    """E of vectors x (..., m), float32 or float64. matrix: for 'matrix' L, (..., m, m), for 'factor' the factor, (..., m, r);
    leading dimensions as in a matrix product with x. -> (...)."""
    if kind == "chain":
        rough = x.diff(dim=-1).square().sum(-1)
    elif kind == "factor":
        rough = (x @ (matrix - matrix.mean(-2, keepdim=True))).square().sum(-1)
    else:
        rough = torch.linalg.vecdot(x @ matrix, x).clamp(min=0)  # less than 0 by rounding only
    return rough / (x.square().sum(-1) + EPS)


def roughness(x, tau, kind, matrix=None):
    """lambda of vectors x (..., m). tau > 0 broadcasts against (...)."""
    e = energy(x, kind, matrix)
    return e / (e + tau)
