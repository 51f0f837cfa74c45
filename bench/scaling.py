"""
Memory and communication of a training step on many GPUs, from formulas, for models of 124M to 7B parameters. At the end the formulas
are compared with a measurement at small size.

    python bench/scaling.py                  writes docs/scaling.md (measures with 2 CPU processes; a minute)

P parameters, M of them in matrices of the blocks, `outside` of them outside the blocks, W processes, B sequences of T
tokens in a micro-batch, m micro-batches a process and step, L blocks of width C, vocabulary V. Weights and gradients are
float32 (4 bytes); autocast to bf16 makes the matrix products' operands 2 bytes.
"""
import json
import os
import subprocess
import sys
from dataclasses import dataclass

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import torch

import configurator
import models
from common import paths
from common.errors import UserError, exit_cleanly
from common.whole_files import write_file
from configurator import Path
from training.config import TrainConfig
from training.optimizer import make_optimizers
from training.parallel import Parallel

SHAPES = {  # n_layer, n_head, n_embd
    "124M": (12, 12, 768), "350M": (24, 16, 1024), "774M": (36, 20, 1280), "1.6B": (48, 25, 1600), "2.7B": (32, 32, 2560),
    "7B": (32, 32, 4096)}
T, VOCABULARY = 1024, 50304
SMALL = dict(vocab_size=512, block_size=64, n_layer=3, n_head=4, n_embd=128)  # what is measured
SMALL_BATCH, SMALL_MICRO_STEPS = 2, 3  # B and m of the measurement
PROCESSES = 2
CARD = 80  # GiB of a device, for what to conclude


@dataclass
class Options:
    out: Path = os.path.join(HERE, "docs", "scaling.md")  # the file to write
    micro_batch: int = 8  # B of the predictions
    micro_steps: int = 1  # m of the predictions
    worker: str | None = None  # used by the script itself: measure as one of torchrun's processes


# ----------------------------------------------------------------------------------------------------------------------
# the formulas

def sizes(L, C, V, T):
    """(P, M, parameters of a block, parameters outside the blocks) of the baseline without biases, head tied."""
    block = 12 * C * C + 2 * C
    outside = (V + T) * C + C
    return L * block + outside, 12 * L * C * C, block, outside


def state_bytes(P, M, block, outside, W, kind, optimizer, m):
    """Weights, gradients and optimizer state on each process, in bytes: (weights, gradients, state, gathered at a time)."""
    momentum = 4 * M / W  # Muon's: each process has that of its matrices
    if kind == "ddp":
        return 4 * P, 4 * P, 8 * P if optimizer == "adamw" else 8 * (P - M) + momentum, 0
    # m > 1: gradients are summed whole, and cut once, in the last micro-batch (training/parallel.py: accumulating)
    gradients = 4 * P / W if m == 1 else 4 * P
    state = 8 * P / W if optimizer == "adamw" else 8 * (P - M) / W + momentum
    gathered = 4 * (outside + 2 * block)  # the outermost module's, this block's and the next one's
    return 4 * P / W, gradients, state, gathered


def activation_bytes(L, C, V, T, B, per_block, recompute):
    """Kept for the backward pass. per_block: bytes a token, block and channel. The logits: bf16, and float32 in the loss."""
    blocks = (4 * L + per_block) if recompute else per_block * L
    return B * T * C * blocks + B * T * V * (2 + 4)


def traffic_bytes(P, M, outside, W, kind, optimizer, m):
    """Sent by each process in a step, ring algorithms; of Muon's changes, the mean over processes."""
    share, muon = (W - 1) / W, optimizer == "muon"
    if kind == "ddp":
        return share * 4 * (2 * P + muon * M)  # one all-reduce; changes, to all
    # gathered for the forward and again for the backward pass, but for what is outside the blocks; one reduce-scatter;
    # with Muon, gradients to all, and changes in shards
    return share * 4 * (m * (2 * P - outside) + P + muon * M * (1 + 1 / W))


# ----------------------------------------------------------------------------------------------------------------------
# the measurement

def kept_bytes_per_block(name, dtype, C, **options):
    """Bytes a token and channel that one more block keeps for the backward pass: saved tensors, each storage once."""
    def kept(n_layer):
        torch.manual_seed(0)
        model = models.build(name, models.CONFIGS[name](vocab_size=64, block_size=64, n_layer=n_layer, n_head=C // 64, n_embd=C,
                                                        **options))
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage
            return tensor
        idx = torch.randint(64, (4, 64))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), \
                torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16", cache_enabled=False):
            loss = model(idx, idx)[1]
        weights = 2 * 12 * C * C * n_layer if dtype == "bfloat16" else 0  # autocast's copies of the weights
        return sum(s.nbytes() for s in storages.values()) - weights, loss
    return (kept(3)[0] - kept(1)[0]) / 2 / (4 * 64) / C


def measure(kind, optimizer):
    """Of this process: bytes held after a step, and bytes in collectives during one."""
    parallel = Parallel(kind, "cpu")
    torch.manual_seed(0)
    model = models.build("baseline", models.CONFIGS["baseline"](**SMALL))
    step_model, _ = parallel.wrap(model, compiled=False)
    optimizers = make_optimizers(model, TrainConfig(optimizer=optimizer), "cpu", parallel)
    idx = torch.randint(SMALL["vocab_size"], (SMALL_BATCH, SMALL["block_size"]))

    def step():
        for micro in range(SMALL_MICRO_STEPS):
            with parallel.accumulating(step_model, micro == SMALL_MICRO_STEPS - 1):
                step_model(idx, idx)[1].backward()
        parallel.finish_gradients()
        held = [p.grad for p in model.parameters()]
        for each in optimizers:
            each.step()
        return held
    step()
    for each in optimizers:
        each.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        gradients = step()

    def local(tensors):
        return sum((t.to_local() if hasattr(t, "to_local") else t).nbytes for t in tensors)
    moments = [v for each in optimizers for state in getattr(each, "own", each).state.values() for k, v in state.items() if k != "step"]
    sent, share = 0.0, (parallel.world - 1) / parallel.world
    for event in profile.events():
        factor = {"gloo:all_reduce": 2 if kind == "ddp" else 0,  # in a ring reduced and gathered; gloo's way to reduce_scatter
                  "_c10d_functional::all_gather_into_tensor": parallel.world,  # its argument is a shard
                  "c10d::_allgather_base_": 1, "c10d::_reduce_scatter_base_": 1,
                  "gloo:scatter": parallel.world,  # shards, where they are sent from
                  "gloo:broadcast": 1}.get(event.name, 0)
        shapes = [torch.Size(shape) for shape in event.input_shapes if shape]
        if factor and shapes and (event.name != "gloo:broadcast" or len(shapes[0]) == 2):  # (DDP broadcasts some sizes, too)
            sent += factor * share * 4 * max(shape.numel() for shape in shapes)
    names = "weights", "gradients", "state", "sent"
    sums = parallel.sum(local(model.parameters()), local(gradients), local(moments), sent)
    result = {name: value / parallel.world for name, value in zip(names, sums)}
    if parallel.main:
        print("measured " + json.dumps(result))
    parallel.close()


def measured(kind, optimizer):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}",
               os.path.abspath(__file__), f"--worker={kind},{optimizer}"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith("measured ")]
    if done.returncode or not lines:
        raise UserError(f"the measurement failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(lines[0].removeprefix("measured "))


# ----------------------------------------------------------------------------------------------------------------------
# the page

def gib(n):
    return f"{n / 2 ** 30:.1f}"


def largest_that_fit(total):
    """{shape: {way of training: bytes}} -> for each way the largest model that a device of CARD GiB holds."""
    found = {way: [name for name, by_way in total.items() if by_way[way] <= CARD * 2 ** 30] for way in next(iter(total.values()))}
    return ", ".join(f"{names[-1] if names else 'none of these'} {way}" for way, names in found.items())


def page(options):
    per_block = {(name, dtype): kept_bytes_per_block(name, dtype, 256) for name in ("baseline", "mixed")
                 for dtype in ("float32", "bfloat16")}
    predicted, total, more_sent = [], {}, []
    for name, (L, _, C) in SHAPES.items():
        P, M, block, outside = sizes(L, C, VOCABULARY, T)
        state = {(kind, W): sum(state_bytes(P, M, block, outside, W, kind, "adamw", options.micro_steps))
                 for kind, W in (("ddp", 8), ("fsdp", 8), ("fsdp", 64))}
        kept = {(model, recompute): activation_bytes(L, C, VOCABULARY, T, options.micro_batch, per_block[model, "bfloat16"], recompute)
                for model in ("baseline", "mixed") for recompute in (False, True)}
        sent = [traffic_bytes(P, M, outside, 8, kind, "adamw", options.micro_steps) for kind in ("ddp", "fsdp")]
        total[name] = {way + (" and recomputed activations" if recompute else ""): state[key] + kept["mixed", recompute]
                       for way, key in (("with DDP", ("ddp", 8)), ("with FSDP2 on 8 devices", ("fsdp", 8)))
                       for recompute in (False, True)}
        more_sent.append(sent[1] / sent[0])
        predicted.append(f"| {name} | {P / 1e6:,.0f}M | {gib(state['ddp', 8])} | {gib(state['fsdp', 8])} | {gib(state['fsdp', 64])} | "
                         f"{gib(kept['baseline', False])} | {gib(kept['baseline', True])} | "
                         f"{gib(kept['mixed', False] - kept['baseline', False])} | {sent[0] / 1e9:.1f} | {sent[1] / 1e9:.1f} |")
    P, M, block, outside = sizes(SMALL["n_layer"], SMALL["n_embd"], SMALL["vocab_size"], SMALL["block_size"])
    compared, worst = [], 0.0
    for kind in ("ddp", "fsdp"):
        for optimizer in ("adamw", "muon"):
            found = measured(kind, optimizer)
            weights, _, state, _ = state_bytes(P, M, block, outside, PROCESSES, kind, optimizer, SMALL_MICRO_STEPS)
            gradients = 4 * P if kind == "ddp" else 4 * P / PROCESSES  # after the last micro-batch FSDP2's are in shards again
            sent = traffic_bytes(P, M, outside, PROCESSES, kind, optimizer, SMALL_MICRO_STEPS)
            pairs = [(weights, found["weights"]), (gradients, found["gradients"]), (state, found["state"]),
                     (sent, found["sent"])]
            worst = max(worst, *(abs(b / a - 1) for a, b in pairs))
            compared.append(f"| {kind}, {optimizer} | " + " | ".join(f"{a:,.0f} / {b:,.0f}" for a, b in pairs) + " |")
    ratio = {dtype: per_block["mixed", dtype] / per_block["baseline", dtype] for dtype in ("float32", "bfloat16")}
    fits = (f"The largest mixed models of these that fit on devices of {CARD} GiB: {largest_that_fit(total)}. FSDP2 sends "
            f"{min(more_sent):.2f} to {max(more_sent):.2f} times what DDP sends.")
    out = [f"**In short.** {fits} At small size the formulas and a measurement differ by {worst:.1%} at most.", "",
           __doc__.strip().split("\n\n")[0], "", "Made by `python bench/scaling.py`. **A prediction**: nothing here ran on a GPU. "
           f"T = {T}, V = {VOCABULARY:,}, B = {options.micro_batch} sequences a device, m = {options.micro_steps}, AdamW, float32 "
           "weights, bf16 autocast.", "", "\n\n".join(__doc__.strip().split("\n\n")[2:]), "", "## Formulas", "",
           "With DDP every device holds everything. With FSDP2 each of the W devices holds a part, but for the activations.", "",
           "| bytes on each process | DDP | FSDP2 |", "|---|---|---|",
           "| weights | 4P | 4P/W |", "| gradients | 4P | 4P/W, or 4P where m > 1 (summed whole, sent once) |",
           "| AdamW | 8P | 8P/W |", "| Muon | 8(P - M) + 4M/W | 8(P - M)/W + 4M/W |",
           "| gathered while it runs | 0 | 4 (outside the blocks + 2 blocks) |",
           "| activations | BTC(kL), or BTC(4L + k) with activation_checkpointing; + 6BTV for logits | the same |",
           "| **sent in a step** (ring) | 8P(W - 1)/W, once for any m | 4(m(2P - outside) + P)(W - 1)/W |",
           "| sent with Muon, more | 4M(W - 1)/W | 4M(1 + 1/W)(W - 1)/W |",
           "| held while Muon steps, more | 4M/W, the changes | 8M/W, the changes and their gradients, whole |", "",
           f"A mixed block keeps {ratio['float32']:.2f} times what a baseline block keeps in float32, {ratio['bfloat16']:.2f} times in "
           "bf16. k, bytes that a block keeps for each token and channel (measured with saved_tensors_hooks, eager, one more block at "
           "C = 256 with heads of 64):", "", "| | float32 | bf16 autocast |", "|---|---|---|"]
    for name in ("baseline", "mixed"):
        out.append(f"| {name} | {per_block[name, 'float32']:.1f} | {per_block[name, 'bfloat16']:.1f} |")
    out += ["", "By hand for the baseline in float32: two LayerNorm inputs and outputs 16, q k v 12, attention's result 4, "
            "MLP 16 + 16: 64, and a row or two of statistics.", "", "## Predictions", "", fits, "",
            "GiB on each device; 'recomputed': with `activation_checkpointing=True`. GB sent by each device in a step.", "",
            "| model | P | DDP, any W | FSDP2, W = 8 | FSDP2, W = 64 | activations | recomputed | mixed, more | sent: DDP, W = 8 | "
            "sent: FSDP2, W = 8 |", "|---|---|---|---|---|---|---|---|---|---|", *predicted]
    out += ["", "## Measured at small size", "", f"Formulas and measurement differ by {worst:.1%} at most.", "",
            f"{SMALL['n_layer']} x {SMALL['n_embd']}, V = {SMALL['vocab_size']}, P = {P:,}; {PROCESSES} CPU processes (gloo), "
            f"m = {SMALL_MICRO_STEPS}. Held: the tensors of a process after a step, the mean of both. Sent: shapes of the collectives in a "
            "profile of one step, times what a ring sends of them. Bytes; formula / measured.", "",
            "| | weights | gradients | state | sent |", "|---|---|---|---|---|", *compared]
    out += ["", "## What the formulas leave out", "",
            "- Fragmentation, NCCL's buffers, the CUDA context (about 1 GiB), autocast's bf16 copies of the weights (2M; FSDP2: of "
            "the gathered blocks).", "- torch.compile keeps other tensors than eager mode does.",
            "- The curvatures (and what predicts them) stay whole with FSDP2, and are all-reduced: a few kB.",
            "- Every process builds the whole model in its host memory (4P bytes) before it is cut in shards.",
            "- Overlap: DDP sends buckets during the backward pass, of a compiled model when a compiled piece of it (a block or less) is "
            "through.", ""]
    return "# Scaling: memory and communication\n\n" + "\n".join(out)


@exit_cleanly
def main(argv):
    options, _ = configurator.resolve(argv, Options, script_doc=__doc__)
    if options.worker:
        measure(*options.worker.split(","))
        return 0
    paths.file_to_write(options.out, f"out = '{options.out}'")  # before a minute's work
    text = page(options)
    paths.make_folder_of(options.out)
    write_file(options.out, text.encode("utf-8"))
    print(text)
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
