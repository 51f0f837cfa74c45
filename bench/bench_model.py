"""
Training-step time and peak memory of the mixed-curvature model, of models with several streams, of attention by distance and of
stereographic layers, relative to the baseline, same shapes.

    python bench/bench_model.py                              both shapes, eager and compiled
    python bench/bench_model.py --shape=small --mode=eager --rounds=20
    python bench/bench_model.py --of=streams                 hyper-connections, mHC, AltUp and value residual
    python bench/bench_model.py --of=distance --shape=6x384x8192 --mode=eager --rounds=3    attention by distance at T = 8,192
    python bench/bench_model.py --of=sweeps --threads=1 --dtype=float32    arms of sweeps/verdict.py, as a sweep runs them
    python bench/bench_model.py --of=stereographic           stereographic layers, attention, norm and heads
    python bench/bench_model.py --of=training                Muon, QK-clip, and what log_stability measures on a step that it logs
    python bench/bench_model.py --profile=True --shape=small --mode=eager
    python bench/bench_model.py --nanogpt=../nanoGPT         our default step against nanoGPT's (a clone of its repository)

A step is forward, backward, clipping and AdamW. Time: all models are in one process and take turns, one step each, so
that whatever else the machine does hits all alike; the ratio is the median over rounds of the ratio to the baseline's step
in the same round, after warm-up. Memory: the peak above what the process held before the model was made, each model in a
process of its own (on a GPU: max_memory_allocated; on a CPU: resident memory, in which what a compiler keeps counts too,
so that there the eager figure is the one to compare). Before timing, the logits and gradients of each compiled model are compared with
the eager one's. On a CUDA GPU the mixed model runs on its Triton kernels, too, compared with PyTorch's operations in the same way.
"""
import contextlib
import dataclasses
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import torch

import configurator
import models
from common import paths
from common.errors import UserError, exit_cleanly
from configurator import Path
from training import onednn
from training.compiled import compile_parts
from training.config import TrainConfig
from training.machine import pick_device, pick_dtype, pick_matmul
from training.optimizer import make_optimizers
from training.qk_clip import QKClip
from training.watch import Watch

SHAPES = {  # n_layer, n_head, n_embd, block_size, batch_size, vocab_size
    "toy": (1, 2, 16, 2, 1, 65),  # to try the script
    "small": (4, 4, 128, 128, 24, 65),  # 3,072 tokens a step
    "large": (6, 6, 384, 256, 12, 65),  # 3,072 tokens a step
    "text": (6, 6, 384, 256, 64, 65),  # config/train_shakespeare_*.py
    "124M": (12, 12, 768, 1024, 32, 50304),  # GPT-2 small; for a GPU
    "350M": (24, 16, 1024, 1024, 16, 50304),  # GPT-2 medium; for a GPU
}
ARMS = {
    "baseline": ("baseline", {}),
    "smear": ("baseline", dict(token_shift="smear")),
    "flat": ("baseline", dict(token_shift="difference")),
    "head gate, read": ("baseline", dict(head_gate="read")),
    "bounded": ("baseline", dict(bounded_rows=True)),
    "likeness, bounded": ("baseline", dict(token_shift="likeness", bounded_rows=True)),
    "head gate, attention": ("baseline", dict(head_gate="attention")),
    "mixed, c per head": ("mixed", {}),
    "mixed, one c a block": ("mixed", dict(per_head_curvature=False)),
}
STREAMS = {  # --of=streams
    "baseline": ("baseline", {}),
    "value residual": ("baseline", dict(value_residual="learned")),
    "altup": ("mhc", dict(hc="altup", hc_expand="copy")),
    "hc": ("mhc", dict(hc="hc", hc_expand="copy")),
    "mhc": ("mhc", {}),
    "mhc, dynamic": ("mhc", dict(hc_maps="dynamic")),
    "mhc, dynamic permutations": ("mhc", dict(hc_maps="dynamic", hc_res="permutations")),
    "mhc, mixed curvature": ("mhc_mixed", {}),
}
DISTANCE = {  # --of=distance
    "baseline": ("baseline", {}),
    "tau": ("tau", {}),
    "tau, tiled": ("tau", dict(attention_form="tiled")),
}
_fixed, _learned = dict(curvature=0.1), dict(curvature_mode="random")
OPTIONS = {  # --of=options
    "baseline": ("baseline", {}),
    "mixed, c fixed": ("mixed", _fixed),
    "c learned": ("mixed", _learned),
    "c learned, softplus": ("mixed", dict(_learned, curvature_form="softplus")),
    "c warmed up": ("mixed", dict(_fixed, curvature_warmup=100)),
    "heads of both signs": ("mixed", dict(_fixed, curvature_heads=[1.0, -1.0])),  # as many as the shape has: make_model
    "no max_distance": ("mixed", dict(_fixed, max_distance=None)),
    "max_update": ("mixed", dict(_fixed, max_update=0.5)),
    "conformal updates": ("mixed", dict(_fixed, update_scale="conformal")),
    "straight projection": ("mixed", dict(_fixed, project_gradient="straight")),
    "riemannian embeddings": ("mixed", dict(_fixed, embedding_gradient="riemannian")),
    "one c a block": ("mixed", dict(_fixed, per_head_curvature=False)),
    "c per token": ("mixed", dict(_learned, dynamic_curvature=True)),
    "residual transport": ("mixed", dict(_fixed, residual="transport")),
    "residual reference": ("mixed", dict(_fixed, residual="reference")),
    "reference origin": ("mixed", dict(_fixed, reference="origin")),
    "reference mean": ("mixed", dict(_fixed, reference="mean")),
    "reference window": ("mixed", dict(_fixed, reference="window")),
    "reference ema": ("mixed", dict(_fixed, reference="ema")),
    "c of embeddings": ("mixed", dict(_fixed, use_embedding_curvature=True)),
    "c tied": ("mixed", dict(curvature_mode="tied")),
    "c per coordinate": ("mixed", dict(_learned, curvature_unit="coordinate")),
}
SWEEPS = {  # --of=sweeps
    "baseline": ("baseline", {}),
    "gate+norm": ("controls", dict(control="gate+norm")),
    "c0.1-head": ("mixed", dict(_fixed, max_distance=None)),
    "c1-within": ("mixed", {}),
    "cosine+v": ("terms", dict(read="cosine", likeness=1.3524, write="v", curvature=1.0, max_distance=1.5)),  # of verdict_terms.py
}
STEREOGRAPHIC = {  # --of=stereographic
    "baseline": ("baseline", {}),
    "mixed, c per head": ("mixed", {}),
    **{name: ("stereographic", options) for name, options in {
        "mobius layers": dict(layers="mobius"), "attention by distance": dict(attention="distance"),
        "stereographic norm": dict(norm="stereographic"), "stereographic head": dict(head="stereographic"),
        "lorentz head": dict(head="lorentz"), "lorentz_product head": dict(head="lorentz_product"),
        "all": dict(layers="mobius", attention="distance", head="stereographic")}.items()},
}
TRAINING = {  # --of=training: (model, its options, keys of train.py)
    "baseline": ("baseline", {}, {}),
    "log_stability, a logged step": ("baseline", {}, dict(log_stability=True)),
    "muon": ("baseline", {}, dict(optimizer="muon")),
    "muon, qk_clip": ("baseline", {}, dict(optimizer="muon", qk_clip=100.0)),
    "mixed": ("mixed", {}, {}),
    "mixed, log_stability": ("mixed", {}, dict(log_stability=True)),
    "mixed, muon": ("mixed", {}, dict(optimizer="muon")),
    "mixed, muon, qk_clip": ("mixed", {}, dict(optimizer="muon", qk_clip=100.0)),
}
ON_KERNELS = {f"{name}, triton": (model, dict(options, ops="triton")) for name, (model, options) in ARMS.items() if model == "mixed"}
EVERY = {**ARMS, **ON_KERNELS, **STREAMS, **DISTANCE, **STEREOGRAPHIC, **OPTIONS, **SWEEPS, **TRAINING}


@dataclass
class BenchConfig:
    shape: str = "both"  # small: 4 x 128 | large, text: 6 x 384 | 124M, 350M: GPT-2's | both: small and large | toy: to try the script
        # | LAYERSxWIDTHxT, such as 6x384x8192: one sequence, heads of 64
    of: Literal["curvature", "options", "streams", "distance", "stereographic", "sweeps", "training"] = "curvature"  # which models: the
        # curved ones, each option of the mixed model, several residual streams, attention by distance (model_tau.py), stereographic
        # layers (model_stereographic.py), arms of sweeps/verdict*.py; or optimizers and what is measured in training
    mode: Literal["eager", "compiled", "both"] = "both"  # torch.compile or not
    rounds: int = 10  # timed steps of each model
    threads: int = 2  # CPU threads
    device: str = "auto"  # 'auto' | 'cpu' | 'cuda'
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products (autocast), as train.py's
    matmul: Literal["auto", "torch", "onednn"] = "auto"  # of float32 on a CPU, as train.py's
    memory: bool = True  # measure peak memory too
    profile: bool = False  # instead: a table of where a mixed step's time goes (torch.profiler)
    nanogpt: Path | None = None  # folder of a nanoGPT clone: compare our default step with its default on this device
    arm: str | None = None  # (internal) measure the memory of this arm and print it as JSON

    def __post_init__(self):
        if self.rounds < 1 or self.threads < 1:
            raise UserError("rounds and threads must be at least 1")
        if self.profile and self.of != "curvature":
            raise UserError(f"profile = True is of the mixed model's step, not of = {self.of!r}; leave one of the two out")
        if self.shape != "both":
            sizes_of(self.shape)
        if self.arm is not None and self.arm not in EVERY:
            raise UserError(f"arm = {self.arm!r}: there are {' | '.join(EVERY)}")


def sizes_of(shape):
    """n_layer, n_head, n_embd, block_size, batch_size, vocab_size of a name in SHAPES or of LAYERSxWIDTHxT. Raises UserError."""
    if shape in SHAPES:
        return SHAPES[shape]
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", shape)
    if not found or int(found[2]) % 64:
        raise UserError(f"shape = {shape!r}: there are {' | '.join(['both', *SHAPES])} | LAYERSxWIDTHxT, WIDTH a multiple of 64")
    n_layer, n_embd, block_size = map(int, found.groups())
    return n_layer, n_embd // 64, n_embd, block_size, 1, 65


def autocast_in(dtype, device):
    """As train.py makes it"""
    if dtype == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(torch.device(device).type, dtype=getattr(torch, dtype))


def make_model(arm, shape, device, n_layer=None):
    """An arm's model, and a batch. n_layer: in place of the shape's. The same seed for all."""
    layers, n_head, n_embd, block_size, batch_size, vocab_size = sizes_of(shape)
    name, options, *_ = EVERY[arm]
    if options.get("curvature_heads"):
        options = dict(options, curvature_heads=[1.0, *[-1.0] * (n_head - 1)])
    torch.manual_seed(0)
    model = models.build(name, models.CONFIGS[name](vocab_size=vocab_size, block_size=block_size, n_layer=n_layer or layers,
                                                    n_head=n_head, n_embd=n_embd, **options)).to(device).train()
    torch.manual_seed(1)
    return model, *(torch.randint(vocab_size, (batch_size, block_size), device=device) for _ in range(2))


def make_step(arm, shape, compiled, device, dtype, checked=True, matmul="torch", **compile_options):
    """A function that makes one training step (without float16's GradScaler) and returns its loss; and the model. matmul: what
    pick_matmul() says. checked: is a compiled model, or one on the kernels, first compared with PyTorch's in float32? (That takes as
    much memory as both.)"""
    autocast = autocast_in(dtype, device)
    model, x, y = make_model(arm, shape, device)
    if matmul == "onednn":
        onednn.use_in(model)
    name, options, *keys = EVERY[arm]
    training = TrainConfig(**keys[0]) if keys else TrainConfig()
    clip = QKClip(model, training.qk_clip) if training.qk_clip is not None else None
    watch = Watch(model) if training.log_stability else None
    optimizers = make_optimizers(model, training, torch.device(device).type)
    step_model = compile_parts(model, **compile_options) if compiled else model
    if checked and (compiled or "ops" in options):
        plain = model
        if "ops" in options:  # the kernels against PyTorch
            plain = models.build(name, dataclasses.replace(model.config, ops="torch")).to(device)
            plain.load_state_dict(model.state_dict())
        check(step_model, model, plain, x, y)

    def step():
        with autocast():
            loss = step_model(x, y)[1]
        loss.backward()
        if watch:
            watch.gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if clip:
            clip.after_update(lambda largest: largest, skipped=torch.zeros((), device=device))
        if watch:
            watch.numbers()
        return loss.detach()
    return step, model


def compile_only(arm, shape, device, dtype, **options):
    """Compiles an arm's code into torch's caches on disk: forward and backward of its embedding and two of its blocks (blocks are
    alike) and, for the baseline, of the head, which all arms share; and the same without gradients, as train.py evaluates. options:
    torch.compile's."""
    model, x, y = make_model(arm, shape, device, n_layer=2)
    fast = compile_parts(model, **options)
    with autocast_in(dtype, device)():
        loss = fast(x, y)[1] if arm == "baseline" else fast.trunk(x).float().sum()
    loss.backward()
    fast.eval()
    with torch.no_grad(), autocast_in(dtype, device)():
        fast(x, y) if arm == "baseline" else fast.trunk(x)
    synchronize(device)


def check(step_model, model, plain, x, y):
    """The logits of step_model (which shares model's weights) and all gradients are those of plain, in float32."""
    found = []
    for run, owner in ((step_model, model), (plain, plain)):
        logits, loss = run(x, y)
        named = dict(owner.named_parameters())
        found.append((logits, dict(zip(named, torch.autograd.grad(loss, list(named.values()))))))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-3)
    for key, expected in found[1][1].items():
        torch.testing.assert_close(found[0][1][key], expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()), msg=key)


def synchronize(device):
    if device != "cpu":
        (torch.cuda if device.startswith("cuda") else torch.mps).synchronize()


def interleaved(steps, rounds, device):
    """name -> list of seconds, taken in turns."""
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            synchronize(device)
            times[name].append(time.perf_counter() - began)
    return times


def peak_memory(arm, shape, compiled, device, dtype, matmul):
    """Peak MiB that training takes above an empty process with torch loaded."""
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        step, _ = make_step(arm, shape, compiled, device, dtype)
        step()
        torch.cuda.reset_peak_memory_stats()  # building, the check and the compiler do not count
        step(), step()
        return (torch.cuda.max_memory_allocated() - before) / 2 ** 20
    before = _status_kib("VmRSS")
    step, _ = make_step(arm, shape, compiled, device, dtype, matmul=matmul)
    step()
    gc.collect()
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # Linux: set VmHWM back to what is resident now, so that the compiler's own peak does not count
    step(), step()
    return (_status_kib("VmHWM") - before) / 1024


def _status_kib(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key + ":"))


def memory_in_own_process(arm, shape, compiled, config):
    if not os.path.exists("/proc/self/clear_refs"):
        return None
    done = subprocess.run([sys.executable, os.path.abspath(__file__), f"--arm={arm}", f"--shape={shape}",
                           f"--mode={'compiled' if compiled else 'eager'}", f"--threads={config.threads}",
                           f"--device={config.device}", f"--dtype={config.dtype}", f"--matmul={config.matmul}"],
                          capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"measuring the memory of {arm!r} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])["mib"]


def report(shape, compiled, config, device, dtype, matmul):
    steps, compile_seconds = {}, {}
    arms = {"curvature": [*ARMS, *(ON_KERNELS if device.startswith("cuda") else [])], "options": OPTIONS, "streams": STREAMS,
            "distance": DISTANCE, "stereographic": STEREOGRAPHIC, "sweeps": SWEEPS, "training": TRAINING}[config.of]
    for arm in arms:
        began = time.perf_counter()
        step, _ = make_step(arm, shape, compiled, device, dtype, matmul=matmul)
        step(), step()
        synchronize(device)
        compile_seconds[arm] = time.perf_counter() - began
        steps[arm] = step
    times = interleaved(steps, config.rounds, device)
    memory = {arm: memory_in_own_process(arm, shape, compiled, config) if config.memory else None for arm in steps}
    n_layer, _, n_embd, block_size, batch_size, _ = sizes_of(shape)
    print(f"\n{n_layer} x {n_embd}, T = {block_size}, batch {batch_size}, {'compiled' if compiled else 'eager'}, "
          f"{config.threads} threads, {device}, {dtype}{' by oneDNN' if matmul == 'onednn' else ''}, {config.rounds} rounds")
    print(f"  {'':29}{'ms a step':>10}{'ratio':>8}{'MiB':>8}{'ratio':>8}{'first 2 steps, s':>18}")
    for arm in steps:
        ratio = statistics.median(a / b for a, b in zip(times[arm], times["baseline"]))
        mib = memory[arm]
        print(f"  {arm:29}{1000 * statistics.median(times[arm]):10.1f}{ratio:8.3f}"
              + (f"{mib:8.0f}{mib / memory['baseline']:8.3f}" if mib is not None else f"{'-':>8}{'-':>8}")
              + f"{compile_seconds[arm]:18.1f}")


def profile(shape, compiled, device, dtype, matmul):
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler
    step, _ = make_step("mixed, c per head", shape, compiled, device, dtype, matmul=matmul)
    step(), step()
    on_cuda = device.startswith("cuda")
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as recorded:
        for _ in range(3):
            step()
    print(recorded.key_averages().table(sort_by="self_device_time_total" if on_cuda else "self_cpu_time_total", row_limit=25,
                                        max_name_column_width=60))


def against_nanogpt(folder, rounds, device, dtype, matmul):
    """Our baseline as train.py runs it by default against nanoGPT's model as its train.py runs it by default on this
    device: 6 x 384, T = 256, batch 12, dropout 0.0; nanoGPT: float32 on the CPU (its autocast is for GPUs), AdamW."""
    paths.folder_to_read(folder, f"nanogpt = '{folder}'", "a clone of nanoGPT")
    if not os.path.isfile(os.path.join(folder, "model.py")):
        raise UserError(f"{folder} is not a clone of nanoGPT: it has no model.py")
    import importlib.util
    spec = importlib.util.spec_from_file_location("nanogpt_model", os.path.join(folder, "model.py"))
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    n_layer, n_head, n_embd, block_size, batch_size, vocab_size = SHAPES["large"]
    model = theirs.GPT(theirs.GPTConfig(block_size=block_size, vocab_size=vocab_size, n_layer=n_layer, n_head=n_head,
                                        n_embd=n_embd, dropout=0.0, bias=False)).to(device)
    kind = torch.device(device).type
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), kind)
    x, y = (torch.randint(vocab_size, (batch_size, block_size), device=device) for _ in range(2))
    autocast = autocast_in(dtype if kind == "cuda" else "float32", device)

    def their_step(step_model):
        def step():
            with autocast():
                loss = step_model(x, y)[1]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return step
    steps = {"nanoGPT, compile=False (as its README says for a CPU)": their_step(model),
             "nanoGPT, compile=True (its default)": their_step(torch.compile(model)),
             f"ours, {dtype}, compile=False": make_step("baseline", "large", False, device, dtype, matmul=matmul)[0],
             f"ours, {dtype}, compile=True": make_step("baseline", "large", True, device, dtype, matmul=matmul)[0]}
    for step in steps.values():
        step(), step()
    times = interleaved(steps, rounds, device)
    first = next(iter(times.values()))
    for name, taken in times.items():
        print(f"  {name:55}{1000 * statistics.median(taken):10.1f} ms, ratio "
              f"{statistics.median(a / b for a, b in zip(taken, first)):.3f}")


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, BenchConfig, script_doc=__doc__)
    torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dtype = pick_dtype(config.dtype, torch.device(device).type)
    matmul = pick_matmul(config.matmul, torch.device(device).type, dtype)
    compiled = {"eager": [False], "compiled": [True], "both": [False, True]}[config.mode]
    shapes = ["small", "large"] if config.shape == "both" else [config.shape]
    if config.arm:
        print(json.dumps({"mib": peak_memory(config.arm, shapes[0], compiled[0], device, dtype, matmul)}))
        return 0
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores")
    if config.nanogpt:
        against_nanogpt(config.nanogpt, config.rounds, device, dtype, matmul)
        return 0
    for shape in shapes:
        for flag in compiled:
            profile(shape, flag, device, dtype, matmul) if config.profile else report(shape, flag, config, device, dtype, matmul)
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
