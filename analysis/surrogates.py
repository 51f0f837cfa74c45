"""
Terms of curvature in a trained model's place: x (+) exp_0(v) and log_r(x) replaced by closed forms that keep one dependence
(model_terms.py).

    x <- alpha x + beta v                   with c as trained; rows are kept in the ball as before
    writes beta of |v|     alpha = 1, beta = k(|v|)             long updates are shortened: a gate
    writes of |v|          alpha = 1 + V, beta = k
    writes beta of |x|     alpha = 1, beta = 1 - c|x|^2         a row near the edge is moved less: a gate
    writes without angle   both in full, but for <x,v> = 0
    writes alpha, beta     the one in full, 1 for the other
    writes x + v           nothing

    reads x - r            in place of log_r(x); `direction`, `length`: what of log_r(x) is kept beside it
"""
import contextlib

import geometry
import model_terms
from analysis.hidden_states import is_curved
from model_baseline import previous_token

WRITES = {"writes beta of |v|": "limit", "writes of |v|": "v", "writes beta of |x|": "x", "writes without angle": "norms",
          "writes alpha alone": "alpha", "writes beta alone": "beta", "writes x + v": "flat"}
READS = {"reads x - r": "flat", "reads log's direction": "direction", "reads log's length": "length"}


def possible(model):
    """Are the blocks of the form that the terms are of?"""
    config = model.config
    return all(is_curved(block) for block in model.transformer.h) and config.reference == "previous" and config.residual == "origin"


def _write(part):
    def add(x, r, v, c, limit):
        alpha, beta = (1.0, 1.0) if part == "flat" else model_terms.coefficients(x, v, c, part)
        out = alpha * x + beta * v
        return out if limit is None else geometry.project(out, c, limit)
    return add


def _read(block, part):
    def tangent(x, r, c):
        r = block.heads(previous_token(x.reshape(*x.shape[:2], -1))) if r is None else r
        return model_terms.tangent(x, r, c, part)
    return tangent


@contextlib.contextmanager
def in_place(model, name):
    """The model with that surrogate in every block."""
    method = "add" if name in WRITES else "tangent"
    for block in model.transformer.h:
        setattr(block, method, _write(WRITES[name]) if name in WRITES else _read(block, READS[name]))
    try:
        yield
    finally:
        for block in model.transformer.h:
            delattr(block, method)
