"""
The mixed-curvature GPT with n residual streams: model.py's block inside model_mhc.py's connections. Every stream is a point of the
block's space.

    h   = gather(x_1 ... x_n; p)             a point: read
    v   = F(LayerNorm(log_r(h)))             r: the reference point of h, as in model.py
    x_i = gather(x_1 ... x_n; R_i)           points: mixed
    x_i = residual(x_i, r, w_i v), projected, as in model.py

    gather    'tangent'    exp_0(sum_j w_j log_0(x_j))
              'midpoint'   the gyro-midpoint with weights w_j

At c = 0 a gather is sum_j w_j x_j: with reference 'origin' this is model_mhc.py, and with 'previous' its token_shift = 'difference',
which is the flat control here.

hc_expand = 'embed' adds the streams' vectors to the plain embedding, before it is projected into the first block's space.
"""
from dataclasses import dataclass
from typing import Literal

import torch

import geometry
import model
from common.errors import UserError
from model_mhc import StreamsConfig, StreamsGPT, cheap
from streams import mixing


@dataclass
class MixedMHCConfig(model.MixedConfig, StreamsConfig):
    hc_space: Literal["tangent", "midpoint"] = "tangent"  # where streams are mixed: in the tangent space at the origin, or by
        # gyro-midpoints

    def __post_init__(self):
        super().__post_init__()
        if self.hc == "altup":
            raise UserError("hc = 'altup' is for the model 'mhc'; use --model=mhc, or hc = 'none' | 'hc' | 'mhc'")
        if self.hc != "none" and self.dynamic_curvature:
            raise UserError("dynamic_curvature is for one residual stream; use hc = 'none'")
        if self.ops != "torch":
            raise UserError("ops = 'triton' is for the model 'mixed'; use --ops=torch")
        if self.hc_space == "midpoint" and (self.hc == "hc" or self.hc == "mhc" and self.hc_pre != "softmax"):
            raise UserError("hc_space = 'midpoint' needs weights that sum to 1: hc = 'mhc' with hc_pre = 'softmax'")
        if self.hc_space == "midpoint" and self.hc == "mhc" and self.hc_collapse == "sum":
            raise UserError("hc_space = 'midpoint' needs weights that sum to 1: hc_collapse = 'mean' or 'learned', not 'sum'")
        if self.hc_space == "midpoint" and self.hc == "mhc" and self.hc_res == "orthostochastic" and not self.hc_exact:
            raise UserError("hc_space = 'midpoint' needs weights that sum to 1: hc_exact = True with hc_res = 'orthostochastic'")

    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        found = {**StreamsConfig.without_effect(self), **model.MixedConfig.without_effect(self)}
        if self.hc == "none":
            found["hc_space"] = "hc = 'none'"
        return found


class Block(model.Block):

    several_streams = True  # what analysis/ watches in a curved block has one row a token

    def __init__(self, config, curvature, index, connections):
        super().__init__(config, curvature, index)
        self.connections = (connections,)  # in a tuple: its parameters are the model's, not this block's

    def gather(self, x, weights, c):
        """Points (n, B, T, C), weights (m, n) or (B, T, m, n) -> points (m, B, T, C)."""
        rows = self.heads(x)
        if self.config.hc_space == "tangent":
            tangent = geometry.log_0(rows, c).reshape(x.shape)
            return geometry.exp_0(self.heads(mixing.combine(weights, tangent)), c).reshape(-1, *x.shape[1:])
        # (B, T, nh, n, hs) or (B, T, n, C): the streams beside the row
        rows, per_head = rows.movedim(0, -2), self.config.per_head_curvature
        if per_head and weights.dim() == 4:
            weights = weights.unsqueeze(2)
        c = c.unsqueeze(-1) if per_head or c.dim() else c
        return geometry.gyromidpoint(rows, weights, c).movedim(-2, 0).reshape(-1, *x.shape[1:])

    def update(self, x, sublayers, state=None, limit=None, *own):
        """x: (n, B, T, C). own: of both sub-layers' Connections.for_places(), one after the other."""
        c = self.curvature_of(x)
        if limit is None:
            limit = self.limit(c, x.dtype)
        only_previous = self.config.reference == "previous" and self.config.residual == "origin" and state is None
        half = len(own) // 2

        def read(x, name, norm, *own):
            """What a layer reads, the reference point, R, w."""
            p, mix, w = self.connections[0].maps(x, *own)
            h = geometry.project(self.heads(self.gather(x, p.unsqueeze(-2), c)[0]), c, limit).flatten(2)
            r = None if only_previous else self.reference(h, c, state, name)
            return self.read(h, r, c, norm), r, mix, w

        def write(x, v, r, mix, w):
            v = self.heads(mixing.spread(v.to(x.dtype), w.to(x.dtype)))  # w_i v
            points = self.heads(x if mix is None else self.gather(x, mix, c))
            return self.residual(points, r if r is None else r.expand_as(points), v, c, limit).reshape(x.shape)

        for (name, norm, layer), own_one in zip(sublayers, (own[:half], own[half:])):
            u, r, mix, w = cheap(read, x, name, norm, *own_one, state=state)
            x = cheap(write, x, layer(u, state), r, mix, w, state=state)
        return x


class GPT(StreamsGPT, model.GPT):

    def make_block(self, config, index):
        if index == 0:
            self.make_connections(config)
        if config.hc == "none":
            return super().make_block(config, index)
        if index == 0 or config.curvature_mode != "tied":
            self._curvature = model.make_curvature(config)
        return Block(config, self._curvature, index, self.hyper)

    def enter(self, x):
        """Streams are made of the plain embedding; each is projected into the first block's space."""
        return super(StreamsGPT, self).enter(self.expand(x))

    def one_row(self, x):
        if self.hyper is None:
            return x
        n, last = self.config.hc_num_streams, self.transformer.h[-1]
        if self.config.hc_collapse == "learned":
            weights = torch.softmax(self.hyper.collapse, -1)
        else:
            weights = torch.full((n,), 1 / n if self.config.hc_collapse == "mean" else 1.0, device=x.device)
        return last.gather(x, weights.unsqueeze(-2), last.curvature.c)[0]
