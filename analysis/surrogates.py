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

    gate and norm          no curvature but the ball: reads x - r, writes of |v|
    direction and gate     reads log's direction, writes of |v|
    ball alone             reads x - r, writes x + v
"""
import contextlib

import geometry
import model_terms
from analysis.hidden_states import is_curved
from model_baseline import previous_token

# name: the part of log_r(x) that is read, the part of x (+) exp_0(v) that is written (None: all of it)
TERMS = {
    "writes beta of |v|": (None, "limit"),
    "writes of |v|": (None, "v"),
    "writes beta of |x|": (None, "x"),
    "writes without angle": (None, "norms"),
    "writes alpha alone": (None, "alpha"),
    "writes beta alone": (None, "beta"),
    "writes x + v": (None, "flat"),
    "reads x - r": ("flat", None),
    "reads log's direction": ("direction", None),
    "reads log's length": ("length", None),
    "gate and norm": ("flat", "v"),
    "direction and gate": ("direction", "v"),
    "ball alone": ("flat", "flat"),
}


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
    read, write = TERMS[name]
    for block in model.transformer.h:
        if read:
            block.tangent = _read(block, read)
        if write:
            block.add = _write(write)
    try:
        yield
    finally:
        for block in model.transformer.h:
            for method in ("tangent", "add"):
                vars(block).pop(method, None)
