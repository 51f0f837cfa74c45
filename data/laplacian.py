"""
The Laplacian of a graph of features, for model_tau.py: features that go together in a corpus are neighbours.

    python data/laplacian.py --source=out/demo_baseline --out=L.npy --heads=4       from a run's token embeddings
    python data/laplacian.py --source=X.npy --out=L.npy                             from an array (items, features)
    python train.py config/demo_baseline.py --model=tau --laplacian=corpus --laplacian_file=L.npy

A feature is a column of the array. The distance of two is 1 - max(cos, 0), from 0 to 1 (rectified cosine). Each is linked with
those of its k nearest that are within eps; a link that either end wants is kept, with the weight

    knn         1 / (1 + (distance / sigma)^p)
    gaussian    e^{-distance^2 / (2 sigma^2)}

and L = degrees - weights. Two controls say whether it is the graph that helps: --control=shuffled puts the numbers of each column in
a random order first, so that features have nothing to do with one another; --control=rotated turns L, at random, about the vector of
ones: the eigenvalues stay, and no link does. (With learned W_q, W_k a turn can be undone by them: what attention can compute depends
on L's eigenvalues alone. A difference between `corpus` and `rotated` would be the optimizer's.)

--heads cuts the columns in so many groups, for an L of each head: (heads, m, m); else (m, m). A graph in
several pieces is refused: what is constant on each piece would have no roughness.
"""
import io
import os
import sys
from dataclasses import dataclass
from typing import Literal

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from safetensors import SafetensorError, safe_open
from scipy import sparse
from scipy.sparse.csgraph import connected_components

import configurator
from common import paths
from common.errors import UserError, exit_cleanly
from common.whole_files import write_file
from configurator import Path

EMBEDDINGS = ("transformer.wte.weight", "lm_head.weight")  # tied: a checkpoint has one of them


@dataclass
class LaplacianConfig:
    source: Path = ""  # a run's folder (its checkpoint 'best', or 'last'), or a .npy file of an array (items, features)
    out: Path = ""  # where L is written (.npy)
    graph: Literal["knn", "gaussian"] = "knn"  # the weights of links
    heads: int = 1  # an L for each of so many groups of features
    k: int = 6  # neighbours of a feature
    eps: float = 1.0  # links are at most so long
    sigma: float = 0.5  # the scale of distances
    p: float = 2.0  # how fast weights of 'knn' fall
    control: Literal["none", "shuffled", "rotated"] = "none"  # features that have nothing to do with one another; the spectrum, no graph
    seed: int = 1337  # of a control

    def __post_init__(self):
        for key in ("source", "out"):
            if not getattr(self, key):
                raise UserError(f"{key} is needed")
        if self.heads < 1 or self.k < 1:
            raise UserError("heads and k must be at least 1")
        if not min(self.eps, self.sigma, self.p) > 0:
            raise UserError("eps, sigma and p must be more than 0")


def features_of(source):
    """(items, features) of a run's token embeddings or a .npy file."""
    if os.path.isdir(source):
        places = [os.path.join(source, "ckpt", which, "model.safetensors") for which in ("best", "last")]
        name = next((place for place in places if os.path.isfile(place)), None)
        if name is None:
            raise UserError(f"source = '{source}' is no run: there is no {' and no '.join(places)}")
        try:
            with safe_open(name, "np") as weights:
                key = next((k for k in EMBEDDINGS if k in weights.keys()), None)  # noqa: SIM118  no dict
                if key is None:
                    raise UserError(f"'{name}' has no token embeddings")
                return weights.get_tensor(key).astype(np.float64)
        except SafetensorError as e:
            raise UserError(f"'{name}' cannot be read: {e}") from None
    return array_of(source, "source")


def array_of(path, key):
    """The numbers of a .npy file as float64."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise UserError(f"{key} = '{path}' cannot be read as a .npy file: {str(e).splitlines()[0]}") from None
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{key} = '{path}' is no .npy file of floating point numbers")
    return array.astype(np.float64)


def laplacian(X, graph="knn", k=6, eps=1.0, sigma=0.5, p=2.0):
    """L (m, m) of the features of X (items, m)."""
    if X.ndim != 2 or X.shape[0] < 1 or X.shape[1] < 2:
        raise UserError(f"the array has to be (items, features), with two features or more, and is {X.shape}")
    if not np.isfinite(X).all():
        raise UserError("the array has a NaN or an infinite number in it")
    length = np.linalg.norm(X, axis=0)
    if not (length > 0).all():
        raise UserError(f"feature {int(np.argmin(length))} is 0 in every item: it has no direction")
    unit = X / length
    distance = 1 - np.maximum(unit.T @ unit, 0)
    np.fill_diagonal(distance, np.inf)
    m = len(distance)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :min(k, m - 1)]
    rows, columns = np.repeat(np.arange(m), nearest.shape[1]), nearest.ravel()
    d = np.maximum(distance[rows, columns], 0)
    weight = 1 / (1 + (d / sigma) ** p) if graph == "knn" else np.exp(-d ** 2 / (2 * sigma ** 2))
    linked = d <= eps
    W = sparse.csr_array((weight[linked], (rows[linked], columns[linked])), shape=(m, m))
    W = W.maximum(W.T)
    L = (sparse.diags_array(W.sum(axis=1)) - W).toarray()
    return checked((L + L.T) / 2, "the graph")


def shuffled(X, seed):
    """X with the numbers of each column in a random order of their own."""
    return np.random.default_rng(seed).permuted(X, axis=0)


def rotated(L, seed):
    """Q L Q^T, Q a random orthogonal matrix that keeps the vector of ones: the eigenvalues of L, rows that sum to 0, no graph."""
    m = len(L)
    basis = np.linalg.qr(np.column_stack((np.ones(m), np.eye(m)[:, 1:])))[0][:, 1:]  # of what is orthogonal to ones, (m, m - 1)
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((m - 1, m - 1)))
    Q = basis @ (q * np.sign(np.diag(r))) @ basis.T + 1 / m
    turned = Q @ L @ Q.T
    return checked((turned + turned.T) / 2, "the turned L")


def checked(L, what):
    """L (m, m), or one line that says why it is no Laplacian of a connected graph."""
    if L.ndim != 2 or L.shape[0] != L.shape[1]:
        raise UserError(f"{what}: a Laplacian is square, and this is {L.shape}")
    if not np.isfinite(L).all():
        raise UserError(f"{what}: there is a NaN or an infinite number in it")
    largest = np.abs(np.diag(L)).max()
    if np.abs(L - L.T).max() > 1e-6 * largest:
        raise UserError(f"{what}: it is not symmetric")
    if np.abs(L.sum(axis=1)).max() > 1e-6 * largest:
        raise UserError(f"{what}: its rows do not sum to 0")
    pieces = connected_components(sparse.csr_array(L * ~np.eye(len(L), dtype=bool)), directed=False)[0]
    if pieces > 1:
        raise UserError(f"{what} is in {pieces} pieces: take a larger k or eps")
    if np.linalg.eigvalsh(L).min() < -1e-6 * max(1.0, largest):
        raise UserError(f"{what}: it has a negative eigenvalue")
    return L


def load(path, m, heads):
    """L of a file for vectors of m numbers: (1, m, m), or (heads, m, m) where the file has one a head."""
    L = array_of(path, "laplacian_file")
    L = L[None] if L.ndim == 2 else L
    if L.ndim != 3 or L.shape[1:] != (m, m) or len(L) not in (1, heads):
        raise UserError(f"laplacian_file = '{path}' has the shape {L.shape}: this model takes ({m}, {m}) or ({heads}, {m}, {m})")
    return np.stack([checked(each, f"laplacian_file = '{path}'") for each in L])


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, LaplacianConfig, script_doc=__doc__)
    paths.file_to_write(config.out, f"out = '{config.out}'")
    X = features_of(config.source)
    if X.ndim != 2 or X.shape[1] % config.heads:
        raise UserError(f"the array is {X.shape}: its columns cannot be cut in {config.heads} groups")
    if config.control == "shuffled":
        X = shuffled(X, config.seed)
    options = dict(graph=config.graph, k=config.k, eps=config.eps, sigma=config.sigma, p=config.p)
    found = np.stack([laplacian(part, **options) for part in np.split(X, config.heads, axis=1)])
    links = int((found < 0).sum()) // 2
    if config.control == "rotated":
        found = np.stack([rotated(L, config.seed + i) for i, L in enumerate(found)])
    paths.make_folder_of(config.out)
    content = io.BytesIO()
    np.save(content, found if config.heads > 1 else found[0])
    write_file(config.out, content.getvalue())
    largest = max(np.linalg.eigvalsh(L).max() for L in found)
    has = f"{links:,} links" if config.control != "rotated" else f"no graph (one of {links:,} links, turned)"
    print(f"{config.out}: {config.heads} x {found.shape[1]} features, {has}, largest eigenvalue {largest:.3f}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
