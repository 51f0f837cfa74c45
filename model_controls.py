"""
The mechanism controls: the mixed-curvature block with one ingredient of the geometry at a time, and no curvature.

What curvature does to a block can be had without it. Each `control` adds to the flat control, x <- x + F(LN(u)) with
u_t = x_t - x_{t-1}, what of the geometry a simpler model could have (h: head, s_h and rho_h: learned, one a head and block):

    difference    nothing more: the baseline's token_shift = 'difference'
    bound         x_h <- x_h min(1, rho_h / |x_h|)       rows kept in a ball per head, as project() keeps points
    norm          u_h <- s_h u_h / rms(u_h)              heads on one scale, as tanh and artanh bring them
    gate          u_h <- s_h 2 sigmoid(w_h . x) u_h      a factor per head and token, as the conformal factor is
    gate+norm, bound+gate+norm    together

Matched in parameters: bound and norm have one number a head and block, as learned per-head curvature has; gate has that and
w, as dynamic per-head curvature has. rho_h = c_h^{-1/2} with c_h drawn from U(0, 1), as curvature_mode = 'random' draws c;
s_h = 1 and w = 0 at the start, so `gate` starts as the flat control. The optimizer treats them as curvatures (training/optimizer.py).
"""
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn

import model_baseline
from model_baseline import GPTConfig, head_factor, previous_token


@dataclass
class ControlsConfig(GPTConfig):
    control: Literal["difference", "bound", "norm", "gate", "gate+norm", "bound+gate+norm"] = "gate"  # ingredients of the
        # geometry without curvature, see model_controls.py

    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        return {"curvature_lr_mult": "control = 'difference'"} if self.control == "difference" else {}


class Block(model_baseline.Block):

    called_by_model = ("bound",)

    def __init__(self, config, index=0):
        super().__init__(config, index)
        self.n_head = config.n_head
        self.ingredients = set(config.control.split("+"))
        if "bound" in self.ingredients:
            self.control_radius = nn.Parameter(torch.empty(config.n_head))
        if self.ingredients & {"norm", "gate"}:
            self.control_scale = nn.Parameter(torch.ones(config.n_head))
        if "gate" in self.ingredients:
            self.control_gate = nn.Linear(config.n_embd, config.n_head)

    def bound(self, x):
        """Rows of each head shortened to the head's radius. (B, T, C) -> (B, T, C)."""
        if "bound" not in self.ingredients:
            return x
        heads = x.unflatten(-1, (self.n_head, -1))  # (B, T, nh, hs)
        norm = torch.linalg.vector_norm(heads, dim=-1, keepdim=True)
        # 'where' inside: a row of zeros has no direction in which to differentiate its norm
        outside = norm > self.control_radius.unsqueeze(-1)
        factor = torch.where(outside, self.control_radius.unsqueeze(-1) / torch.where(outside, norm, 1.0), 1.0)
        return (heads * factor).flatten(-2)

    def factor(self, x):
        """What the gate and the learned scale multiply a head's row by, for every token of the block's input x:
        (B, T, nh, 1), (nh, 1) or 1."""
        if not self.ingredients & {"norm", "gate"}:
            return 1.0
        if "gate" in self.ingredients:
            return head_factor(self.control_scale, self.control_gate, x)
        return self.control_scale.unsqueeze(-1)

    def read(self, x, factor, norm, state, name):
        """What a layer reads. (B, T, C) -> (B, T, C)."""
        u = (x - previous_token(x, state, "previous_" + name)).unflatten(-1, (self.n_head, -1))  # (B, T, nh, hs)
        if "norm" in self.ingredients:
            u = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + 1e-6)
        return norm((u * factor).flatten(-2))

    def update(self, x, sublayers, state=None):
        factor = self.factor(x)
        for name, norm, layer in sublayers:
            x = self.bound(x + layer(self.read(x, factor, norm, state, name), state))
        return x


class GPT(model_baseline.GPT):

    def make_block(self, config, index):
        return Block(config, index)

    def enter(self, x):
        return self.transformer.h[0].bound(x)

    def _init_special(self):
        with torch.no_grad():
            for block in self.transformer.h:
                if "bound" in block.ingredients:
                    block.control_radius.uniform_(0, 1).rsqrt_()
                if "gate" in block.ingredients:
                    nn.init.zeros_(block.control_gate.weight)
