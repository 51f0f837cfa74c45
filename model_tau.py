"""
The topological transformer: attention by distance between scalars, where a query and a key are one number each.

    lambda(x) = E / (E + tau)        E = x^T L x / x^T x        how rough the vector x is over a graph of its coordinates
    weights_ij = softmax_{j <= i} (-|lambda(q_i) - lambda(k_j)| / temperature)

Everything else is the baseline's. L is a graph Laplacian (scalar_attention/laplacian.py): 'chain', 'corpus' (data/laplacian.py),
'learned', the same for queries and keys; 'none' is the control without topology, lambda = sigmoid(w . x). The attention
is exact, in T log T time from T = 1,024 on (scalar_attention/); train.py says which form it takes. Generation keeps the values and
one float32 number a key. With kv_bins = M it keeps M (D + 1) numbers a key head instead, whatever the length of the text, and
takes the same time for each token (scalar_attention/bins.py has the error bound). The prompt is still read exactly.
Beyond block_size generate() reads the last window anew for each token, exactly: there bins save nothing.

tau is learned, fixed, or the median or mean of E, of each head: that of the training batches so far, of TAU_STEPS steps at most, then
frozen. A batch changes only what later steps see, and end_of_step() tells the model that a step ends. lambda is within [0, 1), so that
a temperature of 1 bounds the ratio of two weights by e: it starts at 0.05.

There is no dropout of attention weights (no weight is ever in memory). QK norm changes lambda by its learned gain only: E(c x) = E(x).
Rotated positions (as published, before lambda) make lambda depend on the absolute position. position = 'alibi' subtracts m_h (i - j)
from the logits, with ALiBi's fixed slopes m_h = 2^{-8 h / n_kv} of key heads h = 1 ... n_kv (Press et al. 2021, arXiv 2108.12409).

Shapes: as model_baseline.py; n_kv key heads, G = n_head / n_kv queries heads to each, vectors of m = manifold_dim.
"""
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import model_baseline
import scalar_attention
from common.errors import UserError
from configurator import Path, derived
from model_baseline import GPTConfig, QueriesAndKeys, append, mix_values, value_mix
from scalar_attention import bins
from scalar_attention.laplacian import energy

TAU_STEPS = 100
KINDS = {"chain": "chain", "corpus": "matrix", "learned": "factor"}


@dataclass
class TauConfig(GPTConfig):
    laplacian: Literal["chain", "corpus", "learned", "none"] = "chain"  # the graph of coordinates; 'none': lambda = sigmoid(w . x)
    laplacian_file: Path | None = None  # of 'corpus': what data/laplacian.py wrote
    laplacian_heads: int = derived(default=0)  # of 'corpus' in an exported model (export.py), which has L among its weights: how many there
        # are, one or one a key head (0: read laplacian_file)
    laplacian_per_head: bool = False  # a learned L, or w, of each key head
    manifold_dim: int = 0  # numbers in a query and a key (0: the head size)
    tau: Literal["learned", "fixed", "median", "mean"] = "learned"  # lambda = E / (E + tau), a tau a key head
    tau_start: float = 2.0  # tau, or where it starts; a random vector has E = 2 on a long chain
    temperature: Literal["learned", "fixed"] = "learned"  # of each key head
    temperature_start: float = 0.05  # temperature, or where it starts
    position: Literal["learned", "rope", "alibi"] = "learned"  # embeddings; queries and keys rotated by their positions (before lambda);
        # or -m (i - j) added to the logits, with a slope m of each key head
    n_kv_head: int = 0  # key heads; divides n_head (0: n_head)
    kv_bins: int = 0  # of generation: bins of lambda in place of the keys, not exact (0: every key, exact)
    attention_form: Literal["auto", "plain", "tiled", "divide"] = "auto"  # all exact; 'auto' by T (scalar_attention/)
    ops: Literal["torch", "triton"] = "torch"  # attention in PyTorch or, but for a cache's, in Triton kernels (kernels/; a GPU)

    def __post_init__(self):
        super().__post_init__()
        for key in ("tau_start", "temperature_start"):
            if not 0 < getattr(self, key) < math.inf:
                raise UserError(f"{key} = {getattr(self, key)}: must be more than 0")
        if self.kv_bins < 0:
            raise UserError(f"kv_bins = {self.kv_bins}: must be at least 1, or 0 for an exact cache")
        if self.n_kv_head < 0 or self.n_head % self.key_heads:
            raise UserError(f"n_kv_head = {self.n_kv_head} does not divide n_head = {self.n_head}")
        if self.manifold_dim < 0 or self.vector < 2:
            raise UserError(f"a query has {self.vector} numbers (manifold_dim, or n_embd / n_head), and needs at least 2")
        if self.kv_bins and self.position == "alibi":
            raise UserError("kv_bins does not go with position = 'alibi': bins do not know how old their keys are")
        if (self.laplacian == "corpus") != (self.laplacian_file is not None):
            raise UserError("laplacian_file goes with laplacian = 'corpus'")

    @property
    def key_heads(self):
        return self.n_kv_head or self.n_head

    @property
    def vector(self):
        return self.manifold_dim or self.n_embd // self.n_head

    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        off = {"curvature_lr_mult": "a model that learns no curvature"}
        if self.laplacian == "none":
            off |= dict.fromkeys(("tau", "tau_start"), "laplacian = 'none'")
        if self.laplacian in ("chain", "corpus"):
            off["laplacian_per_head"] = f"laplacian = '{self.laplacian}'"
        if self.ops == "triton":
            off["attention_form"] = "ops = 'triton'"
        return off


class ScalarAttention(nn.Module):

    def __init__(self, config, index=0):
        super().__init__()
        self.value_mix = value_mix(config, index)
        self.config, self.n_kv, self.m = config, config.key_heads, config.vector
        self.group = config.n_head // self.n_kv
        self.sizes = (config.n_head * self.m, self.n_kv * self.m, self.n_kv * config.n_embd // config.n_head)
        self.c_attn = nn.Linear(config.n_embd, sum(self.sizes), bias=config.bias)  # q, k, v of all heads at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        own = self.n_kv if config.laplacian_per_head else 1
        if config.laplacian == "corpus" and config.laplacian_heads:
            self.register_buffer("matrix", torch.empty(config.laplacian_heads, 1, self.m, self.m))
        elif config.laplacian == "corpus":
            from data import laplacian as corpus  # here: it imports SciPy, which other models would wait for
            given = torch.from_numpy(corpus.load(config.laplacian_file, self.m, self.n_kv))
            self.register_buffer("matrix", given.float().unsqueeze(1))
            self.of_this_run = ("matrix",)  # laplacian_file's, whatever weights the run begins with (training/start.py)
        elif config.laplacian == "learned":
            self.matrix = nn.Parameter(torch.empty(own, 1, self.m, self.m))
        elif config.laplacian == "none":
            self.scalar_weight = nn.Parameter(torch.empty(own, 1, self.m, 1))
        self.queries_and_keys = QueriesAndKeys(config)
        start = torch.full((self.n_kv,), math.log(config.temperature_start))
        if config.temperature == "learned":
            self.log_temperature = nn.Parameter(start)
        else:
            self.register_buffer("log_temperature", start, persistent=False)  # it is the config's number, not a state
        self.register_buffer("slope", None)
        if config.position == "alibi":
            self.register_buffer("slope", torch.exp2(-8 * torch.arange(1, self.n_kv + 1) / self.n_kv), persistent=False)
        if config.laplacian != "none":
            start = torch.full((self.n_kv,), config.tau_start)
            if config.tau == "learned":
                self.log_tau = nn.Parameter(start.log())
            else:
                self.register_buffer("tau", start, persistent=config.tau != "fixed")
            if config.tau in ("median", "mean"):
                self.register_buffer("tau_steps", torch.zeros(()))  # those that tau is the mean of
                self.register_buffer("tau_sum", torch.zeros(self.n_kv), persistent=False)  # over the batches of this step
                self.register_buffer("tau_seen", torch.zeros(()), persistent=False)

    def lambdas(self, q, k):
        """lambda of queries (B, n_kv, G, T, m) and keys (B, n_kv, 1, T, m) -> (B, n_kv, G, T), (B, n_kv, 1, T)."""
        if self.config.laplacian == "none":
            return tuple(torch.sigmoid(x @ self.scalar_weight.to(x.dtype)).squeeze(-1) for x in (q, k))
        kind = KINDS[self.config.laplacian]
        e_q, e_k = (energy(x, kind, None if kind == "chain" else self.matrix.to(x.dtype)) for x in (q, k))
        tau = self.current_tau()[..., None, None]
        if self.config.tau in ("median", "mean") and self.training and torch.is_grad_enabled():
            both = self.by_head(torch.cat((e_q, e_k), 2).detach())
            # (a block that the backward pass computes again counts twice, here as there)
            self.tau_sum.add_(both.median(-1).values if self.config.tau == "median" else both.mean(-1))
            self.tau_seen.add_(1)
        return e_q / (e_q + tau), e_k / (e_k + tau)

    def by_head(self, energies):
        return energies.transpose(0, 1).flatten(1)  # (n_kv, B (G + 1) T)

    def current_tau(self):
        return self.log_tau.exp() if self.config.tau == "learned" else self.tau  # (n_kv,)

    @torch.no_grad()
    def take_tau(self, average):
        """tau becomes the mean over the steps so far, of which the one that ends now is the last."""
        of_step = average(self.tau_sum / self.tau_seen.clamp(min=1))
        counts = (self.tau_steps < TAU_STEPS) & (self.tau_seen > 0) & torch.isfinite(of_step).all(-1)  # float16 overflows now and then
        self.tau_steps.add_(counts)
        moved = self.tau + (of_step - self.tau) / self.tau_steps.unsqueeze(-1).clamp(min=1)
        self.tau.copy_(torch.where(counts.unsqueeze(-1), moved, self.tau))
        self.tau_sum.zero_()
        self.tau_seen.zero_()

    def scalars(self, x, start=0):
        """(a, b, v): lambda / temperature of queries (B, nh, T) and keys (B, n_kv, T), float32 or more, and values (B, n_kv, T, hs)."""
        B, T, _ = x.shape
        q, k, v = self.c_attn(x).split(self.sizes, dim=2)
        q = q.view(B, T, self.n_kv, self.group, self.m).permute(0, 2, 3, 1, 4)
        k = k.view(B, T, self.n_kv, 1, self.m).permute(0, 2, 3, 1, 4)
        v = v.view(B, T, self.n_kv, -1).transpose(1, 2)
        with torch.autocast(x.device.type, enabled=False):  # 16 bits are too few for a distance
            q, k = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (q, k))
            q, k = self.queries_and_keys(q, k, start)
            temperature = self.log_temperature.exp()[..., None, None]
            a, b = (t / temperature for t in self.lambdas(q, k))
        return a.flatten(1, 2), b.squeeze(2), v

    def forward(self, x, state=None, values=None):
        start = 0 if not state else bins.length(state["bins"]) if "bins" in state else state["b"].size(2)
        a, b, v = self.scalars(x, start)
        v = mix_values(v, values, self.value_mix)
        if state is None or not self.config.kv_bins:
            y = self.attend(a, b, v, state)
        else:
            y = self.attend_to_bins(a, b, v, state)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(x.shape)))

    def attend(self, a, b, v, state=None):
        """(B, nh, T, hs), exactly. state: of earlier tokens."""
        if state is not None:
            b, v = append(state, "b", b, dim=2), append(state, "v", v, dim=2)
        form = self.config.attention_form
        after = a.size(2) < b.size(2) and form == "divide"  # after cached ones: not what it does
        return scalar_attention.attend(a, b, v, None if form == "auto" or after else form, self.slope)

    def attend_to_bins(self, a, b, v, state):
        """The same with a state of constant size. The tokens of the first call, a prompt, see one another exactly."""
        temperature = self.log_temperature.exp()
        if "bins" in state:
            y, state["bins"] = bins.read(state["bins"], a, b, v, temperature)
            return y
        state["bins"] = bins.add(bins.empty(b, v, self.config.kv_bins), b, v, temperature)
        return self.attend(a, b, v)


class Block(model_baseline.Block):

    attention = ScalarAttention  # model_triton.py: with kernels

    def __init__(self, config, index=0):
        super().__init__(config, index)
        self.attn = self.attention(config, index)


class GPT(model_baseline.GPT):

    block = Block

    def make_block(self, config, index):
        return self.block(config, index)

    def _init_special(self):
        for block in self.transformer.h:
            if self.config.laplacian == "learned":
                nn.init.normal_(block.attn.matrix, std=self.config.vector ** -0.5)  # E is about 1
            elif self.config.laplacian == "none":
                nn.init.normal_(block.attn.scalar_weight)

    def end_of_step(self, average):
        if self.config.laplacian != "none" and self.config.tau in ("median", "mean"):
            for block in self.transformer.h:
                block.attn.take_tau(average)

    def attention_form(self):
        """How training computes attention, in some words."""
        form, T = self.config.attention_form, self.config.block_size
        why = f"T = {T:,}; divide and conquer from {scalar_attention.DIVIDE_FROM:,} on" if form == "auto" else f"attention_form = '{form}'"
        return f"{scalar_attention.IN_WORDS[scalar_attention.choose(T) if form == 'auto' else form]} ({why})"

    def bins_error(self):
        """With kv_bins: what an attention's output is off by at most, in units of its largest value vector, at the least temperature."""
        least = min(block.attn.log_temperature.min().exp().item() for block in self.transformer.h)
        return bins.error_bound(self.config.kv_bins, least)

    def flops_per_token(self):
        """6N + what attention multiplies with values: half of the pairs in the tiled form; in T log T a leaf (128) and for each of
        log2(T / 128) levels, at half of the tokens, chunks of 32 from two sides."""
        c, T = self.config, self.config.block_size
        pairs = T / 2 if scalar_attention.choose(T) == "tiled" else 128 + 32 * math.log2(T / 128)
        return 6 * self.num_params() + 6 * c.n_layer * c.n_embd * pairs

    @torch.no_grad()
    def geometry_stats(self, idx):
        """Per block: quantiles of the keys' lambda, and of each head the mean entropy in nats and the mean largest weight of its queries
        (of the first 512 tokens)."""
        seen, training = [], self.training
        self.eval()

        def remember(attention):  # what its forward pass attends to: there FSDP2 has the weights together
            attend = attention.attend
            attention.attend = lambda a, b, v, state=None: (
                seen.append((a, b, attention.log_temperature.exp())), attend(a, b, v, state))[1]
        attentions = [block.attn for block in self.transformer.h]
        try:
            for attention in attentions:
                remember(attention)
            self.trunk(idx[:, :512])
        finally:
            for attention in attentions:
                vars(attention).pop("attend", None)
            self.train(training)
        T = seen[0][0].size(-1)
        later = torch.ones(T, T, dtype=torch.bool, device=idx.device).triu(1)
        stats = {}
        for i, (attention, (a, b, temperature)) in enumerate(zip(attentions, seen, strict=True)):
            keys = b * temperature.view(-1, 1)
            distance = (a.unsqueeze(-1) - b.repeat_interleave(attention.group, 1).unsqueeze(-2)).abs()
            if attention.slope is not None:
                places = torch.arange(T, device=idx.device)
                distance = distance + attention.slope.repeat_interleave(attention.group).view(-1, 1, 1) * (places.unsqueeze(-1) - places)
            weights = torch.softmax((-distance).masked_fill(later, -float("inf")), -1)  # (B, nh, T, T)
            entropy = torch.special.entr(weights).sum(-1).mean((0, 2))
            largest = weights.amax(-1).mean((0, 2))
            values = {f"lambda_q{100 * q:.0f}": keys.quantile(q).item() for q in (0.1, 0.5, 0.9)}
            for head, (nats, most) in enumerate(zip(entropy.tolist(), largest.tolist())):
                values |= {f"entropy_head{head}": nats, f"largest_head{head}": most}
            stats[f"block{i}"] = values
        return stats
