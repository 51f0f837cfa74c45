"""
Attention by distance as its definition reads, with the T x T matrix: for tests, short T, and a few new tokens after cached ones.
"""
import torch

from scalar_attention.shapes import arithmetic, check


def attend(a, b, v, slope=None):
    """o_i = sum_j softmax_j(-|a_i - b_j| - slope (i - j)) v_j over the keys j up to the query's own position.

    a: (B, nh, T), b: (B, n_kv, T_all), float32 or float64, of the last T and all T_all positions. v: (B, n_kv, T_all, D) of any
    floating point dtype. Query head h reads key head h // (nh / n_kv). -> (B, nh, T, D) in v's dtype. slope: (n_kv,), or None for 0.

    Differentiable as often as PyTorch's operations are; |x| has the derivative 0 at 0. Memory: B nh T T_all numbers, several times.
    """
    n_kv, group = check(a, b, v)
    B, nh, T = a.shape
    T_all, dtype = b.size(2), arithmetic(a, v)
    with torch.autocast(a.device.type, enabled=False):
        # float64: two distances of 1e6 differ by little
        distance = (a.double().view(B, n_kv, group, T, 1) - b.double()[:, :, None, None, :]).abs()  # (B, n_kv, group, T, T_all)
        seen = torch.ones(T, T_all, dtype=torch.bool, device=a.device).tril(T_all - T)
        if slope is not None:
            age = torch.arange(T_all - T, T_all, device=a.device).unsqueeze(-1) - torch.arange(T_all, device=a.device)
            distance = distance + slope.double().view(-1, 1, 1, 1) * age
        logits = (-distance).masked_fill(~seen, -float("inf"))
        weights = torch.softmax((logits - logits.detach().amax(-1, keepdim=True)).to(dtype), dim=-1)
        out = weights.flatten(2, 3) @ v.to(dtype)  # (B, n_kv, group T, D)
        return out.view(B, nh, T, v.size(-1)).to(v.dtype)
