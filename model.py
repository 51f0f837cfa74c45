"""
The mixed-curvature GPT: the baseline with its residual stream moved through a space of constant curvature.

One sub-layer (attention, then MLP), with F the baseline's own layer and c the block's curvature (geometry/):

    r_t = reference(x)              a point built from earlier tokens: x_{t-1}, the origin, or a midpoint of them
    u_t = log_{r_t}(x_t)            tangent vector at the reference
    v   = F(LayerNorm(u))           ordinary Euclidean layer; shortened() to max_update where that is set
    x   = residual(x, r, v)         'origin':    x (+) exp_0(v)                   flat: x + v
                                    'transport': exp_x(PT_{r->x} v)               flat: x + v
                                    'reference': x (+) exp_r(v)                   flat: x + r + v
    x   = project(x)                in the same step: into the ball, and to max_distance from the origin where that is set

With per_head_curvature the residual stream is a product of n_head spaces of dimension head_size, each with its own c; the
maps act per head, LayerNorm on the whole row.

Points are in the ball by construction:
  - embeddings enter it by exp_0 with a curvature of their own (use_embedding_curvature), or as they are;
  - before the first block they are projected: the only device needed for plain embeddings;
  - (+) stays inside in exact arithmetic, and the projection after it takes care of rounding; it is to the smaller of the
    block's ball and the next block's, so the next one need not project again;
  - with dynamic_curvature, where the next ball is known only when its tokens are read, every block projects on entry;
  - with dynamic_curvature the reference was a point of another token's ball and is projected to this token's; before a
    midpoint is taken in the block's own c, so are the points.

Everything is causal: reference and predicted curvature at t depend on tokens <= t only.
At c = 0 and reference = residual = 'origin' this is the baseline; with reference 'previous' and residual 'origin' or
'transport' it is the baseline with token_shift = 'difference' (the flat control), in logits and in gradients.
"""
import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import geometry
import model_baseline
from common.errors import UserError
from model_baseline import GPTConfig, append, previous_token

LIMITS = ("limit", "entry_limit")  # methods of a block whose results are kept where c is fixed


@dataclass
class MixedConfig(GPTConfig):
    curvature_mode: Literal["fixed", "parametric", "tied", "random"] = "fixed"  # fixed: c = curvature; parametric: learned
        # per block from curvature_initialization; tied: learned, one for all blocks; random: learned per block from U(0, curvature)
    curvature: float = 1.0  # c = minus the sectional curvature: > 0 hyperbolic, 0 flat, < 0 spherical
    curvature_initialization: list[float] | None = None  # 'parametric' only: n_layer starting values (None: curvature)
    per_head_curvature: bool = True  # one c per head, rows split in n_head balls; False: one c for the whole row
    dynamic_curvature: bool = False  # c per token: c * 2 sigmoid(w.x_t), w learned from 0
    use_embedding_curvature: bool = False  # embeddings enter by exp_0 with a c of their own (of the same mode)
    curvature_warmup: int = 0  # 'fixed' only: c grows from 0, where the model is flat, to `curvature` in so many steps
    curvature_heads: list[float] | None = None  # n_head factors of c, of either sign: a product of balls and spheres (None: all 1)
    curvature_unit: Literal["row", "coordinate"] = "row"  # coordinate: c is divided by the length D of the rows, so that a ball is as
        # large for each coordinate at every width
    curvature_form: Literal["plain", "softplus"] = "plain"  # what is learned: c itself, or theta of +-softplus(theta), which keeps its sign
    max_distance: float | None = 1.5  # geodesic, of the residual stream's rows from the origin, in units of 1/sqrt|c|: at most
        # tanh(0.75) = 0.64 of the ball's radius, where blocks go on learning (None: to the edge)
    max_update: float | None = None  # geodesic length that an update stays below, in units of 1/sqrt|c|. On the sphere, where exp_0 sends
        # a v of length pi/2 to the antipode and a longer one around it, training needs it (None: as long as v is)
    update_scale: Literal["none", "conformal"] = "none"  # conformal: v min(1, 2/lambda_x) in place of v, shorter near the edge
    project_gradient: Literal["exact", "straight"] = "exact"  # of rows that are shortened; straight: as if they were not
    embedding_gradient: Literal["euclidean", "riemannian"] = "euclidean"  # riemannian: times min(1, 2/lambda_x)^2, the ball's metric
    reference: Literal["previous", "origin", "mean", "window", "ema"] = "previous"  # point whose tangent space a token is
        # read in; the last three are gyro-midpoints of tokens before t
    reference_window: int | None = None  # reference 'window' only: how many tokens before t (None: 4)
    reference_decay: float | None = None  # reference 'ema' only: weight decay**k of the token k + 1 back (None: 0.5)
    residual: Literal["origin", "transport", "reference"] = "origin"  # how the update is added, see model.py
    ops: Literal["torch", "triton"] = "torch"  # geometry in PyTorch (geometry/) or in Triton kernels (kernels/; a GPU)
    row_scalars: Literal["auto", "float64", "float32"] = "auto"  # what geometry/ sums dot products in. auto: float64, but
        # not on mps and on GPUs whose float64 is slow; float32: compensated (geometry/float32.py, docs/float64.md)

    def __post_init__(self):
        super().__post_init__()
        if self.curvature_initialization is not None:
            if self.curvature_mode != "parametric":
                raise UserError(f"curvature_initialization is for curvature_mode = 'parametric', "
                                f"not {self.curvature_mode!r}")
            if len(self.curvature_initialization) != self.n_layer:
                raise UserError(f"curvature_initialization has {len(self.curvature_initialization)} values, "
                                f"n_layer = {self.n_layer} are needed")
        if self.curvature_warmup < 0:
            raise UserError(f"curvature_warmup = {self.curvature_warmup}: must be at least 0")
        if self.curvature_warmup and self.curvature_mode != "fixed":
            raise UserError(f"curvature_warmup is for curvature_mode = 'fixed', not {self.curvature_mode!r}; what is learned can start "
                            "at 0: curvature_mode='parametric', curvature=0")
        for key, kind in (("reference_window", "window"), ("reference_decay", "ema")):
            if getattr(self, key) is not None and self.reference != kind:
                raise UserError(f"{key} is for reference = {kind!r}, not {self.reference!r}")
        if self.reference_window is not None and self.reference_window < 1:
            raise UserError(f"reference_window = {self.reference_window}: must be at least 1")
        for c in [self.curvature, *(self.curvature_initialization or [])]:
            if not abs(c) <= 1e30:
                raise UserError(f"curvature = {c:g}: its size must be at most 1e+30")
        if self.reference_window is not None and self.reference_window > 2 ** 31:
            raise UserError(f"reference_window = {self.reference_window}: must be at most {2 ** 31}")
        self.check_curvature()
        if self.reference_decay is not None and not 0 <= self.reference_decay < 1:
            raise UserError(f"reference_decay = {self.reference_decay}: must be in [0, 1)")

    def check_curvature(self):
        if self.curvature_heads is not None:
            if not self.per_head_curvature:
                raise UserError("curvature_heads needs per_head_curvature = True")
            if len(self.curvature_heads) != self.n_head:
                raise UserError(f"curvature_heads has {len(self.curvature_heads)} values, n_head = {self.n_head} are needed")
            if not all(abs(factor) <= 1e6 for factor in self.curvature_heads):
                raise UserError(f"curvature_heads = {self.curvature_heads}: their size must be at most 1e+06")
        if self.curvature_form == "softplus":
            if self.curvature_mode == "fixed":
                raise UserError("curvature_form = 'softplus' is for a learned c, not curvature_mode = 'fixed'; add --curvature_mode=random")
            if 0 in [self.curvature, *(self.curvature_initialization or []), *(self.curvature_heads or [])]:
                raise UserError("curvature_form = 'softplus' keeps the sign of c, which 0 does not have: start elsewhere")
        if self.max_distance is not None and not 0 < self.max_distance <= 1e6:
            raise UserError(f"max_distance = {self.max_distance:g}: must be more than 0 and at most 1e+06, or None")
        if self.max_update is not None and not 1e-6 <= self.max_update <= 1e6:
            raise UserError(f"max_update = {self.max_update:g}: must be at least 1e-06 and at most 1e+06, or None")

    @property
    def per_unit(self):
        """By what `curvature` is multiplied to be c."""
        rows = self.n_head if self.per_head_curvature else 1
        return rows / self.n_embd if self.curvature_unit == "coordinate" else 1.0

    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        found = {"curvature": "curvature_initialization"} if self.curvature_initialization is not None else {}
        if self.curvature_mode == "fixed" and not self.dynamic_curvature:
            found["curvature_lr_mult"] = "a model that learns no curvature"
        if self.curvature_mode == "fixed" and not any(self.curvature * factor for factor in self.curvature_heads or [1.0]):
            idle = ("max_distance", "max_update", "project_gradient", "curvature_unit", "curvature_warmup", "dynamic_curvature",
                    "use_embedding_curvature", *(() if self.curvature else ("curvature_heads",)))
            found |= dict.fromkeys(idle, "c = 0, which is flat")
        # (residual = 'reference' shortens exp_r(v) to max_distance before it is added)
        if self.reference == "origin" and (self.residual == "transport" or self.residual == "reference" and self.max_distance is None):
            found["residual"] = "reference = 'origin', where it is x (+) exp_0(v)"
        if self.curvature_mode == "fixed" and all(self.curvature * factor <= 0 for factor in self.curvature_heads or [1.0]):
            found |= dict.fromkeys(("update_scale", "embedding_gradient"), "c <= 0, where nothing is longer than in flat space")
        return found

    def advice(self):
        """What is known to be better than these numbers: lines, for whoever starts a run."""
        starts = [c * factor for c in self.curvature_initialization or [self.curvature] for factor in self.curvature_heads or [1.0]]
        if self.max_update is None and min(starts) * self.per_unit <= -0.5:  # (measured at -1; at -0.1 updates do not get around)
            return ["advice: c < 0 trains better with short updates: --max_update=0.5 (0.25 nats at c = -1, results/signs)"]
        return []


class Curvature(nn.Module):
    """c of one place (a block or the embedding), learned or fixed: shape () or, per head, (n_head, 1)."""

    def __init__(self, config):
        super().__init__()
        c = torch.empty((config.n_head, 1) if config.per_head_curvature else ())
        if config.curvature_mode == "fixed":
            self.register_buffer("c", c, persistent=False)  # it is the config's number, not a state
        else:
            self.c = nn.Parameter(c)

    @torch.no_grad()
    def reset(self, config, start):
        c = torch.empty_like(self.c)
        c = c.uniform_(0, 1).mul_(config.curvature) if config.curvature_mode == "random" else c.fill_(start)
        if config.curvature_heads is not None:
            c *= torch.tensor(config.curvature_heads, device=c.device).view(-1, 1)
        self.begin(c * config.per_unit)

    def begin(self, c):
        self.c.copy_(c)


class GrowingCurvature(Curvature):
    """c from 0 to where it is to be. Fixed."""

    of_this_run = ("c",)  # buffers that are no weights: a run that begins with another's weights keeps its own (training/start.py)

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("target", torch.empty_like(self.c), persistent=False)
        self.register_buffer("c", self.c)  # a state now

    def begin(self, c):
        self.target.copy_(c)
        self.c.zero_()


class SoftplusCurvature(nn.Module):
    """c = s softplus(theta) with s = +-1 as it starts. Learned."""

    def __init__(self, config):
        super().__init__()
        shape = (config.n_head, 1) if config.per_head_curvature else ()
        self.theta = nn.Parameter(torch.empty(shape))
        self.register_buffer("sign", torch.ones(shape), persistent=False)

    @property
    def c(self):
        return self.sign * nn.functional.softplus(self.theta)

    reset = Curvature.reset

    def begin(self, c):
        self.sign.copy_(torch.sign(c))
        self.theta.copy_(c.abs() + torch.log(-torch.expm1(-c.abs())))  # the inverse of softplus


def make_curvature(config):
    kind = SoftplusCurvature if config.curvature_form == "softplus" else GrowingCurvature if config.curvature_warmup else Curvature
    return kind(config)


def midpoint_weights(config, T, T_all, device):
    """Weights of the gyro-midpoint over earlier tokens: row t has its weights on s < t. -> (T, T_all), for the last T of
    T_all positions; rows sum to 1, except that of t = 0, which is 0 (its reference is the origin)."""
    age = torch.arange(T_all - T, T_all, device=device)[:, None] - torch.arange(T_all, device=device) - 1  # x_{t-1}: 0
    earlier = age >= 0
    if config.reference == "window":
        earlier &= age < (4 if config.reference_window is None else config.reference_window)
    weights = earlier.float()
    if config.reference == "ema":
        weights = weights * (0.5 if config.reference_decay is None else config.reference_decay) ** age.clamp(min=0)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-30)


def inverse_conformal_factor(x, c):
    """min(1, 2/lambda_x) = min(1, 1 - c|x|^2) of points (..., D): 0 at the ball's edge, 1 at the origin and on the sphere. -> (..., 1)"""
    return (2 / geometry.conformal_factor(x, c)).clamp(max=1).to(x.dtype)


def shortened(v, c, longest, half_lambda=1.0):
    """v / sqrt(1 + d^2 / longest^2), d = 2 half_lambda sqrt|c| |v|: tangent vectors v (..., D), at a point with that conformal factor, of
    geodesic length d in units of 1/sqrt|c|, made shorter than `longest`; where v is short it is as it was, and at c = 0 it always is."""
    wide = v.to(torch.promote_types(v.dtype, torch.float32))  # squares of float16 overflow
    d2 = wide.square().sum(-1, keepdim=True) * (c.abs() * (2 * half_lambda / longest) ** 2)
    return v * torch.rsqrt(1 + d2).to(v.dtype)


def limit_name(name, dtype):
    return f"{name}_{str(dtype).removeprefix('torch.')}"


class Block(model_baseline.Block):

    called_by_model = ("radius", "limit", "project_entry")
    maps = geometry  # where residual() takes its maps from; model_triton.py: kernels

    def __init__(self, config, curvature, index=0):
        super().__init__(config, index)
        self.config = config
        self.curvature = curvature
        self.next_curvature = ()  # that of the next block, in a tuple: it is not this block's submodule
        if config.dynamic_curvature:
            self.curvature_gate = nn.Linear(config.n_embd, config.n_head if config.per_head_curvature else 1)

    def heads(self, x):
        """(B, T, C) -> rows on which the maps act: (B, T, nh, hs) per head, else (B, T, C)."""
        return x.unflatten(-1, (self.config.n_head, -1)) if self.config.per_head_curvature else x

    def curvature_of(self, x):
        """c at every token of x (B, T, C), to broadcast against heads(x): (), (nh, 1), (B, T, 1) or (B, T, nh, 1)."""
        c = self.curvature.c
        if not self.config.dynamic_curvature:
            return c
        gate = 2 * torch.sigmoid(self.curvature_gate(x).to(x.dtype))  # (B, T, nh or 1), not in autocast's 16 bits
        return c * (gate.unsqueeze(-1) if self.config.per_head_curvature else gate)

    def reference(self, x, c, state, name):
        """r, a point for every token from the tokens before it; the origin for the first. (B, T, C) -> heads(x)'s shape."""
        kind = self.config.reference
        if kind == "origin":
            return torch.zeros_like(self.heads(x))
        if kind == "previous":
            r = self.heads(previous_token(x, state, "previous_" + name))
        else:
            history = x if state is None else append(state, "history_" + name, x, dim=1)  # (B, T_all, C)
            weights = midpoint_weights(self.config, x.size(1), history.size(1), x.device)
            # one chart for all tokens of a sequence: the block's own c, also where each token has its c
            base, points = self.curvature.c, self.heads(history)
            if self.config.dynamic_curvature:
                points = geometry.project(points, base)  # each was in the ball of its own token
            if self.config.per_head_curvature:
                points = points.transpose(1, 2)  # (B, nh, T_all, hs)
                base = base.unsqueeze(-1) if base.dim() == 2 else base.transpose(1, 2)  # (nh, 1, 1); one c a sequence: (B, nh, 1, 1)
                r = geometry.gyromidpoint(points, weights, base).transpose(1, 2)
            else:
                r = geometry.gyromidpoint(points, weights, base)
        return geometry.project(r, c) if self.config.dynamic_curvature else r

    def longest(self, c, dtype):
        """How long a row may be where the curvature is c."""
        longest = geometry.max_norm(c, dtype)
        if self.config.max_distance is None:
            return longest
        # at distance D/sqrt|c| from the origin sqrt(c)|x| = tanh(D/2); on the sphere sqrt(-c)|x| = tan(D/2), up to the antipode
        half = self.config.max_distance / 2
        radius = c.to(longest.dtype).abs().clamp(min=torch.finfo(longest.dtype).tiny).rsqrt()
        return torch.minimum(longest, radius * torch.where(c > 0, math.tanh(half), math.tan(min(half, 1.57))))

    def entry_limit(self, c, dtype):
        """How long a row may be that this block reads."""
        kept = getattr(self, limit_name("entry_limit", dtype), None)
        return self.longest(c, dtype) if kept is None else kept

    def radius(self, dtype):
        """How long a row may be in this block's own ball."""
        return self.longest(self.curvature.c, dtype)

    def limit_kept(self, dtype):
        return getattr(self, limit_name("limit", dtype), None)

    def limit(self, c, dtype, radii=None):
        """How long a row may be that this block leaves: in its own ball and, unless that is dynamic, the next one's. radii:
        max_norm of these, for whoever has them."""
        kept = self.limit_kept(dtype)
        if kept is not None:
            return kept
        if radii is None:
            following = () if self.config.dynamic_curvature else self.next_curvature
            radii = [self.longest(each, dtype) for each in (c, *(curvature.c for curvature in following))]
        return radii[0] if len(radii) == 1 else torch.minimum(*radii)

    def precompute(self):
        """Where c is a number of the config, what follows from it alone is computed once, not each step."""
        if self.config.curvature_mode == "fixed" and not self.config.dynamic_curvature and not self.config.curvature_warmup:
            for dtype in geometry.BALL_MARGIN:
                if dtype != torch.float64:  # which no model trains in, and mps does not have
                    for name in LIMITS:
                        value = getattr(self, name)(self.curvature.c, dtype).float()
                        self.register_buffer(limit_name(name, dtype), value, persistent=False)

    def forget_precomputed(self):
        """For whoever changes a fixed c, or wants derivatives by it."""
        for name, dtype in itertools.product(LIMITS, geometry.BALL_MARGIN):
            if hasattr(self, limit_name(name, dtype)):
                delattr(self, limit_name(name, dtype))

    def tangent(self, x, r, c):
        if r is None:
            return geometry.log_previous(x, c)
        return geometry.log_0(x, c) if self.config.reference == "origin" else geometry.logmap(r, x, c)

    def read(self, x, r, c, norm):
        """What a layer reads: LayerNorm(log_r(x)). r: None for the previous token. (B, T, C) -> (B, T, C)."""
        return norm(self.tangent(self.heads(x), r, c).reshape(x.shape))

    def residual(self, x, r, v, c, limit):
        if self.config.max_update is not None:
            at_origin = self.config.residual == "origin"  # where v is a tangent vector of the origin
            v = shortened(v, c, self.config.max_update, 1.0 if at_origin else geometry.conformal_factor(r, c) / 2)
        if self.config.update_scale == "conformal":
            v = v * inverse_conformal_factor(x, c)
        if self.config.project_gradient == "exact" or limit is None:
            return self.add(x, r, v, c, limit)
        out = self.add(x, r, v, c, None)
        return geometry.project(out, c, limit).detach() + (out - out.detach())

    def add(self, x, r, v, c, limit):
        if self.config.residual == "transport":
            return self.maps.expmap(x, geometry.transport(r, x, v, c), c, limit)
        if self.config.residual == "reference":
            return self.maps.add_exp(x, r, v, c, limit)
        return self.maps.add_exp_0(x, v, c, limit)

    def project_entry(self, x, c):
        return geometry.project(self.heads(x), c, self.entry_limit(c, x.dtype)).reshape(x.shape)

    def update(self, x, sublayers, state=None, limit=None):
        """limit: of limit(), for whoever has it. It depends on the next block; all else is the same graph for every block."""
        c = self.curvature_of(x)
        if limit is None:
            limit = self.limit(c, x.dtype)
        if self.config.dynamic_curvature:
            x = self.project_entry(x, c)
        # then the reference point need not be made
        only_previous = (self.config.reference == "previous" and self.config.residual == "origin" and state is None
                         and not self.config.dynamic_curvature)
        for name, norm, layer in sublayers:
            r = None if only_previous else self.reference(x, c, state, name)
            v = self.heads(layer(self.read(x, r, c, norm), state))
            x = self.residual(self.heads(x), r, v, c, limit).reshape(x.shape)
        return x


class GPT(model_baseline.GPT):

    block = Block
    of_this_run = ("curvature_steps",)  # as GrowingCurvature's
    # measured on 2 cores (docs/performance.md), 0.26 at 4 x 128; on a GPU: eager steps take 1.78 of the baseline's and compiled ones 1.16,
    # as bench/roofline.md predicts for an A100, and 0.7 of that if they save as much as the baseline's
    compile_seconds, compile_saving = 60, dict(cpu=0.15, cuda=0.9)

    def __init__(self, config):
        geometry.use_row_scalars(config.row_scalars)  # for the whole process: before anything is traced
        super().__init__(config)

    def make_block(self, config, index):
        if index == 0 or config.curvature_mode != "tied":
            self._curvature = make_curvature(config)
        return self.block(config, self._curvature, index)

    def make_extras(self, config):
        self.embedding_curvature = None
        if config.use_embedding_curvature:
            self.embedding_curvature = self._curvature if config.curvature_mode == "tied" else make_curvature(config)
        del self._curvature
        for block, following in zip(self.transformer.h, list(self.transformer.h)[1:]):
            block.next_curvature = (following.curvature,)

    def _init_special(self):
        config = self.config
        starts = config.curvature_initialization or [config.curvature] * config.n_layer
        for block, start in zip(self.transformer.h, starts):
            block.curvature.reset(config, start)
            if config.dynamic_curvature:
                nn.init.zeros_(block.curvature_gate.weight)
        if self.embedding_curvature is not None and config.curvature_mode != "tied":
            self.embedding_curvature.reset(config, starts[0])
        if config.curvature_warmup:
            self.register_buffer("curvature_steps", torch.zeros((), dtype=torch.int64))  # that c has grown for
        for block in self.transformer.h:
            block.precompute()

    @torch.no_grad()
    def end_of_step(self, average):
        super().end_of_step(average)
        if self.config.curvature_warmup:
            self.curvature_steps.add_(1)
            share = (self.curvature_steps / self.config.curvature_warmup).clamp(max=1)
            for module in self.modules():
                if isinstance(module, GrowingCurvature):
                    module.c.copy_(module.target * share)

    def embed(self, idx, cache=None):
        x = super().embed(idx, cache)
        return x if self.embedding_curvature is None else self.embedded(self.transformer.h[0].heads(x)).reshape(x.shape)

    def embedded(self, rows):
        """Embeddings as tangent vectors at the origin -> points."""
        return geometry.exp_0(rows, self.embedding_curvature.c)

    def enter(self, x):
        """Into the first block's ball. (With dynamic curvature, every block projects what it reads.)"""
        first = self.transformer.h[0]
        if not self.config.dynamic_curvature:
            x = first.project_entry(x, first.curvature.c)
        if self.config.embedding_gradient == "riemannian":
            rows = first.heads(x)
            scaled = rows * inverse_conformal_factor(rows, first.curvature_of(x)).detach().square()
            x = x.detach() + (scaled - scaled.detach()).reshape(x.shape)  # x, with the gradient of `scaled`
        return x

    def for_blocks(self, dtype):
        if self.config.dynamic_curvature:
            return super().for_blocks(dtype)
        blocks = self.transformer.h
        own = [block.radius(dtype) for block in blocks] if blocks[0].limit_kept(dtype) is None else None
        limits = [block.limit(block.curvature.c, dtype, own and own[i:i + 2]) for i, block in enumerate(blocks)]
        # of one number: torch.compile traces twice what gets a float64 of no dimension, in case it is read as a Python number
        return [(limit.view(1) if limit.dim() == 0 else limit,) for limit in limits]

    @torch.no_grad()
    def geometry_stats(self, idx):
        """Per block, after it: mean curvature, share of rows at the ball's edge, mean geodesic distance to the origin; with max_distance
        also the share of rows that are that far."""
        stats, training = {}, self.training
        self.eval()  # without dropout, as everything that is measured
        x = self.start(idx)
        for i, (block, after) in enumerate(zip(self.transformer.h, self.after_blocks(x))):
            c = block.curvature_of(x)
            x = after
            rows = block.heads(x).float()
            norm = rows.norm(dim=-1, keepdim=True)
            at_limit = (norm > 0.999 * block.limit(c, x.dtype)).float().mean().item()
            edge = at_limit
            if block.config.max_distance is not None:
                edge = (norm > 0.999 * geometry.max_norm(c, x.dtype)).float().mean().item()
            values = {"curvature": c.mean().item(), "curvature_min": c.min().item(), "curvature_max": c.max().item(),
                      "edge_share": edge,
                      "geodesic_norm": geometry.dist(torch.zeros_like(rows), rows, c).mean().item()}
            if block.config.max_distance is not None:
                values["max_distance_share"] = at_limit
            if block.config.per_head_curvature:  # of dynamic curvature the mean over tokens
                per_head = c.expand(*c.shape[:-2], block.config.n_head, 1).reshape(-1, block.config.n_head).mean(0)
                values.update({f"curvature_head{h}": per_head[h].item() for h in range(block.config.n_head)})
            stats[f"block{i}"] = values
        self.train(training)
        return stats
