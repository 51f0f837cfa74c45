"""
What the mixing does, in numbers. R_l is H_res of sub-layer l, U the matrix of 1/n; of maps that depend on tokens, means over these.

    row_error, column_error      largest |sum - 1| of R's rows, columns (HC and AltUp have no constraint)
    from_identity, from_uniform  |R - I|, |R - U| over |I - U| (Frobenius): 0 there; near 1 at the other one
    product_from_uniform         the same of R_l ... R_1: near 0, the streams' beginnings are forgotten
    gain_forward, gain_backward  largest absolute row sum, column sum of R_l ... R_1: how a signal, a gradient can grow over depth
    read_entropy                 entropy of |p| / sum |p| over log n: 1, all streams are read alike; 0, one is
    similarity                   mean cosine between two streams, after a block
    share<i>                     of stream i in what the output head reads: <its part, the whole> / |the whole|^2
"""
import contextlib

import torch


@contextlib.contextmanager
def recorded(connections):
    """A list of (p, R, w), one a call of connections.maps() while open. connections: a module, or None."""
    found = []
    if connections is None:
        yield found
        return
    maps = connections.maps

    def watched(x, *own):
        found.append(maps(x, *own))
        return found[-1]
    connections.maps = watched
    try:
        yield found
    finally:
        del connections.maps  # the class's own again


def _norm(x):
    return torch.linalg.matrix_norm(x).mean().item()


def of_mixes(mixes):
    """A dict for each R, (n, n) or (B, T, n, n), in the order of depth."""
    found, product = [], None
    for mix in mixes:
        mix = mix.double()
        n = mix.size(-1)
        eye = torch.eye(n, dtype=mix.dtype, device=mix.device)
        unit = _norm(eye - 1 / n) or 1.0  # n = 1
        product = mix if product is None else mix @ product
        found.append({"row_error": (mix.sum(-1) - 1).abs().max().item(), "column_error": (mix.sum(-2) - 1).abs().max().item(),
                      "from_identity": _norm(mix - eye) / unit, "from_uniform": _norm(mix - 1 / n) / unit,
                      "product_from_uniform": _norm(product - 1 / n) / unit,
                      "gain_forward": product.abs().sum(-1).amax(-1).mean().item(),
                      "gain_backward": product.abs().sum(-2).amax(-1).mean().item()})
    return found


def read_entropy(p):
    """(..., n) -> number in [0, 1]"""
    p = p.double().abs()
    p = p / p.sum(-1, keepdim=True).clamp(min=1e-30)
    return (torch.special.entr(p).sum(-1).mean() / max(torch.log(torch.tensor(float(p.size(-1)))).item(), 1e-30)).item()


def similarity(x):
    """Mean cosine between two streams. (n, B, T, C) -> number; 1 where there is one stream."""
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    n = x.size(0)
    if n == 1:
        return 1.0
    # |sum of unit rows|^2 = n + 2 sum of the cosines of pairs
    return ((unit.sum(0).square().sum(-1) - n) / (n * (n - 1))).mean().item()


def shares(parts):
    """Share of each stream in their sum. (n, B, T, C) -> [n numbers], which add up to 1."""
    parts = parts.double()
    whole = parts.sum(0)
    return ((parts * whole).sum((1, 2, 3)) / whole.square().sum()).tolist()
