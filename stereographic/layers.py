"""
Linear maps on points.

    W (x) p (+) b = exp_0(W log_0(p)) (+) exp_0(b)                Ganea et al. 2018, section 3.2

What cancels. A layer reads a tangent vector u as the point p = exp_0(u), and gives a point, of which log_0 is taken: by the activation,
exp_0(gelu(log_0(p))), by scores and by the residual sum. Between two maps exp_0 and log_0 meet and cancel. So a Mobius layer is here

    u -> log_0(exp_0(W u) (+) exp_0(b))

and without b it is W u, the Euclidean layer, but for one thing: a point that is stored in float32 is at most (1 - 2^-14) of the ball's
radius out, which bounds W u of a head to 5.2/sqrt(c). The gyro-translation by b is all that is hyperbolic in a Mobius MLP. So layers have
b even where Linear has none; it starts at 0, the Euclidean layer.
"""
import torch
import torch.nn as nn
from torch.nn import functional as F

import geometry


def point(u, c):
    """exp_0(u), kept in the ball. Rows (..., D) -> points."""
    return geometry.project(geometry.exp_0(u, c), c)


def translate(u, b, c):
    """log_0(exp_0(u) (+) exp_0(b)): u + b at c = 0. u: (..., D), b: broadcasts against it -> (..., D). What is longer than the ball
    lets a point be is shortened to that."""
    return geometry.log_0(geometry.add_exp_0(point(u, c), b, c, geometry.max_norm(c, u.dtype)), c)


def edge_share(u, c):
    """The share of rows u that are at the ball's edge as points, as model.py counts them: beyond 0.999 of what is allowed."""
    return (point(u, c).norm(dim=-1, keepdim=True) > 0.999 * geometry.max_norm(c, u.dtype)).float().mean().item()


class MobiusLinear(nn.Linear):
    """u -> log_0(exp_0(W u) (+) exp_0(b)). parts: how many points the result is, side by side, of heads (or one row) each."""

    def __init__(self, linear, parts, curvature, heads):
        super().__init__(linear.in_features, linear.out_features)
        self.parts, self.heads = parts, heads
        self.curvature = (curvature,)  # the block's, in a tuple: it is not this layer's submodule

    def rows(self, y):
        """(..., parts nh D) -> (..., parts, nh, D), or without nh."""
        return y.unflatten(-1, (self.parts, self.heads, -1) if self.heads else (self.parts, -1))

    def product(self, u):
        return F.linear(u, self.weight)

    def translation(self):
        return self.rows(self.bias)

    def c(self):
        return self.curvature[0].c

    def forward(self, u):
        y = self.product(u)
        wide = y.to(torch.promote_types(y.dtype, torch.promote_types(u.dtype, torch.float32)))  # points need more than 16 bits
        out = translate(self.rows(wide), self.translation(), self.c()).reshape(y.shape)
        return out.to(self.weight.dtype) if self.weight.element_size() < 4 else out  # what the next layer takes
