"""
torch.compile, a part at a time: what comes before the blocks, a block, what comes after them. Blocks are alike, so that one graph
(forward and backward) serves all of them, and compiling takes about the same time for 4 blocks as for 24. (With FSDP2, whose hooks
run between the blocks, parallel.py compiles the blocks alone.)
"""
import copy

import torch
from torch._functorch import config as functorch

PARTS = ("start", "for_blocks", "run_block", "head")  # the functions that model_baseline.GPT.forward is made of


def compile_parts(model, **options):
    """A model that shares everything with this one and runs compiled code. The model itself stays as it is: what looks into a
    forward pass (telemetry, diagnose.py) finds plain modules. No part may break the graph. options: torch.compile's."""
    like_eager()
    fast = copy.copy(model)
    for name in PARTS:  # isolated: several models in a process (a benchmark) would share one limit of recompilations
        setattr(fast, name, torch.compile(getattr(model, name), fullgraph=True, dynamic=False, isolate_recompiles=True, **options))
    return fast


def like_eager():
    """backward() is called outside of autocast; compiled code takes the forward pass's for it by default, also for products that
    the forward pass keeps out of 16 bits (gyro-midpoints)."""
    functorch.backward_pass_autocast = "off"
