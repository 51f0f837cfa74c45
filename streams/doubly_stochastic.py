"""
Doubly stochastic matrices from free numbers: rows and columns of H_res sum to 1, no entry is negative.

    sinkhorn         exp(L / tau), its columns and rows divided by their sums in turns (Sinkhorn and Knopp 1967; mHC, DeepSeek
                     2025, arXiv 2512.24880)
    permutations     the weights of softmax(z / tau) on the n! permutation matrices: exact, and every doubly stochastic matrix is one of
                     these (Birkhoff; arXiv 2601.05732)
    orthostochastic  the squares of a matrix that Newton-Schulz steps make orthogonal
    identity         (1 - a) I + a S, S by sinkhorn, a = sigmoid(gate / tau)

Sinkhorn converges slowly near a permutation: from our start, with logits that differ by some 0.5 more, columns are off by 0.2% to 0.8%
after the paper's 20 iterations. rounded() puts right what is left (hc_exact), to rounding and at the cost of an iteration.

Every function takes logits with any dimensions before the last one or two, and computes in their dtype (float32 in the models).
"""
import math

import torch

from geometry.transforms import apply

KINDS = ("sinkhorn", "permutations", "orthostochastic", "identity")
LARGEST = {"permutations": 5}  # streams: 120 permutations


def number_of_logits(kind, n):
    return {"sinkhorn": n * n, "permutations": math.factorial(n), "orthostochastic": n * n, "identity": n * n + 1}[kind]


def matrix(logits, n, config):
    """(..., number_of_logits) -> (..., n, n). config: hc_res, hc_exact, hc_sinkhorn_iters, hc_tau, hc_ns_steps, hc_ns_coefficients."""
    if config.hc_res == "permutations":
        return permutations(logits, n, config.hc_tau)
    exact = rounded if config.hc_exact else lambda matrix: matrix
    if config.hc_res == "orthostochastic":
        return exact(orthostochastic(logits.unflatten(-1, (n, n)), config.hc_ns_steps, config.hc_ns_coefficients))
    if config.hc_res == "sinkhorn":
        return exact(sinkhorn(logits.unflatten(-1, (n, n)), config.hc_sinkhorn_iters, config.hc_tau))
    a = torch.sigmoid(logits[..., -1:, None] / config.hc_tau)
    mixed = exact(sinkhorn(logits[..., :-1].unflatten(-1, (n, n)), config.hc_sinkhorn_iters, config.hc_tau))
    return (1 - a) * torch.eye(n, dtype=logits.dtype, device=logits.device) + a * mixed


def rounded(p):
    """The doubly stochastic matrix beside a non-negative one whose sums are nearly 1: rows, then columns, that are too heavy are
    divided by their sums; what then lacks, r of each row and c of each column, is r c^T / sum(r) (Altschuler, Weed and Rigollet 2017,
    algorithm 2). (..., n, n) -> the same."""
    p = p / p.sum(-1, keepdim=True).clamp(min=1)
    p = p / p.sum(-2, keepdim=True).clamp(min=1)
    rows, columns = (1 - p.sum(-1, keepdim=True)).clamp(min=0), (1 - p.sum(-2, keepdim=True)).clamp(min=0)
    # what lacks may be rounding alone, in columns and not in rows: a smaller divisor would make slopes of 1e30 of it
    return p + rows * columns / rows.sum(-2, keepdim=True).clamp(min=torch.finfo(p.dtype).eps)


# ----------------------------------------------------------------------------------------------------------------------

class _Sinkhorn(torch.autograd.Function):
    """P = exp(L - u - v) with v_j = log sum_i exp(L_ij - u_i), then u_i = log sum_j exp(L_ij - v_j), `iters` times from u = 0.

    Autograd through the loop would keep 4 n^2 numbers of every iteration, for every token where L depends on it. Here L is kept;
    the backward pass makes u and v again and goes back through them: logsumexp's slope is the softmax, exp(L - u - v) with the
    u and v of that iteration. The largest entry that logsumexp subtracts cancels in value and slope.
    """

    @staticmethod
    def forward(ctx, logits, iters):
        ctx.save_for_backward(logits)
        ctx.iters = iters
        return _scaled(logits, iters)

    @staticmethod
    def backward(ctx, grad):
        logits, = ctx.saved_tensors
        scalings = _scalings(logits, ctx.iters)
        u, v = scalings[-1]
        back = grad * torch.exp(logits - u - v)  # slope of P by L, and with the other sign by u and v
        du, dv = -back.sum(1, keepdim=True), -back.sum(0, keepdim=True)
        for k in range(ctx.iters, 0, -1):
            u, v = scalings[k]
            step = du * torch.exp(logits - v - u)  # through u = logsumexp_j(L - v)
            back, dv = back + step, dv - step.sum(0, keepdim=True)
            before = scalings[k - 1][0]
            step = dv * torch.exp(logits - before - v)  # through v = logsumexp_i(L - u of before)
            back, du, dv = back + step, -step.sum(1, keepdim=True), torch.zeros_like(dv)
        return back, None


def _scaled(logits, iters):
    u, v = _scalings(logits, iters)[-1]
    return torch.exp(logits - u - v)


def _scalings(logits, iters):
    """[(u, v)] after 0, 1, ... iterations; logits (n, n, ...), u (n, 1, ...), v (1, n, ...)."""
    u = torch.zeros_like(logits[:, :1])
    found = [(u, torch.zeros_like(logits[:1]))]
    for _ in range(iters):
        v = torch.logsumexp(logits - u, 0, keepdim=True)
        u = torch.logsumexp(logits - v, 1, keepdim=True)
        found.append((u, v))
    return found


def sinkhorn(logits, iters=20, tau=1.0):
    """(..., n, n) -> the same. Rows sum to 1 to rounding, as they are divided last; columns as far as it has converged."""
    # rows and columns first: sums over them are then sums of long rows
    return apply(_Sinkhorn, _scaled, (logits / tau).movedim((-2, -1), (0, 1)).contiguous(), iters).movedim((0, 1), (-2, -1))


def all_permutations(n, like):
    """(n!, n, n) in lexicographic order, the identity first. The device makes them: a list would be sent to it in every pass, which
    a CUDA graph does not take."""
    rows = torch.zeros(1, 1, dtype=torch.long, device=like.device)
    for size in range(2, n + 1):
        first = torch.arange(size, device=like.device).view(-1, 1, 1).expand(-1, rows.size(0), 1)
        rest = rows.expand(size, -1, -1)
        rows = torch.cat((first, rest + (rest >= first)), -1).flatten(0, 1)
    return torch.eye(n, dtype=like.dtype, device=like.device)[rows]


def permutations(logits, n, tau=1.0):
    """(..., n!) -> (..., n, n)"""
    return (torch.softmax(logits / tau, -1) @ all_permutations(n, logits).flatten(1)).unflatten(-1, (n, n))


def orthostochastic(raw, steps, coefficients):
    """Squares of X, X <- a X + b X X^T X + c X X^T X X^T X from raw / |raw| (Frobenius), whose singular values are at most 1;
    they go to 1 where a + b + c = 1 and the slope there, a + 3 b + 5 c, is small. (..., n, n) -> the same."""
    a, b, c = coefficients
    x = raw / (torch.linalg.matrix_norm(raw, keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.transpose(-1, -2)
        x = a * x + (b * square + c * square @ square) @ x
    return x.square()


# ----------------------------------------------------------------------------------------------------------------------

def starting_logits(n, config):
    """Logits (number_of_logits,) of (1 - m) I + m/n, m = hc_start_mix: near the identity, with a slope in every entry. With
    hc_start = 'published', sinkhorn's are 0 on the diagonal and -8 beside it, as in the public mHC repository."""
    m, eye = config.hc_start_mix, torch.eye(n)
    if config.hc_res == "permutations":
        start = torch.full((math.factorial(n),), m / math.factorial(n))
        start[0] += 1 - m
        return config.hc_tau * start.log()
    if config.hc_res == "orthostochastic":
        above = torch.ones(n, n).triu(1)
        # (its length does not matter: a short one turns sooner)
        return config.hc_tau * (eye + math.sqrt(m / n) * (above - above.T)).flatten()
    if config.hc_res == "identity":
        gate = torch.logit(torch.tensor([m], dtype=torch.float64)).clamp(max=10)  # m = 1
        return torch.cat((torch.zeros(n * n), config.hc_tau * gate.float()))
    if config.hc_start == "published":
        return (-8 * (1 - eye)).flatten()
    return (config.hc_tau * ((1 - m) * eye + m / n).log()).flatten()
