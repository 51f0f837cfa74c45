"""
Attention by distance in strips: every pair is taken, and no T x T tensor is made. For short T, where sorting does not pay, and for
new tokens after cached ones.

    o_i = sum_{j <= i} p_ij v_j        p_ij = e^{-|a_i - b_j| - l_i}

A strip is STRIP queries and all keys up to its last one. While |a| and |b| are at most 28, weights need no exponential a pair:
e^{-|a - b|} = min(e^a e^-b, e^-a e^b). Beyond that, exponents are differences in float64, relative to a query's nearest key.
The rows of an output are the same bits whatever comes after them.

Gradients, with delta_i = do_i . o_i and ds_ij = p_ij (do_i . v_j - delta_i) sign(a_i - b_j), the sign of a tie being 0:

    da_i = -sum_j ds_ij        db_j = sum_i ds_ij        dv_j = sum_i p_ij do_i

Shapes: B sequences, nh heads, n_kv key heads, G = nh / n_kv, T queries of the last positions of T_all, D numbers a value, N = B n_kv lines.
"""
import torch

from scalar_attention.shapes import age_weights, arithmetic, check, is_narrow, without_autocast
from scalar_attention.sources import pair_weights

STRIP = 128  # queries of a head
PAIRS = 2 ** 20  # of lines times strip times keys, at a time on a CPU: they stay in its cache


def _strips(N, group, T, T_all, device):
    """(lines, queries, keys) as slices."""
    step = max(1, PAIRS // (group * min(STRIP, T) * T_all)) if device.type == "cpu" else N
    for line in range(0, N, step):
        for start in range(0, T, STRIP):
            end = min(start + STRIP, T)
            yield slice(line, min(line + step, N)), slice(start, end), slice(0, T_all - T + end)


def _tile(a, b):
    """Distances' ends (N, G t, 1) and (N, 1, s) of a strip's queries (N, G, t) and its keys (N, s)."""
    return a.flatten(1).unsqueeze(2), b.unsqueeze(1)


def _mask_(pairs, t):
    """0 in (N, G t, s) where a key is later than the query; the last key is the last query's own."""
    pairs.view(pairs.size(0), -1, t, pairs.size(-1)).tril_(pairs.size(-1) - t)
    return pairs


def _nearest(y, x, w, t):
    """Distance of every query of a strip to the nearest key that it sees, less the key's w, (N, G t, 1)."""
    distance = (y - x).abs_()
    distance = (distance if w is None else distance.sub_(w)).view(x.size(0), -1, t, x.size(-1))
    later = torch.ones(t, x.size(-1), dtype=torch.bool, device=x.device).triu_(x.size(-1) - t + 1)
    return distance.masked_fill_(later, float("inf")).amin(-1).view(x.size(0), -1, 1)


@torch.library.custom_op("scalar_attention::tiled", mutates_args=())
@without_autocast
def _tiled(a: torch.Tensor, b: torch.Tensor, v: torch.Tensor, slope: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """-> o and l."""
    _, group = check(a, b, v)
    (B, nh, T), T_all, D, dtype = a.shape, b.size(2), v.size(-1), arithmetic(a, v)
    out, log_sum = v.new_empty(B, nh, T, D), a.new_empty(B, nh, T, dtype=torch.float64)
    if out.numel() == 0:
        return out, log_sum
    narrow, w = slope is None and is_narrow(a, b), age_weights(slope, B, T_all)
    if not narrow:
        a, b = a.double(), b.double()
    a, b, v = a.reshape(-1, group, T), b.reshape(-1, T_all), v.reshape(-1, T_all, D).to(dtype)
    for lines, queries, keys in _strips(len(a), group, T, T_all, a.device):
        t = queries.stop - queries.start
        y, x = _tile(a[lines, :, queries], b[lines, keys])
        w_keys = None if w is None else w[lines, None, keys]
        z = None if narrow else _nearest(y, x, w_keys, t)
        weights = _mask_(pair_weights(x, y, w_keys, z, dtype, narrow), t)  # (N, G t, s)
        total = weights.sum(-1, keepdim=True)
        part = (len(b[lines]), group, t)
        out.view(-1, group, T, D)[lines, :, queries] = torch.bmm(weights, v[lines, keys]).div_(total).view(*part, D)
        log_sum.view(-1, group, T)[lines, :, queries] = (total.double().log() - (0 if z is None else z)).view(part)
    return out, log_sum


@_tiled.register_fake
def _(a, b, v, slope=None):
    return v.new_empty(*a.shape, v.size(-1)), a.new_empty(a.shape, dtype=torch.float64)


@torch.library.custom_op("scalar_attention::tiled_backward", mutates_args=())
@without_autocast
def _tiled_grad(g: torch.Tensor, a: torch.Tensor, b: torch.Tensor, v: torch.Tensor, out: torch.Tensor, log_sum: torch.Tensor,
                slope: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _, group = check(a, b, v)
    T, T_all, D, dtype = a.size(2), b.size(2), v.size(-1), arithmetic(a, v)
    if out.numel() == 0:
        return tuple(torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (a, b, v))
    da = torch.empty_like(a, memory_format=torch.contiguous_format)
    narrow, ages = slope is None and is_narrow(a, b), age_weights(slope, a.size(0), T_all)
    wide = a.dtype if narrow else torch.float64
    a, w = a.to(wide).reshape(-1, group, T), log_sum.neg().to(wide).view(-1, group, T)
    db, dv = b.new_zeros(b.shape, dtype=dtype), v.new_zeros(v.shape, dtype=dtype)
    b_lines, v_lines = b.to(wide).reshape(-1, T_all), v.reshape(-1, T_all, D).to(dtype)
    g, out = (t.reshape(-1, group, T, D) for t in (g, out))
    for lines, queries, keys in _strips(len(a), group, T, T_all, a.device):
        t = queries.stop - queries.start
        y, x = _tile(a[lines, :, queries], b_lines[lines, keys])
        cotangent = g[lines, :, queries].to(dtype).flatten(1, 2)  # (N, G t, D)
        delta = torch.linalg.vecdot(cotangent, out[lines, :, queries].to(dtype).flatten(1, 2)).unsqueeze(-1)
        w_keys = None if ages is None else ages[lines, None, keys]
        p = _mask_(pair_weights(x, y, w_keys, w[lines, :, queries].flatten(1).unsqueeze(2), dtype, narrow), t)
        dv.view(-1, T_all, D)[lines, keys] += torch.bmm(p.transpose(1, 2), cotangent)
        ds = torch.bmm(cotangent, v_lines[lines, keys].transpose(1, 2)).sub_(delta).mul_(p).mul_(torch.sub(y, x).sign_())
        db.view(-1, T_all)[lines, keys] += ds.sum(1)
        da.view(-1, group, T)[lines, :, queries] = ds.sum(2).neg_().view(-1, group, t)
    return da, db.to(b.dtype), dv.to(v.dtype)


@_tiled_grad.register_fake
def _(g, a, b, v, out, log_sum, slope=None):
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (a, b, v))


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    a, b, v, slope = inputs
    ctx.save_for_backward(a, b, v, *output, slope)


def _autograd(ctx, g, _log_sum):
    return (None, None, None, None) if g is None else (*_tiled_grad(g, *ctx.saved_tensors), None)


_tiled.register_autograd(_autograd, setup_context=_setup)


def attend(a, b, v, slope=None):
    """o_i = sum_j softmax_j(-|a_i - b_j| - slope (i - j)) v_j over the keys j up to the query's own position.

    a: (B, nh, T), b: (B, n_kv, T_all), float32 or float64, of the last T and all T_all positions. v: (B, n_kv, T_all, D) of any
    floating point dtype. Query head h reads key head h // (nh / n_kv). -> (B, nh, T, D) in v's dtype; sums are float32 (float64 if an
    input is), under autocast, too. slope: (n_kv,), fixed, or None for 0. Once differentiable. ValueError, TypeError: shapes or
    dtypes that do not go together.
    """
    return _tiled(a, b, v, slope)[0]
