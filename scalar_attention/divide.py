"""
Attention by distance in T log T time and memory proportional to T, exact, by divide and conquer over positions.

    o_i = sum_{j <= i} p_ij v_j        p_ij = e^{-|a_i - b_j| - l_i}        l_i = log sum_{j <= i} e^{-|a_i - b_j|}

Positions are cut in leaves of 96 to 192. Pairs within a leaf are taken one by one. All other pairs are met at one level: blocks of 2n
positions, n = leaf, 2 leaf, 4 leaf, ..., where every query of a block's right half sees every key of its left half. There
e^{-|a - b|} is e^{-a} e^b for keys at or left of the query on the line and e^a e^{-b} for keys right of it: the keys are sorted, running
sums of e^b [v, 1] and of e^-b [v, 1] from both ends are made, and a query finds its place by searchsorted. All blocks of a level are
one batch, so there are log2(T / leaf) steps (and one for the leaves).

Range. The running sums carry the largest logarithm so far (running.py), so that they overflow at no range. While |a| and |b|
are at most 28, the logarithms are float32. Beyond that, exponents are differences in float64 and a query's weights are relative to its
nearest key (a sum of nothing but zeros is impossible, then): exact at any range, some 1.5 times as slow. The data decide,
inside the operator: no break in a compiled graph.

Ages. A slope m adds -m (i - j) to the logits: a weight e^{m j} of each key, as e^{-m i} is common to all keys of a query. The sums have
weights of sources anyway. With them exponents are float64, relative to the query's heaviest key.

Gradients, with delta_i = do_i . o_i and signs s_ij = sign(a_i - b_j), 0 at ties:

    dv_j = sum_i p_ij do_i        db_j = v_j . sum_i s_ij p_ij do_i - sum_i s_ij p_ij delta_i
    da_i = delta_i sum_j s_ij p_ij - do_i . sum_j s_ij p_ij v_j

The sums over i are one transposed pass: queries are sources, with weights e^{-l_i}, keys are targets. The sums over j with signs
are the difference of the two sides of the forward pass, which keeps it: so there is one pass each way.

Shapes: B sequences, nh heads, n_kv key heads, G = nh / n_kv, T positions, D numbers a value, N = B n_kv lines.
"""
import torch
from torch.nn import functional as F

from scalar_attention.shapes import age_weights, arithmetic, check, is_narrow, without_autocast
from scalar_attention.sources import Sorted, dense

LEAF = 192  # at most
CHUNKS = 4  # of a leaf: so many chunks of running sums (running.py)
NOTHING = -1e30  # logarithmic weight of what is not there
LINES_BYTES = 2 ** 20  # rows of so many lines are summed at a time on a CPU: they stay in its cache, and memory is bounded


class _Pass:
    """Sums for targets over sources of one set of lines: keys for queries (forward), or queries for keys (transposed).

    x: (N, Gs, T) sources, w: their logarithmic weights or None; rows: (N, Gs, T, W); y: (N, Gt, T) targets, z: theirs or None.
    """

    def __init__(self, x, w, rows, y, transposed, narrow, z=None):
        self.transposed, self.narrow = transposed, narrow
        T = x.size(-1)
        self.leaf, self.levels = T, 0
        while self.leaf > LEAF:
            self.levels += 1
            self.leaf = -(-T // 2 ** self.levels)
        self.leaf += -self.leaf % CHUNKS if self.levels else 0
        self.T = T
        self.padded = self.leaf * 2 ** self.levels
        # positions beyond T: rows of zeros, so that their weight is 0. As keys they are later than every query that is used
        self.x, self.y = self._pad(x), self._pad(y)
        self.w = None if w is None else self._pad(w, 0.0 if narrow else NOTHING)
        self.z = None if z is None else self._pad(z)
        self.rows = F.pad(rows, (0, 0, 0, self.padded - T)) if self.padded > T else rows

    def _pad(self, t, value=0.0):
        return F.pad(t, (0, self.padded - self.T), value=value) if self.padded > self.T else t

    def _half(self, t, n, right):
        """Of every block of 2n positions one half. (N, G, T) -> (N blocks, G n)."""
        N, G, T = t.shape
        return t.view(N, G, T // (2 * n), 2, n)[:, :, :, int(right)].transpose(1, 2).reshape(-1, G * n)

    def _add_half(self, to, n, right, values):
        """values (N blocks, G n, ...) are added to `to`, (N, G, T, ...)."""
        N, G, T = to.shape[:3]
        blocks = T // (2 * n)
        to.view(N, G, blocks, 2, n, -1)[:, :, :, int(right)] += values.view(N, blocks, G, n, -1).transpose(1, 2)

    def _leaves(self, t):
        """(N, G, T, ...) -> (N leaves, G leaf, ...)"""
        return t.unflatten(2, (-1, self.leaf)).transpose(1, 2).flatten(0, 1).flatten(1, 2)

    def _mask_(self, pairs):
        """Weights (N leaves, Gt leaf, Gs leaf): 0 where the key is later than the query."""
        if self.x.size(1) == 1:
            view = pairs.view(-1, self.leaf, self.leaf)  # contiguous: 4 times as fast
        else:
            view = pairs.view(-1, self.y.size(1), self.leaf, self.x.size(1), self.leaf).transpose(2, 3)
        view.triu_() if self.transposed else view.tril_()
        return pairs

    def _sorted(self):
        """(n, Sorted) of every level."""
        for level in range(self.levels):
            n = self.leaf * 2 ** level
            yield n, Sorted(self._half(self.x, n, self.transposed), self._half(self.y, n, not self.transposed))

    def run(self, signed):
        """-> sums (N, Gt, T, W), the same with signs or None, and the reference z (N, Gt, T) that weights are relative to or None."""
        N, Gs, T = self.x.shape
        Gt, W = self.y.size(1), self.rows.size(-1)
        every, z = self._sorted(), self.z
        if not self.narrow and not self.transposed:
            every = list(every)
            z = self._nearest(every)
        leaves = dense(self._leaves(self.rows), self._leaves(self.x), self._leaves(self.y),
                       None if self.w is None else self._leaves(self.w), None if z is None else self._leaves(z),
                       self._mask_, self.narrow, signed)
        results = [None if t is None else t.view(N, T // self.leaf, Gt, self.leaf, W).transpose(1, 2).reshape(N, Gt, T, W) for t in leaves]
        table, places = self.rows.reshape(-1, W), torch.arange(N * Gs * T, device=self.x.device).view(N, Gs, T)
        for n, level in every:
            source = lambda t: None if t is None else self._half(t, n, self.transposed)
            sums = level.sums(table, source(places), source(self.w), None if z is None else self._half(z, n, not self.transposed),
                              self.leaf // CHUNKS, self.narrow, signed)
            for to, values in zip(results, sums):
                if to is not None:
                    self._add_half(to, n, not self.transposed, values)
        results.append(z)
        return [None if t is None else t[:, :, :self.T] for t in results]

    def _nearest(self, every):
        """Distance of every query to the nearest key that it sees, less the key's w, (N, G, T)."""
        def first_(distances):  # what is not seen is far
            view = distances.view(-1, self.y.size(1), self.leaf, self.leaf)
            later = torch.ones(self.leaf, self.leaf, dtype=torch.bool, device=distances.device).triu_(1)
            return view.masked_fill_(later, float("inf")).amin(-1)
        x, y = self._leaves(self.x), self._leaves(self.y)
        step = max(1, 2 ** 18 // (x.size(-1) * y.size(-1)))
        w = 0.0 if self.w is None else self._leaves(self.w).unsqueeze(1)
        less = lambda distances, i: distances if self.w is None else distances.sub_(w[i:i + step])
        parts = [first_(less((y[i:i + step, :, None] - x[i:i + step, None, :]).abs_(), i)) for i in range(0, x.size(0), step)]
        N, Gt, T = self.y.shape
        nearest = torch.cat(parts).view(N, T // self.leaf, Gt, self.leaf).transpose(1, 2).reshape(N, Gt, T)
        for n, level in every:
            half = nearest.view(N, Gt, T // (2 * n), 2, n)[:, :, :, 1]
            found = level.nearest(None if self.w is None else self._half(self.w, n, False))
            torch.minimum(half, found.view(N, -1, Gt, n).transpose(1, 2), out=half)
        return nearest


def _lines(N, group, T, W, dtype, device):
    """Slices of lines that are taken at a time."""
    step = max(1, LINES_BYTES // max(1, group * T * W * dtype.itemsize)) if device.type == "cpu" else max(1, N)
    return [slice(start, min(start + step, N)) for start in range(0, N, step)]


def _width(D):
    """Of [v, 1], in whole registers of a processor."""
    return D + 1 + -(D + 1) % 8


# ----------------------------------------------------------------------------------------------------------------------
# the operators

@torch.library.custom_op("scalar_attention::divide", mutates_args=())
@without_autocast
def _divide(a: torch.Tensor, b: torch.Tensor, v: torch.Tensor, signed: bool, slope: torch.Tensor | None = None
            ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> o, l, and with signed=True sum_j s_ij p_ij v_j and sum_j s_ij p_ij (else empty)."""
    _, group = check(a, b, v, same_length=True)
    (B, nh, T), D, dtype = a.shape, v.size(-1), arithmetic(a, v)
    out = v.new_empty(B, nh, T, D)
    log_sum = a.new_empty(B, nh, T, dtype=torch.float64)
    signs, sign_sum = _signed_like(a, v, signed)
    if out.numel() == 0:
        return out, log_sum, signs, sign_sum
    narrow, w = slope is None and is_narrow(a, b), age_weights(slope, B, T)
    if not narrow:
        a, b = a.double(), b.double()
    a, b, v = a.reshape(-1, group, T), b.reshape(-1, 1, T), v.reshape(-1, 1, T, D)
    for lines in _lines(len(a), group, T, D, dtype, a.device):
        rows = v.new_zeros(*v[lines].shape[:3], _width(D), dtype=dtype)
        rows[..., :D] = v[lines]
        rows[..., D] = 1
        total, with_sign, z = _Pass(b[lines], None if w is None else w[lines, None], rows, a[lines], False, narrow).run(signed)
        weight = total[..., D]
        out.view(-1, group, T, D)[lines] = total[..., :D] / weight.unsqueeze(-1)
        log_sum.view(-1, group, T)[lines] = weight.double().log() - (0 if z is None else z)
        if signed:
            torch.div(with_sign[..., :D], weight.unsqueeze(-1), out=signs.view(-1, group, T, D)[lines])
            torch.div(with_sign[..., D], weight, out=sign_sum.view(-1, group, T)[lines])
    return out, log_sum, signs, sign_sum


def _signed_like(a, v, signed):
    dtype = arithmetic(a, v)
    return (a.new_empty((*a.shape, v.size(-1)) if signed else 0, dtype=dtype), a.new_empty(a.shape if signed else 0, dtype=dtype))


@_divide.register_fake
def _(a, b, v, signed, slope=None):
    return (v.new_empty(*a.shape, v.size(-1)), a.new_empty(a.shape, dtype=torch.float64), *_signed_like(a, v, signed))


@torch.library.custom_op("scalar_attention::divide_backward", mutates_args=())
@without_autocast
def _divide_grad(g: torch.Tensor, a: torch.Tensor, b: torch.Tensor, v: torch.Tensor, out: torch.Tensor, log_sum: torch.Tensor,
                 signs: torch.Tensor, sign_sum: torch.Tensor, slope: torch.Tensor | None = None
                 ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _, group = check(a, b, v, same_length=True)
    T, D, dtype = a.size(2), v.size(-1), arithmetic(a, v)
    da, db, dv = _contiguous_like(a), _contiguous_like(b), _contiguous_like(v)
    if out.numel() == 0:
        return da.zero_(), db.zero_(), dv.zero_()
    narrow, ages = slope is None and is_narrow(a, b), age_weights(slope, a.size(0), T)
    wide = a.dtype if narrow else torch.float64
    a, w = a.to(wide).reshape(-1, group, T), log_sum.neg().to(wide).view(-1, group, T)
    b, v = b.to(wide).reshape(-1, 1, T), v.reshape(-1, 1, T, D)
    g, out, signs, sign_sum = (t.reshape(-1, group, *t.shape[2:]) for t in (g, out, signs, sign_sum))
    for lines in _lines(len(a), group, T, D, dtype, a.device):
        rows = g.new_zeros(*g[lines].shape[:3], _width(D), dtype=dtype)
        rows[..., :D] = g[lines]
        cotangent = rows[..., :D]
        delta = torch.linalg.vecdot(cotangent, out[lines].to(dtype))
        rows[..., D] = delta
        da.view(-1, group, T)[lines] = delta * sign_sum[lines] - torch.linalg.vecdot(cotangent, signs[lines])
        total, with_sign, _ = _Pass(a[lines], w[lines], rows, b[lines], True, narrow, None if ages is None else ages[lines, None]).run(True)
        dv.view(-1, 1, T, D)[lines] = total[..., :D]
        # signs were of key - query
        db.view(-1, 1, T)[lines] = with_sign[..., D] - torch.linalg.vecdot(with_sign[..., :D], v[lines].to(dtype))
    return da, db, dv


def _contiguous_like(t):
    return torch.empty_like(t, memory_format=torch.contiguous_format)


@_divide_grad.register_fake
def _(g, a, b, v, out, log_sum, signs, sign_sum, slope=None):
    return _contiguous_like(a), _contiguous_like(b), _contiguous_like(v)


def _setup(ctx, inputs, output):
    a, b, v, _, slope = inputs
    ctx.set_materialize_grads(False)  # of the last three
    ctx.save_for_backward(a, b, v, *output, slope)


def _autograd(ctx, g, *_others):
    if g is None:
        return None, None, None, None, None
    if ctx.saved_tensors[-2].numel() == 0 and g.numel():
        raise RuntimeError("gradients need signed=True")
    return *_divide_grad(g, *ctx.saved_tensors), None, None


_divide.register_autograd(_autograd, setup_context=_setup)


# ----------------------------------------------------------------------------------------------------------------------

def attend(a, b, v, slope=None):
    """o_i = sum_{j <= i} softmax_j(-|a_i - b_j| - slope (i - j)) v_j in T log T.

    a: (B, nh, T), b: (B, n_kv, T), float32 or float64. v: (B, n_kv, T, D) of any floating point dtype. Query head h reads key head
    h // (nh / n_kv). -> (B, nh, T, D) in v's dtype; sums are float32 (float64 if an input is), under autocast, too.
    slope: (n_kv,), fixed, or None for 0. Once differentiable. ValueError, TypeError: shapes or dtypes that do not go together.
    """
    signed = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad or v.requires_grad)
    return _divide(a, b, v, signed, slope)[0]
