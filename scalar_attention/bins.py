"""
Attention by distance with constant work and memory a token, for generation: keys are not kept, but the sums of M bins of lambda.

    bin(k) = [m / M, (m + 1) / M) that has lambda_k, of centre c_m = (m + 1/2) / M
    n_m = number of keys in bin m, s_m = sum of their values        the whole state: (n_kv, M, D + 1) numbers a sequence
    o' = sum_m w_m s_m / sum_m w_m n_m, w_m = e^{-|lambda_q - c_m| / temperature}

It is not exact. Let p be the exact weights of the keys, p' those with every key at the centre of its bin, o and o' their outputs:

    |o' - o| <= tanh(x / 2) max_jk |v_j - v_k| <= 2 tanh(x / 2) max|v|        x = 1 / (2 M temperature)

Proof. A key is moved by 1 / (2 M) at most, so p'_j = p_j r_j / r with r_j within [e^-x, e^x] and r = sum_j p_j r_j. On that interval
|t - r| is below its chord, whose mean depends on r alone: sum_j |p'_j - p_j| = sum_j p_j |r_j - r| / r is at most
2 (e^x - r) (r - e^-x) / ((e^x - e^-x) r), which is largest at r = 1: 2 (e^x + e^-x - 2) / (e^x - e^-x) = 2 tanh(x / 2). And means of two
distributions with such a sum of t are at most t / 2 diameters of the values apart. The bound is reached (tests/test_bins.py).
The plainer bound (e^{2x} - 1) max|v|, from |p'_j / p_j - 1| <= e^{2x} - 1, is twice as large for small x, and grows without end.

The number of keys in a bin is exact up to 2^24 in float32. Shapes: B sequences, nh heads, n_kv key heads, T positions, D numbers a value.
"""
import math

import torch

from scalar_attention.shapes import arithmetic, check, without_autocast


def error_bound(bins, temperature):
    """What |o' - o| is at most, in units of the largest |v|: 2 tanh(1 / (4 M temperature))."""
    return 2 * math.tanh(1 / (4 * bins * temperature))


def empty(b, v, bins):
    """Sums of no keys, (B, n_kv, bins, D + 1): of values, and their number. float32, or float64 if an input is."""
    return v.new_zeros(*b.shape[:2], bins, v.size(-1) + 1, dtype=arithmetic(b, v))


def length(sums):
    """How many keys there are, a tensor of no dimension: all heads of all sequences have as many."""
    return sums[0, 0, :, -1].sum()


def add(sums, b, v, temperature):
    """The sums with more keys in them. b: (B, n_kv, T), lambda / temperature; v: (B, n_kv, T, D); temperature: (n_kv,)."""
    M = sums.size(2)
    place = (b * temperature.view(-1, 1) * M).nan_to_num().long().clamp(0, M - 1)  # a sigmoid may round to 1
    rows = torch.cat((v.to(sums.dtype), torch.ones_like(v[..., :1], dtype=sums.dtype)), -1)
    rows = rows + 0 * b.unsqueeze(-1)  # NaN stays NaN
    return sums.scatter_add(2, place.unsqueeze(-1).expand_as(rows), rows)


@without_autocast
def attend(a, sums, temperature):
    """o' of queries that see every key of the sums. a: (B, nh, T), lambda / temperature; -> (B, nh, T, D) in the sums' dtype.
    Query head h reads key head h // (nh / n_kv)."""
    (B, nh, T), (n_kv, M) = a.shape, sums.shape[1:3]
    centres = (torch.arange(M, device=a.device, dtype=a.dtype) + 0.5) / (M * temperature.view(-1, 1, 1))  # (n_kv, 1, M)
    distance = (a.view(B, n_kv, -1, 1) - centres).abs()  # (B, n_kv, G T, M)
    distance = distance.masked_fill((sums[..., -1] == 0).unsqueeze(2), math.inf)  # nothing is in it: no reference
    total = torch.exp(distance.amin(-1, keepdim=True) - distance).to(sums.dtype) @ sums
    return (total[..., :-1] / total[..., -1:]).view(B, nh, T, -1)


def read(sums, a, b, v, temperature):
    """New tokens after those of the sums. a: (B, nh, T), b: (B, n_kv, T), v: (B, n_kv, T, D) -> o' (B, nh, T, D) in v's dtype, and the
    sums with them. They are taken one by one, each after it has been put in its bin: how a text is cut in calls changes nothing."""
    check(a, b, v, same_length=True)
    out = []
    for now in (slice(i, i + 1) for i in range(a.size(2))):
        sums = add(sums, b[:, :, now], v[:, :, now], temperature)
        out.append(attend(a[:, :, now], sums, temperature))
    return torch.cat(out, 2).to(v.dtype), sums
