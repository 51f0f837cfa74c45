"""
The residual stream as n streams, x (n, B, T, C): how they are made, read, written and brought together again.

    read     h = sum_j p_j x_j                    (B, T, C)
    write    x_i <- sum_j R_ij x_j + w_i y        (n, B, T, C)

p (n), R (n, n), w (n) are one for all tokens ('static'), or of every token: p (B, T, n), R (B, T, n, n), w (B, T, n).

The streams come first: there an eager static mix is one small matrix times a wide one, three times as fast with its gradients as behind T
(bench/bench_streams.py). Compiled, the sums are written out, and fused; where the streams are hardly matters then.

Necessary passes over rows of C, forward, of one sub-layer by itself: read n; write n + 1 and n written. Backward of write: n (gradients)
+ n + 1, n + 1 written; of read: 1 + n, n written. With static maps a block's two sub-layers are taken at once (model_mhc.py): forward
n, n + 1 and n + 2 rows are read and n written, 3 n + 3 + n in place of 4 n + 2 + 2 n. What is kept for the backward pass: x, and y of both
sub-layers. What layers read is made again from them, and with dynamic maps the streams in between, too.
"""
import torch


def expand(x, kind, embedding=None, n=4):
    """(B, T, C) -> (n, B, T, C). copy: n copies. first: n x in the first, zeros in the others (the mean is x). embed: copies,
    each with a learned vector of its own, embedding (n, C) or, one a sequence, (n, B, 1, C)."""
    if kind == "first":
        return torch.cat((n * x.unsqueeze(0), x.new_zeros(n - 1, *x.shape)))
    copies = x.unsqueeze(0).expand(n, *x.shape)
    return copies + (embedding[:, None, None] if embedding.dim() == 2 else embedding) if kind == "embed" else copies.contiguous()


def collapse(x, kind, logits=None):
    """(n, B, T, C) -> (B, T, C). mean, sum, or weights softmax(logits), learned."""
    if kind == "learned":
        return read(x, torch.softmax(logits, -1))
    return x.mean(0) if kind == "mean" else x.sum(0)


def combine(weights, x):
    """Row i: sum_j W_ij x_j. (m, n) or (B, T, m, n), (n, B, T, C) -> (m, B, T, C)."""
    with torch.autocast(x.device.type, enabled=False):
        weights = weights.to(x.dtype)
        if not torch.compiler.is_compiling():
            if weights.dim() == 2:
                return (weights @ x.reshape(x.size(0), -1)).unflatten(-1, x.shape[1:])
            return torch.einsum("btij,jbtc->ibtc", weights, x)
        # compiled: sums that are fused with what comes before and after
        m, n = weights.shape[-2:]
        at = (lambda i, j: weights[i, j]) if weights.dim() == 2 else (lambda i, j: weights[:, :, i, j, None])
        return torch.stack([sum(at(i, j) * x[j] for j in range(n)) for i in range(m)])


def read(x, p):
    """sum_j p_j x_j: (n, B, T, C), (n) or (B, T, n) -> (B, T, C)."""
    return combine(p.unsqueeze(-2), x)[0]


def spread(y, w):
    """w_i y: (B, T, C), (n) or (B, T, n) -> (n, B, T, C)."""
    return (w.view(-1, 1, 1, 1) if w.dim() == 1 else w.movedim(-1, 0).unsqueeze(-1)) * y


def write(x, y, mix, w):
    """sum_j R_ij x_j + w_i y: (n, B, T, C), (B, T, C), R: (n, n) or (B, T, n, n), w: (n) or (B, T, n) -> (n, B, T, C).
    mix None: the identity."""
    return (x if mix is None else combine(mix, x)) + spread(y.to(x.dtype), w.to(x.dtype))


def rms_factor(x):
    """1 / sqrt(mean over n and C of x^2 + 1e-6), what RMSNorm multiplies all streams of a token by: (n, B, T, C) -> (B, T)."""
    return torch.rsqrt(x.square().mean((0, -1)) + 1e-6)
