"""
Train a GPT: one loop for every model. Read it from top to bottom.

    python train.py config/train_shakespeare_mixed.py                  a config file
    python train.py config/demo_mixed.py --max_iters=200 --seed=3      with overrides
    python train.py config/demo_mixed.py --init_from=resume            go on where the run of this out_dir stopped
    torchrun --nproc-per-node=8 train.py config/train_fineweb_mixed.py several GPUs (or CPU processes): parallel.py
    python train.py --help                                             every key, its default, what it is

Everything a run leaves is in out_dir:

    config.json    the resolved configuration        env.json      versions, git commit, command, host
    metrics.jsonl  one line a logged step            ckpt/         last and best: weights (safetensors) and state
    summary.json   final and best validation loss, tokens, seconds, status: finished | diverged | stopped
    tensorboard/   the same metrics for TensorBoard

Exit status: 0 finished, or stopped by a signal and resumable; 2 bad input; 3 diverged. (torchrun's own is 1 for both.)

Micro-batch k of a run is a function of the data, the seed and k, and so are the random numbers drawn in it (dropout): a
resumed run is the run that was never stopped, bit for bit on the CPU, and W processes train as one.
"""
import startup  # first: Ctrl-C while the others are imported is one line

import contextlib
import datetime
import importlib.util
import math
import os
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import checkpoint
import configurator
import models
from configurator import Path
from dataloader import Loader, load_meta
from errors import Diverged, UserError, exit_cleanly, speak_as
from interrupts import Stop
from optimizer import make_optimizers, set_lr
from parallel import Parallel, clip_gradients, gradient_norm
from run_directory import Metrics, NoMetrics, check_run, environment, hold_run, start_run, start_wandb
from whole_files import write_json

HERE = os.path.dirname(os.path.abspath(__file__))
REPORT_SECONDS = 60  # without a terminal: between two lines of progress, beside those of evaluations


# ----------------------------------------------------------------------------------------------------------------------
# keys; those of each model are in its own file

@dataclass
class TrainConfig:
    model: Literal[*models.MODELS] = "baseline"  # which file: model_baseline.py | model.py | model_controls.py
    out_dir: Path = "out"  # the run's own directory
    overwrite: bool = False  # replace the run that out_dir holds
    init_from: Literal["scratch", "resume", "auto"] = "scratch"  # 'resume' goes on from out_dir/ckpt/last; 'auto' does so
        # if out_dir holds a run, and starts one if not
    seed: int = 1337  # of the weights, of dropout and of the order of the data
    # data
    dataset: str = "shakespeare_char"  # folder in data_dir, prepared by its prepare.py
    data_dir: Path = os.path.join(HERE, "data")  # where the data sets are
    batch_size: int = 12  # sequences in a micro-batch
    gradient_accumulation_steps: int = 1  # micro-batches in a step, of all processes; tokens a step = this * batch_size *
        # block_size
    num_workers: int = 1  # threads that read batches ahead; 0: read them in the loop
    # length and evaluation
    max_iters: int = 5000  # optimizer steps
    max_seconds: float | None = None  # finish after this many seconds of training, if max_iters is not reached before
    target_val_loss: float | None = None  # stop when reached; tokens and training seconds are reported
    eval_interval: int = 250  # steps between evaluations (each also writes ckpt/last)
    save_interval: int | None = None  # steps between further writings of ckpt/last (None: at evaluations only)
    eval_iters: int = 50  # batches of each split in an evaluation (at most the whole split); always the same ones
    eval_only: bool = False  # evaluate once and stop
    log_interval: int = 10  # steps between lines of metrics.jsonl
    # optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"  # 'muon': torch.optim.Muon for the 2-D weights of the blocks
    learning_rate: float = 1e-3  # peak, of AdamW
    weight_decay: float = 0.1  # of matrices and embeddings
    beta1: float = 0.9  # AdamW
    beta2: float = 0.99  # AdamW; 0.95 for large batches
    grad_clip: float = 1.0  # global gradient norm; 0 switches it off
    curvature_lr_mult: float = 1.0  # lr of learned curvatures = this * learning_rate
    muon_lr: float = 0.02  # peak, of Muon
    muon_momentum: float = 0.95  # Muon
    muon_ns_steps: int = 5  # Newton-Schulz iterations of Muon
    # learning-rate schedule: linear warm-up, then cosine
    decay_lr: bool = True  # False: constant after the warm-up
    warmup_iters: int = 100  # steps
    lr_decay_iters: int | None = None  # step at which min_lr is reached (None: max_iters)
    min_lr: float | None = None  # None: learning_rate / 10
    # machine
    device: str = "auto"  # 'auto' | 'cpu' | 'cuda' | 'cuda:1' | 'mps'
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products (autocast); weights are float32
    compile: bool | Literal["auto"] = "auto"  # torch.compile; 'auto': where it pays off for the planned steps
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: whole weights on each process, or in shards
    activation_checkpointing: bool = False  # keep a block's input alone and compute the block again in the backward pass
    threads: int = 0  # CPU threads (0: torch's choice)
    # logs
    tensorboard_log: bool = True  # event files in out_dir/tensorboard
    wandb_log: bool = False  # Weights & Biases (pip install wandb)
    wandb_project: str = "mixed-curvature-gpt"  # Weights & Biases
    wandb_run_name: str | None = None  # None: the name of out_dir

    def __post_init__(self):
        at_least = dict(batch_size=1, gradient_accumulation_steps=1, max_iters=0, eval_interval=1, eval_iters=1,
                        log_interval=1, muon_ns_steps=1, warmup_iters=0, threads=0, seed=0, learning_rate=0,
                        weight_decay=0, grad_clip=0, curvature_lr_mult=0, muon_lr=0, num_workers=0)
        for key, least in at_least.items():
            if getattr(self, key) < least:
                raise UserError(f"{key} = {getattr(self, key)}: must be at least {least}")
        for key, limit in (("muon_ns_steps", 100), ("threads", 2 ** 16)):
            if getattr(self, key) >= limit:
                raise UserError(f"{key} = {getattr(self, key)}: must be less than {limit}")
        if self.overwrite and self.init_from != "scratch":
            raise UserError(f"overwrite = True replaces the run that init_from = {self.init_from!r} goes on with; take one of them")
        if not self.out_dir:
            raise UserError("out_dir is empty: name the run's folder")
        for key in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"{key} = {getattr(self, key)}: must be in [0, 1)")
        for key in ("save_interval", "max_seconds"):
            if getattr(self, key) is not None and getattr(self, key) <= 0:
                raise UserError(f"{key} = {getattr(self, key)}: must be more than 0, or None")
        if self.learning_rate == 0:
            raise UserError("learning_rate = 0: nothing would be learned")
        if self.lr_decay_iters is None:
            self.lr_decay_iters = self.max_iters
        if self.min_lr is None:
            self.min_lr = self.learning_rate / 10
        if not 0 <= self.min_lr <= self.learning_rate:
            raise UserError(f"min_lr = {self.min_lr}: must be between 0 and learning_rate = {self.learning_rate}")


    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        found = {}
        if self.optimizer != "muon":
            found.update(dict.fromkeys(("muon_lr", "muon_momentum", "muon_ns_steps"), f"optimizer = {self.optimizer!r}"))
        if not self.decay_lr:
            found.update(dict.fromkeys(("min_lr", "lr_decay_iters"), "decay_lr = False"))
        if not self.wandb_log:
            found.update(dict.fromkeys(("wandb_project", "wandb_run_name"), "wandb_log = False"))
        return found


# ----------------------------------------------------------------------------------------------------------------------
# choices that depend on the machine: each is made once and printed

def pick_device(wanted):
    """'cpu', 'mps' or 'cuda:N'"""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise UserError(f"device = {wanted!r}: there is no such device; use auto, cpu, cuda, cuda:N or mps") from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    index = torch.device(wanted).index or 0
    if not present.get(kind, False) or (kind == "cuda" and index >= torch.cuda.device_count()):
        raise UserError(f"device = {wanted!r} is not available on this machine; use --device=auto")
    return f"cuda:{index}" if kind == "cuda" else kind


def pick_dtype(wanted, device_type):
    """bf16 where the hardware multiplies it faster than float32 (on a CPU: AMX or AVX512-BF16 instructions)."""
    if wanted != "auto":
        return wanted
    if device_type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device_type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "bfloat16"
    return "float32"


def no_compiler(device_type):
    """What torch.compile needs on this device and does not find, or None."""
    def found(variable, *names):
        return any(map(shutil.which, [os.environ[variable]] if variable in os.environ else names))
    name = "clang++" if sys.platform == "darwin" else "g++"
    if device_type == "cpu" and not found("CXX", name):
        return f"a C++ compiler: there is no {os.environ.get('CXX', name)}"
    if device_type == "cuda" and not found("CC", "gcc", "clang"):  # Triton compiles a part of itself the first time
        return f"a C compiler: there is no {os.environ.get('CC', 'gcc or clang')}"
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton, and it is not installed"
    return None


def pick_compile(wanted, device_type, flops, cost, saving=0.1):
    """(compile?, why). flops: of all planned steps; cost: seconds that compiling the model takes; saving: what it saves on this
    device, as a share of what the flops take. Assumed for 'auto': 1e11 flop/s on a CPU and 5e13 on a GPU."""
    lacking = no_compiler(device_type)
    if wanted != "auto":
        if wanted and lacking:
            raise UserError(f"compile = True needs {lacking}; install it, or use --compile=False")
        return wanted, "as asked"
    if device_type == "mps":
        return False, "not on mps"
    if lacking:
        return False, f"it needs {lacking}"
    seconds = flops / (5e13 if device_type == "cuda" else 1e11)
    saved = seconds * saving
    return saved > cost, f"some {seconds:,.0f} s of matrix products planned; it may save {saved:,.0f} s and cost {cost:,.0f}"


# ----------------------------------------------------------------------------------------------------------------------

def lr_at(step, config):
    """Linear warm-up to learning_rate, then cosine to min_lr at lr_decay_iters, then min_lr."""
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if not config.decay_lr:
        return config.learning_rate
    if step >= config.lr_decay_iters:
        return config.min_lr
    progress = (step - config.warmup_iters) / (config.lr_decay_iters - config.warmup_iters)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.learning_rate - config.min_lr)


@torch.no_grad()
def evaluate(model, loaders, eval_iters, autocast, parallel):
    """Mean loss of each split over its fixed evaluation batches, weighted by tokens. Each process takes its share of them."""
    model.eval()
    losses = {}
    for split, loader in loaders.items():
        total, tokens = 0.0, 0
        # sharded weights are gathered by all processes at once: where the batches do not divide evenly, the last of them
        # is read again, and not counted
        batches = list(loader.eval_batches(eval_iters, parallel.rank, parallel.world))
        rounds = -(-loader.num_eval_batches(eval_iters) // parallel.world)
        for i in range(rounds):
            x, y = batches[i] if i < len(batches) else next(loader.eval_batches(1))
            with autocast():
                loss = model(x, y)[1]
            if i < len(batches):
                total, tokens = total + loss.item() * y.numel(), tokens + y.numel()
        total, tokens = parallel.sum(total, tokens)
        losses[split] = total / tokens
    model.train()
    return losses


def padded_vocabulary(size):
    """A GPU's matrix units want whole tiles: GPT-2's 50,257 become nanoGPT's 50,304. The added tokens never occur."""
    return size if size < 1024 else -(-size // 64) * 64


def seed_micro_batch(seed, k):
    """The random numbers of micro-batch k, whatever was drawn before and whichever process runs it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)[0]))


# ----------------------------------------------------------------------------------------------------------------------

@exit_cleanly
def main(argv):
    config, model_config = configurator.resolve(argv, TrainConfig, models.CONFIGS, "model", __doc__)
    parallel = Parallel(config.parallel, pick_device(config.device))
    with parallel.watching(), hold_run(config, parallel):
        status = train(config, model_config, parallel, argv)
    parallel.close()  # not after an error: nccl would wait for processes that wait for this one
    return status


def train(config, model_config, parallel, argv):
    device, device_type = parallel.device, torch.device(parallel.device).type
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.gradient_accumulation_steps % parallel.world:
        raise UserError(f"gradient_accumulation_steps = {config.gradient_accumulation_steps} micro-batches cannot be dealt "
                        f"out to {parallel.world} processes evenly")
    micro_steps = config.gradient_accumulation_steps // parallel.world
    say = print if parallel.main else lambda *line, **how: None

    # data
    data_folder = os.path.join(config.data_dir, config.dataset)
    meta = load_meta(data_folder)
    model_config.vocab_size = padded_vocabulary(meta["vocab_size"])
    T = model_config.block_size
    loaders = {split: Loader(data_folder, split, meta, config.batch_size, T, config.seed, device, config.num_workers)
               for split in ("train", "val")}
    sequences_per_step = config.gradient_accumulation_steps * config.batch_size
    tokens_per_step = sequences_per_step * T

    # model: weights depend on the seed alone, so two models with the same seed share what they have in common
    def new_model():
        torch.manual_seed(config.seed)
        model = models.build(config.model, model_config, device_type)
        model.activation_checkpointing = config.activation_checkpointing
        return model.train()
    model = new_model()
    n_parameters = model.num_params()

    # precision and compilation
    dtype = pick_dtype(config.dtype, device_type)
    if dtype == "float32":
        autocast = contextlib.nullcontext
    else:
        autocast = lambda: torch.autocast(device_type, dtype=getattr(torch, dtype))  # noqa: E731
    if device_type == "cuda":
        torch.cuda.set_device(device)  # kernels are launched on the current one
        # TF32; not for gyro-midpoints, float32 products that need their digits (and all that there is beside autocast's)
        if dtype == "float32" and getattr(model_config, "reference", None) not in ("mean", "window", "ema"):
            torch.set_float32_matmul_precision("high")
    scaler = torch.amp.GradScaler(device_type, enabled=dtype == "float16")
    flops_per_token = model.flops_per_token()
    compiled, why = pick_compile(config.compile, device_type, flops_per_token * tokens_per_step * config.max_iters,
                                 model.compile_seconds, model.compile_saving.get(device_type, 0.0))

    # the run: what it goes on from is decided by the first process, and everything is checked before anything is written
    full = {**configurator.as_dict(config, model_config),
            "resolved_device": device_type, "resolved_dtype": dtype, "resolved_compile": compiled,
            "corpus": meta["corpus"], "corpus_sha256": meta.get("sha256"),
            "tokenizer": {k: meta[k] for k in ("tokenizer", "vocab_size", "characters") if k in meta}}
    resume, has_checkpoint = parallel.on_main(lambda: check_run(config.out_dir, config.init_from, config.overwrite, full, fixed=[
        "model", "optimizer", "dataset", "corpus_sha256", "seed", *models.CONFIGS[config.model].__dataclass_fields__]))
    looking = resume and config.eval_only  # a look at a run changes nothing of it
    recording = parallel.main and not looking
    start, best, best_step, seconds = 0, math.inf, None, 0.0
    state = None
    if has_checkpoint:  # a run that was killed before its first one starts again
        path = checkpoint.folder(config.out_dir, "last")
        checkpoint.load_weights(path, model)
        state = checkpoint.load_state(path)
        if state["next_sequence"] != state["step"] * sequences_per_step:
            raise UserError(f"cannot resume {config.out_dir}: gradient_accumulation_steps * batch_size was "
                            f"{state['next_sequence'] // state['step']} there and is {sequences_per_step} now")
    step_model, eval_model = parallel.wrap(model, compiled)
    optimizers = make_optimizers(model, config, device_type)
    if state:
        checkpoint.load_optimizer_state(model, optimizers, state["optimizers"])
        if scaler.is_enabled() and state["scaler"]:  # it was another dtype's run if there is none
            scaler.load_state_dict(state["scaler"])
        start, seconds = state["step"], state["seconds"]
        if parallel.on_main(lambda: checkpoint.exists(config.out_dir, "best")) or state["best_step"] == start:
            best, best_step = state["best"], state["best_step"]
        # else its files are gone, and what the run calls best has to be there: the next evaluation makes it anew
    if start > config.max_iters:
        raise UserError(f"{config.out_dir} is at step {start} already, beyond max_iters = {config.max_iters}")
    if parallel.sum(start) != [start * parallel.world]:
        raise UserError(f"the processes do not find the same checkpoint in {config.out_dir}; it has to be on a disk that all of "
                        "them see")
    metrics = NoMetrics()
    if recording:
        wandb = start_wandb(config, full) if config.wandb_log else None  # it can fail; nothing is touched before
        with start_run(config.out_dir, resume, full):
            write_json(os.path.join(config.out_dir, "env.json"), environment(
                " ".join(["python train.py", *argv]), device, torch.get_num_threads(), parallel.world))
            metrics = Metrics(config, start, wandb)

    say(f"corpus: {meta['corpus']} ({meta['train_tokens']:,} train and {meta['val_tokens']:,} validation tokens, "
        f"vocabulary {meta['vocab_size']:,})")
    say(f"model: {config.model}, {n_parameters:,} parameters without positions; {tokens_per_step:,} tokens a step = "
        f"{config.gradient_accumulation_steps} x {config.batch_size} x {T}")
    say(f"device: {device_type}{f', {parallel.world} processes, {parallel.kind}' if parallel.launched else ''}; "
        f"dtype: {dtype}; compile: {'on' if compiled else 'off'} ({why})")
    if getattr(model_config, "ops", None) == "triton":
        say("ops: Triton kernels; projections, transport, gyro-midpoints and the embedding's maps in PyTorch")
    if resume:
        say(f"resumed from step {start}" if state else "no checkpoint yet: starting from step 0")

    def whole_weights():
        """What the first process needs of them: on the CPU where every GPU has a shard, which has no room for the whole.
        Every process has to call this. -> (name -> tensor, {} elsewhere; the first name with a NaN or Inf)"""
        found, bad = {}, None
        for name, tensor in checkpoint.gather_weights(model):
            bad = bad or (None if torch.isfinite(tensor).all() else name)
            if parallel.main:
                found[name] = tensor.cpu() if parallel.kind == "fsdp" else tensor
        return found, bad

    def save(names, step):
        weights, bad = whole_weights()
        if bad:  # the checkpoint before it is better
            diverged(step, ": the optimizer's last step made a NaN or Inf in", losses, lambda: bad)
        state = {"optimizers": checkpoint.optimizer_state(model, optimizers, parallel.main), "scaler": scaler.state_dict(), "step": step,
                 "next_sequence": step * sequences_per_step, "best": best, "best_step": best_step, "seconds": seconds}

        def write():
            for name in names:
                checkpoint.save(config.out_dir, name, weights, state)
        parallel.on_main(write)

    def summarize(status, step, losses, **more):
        if recording:
            write_json(os.path.join(config.out_dir, "summary.json"), {
                "status": status, "model": config.model, "step": step, "tokens": step * tokens_per_step,
                "train_seconds": seconds, "train_loss": losses.get("train"), "val_loss": losses.get("val"),
                "best_val_loss": best if math.isfinite(best) else None, "best_step": best_step,
                "parameters": n_parameters, "flops_per_token": flops_per_token, "corpus": meta["corpus"], **more})

    def diverged(step, what, losses, where):
        """Ends the run; `where` is found by the first process alone."""
        def report():
            try:
                place = where()
            except torch.OutOfMemoryError:  # it repeats the step without torch.compile, on a model of its own under FSDP2
                place = "an unknown place: there is no device memory left to look for it"
            summarize("diverged", step, losses, where=place)
            raise Diverged(f"diverged at step {step}{what} {place}")
        bar.close()
        metrics.close()
        parallel.on_main(report)

    def finder(batches, in_training):
        """`where` of diverged(): repeats the work on batches() and watches. Every process has to call this."""
        weights, _ = whole_weights()

        def where():
            import diagnose
            plain = model if parallel.world == 1 else new_model().to(device)  # without the hooks between processes
            checkpoint.fill(plain, weights)
            return diagnose.first_non_finite(plain.train(in_training), batches(), autocast, backward=in_training)
        return where

    speak_as(parallel.rank, parallel.world)
    if state and best_step == start and not looking and not parallel.on_main(
            lambda: checkpoint.best_is_last(config.out_dir)):
        save(["best"], start)  # the run was killed between the two
    stop = Stop()
    all_params = [p for p in model.parameters() if p.requires_grad]
    losses, reached, smooth, saved_at = {}, None, None, start if state else None
    stopping, out_of_time = False, config.max_seconds is not None and seconds >= config.max_seconds
    since = dict(seconds=0.0, tokens=0, waited=0.0)  # since the last logged step
    micro_batches_of = lambda step: range(step * config.gradient_accumulation_steps + parallel.rank,  # noqa: E731
                                          (step + 1) * config.gradient_accumulation_steps, parallel.world)
    stream = loaders["train"].batches(k for step in range(start, config.max_iters) for k in micro_batches_of(step))
    bar = tqdm(total=config.max_iters, initial=start, disable=None if parallel.main else True, unit="step",
               dynamic_ncols=True)

    def report(step, what):
        """A line for people: where the run is."""
        nonlocal reported
        reported = time.perf_counter()
        left = (reported - loop_began) / (step - start) * (config.max_iters - step) if step > start else 0
        if config.max_seconds is not None:
            left = min(left, config.max_seconds - seconds)
        if parallel.main:
            bar.write(f"step {step}: {what}, {seconds:,.1f} s of training"
                      + (f", about {datetime.timedelta(seconds=round(left))} left" if left >= 1 else ""))
            sys.stdout.flush()

    loop_began = reported = time.perf_counter()
    value = None  # the loss of the last step
    for step in range(start, config.max_iters + 1):
        last_step = step == config.max_iters or out_of_time or config.eval_only
        improved = False
        if step % config.eval_interval == 0 or last_step:
            # the clock of training does not run here
            losses = evaluate(eval_model, loaders, config.eval_iters, autocast, parallel)
            for split, loss in losses.items():
                if not math.isfinite(loss):
                    diverged(step, f": the {split} loss is {loss} in the evaluation; the first NaN or Inf is in", {},
                             finder(lambda: loaders[split].eval_batches(config.eval_iters), in_training=False))  # noqa: B023
            record = {"step": step, "tokens": step * tokens_per_step, "train_seconds": round(seconds, 3),
                      "train_loss": losses["train"], "val_loss": losses["val"]}
            # (not worth compiling FSDP2's blocks once more)
            with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
                stats = model.geometry_stats(next(loaders["val"].eval_batches(1))[0][:8])
            for block, values in stats.items():
                record.update({f"geometry/{block}/{k}": v for k, v in values.items()})
            metrics.log(record)
            report(step, f"train loss {losses['train']:.4f}, val loss {losses['val']:.4f}"
                   + (f", last batch {value:.4f}" if value is not None else ""))
            if losses["val"] < best and not looking:
                best, best_step, improved = losses["val"], step, True
            if config.target_val_loss is not None and losses["val"] <= config.target_val_loss:
                reached = {"target_step": step, "target_tokens": step * tokens_per_step, "target_seconds": seconds}
                last_step = True
        at_interval = step % config.eval_interval == 0 or (config.save_interval and step % config.save_interval == 0)
        due = (at_interval or last_step or stopping) and step != saved_at
        if (due or improved) and not looking:
            save(["last", "best"] if improved else ["last"], step)  # in this order: checkpoint.can_resume
            saved_at = step
        if last_step:
            break
        if stopping:
            summarize("stopped", step, losses)
            bar.close()
            metrics.close()
            stream.close()
            again = [a for a in argv if not a.startswith(("--init_from=", "--overwrite="))]
            start_with = f"torchrun --nproc-per-node={parallel.world}" if parallel.launched else "python"
            say(f"{stop.signal or 'a signal'} at step {step}: saved. To go on: {start_with} train.py "
                f"{shlex.join([*again, '--init_from=resume'])}")
            return 0

        began = time.perf_counter()
        lr = lr_at(step, config)
        set_lr(optimizers, lr)
        own_loss, waited = 0.0, 0.0
        for k in micro_batches_of(step):
            asked = time.perf_counter()
            x, y = next(stream)
            waited += time.perf_counter() - asked
            seed_micro_batch(config.seed, k)
            with parallel.accumulating(step_model, last=k + parallel.world >= (step + 1) * config.gradient_accumulation_steps):
                with autocast():
                    loss = step_model(x, y)[1] / micro_steps
                scaler.scale(loss).backward()
            own_loss = own_loss + loss.detach()
        parallel.finish_gradients(optimizers)
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = gradient_norm(all_params)
        usable = math.isfinite(norm.item())
        if config.grad_clip and usable:
            clip_gradients(all_params, config.grad_clip, norm)
        counts = not (compiled and step == start)  # a first step that is compiled is the compiler's time
        late = config.max_seconds is not None and parallel.main and counts and \
            seconds + time.perf_counter() - began >= config.max_seconds
        value, stopping, out_of_time = parallel.sum(own_loss.item() / parallel.world, bool(stop.signal), late)
        # float16 expects an Inf gradient now and then: the step is skipped, and the scaler lowers its scale
        if not math.isfinite(value) or (scaler.get_scale() < 2.0 ** -14 if scaler.is_enabled() else not usable):
            # before the weights are touched: ckpt/last and the weights in memory are still good
            def again():
                for k in range(step * config.gradient_accumulation_steps, (step + 1) * config.gradient_accumulation_steps):
                    batch = loaders["train"].batch(k)
                    seed_micro_batch(config.seed, k)
                    yield batch
            diverged(step, f" (lr {lr:.3g}): the first NaN or Inf is in", losses, finder(again, in_training=True))
        if usable:  # of all optimizers: each would skip for its own gradients only
            for optimizer in optimizers:
                scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=parallel.kind != "ddp")  # DDP's are its buckets: without them there would be two of each
        if device_type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        seconds += took if counts else 0.0
        since = dict(seconds=since["seconds"] + took, tokens=since["tokens"] + tokens_per_step, waited=since["waited"] + waited)
        smooth = value if smooth is None else 0.9 * smooth + 0.1 * value

        if step % config.log_interval == 0:
            tok_per_s = since["tokens"] / since["seconds"]
            metrics.log({"step": step, "tokens": (step + 1) * tokens_per_step, "train_seconds": round(seconds, 3),
                         "loss": value, "lr": lr, "grad_norm": norm.item(), "dt": took, "tok_per_s": tok_per_s,
                         "data_wait": since["waited"] / since["seconds"]})
            if bar.disable and time.perf_counter() - reported > REPORT_SECONDS:
                report(step + 1, f"last batch {value:.4f}, {took * 1000:.0f} ms a step, {tok_per_s:,.0f} tokens/s")
            bar.set_postfix_str(f"loss {smooth:.4f}, {tok_per_s:,.0f} tok/s", refresh=False)
            since = dict(seconds=0.0, tokens=0, waited=0.0)
        bar.update(1)

    bar.close()
    summarize("finished", step, losses, **(reached or {}),
              **({"target_reached": reached is not None} if config.target_val_loss is not None else {}))
    metrics.close()
    stream.close()
    best_one = f" (best {best:.4f}, step {best_step})" if best_step is not None else ""
    say(f"final: val loss {losses['val']:.4f}{best_one}, {step * tokens_per_step:,} tokens, {seconds:,.1f} s of training; run in "
        f"{config.out_dir}")
    if config.target_val_loss is not None:
        say(f"target_val_loss {config.target_val_loss} " + (
            f"reached after {step * tokens_per_step:,} tokens and {seconds:,.1f} s" if reached else "not reached"))
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
