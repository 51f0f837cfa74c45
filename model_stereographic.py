"""
Stereographic pieces in the mixed-curvature GPT, each an option by itself; the default of each is what model.py does.

    layers = 'mobius'          attention's projections and the MLP as W (x) p (+) b on points         (stereographic/layers.py);
                               'stereographic' is another name for it
    attention = 'distance'     softmax(-beta (d(q, k)/2)^2), values averaged by their gyro-midpoint   (stereographic/attention.py)
    norm = 'stereographic'     a layer reads the point exp_0(LN(log_r(x))), not the tangent vector LN(log_r(x))
    head = 'stereographic' | 'lorentz' | 'lorentz_product'
                               logits by distance to hyperplanes, or by Lorentz products              (stereographic/head.py)

Layers, attention and norm use the curvature of their block (of each head, with per_head_curvature; the block's own where each token has
one, but for the norm). The head has its own, head_curvature, so that it can be tried on a plain GPT: with
curvature_mode = 'fixed', curvature = 0 and reference = 'origin' the trunk is the baseline.

At c = 0 each is its Euclidean twin, in logits and in gradients: linear layers with biases; attention by -beta|q - k|^2; LayerNorm; the
Euclidean head.

norm: Cho et al. 2023 (FPS-T) normalise as exp_0(LN(log_0(x))). Here log is at the reference point. Followed by a Mobius layer, which
begins with log_0, the exp_0 cancels: norm has no effect with layers = 'mobius'. A linear layer reads the coordinates of the point,
so that for c > 0 the length of a head's row is bounded.

head_init splits what published comparisons mix: 'published' has an untied head that starts at zero where it is Euclidean and at
N(0, 0.02) where it is curved; 'matched' starts all at N(0, 0.02), tied or not.
"""
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import model
from common.errors import UserError
from model_baseline import CausalSelfAttention
from stereographic import HEADS, Head, MobiusLinear, attend, edge_share, point, statistics


@dataclass
class StereographicConfig(model.MixedConfig):
    layers: Literal["euclidean", "mobius", "stereographic"] = "euclidean"  # attention's projections and the MLP; mobius or, the same,
        # stereographic: with biases that are gyro-translations
    attention: Literal["dot", "distance"] = "dot"  # scores: products, or squared geodesic distances with values' gyro-midpoints
    norm: Literal["tangent", "stereographic"] = "tangent"  # what LayerNorm gives: a tangent vector, or a point
    head: Literal[*HEADS] = "euclidean"  # of the language model, see stereographic/head.py
    head_curvature: float = 0.01  # of a curved head; rows are sqrt(n_embd) long there, so that 1 / n_embd is much, and below
        # -2.4 / n_embd they are beyond a sphere's end, where logits start near 0
    head_curvature_mode: Literal["fixed", "parametric"] = "fixed"  # parametric: learned from head_curvature
    head_scale: float = 1.0  # factor of the logits
    head_scale_mode: Literal["fixed", "learned"] = "fixed"  # learned from head_scale
    head_offset: bool = False  # a learned offset of each token's hyperplane from the origin; without curvature: a bias
    head_tied: bool = True  # the head's matrix is the token embedding
    head_init: Literal["matched", "published", "zero"] = "matched"  # of an untied head: N(0, 0.02); as published: zero if it is
        # Euclidean, N(0, 0.02) if it is curved; zero

    def __post_init__(self):
        super().__post_init__()
        self.layers = "mobius" if self.layers == "stereographic" else self.layers
        if self.ops != "torch":
            raise UserError("ops = 'triton' is for the model 'mixed'; use --ops=torch")
        if not abs(self.head_curvature) <= 1e20:
            raise UserError(f"head_curvature = {self.head_curvature:g}: its size must be at most 1e+20")
        if self.head.startswith("lorentz") and self.head_curvature < 0:
            raise UserError(f"head_curvature = {self.head_curvature:g}: head = {self.head!r} is in hyperbolic space and needs at least 0; "
                            "head = 'stereographic' takes either sign")
        if not 1e-30 <= self.head_scale <= 1e30:
            raise UserError(f"head_scale = {self.head_scale:g}: must be more than 0 (1e-30 to 1e+30)")
        if self.head_tied and self.head_init != "matched":
            raise UserError(f"head_init = {self.head_init!r} needs head_tied = False: a tied head starts as the token embedding")

    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        found = super().without_effect()
        if self.head == "euclidean":
            found |= dict.fromkeys(("head_curvature", "head_curvature_mode"), "head = 'euclidean'")
        elif self.head_curvature_mode == "parametric":
            found.pop("curvature_lr_mult", None)
        if self.layers == "mobius":
            found["norm"] = "layers = 'mobius', which maps what it reads by exp_0 anyway"
        return found


class DistanceAttention(CausalSelfAttention):
    """Attention by geodesic distance. QK norm and rotations act on tangent vectors, before exp_0 (rotations commute with it)."""

    def __init__(self, config, index, curvature):
        super().__init__(config, index)
        self.curvature = (curvature,)  # the block's, in a tuple: it is not this module's
        self.log_beta = nn.Parameter(torch.empty(config.n_head))

    def reset(self, hs):
        nn.init.constant_(self.log_beta, -math.log(2 * math.sqrt(hs)))  # the scale of q.k/sqrt(hs) in -beta|q - k|^2

    def attend(self, q, k, v):
        return attend(q, k, v, self.curvature[0].c, self.log_beta.exp(), self.dropout if self.training else 0.0)


class Block(model.Block):

    def __init__(self, config, curvature, index=0):
        super().__init__(config, curvature, index)
        if config.attention == "distance":
            self.attn = DistanceAttention(config, index, curvature)
        if config.layers == "mobius":
            heads = config.n_head if config.per_head_curvature else 0
            for layer, name, parts in ((self.attn, "c_attn", 3), (self.attn, "c_proj", 1), (self.mlp, "c_fc", 1), (self.mlp, "c_proj", 1)):
                setattr(layer, name, MobiusLinear(getattr(layer, name), parts, curvature, heads))

    def read(self, x, r, c, norm):
        u = super().read(x, r, c, norm)
        if self.config.norm == "tangent" or self.config.layers == "mobius":
            return u
        return point(self.heads(u), c).reshape(u.shape)


class GPT(model.GPT):

    block = Block

    def make_extras(self, config):
        super().make_extras(config)
        self.lm_head = Head(config.head, config.vocab_size, config.n_embd, config.head_curvature,
                            config.head_curvature_mode == "parametric", config.head_scale, config.head_scale_mode == "learned",
                            config.head_offset)
        if config.head_tied:
            self.lm_head.weight = self.transformer.wte.weight

    def _init_special(self):
        super()._init_special()
        config = self.config
        for block in self.transformer.h:
            if config.attention == "distance":
                block.attn.reset(config.n_embd // config.n_head)
        if config.head_init == "zero" or config.head_init == "published" and config.head == "euclidean":
            nn.init.zeros_(self.lm_head.weight)

    @torch.no_grad()
    def geometry_stats(self, idx):
        """model.py's. Per block of attention by distance: mean beta, the mean of beta (d/2)^2 of a query and the keys it sees, and how far
        out values and their midpoints are (mean of sqrt|c||y|: in units of a ball's radius; of |y| where c = 0). Per block of Mobius
        layers: the share of the MLP's hidden rows at the ball's edge. Per block with norm = 'stereographic': how far out the points that
        attention and MLP read are."""
        attended, hidden, read, blocks = {}, {}, {}, list(enumerate(self.transformer.h))

        def remember(i, attention):  # with c and beta of the forward pass: there FSDP2 has the weights together
            def attend(*qkv):
                attended[i] = (*qkv, attention.curvature[0].c.clone(), attention.log_beta.exp())
                return type(attention).attend(attention, *qkv)
            attention.attend = attend
        def remember_read(i, block):
            def reading(x, r, c, norm):
                points = type(block).read(block, x, r, c, norm)
                unit = torch.where(c == 0, 1.0, c.abs().sqrt())
                read.setdefault(i, []).append((unit * block.heads(points).float().norm(dim=-1, keepdim=True)).mean().item())
                return points
            block.read = reading
        reading = [(i, block) for i, block in blocks if self.config.norm == "stereographic" and self.config.layers != "mobius"]
        for i, block in reading:
            remember_read(i, block)
        hooks = [block.mlp.c_fc.register_forward_hook(
                    lambda layer, _, out, i=i, curvature=block.curvature: hidden.update({i: (layer.rows(out), curvature.c.clone())}))
                 for i, block in blocks if self.config.layers == "mobius"]
        distances = [(i, block.attn) for i, block in blocks if self.config.attention == "distance"]
        for i, attention in distances:
            remember(i, attention)
        try:
            stats = super().geometry_stats(idx)
        finally:
            for hook in hooks:
                hook.remove()
            for _, attention in distances:
                del attention.attend  # the class's own again
            for _, block in reading:
                del block.read
        for i, found in attended.items():
            stats[f"block{i}"] |= statistics(*found)
        for i, (rows, c) in hidden.items():
            stats[f"block{i}"]["hidden_edge_share"] = edge_share(rows, c)
        for i, norms in read.items():
            stats[f"block{i}"] |= {f"read_norm_{name}": norm for name, norm in zip(("attn", "mlp"), norms, strict=True)}
        return stats

    @torch.no_grad()
    def telemetry(self, idx):
        found, head, training = super().telemetry(idx), self.lm_head, self.training
        if head.kind != "euclidean":
            self.eval()
            rows = self.transformer.ln_f(self.trunk(idx)).float()
            self.train(training)
            found["geometry/head/curvature"] = head.c().item()
            found["geometry/head/row"] = (rows.norm(dim=-1).mean() * head.c().abs().sqrt()).item()  # sqrt|c||h|
        if head.log_scale is not None:
            found["geometry/head/scale"] = head.log_scale.exp().item()
        if head.offset is not None:
            found["geometry/head/offset"] = head.offset.square().mean().sqrt().item()
        return found
