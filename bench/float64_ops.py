"""
How many float64 operations a training step of the mixed model makes, and what they would cost on a GPU: counts, and a prediction.

    python bench/float64_ops.py                        4 x 128, 6 x 384 and GPT-2 124M; eager and compiled
    python bench/float64_ops.py --shapes='["small"]' --row_scalars=float32

No GPU is used: the step is forward and backward of one sequence, without the optimizer, which has no float64. The counts are of the
full sizes, nothing is scaled. Eager: every operation that PyTorch dispatches, on the device 'meta', where tensors have shapes and no
numbers. Compiled: the graphs that AOTAutograd gives to Inductor for a GPU, forward and backward with what is recomputed, each as often
as it is called (training/compiled.py: one graph for all blocks); they run on the CPU.

Counted, by elements:
    operation     one for each number of a float64 result; of a sum or a norm, for each number that it reads (a norm: two);
                  addcmul and the like: two; a division, square root: DIVISION; exp, log, tan, ...: FUNCTION, since those are
                  made of so many; where, views and copies: none
    conversion    each number that is float32 or shorter on one side and float64 on the other
Predicted seconds a step of TOKENS tokens: (operations/rate + conversions/their rate), at the full rate of the card, none of it
hidden behind memory or matrix products. Rates are in instructions: half of the TFLOP/s of a datasheet, which counts a fused
multiply-add as two. H100: 64 a clock and multiprocessor, 34 TFLOP/s (its 67 with tensor cores are for matrices), conversions 16 a
clock. RTX 4090: 2 a clock, 1.29 TFLOP/s of its 82.6 in float32, conversions 2 a clock (CUDA C++ Programming Guide, throughput of
native arithmetic instructions). Matrix products: FlopCounterMode's count at UTILISATION of the dense bf16 peak.
What the counts leave out: generated code may compute a row scalar for every element of the row where it fuses its formula into
the loop that reads it, so that the compiled counts are the least that it does.
"""
import contextlib
import os
import sys
import unittest.mock
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import configurator
import geometry
import models
from common.errors import UserError, exit_cleanly
from training.compiled import compile_parts

SHAPES = {  # n_layer, n_head, n_embd, block_size, vocab_size
    "small": (4, 4, 128, 128, 65), "large": (6, 6, 384, 256, 65), "gpt2": (12, 12, 768, 1024, 50304)}
NAMES = {"small": "4 x 128, T = 128", "large": "6 x 384, T = 256", "gpt2": "124M, T = 1024"}
TOKENS = 65536  # of a step
DIVISION, FUNCTION = 10, 25  # instructions
UTILISATION = 0.5
GPUS = {  # bf16 TFLOP/s, float64 and conversion instructions a second
    "H100": (989, 17.0e12, 132 * 16 * 1.98e9), "RTX 4090": (165, 0.645e12, 0.645e12)}

FREE = ("view", "_unsafe_view", "expand", "alias", "detach", "slice", "select", "unsqueeze", "squeeze", "as_strided", "empty",
        "permute", "transpose", "t", "clone", "copy", "where", "cat", "stack", "full", "zeros", "ones", "new_zeros", "lift_fresh",
        "split", "unbind", "index_select", "index", "slice_backward", "select_backward", "constant_pad_nd", "fill", "zero",
        "scalar_tensor", "full_like", "empty_like", "zeros_like", "ones_like", "new_empty_strided", "reshape", "expand_copy",
        "_reshape_alias", "gather",
        "index_put")
CONVERSIONS = ("_to_copy", "convert_element_type", "to")
REDUCTIONS = {"sum": 1, "mean": 1, "linalg_vector_norm": 2, "norm": 2, "amax": 1, "max": 1}
MATRICES = ("mm", "bmm", "addmm", "baddbmm")
TWO = ("addcmul", "addcdiv", "lerp")
DIVISIONS = ("div", "reciprocal", "sqrt", "rsqrt")
FUNCTIONS = ("exp", "log", "log1p", "tanh", "tan", "atan", "sin", "cos", "pow", "expm1", "sigmoid", "erf")


def count(name, inputs, outputs):
    """(float64 operations, conversions, operations of any float dtype but matrix products) of one call of an operator.
    inputs, outputs: tensors or their fakes"""
    name = name.split("::")[-1].split(".")[0].removesuffix("_")
    outputs = [t for t in outputs if t.is_floating_point() or (t.dtype == torch.bool and t.numel())]
    floats = [t for t in inputs if t.is_floating_point()]
    if name in FREE or not outputs or not floats:
        return 0, 0, 0
    wide_out = any(t.dtype == torch.float64 for t in outputs)
    wide_in = any(t.dtype == torch.float64 for t in floats)
    if name in CONVERSIONS:
        changes = wide_out != wide_in
        return 0, outputs[0].numel() if changes else 0, 0
    if name in MATRICES:
        a, b = floats[-2:]
        return 2 * a.numel() * b.shape[-1] if wide_out else 0, 0, 0  # the others: FlopCounterMode
    if name in REDUCTIONS:
        each = REDUCTIONS[name] * floats[0].numel()
    else:
        each = max(t.numel() for t in outputs) * (
            2 if name in TWO else DIVISION if name in DIVISIONS else FUNCTION if name in FUNCTIONS else 1)
    if not (wide_out or wide_in):
        return 0, 0, each
    return each, sum(t.numel() for t in floats if t.dtype != torch.float64 and t.dim()), each


class Counts(TorchDispatchMode):
    """Adds up what runs under it."""

    def __init__(self):
        super().__init__()
        self.total = Counter()

    def add(self, name, inputs, outputs):
        for key, value in zip(("float64", "conversions", "all"), count(name, inputs, outputs)):
            self.total[key] += value

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.add(func.name(), tensors_of((args, kwargs or {})), tensors_of(out))
        return out


def tensors_of(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor)]


def model_of(shape, row_scalars, device="meta"):
    n_layer, n_head, n_embd, block_size, vocab_size = SHAPES[shape]
    config = models.CONFIGS["mixed"](n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size, vocab_size=vocab_size,
                                     row_scalars=row_scalars)
    with torch.device(device):
        net = models.build("mixed", config)
    return net.to(device), torch.zeros(1, block_size, dtype=torch.int64, device=device)


def step(net, idx):
    net(idx, idx)[1].backward()


def eager(shape, row_scalars):
    """Counts of a step, and the floating-point operations of its matrix products."""
    net, idx = model_of(shape, row_scalars)
    with Counts() as counts:
        step(net, idx)
    with FlopCounterMode(display=False) as flops:
        step(net, idx)
    return counts.total, flops.get_total_flops()


@contextlib.contextmanager
def not_for_a_cpu():
    """The graphs that a GPU gets, on a CPU: geometry/ then leaves out what is there for Inductor's code for a CPU."""
    with contextlib.ExitStack() as patched:
        for module in (geometry.coefficients, geometry.inductor, geometry.rows):
            patched.enter_context(unittest.mock.patch.object(module, "_for_cpu_code", lambda tensor: False))
        yield


def compiled(shape, row_scalars):
    """On a CPU, with numbers: on 'meta' AOTAutograd's backward graphs are empty."""
    net, idx = model_of(shape, row_scalars, "cpu")
    counts = Counts()

    def counting(graph, examples):
        """The graph as it is, and its counts with every call."""
        found = []
        for node in graph.graph.nodes:
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                inputs = tensors_of([other.meta.get("val") for other in node.all_input_nodes])
                found.append((node.target.name(), inputs, tensors_of(node.meta.get("val"))))

        def run(*args):
            for each in found:
                counts.add(*each)
            with torch.no_grad():
                return graph(*args)
        return make_boxed_func(run)
    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=counting, bw_compiler=counting, partition_fn=min_cut_rematerialization_partition,
                           decompositions=select_decomp_table())
    with not_for_a_cpu():
        step(compile_parts(net, backend=backend), idx)
    torch._dynamo.reset()  # what was traced so is not for others
    return counts.total


@dataclass
class CountConfig:
    shapes: list[str] = field(default_factory=lambda: list(SHAPES))  # of small (4 x 128), large (6 x 384) and gpt2 (124M)
    row_scalars: Literal["float64", "float32", "both"] = "both"  # the form of the geometry

    def __post_init__(self):
        for shape in self.shapes:
            if shape not in SHAPES:
                raise UserError(f"shapes = {shape!r}: must be of {', '.join(SHAPES)}")


def line(shape, mode, form, total, flops):
    T = SHAPES[shape][3]
    steps = TOKENS / T
    cells = [NAMES[shape], mode, form, *(f"{total[key] / T:,.0f}" for key in ("float64", "conversions", "all")),
             f"{total['float64'] / total['all']:.1%}", f"{total['float64'] / (total['all'] + flops):.2%}"]
    for bf16, rate, conversion_rate in GPUS.values():
        spent = steps * (total["float64"] / rate + total["conversions"] / conversion_rate)
        matrices = steps * flops / (bf16 * 1e12 * UTILISATION)
        cells.append(f"{1000 * spent:.2f} / {1000 * matrices:.2f} ({spent / matrices:.2f})")
    return "| " + " | ".join(cells) + " |"


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, CountConfig, script_doc=__doc__)
    print(f"Predicted milliseconds a step of {TOKENS:,} tokens: float64 / matrix products in bf16 at {UTILISATION:.0%} (ratio)")
    print(f"| shape | mode | row scalars | float64 operations a token | conversions a token | all but matrix products | "
          f"share of these | share of all | {' | '.join(GPUS)} |\n|{'---|' * (8 + len(GPUS))}")
    for shape in config.shapes:
        for form in ("float64", "float32") if config.row_scalars == "both" else (config.row_scalars,):
            total, flops = eager(shape, form)
            print(line(shape, "eager", form, total, flops), flush=True)
            print(line(shape, "compiled", form, compiled(shape, form), flops), flush=True)
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
