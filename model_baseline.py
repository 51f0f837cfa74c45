"""
The Euclidean GPT: the control that every other model here is compared with, and the pieces that they share.

Pre-LN blocks, learned positions, exact GELU, tied output head, causal attention by scaled_dot_product_attention; the
same function of the same weights as nanoGPT's GPT, with its names and its initialisation.

    x <- x + F(LN(x))                   token_shift = 'none', the GPT block
    x <- x + F(LN(x - x_prev))          token_shift = 'difference', the flat control of the mixed-curvature model: what is
                                        left of its block at c = 0 (reference 'previous', residual 'origin'/'transport')
    x <- x + F(LN(x - w(x) x_prev))     token_shift = 'likeness', w_h = 1 + a (1 - cos(x_h, x_prev,h)) for each head h: the previous token
                                        is subtracted the more, the less alike it is, as log_r does to rows of one length
    x <- bound(x + limit(F))            bounded_rows = True, for each head: limit(v) = v / sqrt(1 + |v|^2 / L^2) is at most
                                        L = longest_update long, bound(x) = x min(1, R / |x|), R = longest_row, as rows of a
                                        curved head end, max_distance from the origin; embeddings are bounded, too
    x <- x + F(LN(g(x) x))              head_gate = 'read', a factor g_h for each head and token, as the conformal factor of a curved
                                        head is; 'attention': of what a head gives (Qiu et al. 2025, arXiv 2505.06708)
    e_t + lambda sigma(W e_t) e_{t-1}   token_shift = 'smear', modded-nanogpt's learned look-back on the embedding
    v <- a v_1 + b v                    value_residual, of every model: attention averages its own values mixed with the
                                        first block's v_1 (ResFormer, Zhou et al. 2024, arXiv 2410.17897)

Of every model, too, for a modern baseline: position = 'rope' (Su et al. 2021, arXiv 2104.09864), and qk_norm before it (Henry
et al. 2020, arXiv 2010.04245; by rms, as in Qwen3).

Shapes: B sequences, T tokens, C = n_embd, nh heads of size hs = C / nh, V = vocab_size.
"""
import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from configurator import derived
from geometry import flat


@dataclass
class GPTConfig:
    """What every model has."""
    vocab_size: int = derived(default=50304)  # from the data's meta.json
    block_size: int = 1024  # context length T in tokens
    n_layer: int = 12  # blocks
    n_head: int = 12  # attention heads; divides n_embd
    n_embd: int = 768  # width C of the residual stream
    dropout: float = 0.0  # 0 for pre-training; 0.1 to 0.2 where the data is seen many times
    bias: bool = False  # biases in Linear and LayerNorm (GPT-2 has them; without is a bit better and faster)
    value_residual: Literal["none", "fixed", "learned"] = "none"  # a v_1 + b v in place of the values v of every block but the
        # first, whose are v_1. fixed: a = b = 1/2; learned: two numbers a block, from 1/2
    position: Literal["learned", "rope"] = "learned"  # embeddings; or queries and keys rotated by their positions
    qk_norm: bool = False  # queries and keys of a head divided by their rms, with a learned gain
    activation: Literal["gelu", "gelu_tanh"] = "gelu"  # of the MLP; gelu_tanh: GPT-2's approximation of it

    @property
    def vector(self):
        """Numbers in a query and a key."""
        return self.n_embd // self.n_head

    def __post_init__(self):
        for key in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, key) < 1:
                raise UserError(f"{key} = {getattr(self, key)}: must be at least 1")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout = {self.dropout}: must be in [0, 1)")
        if self.position == "rope" and self.vector % 2:
            raise UserError(f"position = 'rope' turns pairs of numbers, and a query has {self.vector} (n_embd / n_head, or manifold_dim): "
                            "take an even number")


# what a mixed block with c = 1 and max_distance = 1.5 comes to once all its rows are that far from the origin (results/verdict_terms):
# longest_update = 0.5 is of update 'v' of model_terms.py, x + tanh(2|v|)/2 v/|v| there; of all of (+) it is 0.30 where x and v are at right
# angles
LIKENESS = math.cosh(1.5) - 1  # a
LONGEST_ROW = math.tanh(1.5 / 2)  # R


@dataclass
class BaselineConfig(GPTConfig):
    token_shift: Literal["none", "difference", "likeness", "smear"] = "none"  # 'difference' is the flat control; 'likeness' subtracts the
        # previous token the more, the less alike it is; 'smear' looks back one token at the embedding
    bounded_rows: bool = False  # each head's part of the residual stream, and what is added to it, has a largest length
    longest_row: float = LONGEST_ROW  # with bounded_rows, the largest length of a head's part; 1e6: no bound
    longest_update: float = 0.5  # with bounded_rows, the largest length of what is added to it; 1e6: no limit
    head_gate: Literal["none", "read", "attention"] = "none"  # a learned factor for each head and token: 'read', of the head's part of the
        # rows that layers read; 'attention', of what the head gives

    def __post_init__(self):
        super().__post_init__()
        for key in ("longest_row", "longest_update"):
            if not 1e-6 <= getattr(self, key) <= 1e6:
                raise UserError(f"{key} = {getattr(self, key):g}: must be between 1e-06 and 1e+06")

    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        off = {} if self.head_gate != "none" else {"curvature_lr_mult": "a model that learns no curvature (or gate)"}
        return off if self.bounded_rows else {**off, **dict.fromkeys(("longest_row", "longest_update"), "bounded_rows = False")}


class LayerNorm(nn.Module):
    """LayerNorm with an optional bias."""

    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


def value_mix(config, index):
    """What attention in block `index` multiplies the first block's values and its own with; None where nothing is mixed."""
    if index == 0 or config.value_residual == "none":
        return None
    return nn.Parameter(torch.full((2,), 0.5)) if config.value_residual == "learned" else [0.5, 0.5]


def mix_values(v, values, mix):
    """a v_1 + b v. values: of value_residual, a list with v_1, or an empty one, which gets v; None: v itself."""
    if values:
        return mix[0] * values[0] + mix[1] * v
    if values is not None:
        values.append(v)
    return v


def rotate(x, start=0):
    """RoPE: pairs (i, i + m/2) of coordinates turned by position / 10,000^{2i/m}. (..., T, m), the first at position `start`."""
    half = x.size(-1) // 2
    dtype = torch.promote_types(x.dtype, torch.float32)  # 16 bits are too few for a position
    speed = 10000.0 ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angle = (start + torch.arange(x.size(-2), device=x.device, dtype=dtype)).unsqueeze(-1) * speed  # (T, m/2)
    left, right = x.split(half, -1)
    return torch.cat((left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()), -1).to(x.dtype)


class NoPositions(nn.Module):
    """In the place of position embeddings where attention knows positions by itself."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("weight", torch.empty(0, width), persistent=False)

    def forward(self, pos):
        return 0.0


class QueriesAndKeys(nn.Module):
    """What is done to them before they meet: QK norm, rotation, as the config has it."""

    def __init__(self, config):
        super().__init__()
        self.norm, self.rotation = config.qk_norm, config.position == "rope"
        if self.norm:
            self.q_gain, self.k_gain = nn.Parameter(torch.ones(config.vector)), nn.Parameter(torch.ones(config.vector))

    def forward(self, q, k, start=0):
        """(..., T, m) each. start: the position of the first."""
        if self.norm:
            q, k = self.normed(q, self.q_gain), self.normed(k, self.k_gain)
        return (rotate(q, start), rotate(k, start)) if self.rotation else (q, k)

    def normed(self, x, gain):
        return F.rms_norm(x, x.shape[-1:], gain.to(x.dtype))


class CausalSelfAttention(nn.Module):

    def __init__(self, config, index=0):
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k, v of all heads at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head, self.dropout = config.n_head, config.dropout
        self.value_mix = value_mix(config, index)
        self.queries_and_keys = QueriesAndKeys(config)
        self.gate = head_gate(config, "attention")
        self.largest_logit = None  # (nh,), where training asks for it: measure_logits()

    def forward(self, x, state=None, values=None):
        """values, with value_residual: a list with the first block's, (B, nh, T, hs); the first block appends them."""
        B, T, C = x.shape
        q, k, v = (h.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, nh, T, hs)
                   for h in self.c_attn(x).split(C, dim=2))
        v = mix_values(v, values, self.value_mix)
        q, k = self.queries_and_keys(q, k, state["k"].size(2) if state and "k" in state else 0)
        if state is not None:
            k, v = append(state, "k", k, dim=2), append(state, "v", v, dim=2)  # (B, nh, T_all, hs)
        if self.largest_logit is not None and self.training:
            self.keep_largest_logit(q, k)
        y = self.attend(q, k, v)
        if self.gate:
            y = y * self.gate(x).transpose(1, 2)
        y = y.transpose(1, 2).reshape(B, T, C)
        return self.resid_dropout(self.c_proj(y))

    def measure_logits(self, device):
        """From now on the largest logit of each head in training is kept: for training/qk_clip.py."""
        del self.largest_logit
        self.register_buffer("largest_logit", torch.zeros(self.n_head, device=device), persistent=False)

    @torch.no_grad()
    def keep_largest_logit(self, q, k):
        T = q.size(2)
        with torch.autocast(q.device.type, enabled=False):  # float16 would be infinite from 65,504 on, before the division
            logits = q.float() @ k.float().transpose(-1, -2) / q.size(-1) ** 0.5  # (B, nh, T, T)
        logits = logits.masked_fill(torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1), 0.0)
        self.largest_logit.copy_(torch.maximum(self.largest_logit, self.largest_of(logits)))

    def largest_of(self, logits):
        return logits.amax((0, 2, 3))  # (nh,)

    def attend(self, q, k, v):
        """Causal attention of the last T of T_all positions. (B, nh, T, hs) x 2 (B, nh, T_all, hs) -> (B, nh, T, hs)."""
        T, T_all = q.size(2), k.size(2)
        mask = None
        if 1 < T < T_all:  # several new tokens after cached ones
            mask = torch.ones(T, T_all, dtype=torch.bool, device=q.device).tril(T_all - T)
        return F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0,
                                              is_causal=T_all == T)


class MLP(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"

    def forward(self, x, state=None):  # state: as attention's signature; nothing to remember
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate)))


# ----------------------------------------------------------------------------------------------------------------------
# what a block remembers of earlier tokens when text is generated: a dict of tensors, or None in training

def append(state, name, new, dim):
    """All rows of `name` so far, the new ones included."""
    state[name] = torch.cat((state[name], new), dim) if name in state else new
    return state[name]


def previous_token(x, state=None, name="previous"):
    """x_{t-1} in place of x_t, zeros at t = 0. (B, T, C) -> (B, T, C)."""
    if state is None:
        return F.pad(x, (0, 0, 1, -1))
    first = state[name] if name in state else torch.zeros_like(x[:, :1])
    state[name] = x[:, -1:]
    return torch.cat((first, x[:, :-1]), dim=1)


# ----------------------------------------------------------------------------------------------------------------------

class Block(nn.Module):
    """A variant overrides update()."""

    called_by_model = ()  # methods that run outside of forward(): for training/diagnose.py

    def __init__(self, config, index=0):
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = CausalSelfAttention(config, index)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(config)
        self.gate = head_gate(config, "read")
        self.bounded = bounded_parts(config)
        self.lengths = (config.longest_row, config.longest_update) if self.bounded else None

    def sublayers(self, values=None):
        """(name, LayerNorm, layer) of each. values: the list that attention takes."""
        attn = self.attn if values is None else functools.partial(self.attn, values=values)
        return ("attn", self.ln_1, attn), ("mlp", self.ln_2, self.mlp)

    def forward(self, x, state=None, *more, values=None):
        """The residual stream after this block. state: what it remembers of earlier tokens (generation). more: of GPT.for_blocks().
        values, with value_residual: a tuple of the first block's, empty in that block itself. -> x, or then (x, values)."""
        if values is None:
            return self.update(x, self.sublayers(), state, *more)
        values = list(values)
        x = self.update(x, self.sublayers(values), state, *more)
        return x, tuple(values)

    def layer_input(self, x, state, name):
        """What is normalised and goes into a layer."""
        return x

    def update(self, x, sublayers, state=None):
        factor = self.gate(x) if self.gate else None
        for name, norm, layer in sublayers:
            u = self.layer_input(x, state, name)
            v = layer(norm(u if factor is None else scale_heads(u, factor)), state)
            x = bounded_sum(x, v, self.bounded, *self.lengths) if self.bounded else x + v
        return x


class DifferenceBlock(Block):
    """Every sub-layer reads the step from the previous token: x <- x + F(LN(x_t - x_{t-1}))."""

    def layer_input(self, x, state, name):
        return x - previous_token(x, state, "previous_" + name)


class LikenessBlock(Block):
    """Of every head a sub-layer reads x - (1 + a (1 - cos(x, r))) r, r = x_{t-1}."""

    def __init__(self, config, index=0):
        super().__init__(config, index)
        self.n_head = config.n_head

    def layer_input(self, x, state, name):
        r = previous_token(x, state, "previous_" + name)
        x_h, r_h = (row.unflatten(-1, (self.n_head, -1)) for row in (x, r))
        inverse = flat.inverse_length(x_h)
        inverse_r = flat.inverse_length(r_h) if state is not None else previous_token(inverse.squeeze(-1)).unsqueeze(-1)
        return x - scale_heads(r, 1 + LIKENESS * (1 - flat.cosine(x_h, r_h, inverse, inverse_r)))


BLOCKS = {"difference": DifferenceBlock, "likeness": LikenessBlock}  # token_shift -> its block


def bounded_parts(config):
    """Into how many parts rows are split that have a largest length: 0 without bounded_rows."""
    return config.n_head if getattr(config, "bounded_rows", False) else 0


def bounded_sum(x, v, n_head, longest_row, longest_update):
    """x + v with bounded_rows. (B, T, C) x 2 -> (B, T, C)"""
    x_h, v_h = (row.unflatten(-1, (n_head, -1)) for row in (x, v.to(x.dtype)))
    return flat.bounded_sum(x_h, v_h, longest_row, longest_update).flatten(-2)


class HeadGate(nn.Module):
    """s_h 2 sigmoid(w_h . x + b_h): a factor for each head h and token, 1 at the start. (B, T, C) -> (B, T, nh, 1)."""

    def __init__(self, config):
        super().__init__()
        self.control_scale = nn.Parameter(torch.ones(config.n_head))
        self.control_gate = nn.Linear(config.n_embd, config.n_head)

    def reset(self):
        nn.init.zeros_(self.control_gate.weight)

    def forward(self, x):
        return head_factor(self.control_scale, self.control_gate, x)


def head_gate(config, place):
    return HeadGate(config) if getattr(config, "head_gate", "none") == place else None


def head_factor(scale, gate, x):
    return (scale * 2 * torch.sigmoid(gate(x).to(x.dtype))).unsqueeze(-1)


def scale_heads(x, factor):
    """Each head's part of a row times its factor. (B, T, C), (..., nh, 1) -> (B, T, C)"""
    return (x.unflatten(-1, (factor.size(-2), -1)) * factor).flatten(-2)


class Smear(nn.Module):
    """e_t + lambda sigma(W e_t) e_{t-1}: a learned look-back of one token (modded-nanogpt's 'smear')."""

    def __init__(self, config):
        super().__init__()
        self.smear_gate = nn.Linear(config.n_embd, 1, bias=False)
        self.smear_lambda = nn.Parameter(torch.zeros(1))

    def forward(self, x, state=None):
        return x + self.smear_lambda * torch.sigmoid(self.smear_gate(x)) * previous_token(x, state)


class Cache:
    """What generation keeps of the tokens read so far: one dict of tensors per block and one for the embedding."""

    def __init__(self, n_layer):
        self.length = 0
        self.embedding = {}
        self.blocks = [{} for _ in range(n_layer)]


class GPT(nn.Module):
    """Token ids -> logits. A variant overrides make_block(), and what it needs of make_extras(), embed(), enter(), for_blocks()
    and _init_special()."""

    # for compile = 'auto': what torch.compile costs, and saves of the time that a step's matrix products take (training/machine.py)
    compile_seconds, compile_saving = 15, dict(cpu=0.1, cuda=0.3)
    eager_parts = ()  # of training/compiled.py's PARTS, those that a variant leaves as they are
    activation_checkpointing = False  # train.py's key

    def __init__(self, config):
        super().__init__()
        self.config = config
        rng = torch.get_rng_state()  # modules draw weights when they are made, some models more than others
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),
            wpe=nn.Embedding(config.block_size, config.n_embd) if config.position == "learned" else NoPositions(config.n_embd),
            drop=nn.Dropout(config.dropout),
            h=nn.ModuleList([self.make_block(config, i) for i in range(config.n_layer)]),
            ln_f=LayerNorm(config.n_embd, config.bias),
        ))
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # Press and Wolf 2017
        self.smear = None
        self.make_extras(config)
        torch.set_rng_state(rng)
        self._init_weights()

    def make_block(self, config, index):
        return BLOCKS.get(config.token_shift, Block)(config, index)

    def make_extras(self, config):
        """Modules beyond nanoGPT's."""
        if getattr(config, "token_shift", None) == "smear":
            self.smear = Smear(config)

    def _init_weights(self):
        """nanoGPT's: N(0, 0.02), output projections N(0, 0.02/sqrt(2 n_layer)) (GPT-2), biases 0. Weights that all models
        share are drawn first and in the same order, so the same seed gives the same ones to every model."""
        shared = {id(p) for module in (self.transformer.wte, self.transformer.wpe) for p in module.parameters()}
        for block in self.transformer.h:
            # (a variant's attention may have matrices of its own: those are drawn later)
            shared |= {id(p) for _, _, layer in block.sublayers() for name, p in layer.named_parameters() if name.startswith("c_")}
        drawn = set()
        for wanted in (True, False):
            for name, p in self.named_parameters():
                if p.dim() < 2 or (id(p) in shared) != wanted or id(p) in drawn:
                    continue
                drawn.add(id(p))
                std = 0.02 / math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(p, mean=0.0, std=std)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
        self._init_special()

    def _init_special(self):
        """Starting values of a variant's own parameters."""
        for block in self.transformer.h:
            for gate in filter(None, (block.gate, getattr(block.attn, "gate", None))):
                gate.reset()

    def embed(self, idx, cache=None):
        """Token and position embeddings, (B, T) -> (B, T, C)."""
        start = cache.length if cache else 0
        pos = torch.arange(start, start + idx.size(1), device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        return self.smear(x, cache.embedding if cache else None) if self.smear else x

    def enter(self, x):
        """What is done to embeddings before the first block."""
        parts = bounded_parts(self.config)
        return flat.bound(x.unflatten(-1, (parts, -1)), self.config.longest_row).flatten(-2) if parts else x

    def one_row(self, x):
        """What passes between blocks as one row a token (B, T, C); a model with several residual streams brings them together."""
        return x

    def for_blocks(self, dtype):
        """A tuple for each block: what it takes beside the residual stream (of this dtype) and its state."""
        return [()] * len(self.transformer.h)

    # training/compiled.py compiles the next three, and for_blocks(), each by itself

    def start(self, idx, cache=None):
        """The residual stream before the first block, (B, T) -> (B, T, C)."""
        return self.enter(self.embed(idx, cache))

    @staticmethod
    def run_block(block, x, state, more, values=None):
        return block(x, state, *more) if values is None else block(x, state, *more, values=values)

    def head(self, x, targets=None):
        """What forward() returns, of the residual stream after the last block."""
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, -1:]), None
        logits = self.lm_head(x)
        # without a gradient: compiled code would take one of the logits, zeros, as a further input of their size
        return logits.detach(), self.loss(logits, targets)

    def loss(self, logits, targets):
        """Mean cross-entropy in nats. (B, T, V), (B, T) -> ()"""
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1), ignore_index=-1)

    def after_blocks(self, x, cache=None):
        """The residual stream after each block, one after the other. x: start()'s."""
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        values = None if self.config.value_residual == "none" else ()
        for i, (block, more) in enumerate(zip(self.transformer.h, self.for_blocks(x.dtype), strict=True)):
            if recompute:  # the backward pass computes the block again from x
                x = checkpoint(self.run_block, block, x, None, more, values, use_reentrant=False)
            else:
                x = self.run_block(block, x, cache.blocks[i] if cache else None, more, values)
            if values is not None:
                x, values = x
            yield x

    def trunk(self, idx, cache=None):
        """Residual stream after the last block, (B, T) -> (B, T, C)."""
        x = self.start(idx, cache)
        for after in self.after_blocks(x, cache):
            x = after
        if cache:
            cache.length += idx.size(1)
        return x

    def forward(self, idx, targets=None, cache=None):
        """idx, targets: (B, T) int64. With targets: logits (B, T, V), detached, and the mean cross-entropy in nats (targets of -1 are
        left out). Without: logits of the last position (B, 1, V) and None. cache: tokens read so far (generation)."""
        T = idx.size(1) + (cache.length if cache else 0)
        if self.config.block_size < T:
            raise ValueError(f"a sequence of {T} tokens does not fit block_size = {self.config.block_size}")
        return self.head(self.trunk(idx, cache), targets)

    def end_of_step(self, average):
        """train.py calls it after a step's last backward pass. average: a tensor -> its mean over all processes. For what a variant
        takes from the batches of a step, whichever process they went to."""

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, generator=None, vocab_size=None):
        """Yields one sampled token (B, 1) at a time. idx: (B, T) prompt, T >= 1. temperature 0 takes the likeliest.
        vocab_size: of the tokenizer, where the model has more (training.machine.padded_vocabulary).

        Within block_size each token is read once, through the cache. Beyond it the model sees the last block_size tokens,
        as in training; positions are absolute, so all of them move by one and the window is read anew for each token.
        """
        window = self.config.block_size
        cache, unread = Cache(self.config.n_layer), idx[:, -window:]
        for _ in range(max_new_tokens):
            logits = self(unread, cache=cache)[0][:, -1, :vocab_size]
            token = sample_token(logits, temperature, top_k, generator)
            yield token
            idx = torch.cat((idx, token), dim=1)
            if cache.length < window:
                unread = token
            else:
                cache, unread = Cache(self.config.n_layer), idx[:, -window:]

    def num_params(self):
        """Parameters without the position embeddings, as nanoGPT counts them."""
        return sum(p.numel() for p in self.parameters()) - self.transformer.wpe.weight.numel()

    def flops_per_token(self):
        """Forward and backward floating point operations a token, PaLM appendix B: 6N + 12 L C T."""
        c = self.config
        return 6 * self.num_params() + 12 * c.n_layer * c.n_embd * c.block_size

    @torch.no_grad()
    def geometry_stats(self, idx):
        """Telemetry of a curved model per block. Of this one with bounded_rows: the share of heads' rows that are at their bound."""
        parts, training, stats = bounded_parts(self.config), self.training, {}
        if parts:
            self.eval()
            for i, x in enumerate(self.after_blocks(self.start(idx))):
                length = x.unflatten(-1, (parts, -1)).norm(dim=-1)
                stats[f"block{i}"] = {"bound_share": (length > 0.999 * self.config.longest_row).float().mean().item()}
            self.train(training)
        return stats

    def telemetry(self, idx):
        """Numbers for metrics.jsonl that say what a variant's own parts do on these tokens: name -> number."""
        return {f"geometry/{block}/{k}": v for block, values in self.geometry_stats(idx).items() for k, v in values.items()}


def sample_token(logits, temperature, top_k, generator):
    """One token per row from softmax(logits / temperature) over the top_k likeliest. (B, V) -> (B, 1)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, 1e-30)  # the likeliest is 0: no overflow
    if top_k is not None:
        least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
        logits = logits.masked_fill(logits < least, -float("inf"))
    return torch.multinomial(F.softmax(logits, dim=-1), 1, generator=generator)
