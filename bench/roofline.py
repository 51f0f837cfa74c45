"""
What the geometry would add to a training step on a GPU: a prediction from counted memory passes and datasheet numbers, written to
bench/roofline.md.

    python bench/roofline.py                 writes bench/roofline.md and prints it

No GPU was used for the prediction; where results/gpu holds what bench/gpu.py measured, that is put beside it. The model: a kernel
that does no matrix product takes bytes/bandwidth + launch time; a matrix product takes flops/(peak * utilisation). Assumptions are
constants below and are printed in the result.
"""
import functools
import glob
import os
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import configurator
from common import paths
from common.errors import exit_cleanly
from common.whole_files import write_file
from configurator import Path

GPUS = {  # dense bf16 TFLOP/s, HBM TB/s: NVIDIA datasheets, SXM parts
    "A100 80GB": (312, 2.039), "H100": (989, 3.35), "H200": (989, 4.8)}
SHAPES = {"124M": (12, 12, 768), "350M": (24, 16, 1024)}  # n_layer, n_head, n_embd (GPT-2 small and medium)
TOKENS, T, VOCABULARY = 64 * 1024, 1024, 50304
UTILISATION = 0.5  # of the peak, in matrix products of this size
BANDWIDTH = 0.85  # of the datasheet's, in streaming kernels
LAUNCH = 3e-6  # seconds a kernel, where the GPU waits for the CPU or between kernels

# Row passes (one read or one write of (tokens, n_embd)) of one sub-layer, forward and backward together
EUCLIDEAN = (2 + 3) + 3  # LayerNorm; x + v, whose backward is free
COMPILED = (5 + 8) + (5 + 8) + 5  # log and sum read their rows once for sums and once for the result; LayerNorm by itself
FUSED = (2 + 1 / 8 + 3 + 5 / 8) + (3 + 5)  # log + LayerNorm; sum + projection: the table in kernels/__init__.py
# more than the Euclidean sub-layer's. Compiled: estimated. Fused: the backward in kernels/ also adds the partial sums of c and of
# the limit, of LayerNorm's c, weight and bias, five small kernels, and is itself one more than the backward of x + v
COMPILED_KERNELS, FUSED_KERNELS = 8, 6
MEASURED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "results", "gpu")
BYTES = 4  # of a number of the residual stream (float32; autocast's 16 bits are in the matrix products only)
PREDECESSOR = {"124M": 5.86, "350M": 3.18}  # step-time ratio to its baseline that the published predecessor reports


def counted_eager_passes():
    """Row passes of one sub-layer's geometry in eager mode, forward and backward, counted: bytes of row-sized tensors that each
    operation reads and writes, in units of one float32 row. Also the number of operations, which are kernels on a GPU."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    import geometry

    class Counter(TorchDispatchMode):
        bytes, operations = 0, 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            views = ("view", "expand", "alias", "detach", "slice", "select", "unsqueeze", "as_strided", "empty", "_unsafe_view", "t.")
            if not func.name().removeprefix("aten::").startswith(views):
                big = [t for t in tree_leaves((args, kwargs or {})) + tree_leaves(out)
                       if isinstance(t, torch.Tensor) and t.numel() >= 64 * 128]
                Counter.bytes += sum(t.numel() * t.element_size() for t in big)
                Counter.operations += 1
            return out
    B, T, heads, size = 1, 128, 2, 64
    x = (0.05 * torch.randn(B, T, heads, size)).requires_grad_()
    v = (0.05 * torch.randn(B, T, heads, size)).requires_grad_()
    c = torch.rand(heads, 1).requires_grad_()
    limit = geometry.max_norm(c, torch.float32).detach()
    with Counter():
        u = geometry.log_previous(x, c)
        y = geometry.add_exp_0(x, v, c, limit)
        torch.autograd.grad((u, y), (x, v, c), (torch.ones_like(u), torch.ones_like(y)))
    return Counter.bytes / (B * T * heads * size * 4), Counter.operations


@dataclass
class RooflineConfig:
    out: Path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "roofline.md")  # where to write


def baseline_seconds(shape, gpu, tokens=TOKENS):
    """A training step of the Euclidean model: matrix products, and row passes of its sub-layers."""
    n_layer, _, C = SHAPES[shape]
    peak, bandwidth = GPUS[gpu]
    parameters = 12 * n_layer * C * C + VOCABULARY * C
    flops = tokens * (6 * parameters + 12 * n_layer * C * T)
    other = 2 * n_layer * tokens * C * (EUCLIDEAN * BYTES + 16 * 2)  # and GELU and the layers' own traffic in 16 bits
    return flops / (peak * 1e12 * UTILISATION) + other / (bandwidth * 1e12 * BANDWIDTH)


def added_seconds(shape, gpu, passes, kernels, tokens=TOKENS):
    """What the geometry adds: its row passes beyond the Euclidean ones."""
    n_layer, _, C = SHAPES[shape]
    return 2 * n_layer * (passes * tokens * C * BYTES / (GPUS[gpu][1] * 1e12 * BANDWIDTH) + kernels * LAUNCH)


@functools.cache
def added_passes():
    """name -> (row passes, kernels) beyond the Euclidean sub-layer's, whose LayerNorm eager mode keeps"""
    eager, operations = counted_eager_passes()
    return {"eager": (eager - 3, operations - 1), "compiled": (COMPILED - EUCLIDEAN, COMPILED_KERNELS),
            "fused": (FUSED - EUCLIDEAN, FUSED_KERNELS)}


def ratios(shape, gpu, tokens=TOKENS):
    """name -> predicted step time of the mixed model relative to the Euclidean one's"""
    base = baseline_seconds(shape, gpu, tokens)
    return {name: 1 + added_seconds(shape, gpu, *added, tokens) / base for name, added in added_passes().items()}


def text():
    added = added_passes()
    lines = [
        "# Predicted cost of the geometry on GPUs", "",
        "**A prediction, not a measurement**: no GPU was at hand. Made by `python bench/roofline.py`; its constants are the",
        "assumptions:", "",
        f"- {TOKENS:,} tokens a step on one GPU, T = {T}, vocabulary {VOCABULARY:,}; reference 'previous', residual 'origin', c per head;",
        f"- matrix products at {UTILISATION:.0%} of the datasheet's dense bf16 peak, streaming kernels at {BANDWIDTH:.0%} of its memory",
        f"  bandwidth, {LAUNCH * 1e6:.0f} microseconds a kernel beyond the baseline's (in eager mode launches are what most of them cost);",
        f"- the residual stream in float32, {BYTES} bytes a number; a pass is one read or one write of (tokens, n_embd);",
        "- the baseline's own traffic beside its Euclidean sub-layers: 32 bytes a number and sub-layer for GELU and the layers; the",
        "  logits and the optimizer, the same in both models, are left out, which makes the ratios larger than they would be.", "",
        "| GPU | dense bf16 TFLOP/s | memory TB/s |", "|---|---|---|",
        *(f"| {name} | {peak} | {bandwidth} |" for name, (peak, bandwidth) in GPUS.items()), "",
        "Passes and kernels that a sub-layer of the mixed model adds to the Euclidean one, forward and backward:", "",
        "| | row passes | kernels | how counted |", "|---|---|---|---|",
        f"| eager | {added['eager'][0]:.0f} | {added['eager'][1]} | bytes of every operation of "
        "`geometry.log_previous` and `add_exp_0`, by a dispatch mode |",
        f"| compiled | {added['compiled'][0]} | {added['compiled'][1]} | estimated, not counted: each map reads its "
        "rows once for sums and once for the result |",
        f"| fused (kernels/) | {added['fused'][0]:.2f} | {added['fused'][1]} | the table in `kernels/__init__.py`, whose "
        "accesses a test counts in machine code |",
        "", "Predicted step time relative to the Euclidean model:", "",
        "| model | GPU | eager | compiled | fused | the published predecessor, as reported |", "|---|---|---|---|---|---|"]
    for shape in SHAPES:
        for gpu in GPUS:
            lines.append(f"| {shape} | {gpu} | " + " | ".join(f"{r:.2f}" for r in ratios(shape, gpu).values()) +
                         f" | {PREDECESSOR[shape]:.2f} |")
    lines += ["", "What would make it wrong: utilisation other than assumed (the ratio scales with it), caches that keep rows between",
              "kernels (less traffic than counted), kernels limited by registers or latency rather than bandwidth (short rows)."]
    return "\n".join(lines + measured_lines(MEASURED)) + "\n"


def measured_lines(folder):
    """Prediction beside measurement, for each card of which bench/gpu.py wrote a JSON file to the folder"""
    from gpu_parts import report, results
    lines = ["", "## Measured", ""]
    for path in sorted(glob.glob(os.path.join(folder, "*.json"))):
        content = results.read(path)
        pairs = [] if content["quick"] else report.predictions(content)
        if pairs:
            lines += [f"{report.card_of(content)['name']} (results/gpu/{os.path.basename(path)}):", "",
                      *report.table(("what", "predicted", "measured"),
                                    [(what, f"{p:.2f}", "-" if m is None else f"{m:.2f}") for what, p, m in pairs])]
    if len(lines) > 3:
        return lines[:-1]
    return [*lines, "Nothing yet: `python bench/gpu.py` on a GPU (docs/gpu.md), then this script again."]


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, RooflineConfig, script_doc=__doc__)
    paths.file_to_write(config.out, f"out = '{config.out}'")
    content = text()
    paths.make_folder_of(config.out)
    write_file(config.out, content.encode("utf-8"))
    print(content)
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
