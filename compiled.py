"""
torch.compile, a part at a time: what comes before the blocks, a block, what comes after them. Blocks are alike, so that one graph
(forward and backward) serves all of them, and compiling takes the same time for 4 blocks as for 24.
"""
import copy

import torch

PARTS = ("start", "for_blocks", "run_block", "head")  # the functions that model_baseline.GPT.forward is made of


def compile_parts(model):
    """A model that shares everything with this one and runs compiled code. The model itself stays as it is: what looks into a
    forward pass (telemetry, diagnose.py) finds plain modules. No part may break the graph."""
    fast = copy.copy(model)
    for name in PARTS:
        setattr(fast, name, torch.compile(getattr(model, name), fullgraph=True, dynamic=False))
    return fast
