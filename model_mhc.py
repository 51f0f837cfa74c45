"""
A GPT whose residual stream is n streams that every sub-layer reads, mixes and writes: hyper-connections (hc = 'hc'; Zhu et al. 2024,
arXiv 2409.19606), manifold-constrained ones ('mhc'; DeepSeek 2025, arXiv 2512.24880) and AltUp ('altup'; Baykal et al. 2023, arXiv
2301.13310). The baseline in everything else.

    h   = sum_j p_j x_j                      read: H_pre
    y   = F(LayerNorm(h))                    the baseline's attention or MLP
    x_i = sum_j R_ij x_j + w_i y             mix: H_res, and write: H_post

With hc = 'mhc' the rows and columns of R sum to 1, p and w are not negative (streams/connections.py). Streams are made from the
embedding (hc_expand) and brought together before the output head (hc_collapse). hc = 'none' is the baseline.

With R doubly stochastic, p = 1/n and mean(w) = 1 the mean of the streams is the baseline's residual stream, whatever R is:
hc_start = 'uniform' with hc_expand = 'copy' is the baseline's function at the start. But then no logit of R or p has a slope: all
streams are alike, and all are read alike. (So it is with the last R and hc_collapse = 'mean', at all times.) The default start
('spread', 'embed', 'learned') is near that and has a slope everywhere.

AltUp, per block l: only stream s = l mod n passes through the block. y = block(x_s), z = R x, x_i = z_i + w_i (y - z_s).

Shapes: streams (n, B, T, C). What is kept for the backward pass of a block: its streams, and y of both sub-layers.
"""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

import model_baseline
from common.errors import UserError
from geometry.transforms import transformed
from model_baseline import previous_token
from streams import doubly_stochastic, mixing, telemetry
from streams.connections import Connections, HyperConnections, starts_to_read


@dataclass
class StreamsConfig(model_baseline.GPTConfig):
    """The keys of every model with streams."""
    hc: Literal["none", "hc", "mhc", "altup"] = "mhc"  # hyper-connections, manifold-constrained ones, AltUp; none: one stream
    hc_num_streams: int = 4  # n
    hc_maps: Literal["static", "dynamic"] = "static"  # H_pre, H_res, H_post: the same for all tokens, or read off each token
    hc_res: Literal[*doubly_stochastic.KINDS] = "sinkhorn"  # mhc: how H_res is made doubly stochastic, see streams/
    hc_pre: Literal["softmax", "sigmoid"] = "softmax"  # mhc: H_pre (sigmoid: the paper's)
    hc_post: Literal["sigmoid", "softmax"] = "sigmoid"  # mhc: H_post, 2 sigmoid (the paper's) or n softmax
    hc_exact: bool = True  # mhc: put right what Sinkhorn or Newton-Schulz leave of row and column sums (the papers do not)
    hc_sinkhorn_iters: int = 20  # of hc_res sinkhorn and identity
    hc_tau: float = 0.1  # mhc: temperature, maps are made of logits / tau (the papers': 1; public repository: 0.05)
    hc_ns_steps: int = 12  # Newton-Schulz steps of hc_res orthostochastic
    hc_ns_coefficients: list[float] = (1.875, -1.25, 0.375)  # of them: a X + b X X^T X + c X X^T X X^T X
    hc_start: Literal["spread", "uniform", "published"] = "spread"  # mhc: spread: sub-layer l reads more of stream l mod n; uniform:
        # reads all alike; published: as spread, H_res logits 0 and -8 as in the public repository
    hc_start_mix: float = 0.2  # mhc: H_res = (1 - m) I + m/n at the start
    hc_expand: Literal["embed", "copy", "first"] = "embed"  # streams from the embedding: copies, each with a learned vector of its
        # own; copies; n times it in the first and zeros
    hc_collapse: Literal["learned", "mean", "sum"] = "learned"  # one stream for the output head; learned: a softmax's weights
    hc_freeze: Literal["none", "res", "pre+post"] = "none"  # mhc: what is not learned: H_res, which is then I; H_pre and H_post, then
        # 1/n and 1

    def __post_init__(self):
        super().__post_init__()
        self.hc_ns_coefficients = list(self.hc_ns_coefficients)
        for key in ("hc_num_streams", "hc_sinkhorn_iters", "hc_ns_steps"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} = {getattr(self, key)}: must be at least 1")
        most = doubly_stochastic.LARGEST.get(self.hc_res)
        if self.hc == "mhc" and most and self.hc_num_streams > most:
            raise UserError(f"hc_num_streams = {self.hc_num_streams}: hc_res = {self.hc_res!r} takes at most {most} (it has n! logits)")
        if len(self.hc_ns_coefficients) != 3:
            raise UserError(f"hc_ns_coefficients has {len(self.hc_ns_coefficients)} values, 3 are needed")
        if self.hc_tau <= 0:
            raise UserError(f"hc_tau = {self.hc_tau}: must be more than 0")
        if not 0 < self.hc_start_mix <= 1:
            raise UserError(f"hc_start_mix = {self.hc_start_mix}: must be more than 0 and at most 1")
        if self.hc_start == "published" and self.hc_res != "sinkhorn":
            raise UserError(f"hc_start = 'published' is for hc_res = 'sinkhorn', not {self.hc_res!r}")
        if self.hc == "altup" and self.hc_maps == "dynamic":
            raise UserError("hc_maps = 'dynamic' is for hc = 'hc' or 'mhc', not 'altup'")

    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        hc, res = f"hc = {self.hc!r}", f"hc_res = {self.hc_res!r}"
        found = {}
        if self.hc == "none":
            found.update(dict.fromkeys(("hc_num_streams", "hc_maps", "hc_expand", "hc_collapse"), hc))
        if self.hc != "mhc":
            found.update(dict.fromkeys(("hc_res", "hc_pre", "hc_post", "hc_exact", "hc_sinkhorn_iters", "hc_tau", "hc_ns_steps",
                                        "hc_ns_coefficients", "hc_start", "hc_start_mix", "hc_freeze"), hc))
            return found
        if self.hc_freeze == "res":
            found.update(dict.fromkeys(("hc_res", "hc_exact", "hc_sinkhorn_iters", "hc_start_mix", "hc_ns_steps", "hc_ns_coefficients"),
                                       "hc_freeze = 'res'"))
            return found
        if self.hc_start == "published":
            found["hc_start_mix"] = "hc_start = 'published'"
        if self.hc_res != "orthostochastic":
            found.update(hc_ns_steps=res, hc_ns_coefficients=res)
        if self.hc_res == "permutations":
            found["hc_exact"] = res
        if self.hc_res not in ("sinkhorn", "identity"):
            found["hc_sinkhorn_iters"] = res
        if self.hc_freeze == "pre+post":
            found.update(hc_pre="hc_freeze = 'pre+post'", hc_post="hc_freeze = 'pre+post'")
        return found


@dataclass
class MHCConfig(StreamsConfig):
    token_shift: Literal["none", "difference"] = "none"  # 'difference': every sub-layer reads h_t - h_{t-1}, as the baseline's
    ops: Literal["torch", "triton"] = "torch"  # streams read, mixed and written in PyTorch or in Triton kernels (kernels/; a GPU)

    def __post_init__(self):
        super().__post_init__()
        if self.ops != "torch" and self.hc in ("none", "altup"):
            raise UserError(f"ops = {self.ops!r} is for hc = 'hc' or 'mhc', not {self.hc!r}; use --ops=torch")

    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        return {"curvature_lr_mult": "a model that learns no curvature", **super().without_effect()}


def cheap(function, *args, state):
    """function(*args), computed again in the backward pass. (But under torch.func, which does not take that, and with a cache, which a
    second call would find further on.)"""
    if state is not None or not torch.is_grad_enabled() or transformed():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


class Block(model_baseline.Block):

    def __init__(self, config, index, connections):
        super().__init__(config, index)
        self.difference = config.token_shift == "difference"
        self.at_once = config.hc_maps == "static" and config.ops == "torch"
        self.connections = (connections,)  # in a tuple: its parameters are the model's, not this block's

    def layer_input(self, x, norm, state, name, *own):
        """(n, B, T, C) -> LayerNorm of what the sub-layer reads (B, T, C), R, w. own: of Connections.for_places()."""
        p, mix, w = self.connections[0].maps(x, *own)
        return self.read(x, p, norm, state, name), mix, w

    def read(self, x, p, norm, state, name):
        return self.normed(mixing.read(x, p), norm, state, name)

    def normed(self, h, norm, state, name):
        if self.difference:
            h = h - previous_token(h, state, "previous_" + name)
        return norm(h)

    write = staticmethod(mixing.write)

    def update(self, x, sublayers, state=None, *own):
        """own: of both sub-layers, one after the other."""
        return (self.update_at_once if self.at_once else self.update_one_by_one)(x, sublayers, state, *own)

    def update_at_once(self, x, sublayers, state, *own):
        """Static maps: the streams between the two sub-layers, R_1 x + w_1 y_1, are never made. What is read of them, and what becomes
        of them, are combinations of x and y_1 with products of the small maps."""
        (first, norm_1, attn), (second, norm_2, mlp) = sublayers
        half = len(own) // 2
        (p_1, mix_1, w_1), (p_2, mix_2, w_2) = (self.connections[0].maps(x, *each) for each in (own[:half], own[half:]))
        with torch.autocast(x.device.type, enabled=False):
            of_x, of_y = p_2 if mix_1 is None else p_2 @ mix_1, p_2 @ w_1
            mix = mix_1 if mix_2 is None else mix_2 if mix_1 is None else mix_2 @ mix_1
            w_1 = w_1 if mix_2 is None else mix_2 @ w_1

        def between(x, y):
            return self.normed(mixing.read(x, of_x) + of_y * y.to(x.dtype), norm_2, state, second)

        y_1 = attn(cheap(self.read, x, p_1, norm_1, state, first, state=state), state)
        y_2 = mlp(cheap(between, x, y_1, state=state), state)
        return mixing.write(x, y_1, mix, w_1) + mixing.spread(y_2.to(x.dtype), w_2)

    def update_one_by_one(self, x, sublayers, state, *own):
        """Dynamic maps, which are read off the streams between the sub-layers; and kernels."""
        (first, norm_1, attn), (second, norm_2, mlp) = sublayers
        half = len(own) // 2

        def between(x, y, mix, w, *own):
            return self.layer_input(self.write(x, y, mix, w), norm_2, state, second, *own)

        def after(x, y_1, mix_1, w_1, y_2, mix_2, w_2):
            return self.write(self.write(x, y_1, mix_1, w_1), y_2, mix_2, w_2)

        h, mix_1, w_1 = cheap(self.layer_input, x, norm_1, state, first, *own[:half], state=state)
        y_1 = attn(h, state)
        h, mix_2, w_2 = cheap(between, x, y_1, mix_1, w_1, *own[half:], state=state)
        y_2 = mlp(h, state)
        return cheap(after, x, y_1, mix_1, w_1, y_2, mix_2, w_2, state=state)


class AltUpBlock(model_baseline.Block):
    """The whole block acts on one stream; the others are predicted, and corrected by what came out. (Compiled, there is a graph for
    each stream.)"""

    def __init__(self, config, index):
        super().__init__(config, index)
        self.active = index % config.hc_num_streams
        self.difference = config.token_shift == "difference"

    def update(self, x, sublayers, state=None, mix=None, w=None):
        y = x[self.active]
        for name, norm, layer in sublayers:
            y = y + layer(norm(y - previous_token(y, state, "previous_" + name) if self.difference else y), state)
        predicted = mixing.write(x, torch.zeros_like(y), mix, torch.zeros_like(w))
        return predicted + mixing.spread(y - predicted[self.active], w)


class StreamsGPT:
    """What a GPT with streams has beyond one without: a mixin for model_baseline.GPT and those that inherit from it."""

    eager_parts = ("for_blocks",)  # 20 iterations on some hundred numbers: they would take minutes to compile and microseconds to run

    def make_connections(self, config):
        """self.hyper, the parameters of all connections; before the blocks are made."""
        n = config.hc_num_streams
        self.hyper = None
        if config.hc == "altup":
            self.hyper = nn.Module()
            self.hyper.res = nn.Parameter(torch.empty(config.n_layer, n, n))
            self.hyper.post = nn.Parameter(torch.empty(config.n_layer, n))
        elif config.hc != "none":
            self.hyper = (Connections if config.hc == "mhc" else HyperConnections)(config, 2 * config.n_layer)
        if self.hyper is not None and config.hc_expand == "embed":
            self.hyper.stream_embedding = nn.Parameter(torch.empty(n, config.n_embd))
        if self.hyper is not None and config.hc_collapse == "learned":
            self.hyper.collapse = nn.Parameter(torch.empty(n))

    def _init_special(self):
        super()._init_special()
        if self.hyper is None:
            return
        with torch.no_grad():
            if self.config.hc == "altup":
                self.hyper.res[:] = torch.eye(self.config.hc_num_streams)
                self.hyper.post.fill_(1)
            else:
                self.hyper.reset()
            if self.config.hc_collapse == "learned":
                self.hyper.collapse[:] = starts_to_read(self.config, 2 * self.config.n_layer).log()

    def expand(self, x):
        """(B, T, C) -> (n, B, T, C)"""
        if self.hyper is None:
            return x
        return mixing.expand(x, self.config.hc_expand, getattr(self.hyper, "stream_embedding", None), self.config.hc_num_streams)

    def enter(self, x):
        return self.expand(super().enter(x))

    def one_row(self, x):
        if self.hyper is None:
            return x
        return mixing.collapse(x, self.config.hc_collapse, getattr(self.hyper, "collapse", None))

    def head(self, x, targets=None):
        return super().head(self.one_row(x), targets)

    def for_blocks(self, dtype):
        """For each block what the model without streams has, and then its connections."""
        each = super().for_blocks(dtype)
        if self.hyper is None:
            return each
        if self.config.hc == "altup":
            own = zip(self.hyper.res.unbind(), self.hyper.post.unbind())
        else:
            places = self.hyper.for_places()
            own = [(*a, *b) for a, b in zip(places[::2], places[1::2])]
        return [(*more, *connections) for more, connections in zip(each, own)]

    def flops_per_token(self):
        """The model's own, and of the mixes, forward and backward: 6 C (n read + n^2 mixed + n written) a sub-layer."""
        c = self.config
        n, places = c.hc_num_streams, {"none": 0, "altup": c.n_layer}.get(c.hc, 2 * c.n_layer)
        return super().flops_per_token() + places * 6 * c.n_embd * n * (n + 2)

    @torch.no_grad()
    def telemetry(self, idx):
        """What the mixing does (streams/telemetry.py), per block and sub-layer; and what the model without streams has."""
        found = super().telemetry(idx)
        if self.hyper is None:
            return found
        training = self.training
        self.eval()
        x = self.start(idx)
        with telemetry.recorded(self.hyper if self.config.hc != "altup" else None) as maps:
            for i, x in enumerate(self.after_blocks(x)):  # noqa: B020  the streams go on from block to block
                found[f"streams/block{i}/similarity"] = telemetry.similarity(x)
        names = [f"streams/block{i}/{name}" for i, block in enumerate(self.transformer.h) for name, *_ in block.sublayers()]
        if self.config.hc == "altup":
            names = [f"streams/block{i}/block" for i in range(self.config.n_layer)]
            mixes = self.hyper.res.unbind()
        else:
            eye = torch.eye(self.config.hc_num_streams, device=x.device)
            mixes = [eye if mix is None else mix for _, mix, _ in maps]
            found.update({f"{name}_read_entropy": telemetry.read_entropy(p) for name, (p, _, _) in zip(names, maps)})
        for name, values in zip(names, telemetry.of_mixes(mixes), strict=True):
            found.update({f"{name}_{key}": value for key, value in values.items()})
        weights = torch.softmax(self.hyper.collapse, 0) if self.config.hc_collapse == "learned" else torch.ones(len(x), device=x.device)
        found.update({f"streams/share{i}": share for i, share in enumerate(telemetry.shares(weights[:, None, None, None] * x))})
        self.train(training)
        return found


class GPT(StreamsGPT, model_baseline.GPT):
    block = Block
    compile_seconds, compile_saving = 30, dict(cpu=0.15, cuda=0.4)

    def make_block(self, config, index):
        if index == 0:
            self.make_connections(config)
        if config.hc == "none":
            return super().make_block(config, index)
        if config.hc == "altup":
            return AltUpBlock(config, index)
        return self.block(config, index, self.hyper)
