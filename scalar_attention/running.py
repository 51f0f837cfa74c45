"""
Running sums of weighted rows, with weights given by their logarithms: nothing overflows, and nothing is subtracted.

    R_i = max_{j <= i} u_j        S_i = sum_{j <= i} e^{u_j - R_i} row_j

The true sum is e^{R_i} S_i. Every exponent is at most 0, whatever the range of u.
"""
import torch

from scalar_attention.shapes import exp_

CHUNK = 32  # of the sums of chunks' sums
DENSE = 64  # up to so many rows one triangular matrix is quicker than two steps


def running_sums(u, rows, chunk, narrow):
    """u: (N, n) float32 or float64, rows: (N, n, W) -> R (N, n) in u's dtype and S (N, n, W) in rows'.

    In chunks: sums inside each by one triangular matrix, then running sums of the chunks' last rows, by this function again, decayed
    and added. So the work is n chunk W and some. narrow: e^u and e^-R may be taken by themselves, which is quicker.
    """
    reference = u.cummax(-1).values
    return reference, _sums(u, reference, rows, chunk, narrow)


def _sums(u, reference, rows, chunk, narrow):
    N, n, W = rows.shape
    if n <= DENSE:
        return torch.bmm(_lower(u, reference, rows.dtype, narrow), rows)
    missing = -n % chunk
    if missing:
        u, reference = (torch.cat((t, t[:, -1:].expand(N, missing)), -1) for t in (u, reference))
        rows = torch.cat((rows, rows.new_zeros(N, missing, W)), 1)
    count = (n + missing) // chunk
    lower = _lower(u.reshape(N * count, chunk), reference.reshape(N * count, chunk), rows.dtype, narrow)
    sums = torch.bmm(lower, rows.reshape(N * count, chunk, W)).view(N, count, chunk, W)
    ends = reference[:, chunk - 1::chunk]  # (N, count)
    before = _sums(ends, ends, sums[:, :, -1], CHUNK, narrow)[:, :-1]  # (N, count - 1, W)
    decay = exp_(ends[:, :-1, None] - reference.view(N, count, chunk)[:, 1:], rows.dtype)
    sums[:, 1:].addcmul_(decay.unsqueeze(-1), before.unsqueeze(2))
    sums = sums.view(N, count * chunk, W)
    return sums[:, :n].contiguous() if missing else sums


def _lower(u, reference, dtype, narrow):
    """e^{u_j - R_i} for j <= i, else 0. (N, n) x 2 -> (N, n, n)."""
    if narrow:
        weights = torch.exp(u).to(dtype).unsqueeze(1) * torch.exp(-reference).to(dtype).unsqueeze(2)
    else:
        weights = exp_(u.unsqueeze(1) - reference.unsqueeze(2), dtype)
    return weights.tril_()  # above the diagonal they may be infinite
