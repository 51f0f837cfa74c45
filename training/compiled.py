"""
torch.compile, a part at a time: what comes before the blocks, a block, what comes after them. Blocks are alike, so that one graph
(forward and backward) serves all of them, and compiling takes about the same time for 4 blocks as for 24. (With FSDP2, whose hooks
run between the blocks, parallel.py compiles the blocks alone.)
"""
import copy
import types

import torch
from torch._functorch import config as functorch

PARTS = ("start", "for_blocks", "run_block", "head")  # the functions that model_baseline.GPT.forward is made of


def compile_parts(model, **options):
    """A model that shares everything with this one and runs compiled code. The model itself stays as it is: what looks into a
    forward pass (telemetry, diagnose.py) finds plain modules. No part may break the graph. options: torch.compile's."""
    set_options()
    fast = copy.copy(model)
    for name in sorted({*PARTS} - {*model.eager_parts}):
        setattr(fast, name, torch.compile(_isolated(getattr(model, name)), fullgraph=True, dynamic=False, **options))
    return fast


def _isolated(function):
    """The same function with a code object of its own. Dynamo counts recompilations for each code object: several models in a
    process (a benchmark) would share one limit. (torch 2.13 has an option for that, isolate_recompiles; 2.11 has not.)"""
    if isinstance(function, types.MethodType):
        return types.MethodType(_isolated(function.__func__), function.__self__)
    again = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__,
                               function.__closure__)
    again.__kwdefaults__ = function.__kwdefaults__
    return again


def set_options():
    """Those of torch that all compiled code here is made with."""
    # backward() is called outside of autocast; compiled code would take the forward pass's for it, also for products that the
    # forward pass keeps out of 16 bits (gyro-midpoints)
    functorch.backward_pass_autocast = "off"
    # the geometry's row scalars are found again from rows that the backward pass reads anyway; they would be kept for it, as what
    # was made long before it is (4 x 128: 35 MiB a block, not 29; the baseline's 28 do not change)
    functorch.ban_recompute_used_far_apart = False
