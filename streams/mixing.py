"""
The residual stream as n streams, x (n, B, T, C): how they are made, read, written and brought together again.

    read     h = sum_j p_j x_j                    (B, T, C)
    write    x_i <- sum_j R_ij x_j + w_i y        (n, B, T, C)

p (n), R (n, n), w (n) are one for all tokens ('static'), or of every token: p (B, T, n), R (B, T, n, n), w (B, T, n).

The streams come first: there a static mix is one small matrix times a wide one. With n behind T the same step took 1.5 to 4 times
as long on a CPU, eager and compiled (3,072 tokens, n = 4, C = 384; docs/streams.md).

Necessary passes over rows of C, forward: read n; write n + 1 and n written. Backward of write: n (gradients) + n + 1, n + 1 written;
of read: 1 + n, n written. What is kept for it: x, y. Nothing of size n more than that: a Block makes the written streams again.
"""
import torch


def expand(x, kind, embedding=None, n=4):
    """(B, T, C) -> (n, B, T, C). copy: n copies. first: n x in the first, zeros in the others (the mean is x). embed: copies,
    each with a learned vector of its own, embedding (n, C)."""
    if kind == "first":
        return torch.cat((n * x.unsqueeze(0), x.new_zeros(n - 1, *x.shape)))
    copies = x.unsqueeze(0).expand(n, *x.shape)
    return copies + embedding[:, None, None] if kind == "embed" else copies.contiguous()


def collapse(x, kind, logits=None):
    """(n, B, T, C) -> (B, T, C). mean, sum, or weights softmax(logits), learned."""
    if kind == "learned":
        return read(x, torch.softmax(logits, 0))
    return x.mean(0) if kind == "mean" else x.sum(0)


def _combine(weights, x):
    """Row i: sum_j weights_ij x_j. weights (m, n) or (B, T, m, n), x (n, B, T, C) -> (m, B, T, C)."""
    if weights.dim() == 2 and not torch.compiler.is_compiling():
        return (weights.to(x.dtype) @ x.reshape(x.size(0), -1)).unflatten(-1, x.shape[1:])
    if weights.dim() == 4 and not torch.compiler.is_compiling():
        return torch.einsum("btij,jbtc->ibtc", weights.to(x.dtype), x)
    # compiled: sums that are fused with what comes before and after
    m, n = weights.shape[-2:]
    at = lambda i, j: weights[i, j] if weights.dim() == 2 else weights[:, :, i, j, None]
    return torch.stack([sum(at(i, j) * x[j] for j in range(n)) for i in range(m)])


def _products(g, x, static):
    """sum_C g_i x_j, of all tokens together if static. (m, B, T, C), (n, B, T, C) -> (m, n) or (B, T, m, n)."""
    if static:
        return g.reshape(g.size(0), -1) @ x.reshape(x.size(0), -1).T
    return torch.einsum("ibtc,jbtc->btij", g, x)


class _Combine(torch.autograd.Function):
    """sum_j W_ij x_j. Its gradient of W is one matrix product (autograd's of the compiled sums: m n reductions)."""

    @staticmethod
    def forward(ctx, weights, x):
        ctx.save_for_backward(weights, x)
        return _combine(weights, x)

    @staticmethod
    def backward(ctx, g):
        weights, x = ctx.saved_tensors
        with torch.autocast(g.device.type, enabled=False):
            dx = _combine(weights.transpose(-1, -2), g) if ctx.needs_input_grad[1] else None
            dw = _products(g, x, weights.dim() == 2).to(weights.dtype) if ctx.needs_input_grad[0] else None
        return dw, dx


def combine(weights, x):
    """Row i: sum_j W_ij x_j. (m, n) or (B, T, m, n), (n, B, T, C) -> (m, B, T, C)."""
    with torch.autocast(x.device.type, enabled=False):
        return _Combine.apply(weights, x)


def read(x, p):
    """sum_j p_j x_j: (n, B, T, C), (n) or (B, T, n) -> (B, T, C)."""
    return combine(p.unsqueeze(-2), x)[0]


def write(x, y, mix, w):
    """sum_j R_ij x_j + w_i y: (n, B, T, C), (B, T, C), R: (n, n) or (B, T, n, n), w: (n) or (B, T, n) -> (n, B, T, C).
    mix None: the identity."""
    written = combine(w.unsqueeze(-1), y.to(x.dtype).unsqueeze(0))
    return (x if mix is None else combine(mix, x)) + written


def rms_factor(x):
    """1 / sqrt(mean over n and C of x^2 + 1e-6), what RMSNorm multiplies all streams of a token by: (n, B, T, C) -> (B, T)."""
    return torch.rsqrt(x.square().mean((0, -1)) + 1e-6)
