"""
Curvature taken apart: the mixed block with one term of its geometry at a time, the others as they are in flat space.

With fixed curvature c per head, reference 'previous' and residual 'origin' (model.py) a head h of a sub-layer is, with r = x_{t-1},

    u = log_r(x)                     flat: x - r        what the layer reads
    x <- alpha x + beta v            flat: x + v        v = F(LayerNorm(u)), what it writes
    x <- x min(1, R / |x|)                              rows stay in the ball (`ball`): R = c^{-1/2}, or, with `max_distance` d,
                                                        R = tanh(d / 2) c^{-1/2}

and alpha, beta are functions of three numbers: with k = tanc(c|v|^2) (exp_0(v) = k v), X = c|x|^2, V = c k^2 |v|^2, P = c k <x,v>,

    alpha = (1 + 2 P + V) / D,   beta = k (1 - X) / D,   D = 1 + 2 P + X V               (mobius_add in its textbook form)

`read`: 'log' or 'flat'; 'length': log's length in the direction of x - r; 'direction': log's direction, as long as x - r; 'row': x itself,
as a plain GPT reads; 'weighted': x - w r, with a number w for each head and sub-layer, learned from 1; 'likeness': x - w r with
w = w_0 + a (1 - cos(x, r)), two numbers learned from 1 and `likeness`; 'cosine': the same, with 1 and `likeness` fixed. For rows of one
length that is log's direction: -r (+) x is then in the direction of x - w r with
w = (1 - 2c <r,x> + c|r|^2) / (1 - c|r|^2) = 1 + 2c|r|^2 / (1 - c|r|^2) (1 - cos(x, r)).

`write`: 'mobius' or 'flat', or a part of it:
    alpha, beta    the one, and 1 for the other
    norms          without the angle: P = 0
    x              of |x| alone (V = P = 0, k = 1): alpha = 1, beta = 1 - X      a row near the edge is moved less
    v              of |v| alone (X = P = 0): alpha = 1 + V, beta = k             long updates are shortened: of rows that end at one
                   length it is x + v tanh(2 s|v|)/(2 s|v|), s = sqrt(c), at most 1/(2 s) long, half of what `limit` lets it be
    limit          alpha = 1, beta = k: long updates are shortened, and nothing else
    xv             of <x,v> alone, to first order in it and bounded: alpha = 1, beta = 1 - tanh 2 P
    constant       no function: alpha and beta are numbers, learned, one a head and sub-layer

read = 'log' and write = 'mobius' are the mixed model (tests/test_terms.py); read = write = 'flat' is the flat control in a ball;
read = 'row', write = 'flat' without a ball is the baseline.
"""
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import geometry
import model_baseline
from common.errors import UserError
from model_baseline import GPTConfig, previous_token

WEIGHTED = ("weighted", "likeness")  # reads with learned numbers
PARTS = ("alpha", "beta", "norms", "x", "v", "limit", "xv")


@dataclass
class TermsConfig(GPTConfig):
    curvature: float = 0.1  # c of every head and block, fixed; the ball's radius is its -1/2 power
    read: Literal["flat", "log", "length", "direction", "row", "weighted", "likeness", "cosine"] = "flat"  # what of log_r(x) is
        # curved, or in its place, see model_terms.py
    likeness: float = 0.0  # a of read = 'cosine', or where that of read = 'likeness' starts; cosh(d) - 1 for rows at a distance d
    write: Literal["flat", "mobius", "alpha", "beta", "norms", "x", "v", "limit", "xv", "constant"] = "flat"  # what of x (+) exp_0(v) is
    ball: bool = True  # rows are kept in the ball of c
    max_distance: float | None = None  # and, with the ball, at most this far from the origin, in units of 1/sqrt(c), as in the mixed model

    def __post_init__(self):
        super().__post_init__()
        if not 1e-30 <= self.curvature <= 1e30:
            raise UserError(f"curvature = {self.curvature:g}: a ball needs one of more than 0 (1e-30 to 1e+30)")
        if not -1e6 <= self.likeness <= 1e6:
            raise UserError(f"likeness = {self.likeness:g}: must be between -1e+06 and 1e+06")
        if self.max_distance is not None and not 0 < self.max_distance <= 1e6:
            raise UserError(f"max_distance = {self.max_distance:g}: must be more than 0 and at most 1e+06, or None")
        if not self.ball and (self.read in ("log", "length", "direction") or self.write in ("mobius", "alpha", "beta", "norms", "x")):
            raise UserError(f"ball = False: read = {self.read!r} and write = {self.write!r} need rows in the ball")

    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        learned = self.write == "constant" or self.read in WEIGHTED
        off = {} if learned else {"curvature_lr_mult": "a model that learns no curvature"}
        if self.read not in ("likeness", "cosine"):
            off["likeness"] = f"read = {self.read!r}"
        if not self.ball and self.read in ("flat", "row", "cosine", *WEIGHTED) and self.write in ("flat", "constant"):
            off["curvature"] = "ball = False and nothing curved"
        if not self.ball:
            off["max_distance"] = "ball = False"
        return off


def wide(*rows):
    """16-bit rows as float32, others as they are: squares need it."""
    return [row.to(torch.promote_types(row.dtype, torch.float32)) for row in rows]


def norm2(row):
    """(..., D) -> (..., 1)"""
    return row.square().sum(-1, keepdim=True)


def coefficients(x, v, c, part):
    """alpha, beta, (..., 1) each, or the number 1. x, v: (..., D); of 16-bit rows they are float32."""
    x, v = wide(x, v)
    k = geometry.tanc(c * norm2(v))
    X, V, P = c * norm2(x), c * k.square() * norm2(v), c * k * (x * v).sum(-1, keepdim=True)
    if part == "x":
        return 1.0, 1 - X
    if part == "v":
        return 1 + V, k
    if part == "limit":
        return 1.0, k
    if part == "xv":
        return 1.0, 1 - torch.tanh(2 * c * (x * v).sum(-1, keepdim=True))
    if part == "norms":
        P = torch.zeros_like(P)
    D = 1 + 2 * P + X * V
    alpha, beta = (1 + 2 * P + V) / D, k * (1 - X) / D
    return (alpha if part != "beta" else 1.0), (beta if part != "alpha" else 1.0)


def tangent(x, r, c, part):
    """log_r(x), or a part of it. (..., D) x 2 -> (..., D)."""
    flat = x - r
    if part == "flat":
        return flat
    log = geometry.logmap(r, x, c)
    if part == "log":
        return log
    # both are 0 where x = r
    tiny = torch.finfo(x.dtype).tiny
    ratio = torch.sqrt((norm2(log) + tiny) / (norm2(flat) + tiny))
    return flat * ratio if part == "length" else log / ratio


class Block(model_baseline.Block):

    called_by_model = ("bound",)

    def __init__(self, config, index=0):
        super().__init__(config, index)
        self.config = config
        if config.write == "constant":
            self.control_write = nn.Parameter(torch.empty(2, 2, config.n_head, 1))  # of attention and MLP: alpha, beta
        if config.read in WEIGHTED:
            self.control_read = nn.Parameter(torch.empty(2, config.n_head, 1))  # of attention and MLP: w, w_0
        if config.read == "likeness":
            self.control_likeness = nn.Parameter(torch.empty(2, config.n_head, 1))  # a

    def heads(self, x):
        return x.unflatten(-1, (self.config.n_head, -1))  # (B, T, C) -> (B, T, nh, hs)

    def bound(self, x):
        """Rows of each head kept in the ball. (B, T, nh, hs) -> the same."""
        c, d = self.config.curvature, self.config.max_distance
        if not self.config.ball or d is None:
            return geometry.project(x, c) if self.config.ball else x
        shorter = min(math.tanh(d / 2), 1 - geometry.BALL_MARGIN[x.dtype]) * c ** -0.5
        return geometry.project(x, c, torch.full((), shorter, dtype=torch.float32, device=x.device))

    def tangent(self, x, r, index):
        """What is read of a head. (B, T, nh, hs) x 2 -> the same. index: 0 attention, 1 MLP."""
        if self.config.read in (*WEIGHTED, "cosine"):
            w = self.control_read[index] if self.config.read in WEIGHTED else 1.0
            if self.config.read != "weighted":
                a = self.control_likeness[index] if self.config.read == "likeness" else self.config.likeness
                w = w + a * (1 - torch.cosine_similarity(*wide(x, r), dim=-1).unsqueeze(-1))
            return (x - w * r).to(x.dtype)
        return x if self.config.read == "row" else tangent(x, r, self.config.curvature, self.config.read)

    def written(self, x, v, index):
        """(B, T, nh, hs) x 2 -> the same."""
        c, write = self.config.curvature, self.config.write
        if write == "flat":
            return x + v
        if write == "mobius":
            return geometry.add_exp_0(x, v, c)
        alpha, beta = self.control_write[index] if write == "constant" else coefficients(x, v, c, write)
        return (alpha * x + beta * v).to(x.dtype)

    def update(self, x, sublayers, state=None):
        for index, (name, norm, layer) in enumerate(sublayers):
            r = self.heads(previous_token(x, state, "previous_" + name))
            u = self.tangent(self.heads(x), r, index).reshape(x.shape)
            v = self.heads(layer(norm(u), state))
            x = self.bound(self.written(self.heads(x), v.to(x.dtype), index)).reshape(x.shape)
        return x


class GPT(model_baseline.GPT):

    compile_seconds = 60

    def make_block(self, config, index):
        return Block(config, index)

    def _init_special(self):
        for block in self.transformer.h:
            for name, start in (("control_write", 1.0), ("control_read", 1.0), ("control_likeness", block.config.likeness)):
                if hasattr(block, name):
                    nn.init.constant_(getattr(block, name), start)

    def enter(self, x):
        first = self.transformer.h[0]
        return first.bound(first.heads(x)).reshape(x.shape)

    @torch.no_grad()
    def geometry_stats(self, idx):
        """Per block, after it: share of rows at the ball's edge, mean |x| in units of its radius; of its MLP's update |v| likewise,
        cos(x, v), and alpha, beta in full (whatever part of them the model uses)."""
        stats, training, c = {}, self.training, self.config.curvature
        self.eval()
        seen = {}

        def remember(block):  # what its MLP's update is added to
            written = block.written
            block.written = lambda x, v, index: (seen.update(x=x, v=v), written(x, v, index))[1]
        try:
            for block in self.transformer.h:
                remember(block)
            for i, (block, after) in enumerate(zip(self.transformer.h, self.after_blocks(self.start(idx)))):
                x, v = seen["x"].float(), seen["v"].float()
                alpha, beta = coefficients(x, v, c, "mobius")
                ends = block.heads(after).float().norm(dim=-1) * math.sqrt(c)
                stats[f"block{i}"] = {
                    "edge_share": (ends > 0.999).float().mean().item(), "radius": ends.mean().item(),
                    "update": (v.norm(dim=-1) * math.sqrt(c)).mean().item(), "cosine": torch.cosine_similarity(x, v, -1).mean().item(),
                    "alpha": alpha.mean().item(), "beta": beta.mean().item(), "beta_std": beta.std().item()}
        finally:
            for block in self.transformer.h:
                vars(block).pop("written", None)
            self.train(training)
        return stats
