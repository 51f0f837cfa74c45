"""
Train a GPT: one loop for every model. Read it from top to bottom.

    python train.py config/train_shakespeare_mixed.py                  a config file
    python train.py config/demo_mixed.py --max_iters=200 --seed=3      with overrides
    python train.py config/demo_mixed.py --init_from=resume            go on where the run of this out_dir stopped
    python train.py --help                                             every key, its default, what it is

Everything a run leaves is in out_dir:

    config.json    the resolved configuration        env.json      versions, git commit, command, host
    metrics.jsonl  one line a logged step            ckpt/         last and best: weights (safetensors) and state
    summary.json   final and best validation loss, tokens, seconds, status: finished | diverged | stopped
    tensorboard/   the same metrics for TensorBoard

Exit status: 0 finished, or stopped by a signal and resumable; 2 bad input; 3 diverged.
"""
import contextlib
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch
from tqdm import tqdm

import checkpoint
import configurator
import models
from dataloader import Loader, load_meta
from errors import Diverged, UserError, exit_cleanly
from optimizer import make_optimizers, set_lr

HERE = os.path.dirname(os.path.abspath(__file__))


# ----------------------------------------------------------------------------------------------------------------------
# keys; those of each model are in its own file

@dataclass
class TrainConfig:
    model: Literal["baseline", "mixed"] = "baseline"  # which model file: model_baseline.py | model.py
    out_dir: str = "out"  # the run's own directory
    overwrite: bool = False  # replace the run that out_dir holds
    init_from: Literal["scratch", "resume"] = "scratch"  # 'resume' goes on from out_dir/ckpt/last
    seed: int = 1337  # of the weights, of dropout and of the order of the data
    # data
    dataset: str = "shakespeare_char"  # folder in data_dir, prepared by its prepare.py
    data_dir: str = os.path.join(HERE, "data")  # where the data sets are
    batch_size: int = 12  # sequences in a micro-batch
    gradient_accumulation_steps: int = 1  # micro-batches in a step; tokens a step = this * batch_size * block_size
    # length and evaluation
    max_iters: int = 5000  # optimizer steps
    target_val_loss: float | None = None  # stop when reached; tokens and training seconds are reported
    eval_interval: int = 250  # steps between evaluations (each also writes ckpt/last)
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
    threads: int = 0  # CPU threads (0: torch's choice)
    # logs
    tensorboard_log: bool = True  # event files in out_dir/tensorboard
    wandb_log: bool = False  # Weights & Biases (pip install wandb)
    wandb_project: str = "mixed-curvature-gpt"  # Weights & Biases
    wandb_run_name: str | None = None  # None: the name of out_dir

    def __post_init__(self):
        at_least = dict(batch_size=1, gradient_accumulation_steps=1, max_iters=0, eval_interval=1, eval_iters=1,
                        log_interval=1, muon_ns_steps=1, warmup_iters=0, threads=0, seed=0, learning_rate=0,
                        weight_decay=0, grad_clip=0, curvature_lr_mult=0, muon_lr=0)
        for key, least in at_least.items():
            if getattr(self, key) < least:
                raise UserError(f"{key} = {getattr(self, key)}: must be at least {least}")
        for key in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"{key} = {getattr(self, key)}: must be in [0, 1)")
        if self.learning_rate == 0:
            raise UserError("learning_rate = 0: nothing would be learned")
        if self.lr_decay_iters is None:
            self.lr_decay_iters = self.max_iters
        if self.min_lr is None:
            self.min_lr = self.learning_rate / 10
        if not 0 <= self.min_lr <= self.learning_rate:
            raise UserError(f"min_lr = {self.min_lr}: must be between 0 and learning_rate = {self.learning_rate}")


# ----------------------------------------------------------------------------------------------------------------------
# choices that depend on the machine: each is made once and printed

def pick_device(wanted):
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise UserError(f"device = {wanted!r}: there is no such device; use auto, cpu, cuda, cuda:N or mps") from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(kind, False):
        raise UserError(f"device = {wanted!r} is not available on this machine; use --device=auto")
    return wanted


def pick_dtype(wanted, device_type):
    """bf16 where the hardware multiplies it faster than float32 (on a CPU: AMX or AVX512-BF16 instructions)."""
    if wanted == "float16" and device_type == "cpu":
        raise UserError("dtype = 'float16' is not for the CPU; use bfloat16 or float32")
    if wanted != "auto":
        return wanted
    if device_type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device_type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return "bfloat16"
    return "float32"


def pick_compile(wanted, device_type, flops, cost):
    """(compile?, why). flops: of all planned steps; cost: seconds that compiling the model takes. Assumed for 'auto': eager
    steps run at 1e11 flop/s on a CPU and 5e13 on a GPU, and compiling saves 10% of them on a CPU and 30% on a GPU."""
    if wanted != "auto":
        return wanted, "as asked"
    if device_type == "mps":
        return False, "not on mps"
    if device_type == "cpu" and not (shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")):
        return False, "there is no C++ compiler"
    seconds = flops / (5e13 if device_type == "cuda" else 1e11)
    saved = seconds * (0.3 if device_type == "cuda" else 0.1)
    return saved > cost, f"about {seconds:,.0f} s of eager steps planned, of which it may save {saved:,.0f} and cost {cost:,.0f}"


# ----------------------------------------------------------------------------------------------------------------------
# the run directory

def write_json(path, content):
    """Whole or not at all."""
    with open(path + ".new", "w", encoding="utf-8") as f:
        json.dump(content, f, indent=1)
        f.write("\n")
    os.replace(path + ".new", path)


def environment(command, device, threads):
    def git(*args):
        done = subprocess.run(["git", "-C", HERE, *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None
    try:
        commit, dirty = git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except FileNotFoundError:  # no git on this machine
        commit, dirty = None, None
    return {"command": command, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "host": platform.node(),
            "platform": platform.platform(), "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(), "threads": threads, "python": platform.python_version(), "torch": torch.__version__,
            "cuda": torch.version.cuda, "git_commit": commit, "git_dirty": dirty,
            "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device}


def open_run(config, full):
    """Create or check out_dir. full: the resolved configuration as a dict."""
    path = os.path.join(config.out_dir, "config.json")
    if config.init_from == "resume":
        before = checkpoint.load_config(config.out_dir)
        fixed = ["model", "dataset", "seed", *(models.CONFIGS[config.model].__dataclass_fields__)]
        for key in fixed:
            if key in before and before[key] != full[key]:
                raise UserError(f"cannot resume {config.out_dir}: {key} was {before[key]!r} there and is {full[key]!r} now")
    elif os.path.exists(path):
        if not config.overwrite:
            raise UserError(f"{config.out_dir} holds a run already: --init_from=resume goes on with it, "
                            f"--overwrite=True replaces it, or choose another --out_dir")
        for name in ("config.json", "env.json", "metrics.jsonl", "summary.json"):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(config.out_dir, name))
        for name in ("ckpt", "tensorboard"):
            shutil.rmtree(os.path.join(config.out_dir, name), ignore_errors=True)
    os.makedirs(config.out_dir, exist_ok=True)
    write_json(path, full)


class Metrics:
    """metrics.jsonl, TensorBoard and W&B: the same numbers three times."""

    def __init__(self, config, full, start):
        self.path = os.path.join(config.out_dir, "metrics.jsonl")
        self._forget_after(start)
        self.file = open(self.path, "a", encoding="utf-8")
        self.tensorboard = self.wandb = None
        if config.tensorboard_log:
            from torch.utils.tensorboard import SummaryWriter
            self.tensorboard = SummaryWriter(os.path.join(config.out_dir, "tensorboard"), purge_step=start)
        if config.wandb_log:
            try:
                import wandb
            except ImportError:
                raise UserError("wandb_log = True needs Weights & Biases: pip install wandb") from None
            name = config.wandb_run_name or os.path.basename(os.path.normpath(config.out_dir))
            self.wandb = wandb.init(project=config.wandb_project, name=name, config=full, dir=config.out_dir)

    def _forget_after(self, start):
        """A resumed run repeats the steps since its checkpoint: their lines go."""
        if not os.path.exists(self.path):
            return
        with open(self.path, encoding="utf-8") as f:
            lines = f.readlines()
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError):  # a line that was cut by a crash
                record = json.loads(line)
                # the evaluation at `start` is repeated too, and so is the line of the step that begins there
                if record["step"] < start:
                    kept.append(line if line.endswith("\n") else line + "\n")
        with open(self.path + ".new", "w", encoding="utf-8") as f:
            f.writelines(kept)
        os.replace(self.path + ".new", self.path)

    def log(self, record):
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        numbers = {k: v for k, v in record.items() if k != "step"}
        if self.tensorboard:
            for key, value in numbers.items():
                self.tensorboard.add_scalar(key, value, record["step"])
        if self.wandb:
            self.wandb.log(numbers, step=record["step"])

    def close(self):
        self.file.close()
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()


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
def evaluate(model, loaders, eval_iters, autocast):
    """Mean loss of each split over its fixed evaluation batches, weighted by tokens."""
    model.eval()
    losses = {}
    for split, loader in loaders.items():
        total, tokens = 0.0, 0
        for x, y in loader.eval_batches(eval_iters):
            with autocast():
                loss = model(x, y)[1]
            total, tokens = total + loss.double().item() * y.numel(), tokens + y.numel()
        losses[split] = total / tokens
    model.train()
    return losses


class Stop:
    """SIGINT, SIGTERM and SIGUSR1 (Slurm's warning) let the step finish; the run is saved and can be resumed."""

    def __init__(self):
        self.signal = None
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._note)

    def _note(self, number, frame):
        self.signal = signal.Signals(number).name


def rng_state(device_type):
    state = {"cpu": torch.get_rng_state()}
    if device_type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state, device_type):
    torch.set_rng_state(state["cpu"].cpu())
    if device_type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu())


# ----------------------------------------------------------------------------------------------------------------------

@exit_cleanly
def main(argv):
    config, model_config = configurator.resolve(argv, TrainConfig, models.CONFIGS, "model", __doc__)
    device = pick_device(config.device)
    device_type = torch.device(device).type
    if config.threads:
        torch.set_num_threads(config.threads)

    # data
    data_folder = os.path.join(config.data_dir, config.dataset)
    meta = load_meta(data_folder)
    model_config.vocab_size = meta["vocab_size"]
    T = model_config.block_size
    loaders = {split: Loader(data_folder, split, meta, config.batch_size, T, config.seed, device)
               for split in ("train", "val")}
    tokens_per_step = config.gradient_accumulation_steps * config.batch_size * T

    # model: weights depend on the seed alone, so two models with the same seed share what they have in common
    torch.manual_seed(config.seed)
    model = models.build(config.model, model_config, device_type)
    model.to(device).train()
    optimizers = make_optimizers(model, config, device_type)

    # precision and compilation
    dtype = pick_dtype(config.dtype, device_type)
    if dtype == "float32":
        autocast = contextlib.nullcontext
    else:
        autocast = lambda: torch.autocast(device_type, dtype=getattr(torch, dtype))  # noqa: E731
    if device_type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays float32
    scaler = torch.amp.GradScaler(device_type, enabled=dtype == "float16")
    flops = model.flops_per_token() * tokens_per_step * config.max_iters
    compiled, why = pick_compile(config.compile, device_type, flops,
                                 10 + model.compile_seconds_per_block * model_config.n_layer)
    step_model = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model

    full = configurator.as_dict(config, model_config)
    resolved = {"resolved_device": device, "resolved_dtype": dtype, "resolved_compile": compiled,
                "corpus": meta["corpus"], "corpus_sha256": meta.get("sha256"),
                "tokenizer": {k: meta[k] for k in ("tokenizer", "vocab_size", "characters") if k in meta}}
    start, best, best_step, seconds = 0, math.inf, None, 0.0
    open_run(config, {**full, **resolved})
    if config.init_from == "resume":
        path = checkpoint.folder(config.out_dir, "last")
        checkpoint.load_weights(path, model)
        state = checkpoint.load_state(path, device)
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        scaler.load_state_dict(state["scaler"])
        set_rng_state(state["rng"], device_type)
        start, best, best_step, seconds = state["step"], state["best"], state["best_step"], state["seconds"]
    write_json(os.path.join(config.out_dir, "env.json"),
               environment(" ".join(["python train.py", *argv]), device, torch.get_num_threads()))
    metrics = Metrics(config, full, start)

    print(f"corpus: {meta['corpus']} ({meta['train_tokens']:,} train and {meta['val_tokens']:,} validation tokens, "
          f"vocabulary {meta['vocab_size']:,})")
    print(f"model: {config.model}, {model.num_params():,} parameters without positions; "
          f"{tokens_per_step:,} tokens a step = {config.gradient_accumulation_steps} x {config.batch_size} x {T}")
    print(f"device: {device}; dtype: {dtype}; compile: {'on' if compiled else 'off'} ({why})")
    if getattr(model_config, "ops", None) == "triton":
        print("ops: Triton kernels; transport, gyro-midpoints and the embedding's maps in PyTorch")
    if start:
        print(f"resumed from step {start}")

    def save(name, step):
        checkpoint.save(config.out_dir, name, model, {
            "optimizers": [o.state_dict() for o in optimizers], "scaler": scaler.state_dict(),
            "rng": rng_state(device_type), "step": step, "best": best, "best_step": best_step, "seconds": seconds})

    def summarize(status, step, losses, **more):
        write_json(os.path.join(config.out_dir, "summary.json"), {
            "status": status, "model": config.model, "step": step, "tokens": step * tokens_per_step,
            "train_seconds": seconds, "train_loss": losses.get("train"), "val_loss": losses.get("val"),
            "best_val_loss": best if math.isfinite(best) else None, "best_step": best_step,
            "parameters": model.num_params(), "corpus": meta["corpus"], **more})

    stop = Stop()
    all_params = [p for p in model.parameters() if p.requires_grad]
    losses, reached, smooth, saved_at = {}, None, None, None
    since, since_tokens = 0.0, 0  # training seconds and tokens since the last logged step
    bar = tqdm(total=config.max_iters, initial=start, disable=None, unit="step", dynamic_ncols=True)

    for step in range(start, config.max_iters + 1):
        if step % config.eval_interval == 0 or step == config.max_iters or config.eval_only:
            # the clock of training does not run here
            losses = evaluate(step_model, loaders, config.eval_iters, autocast)
            if not math.isfinite(losses["val"]):
                summarize("diverged", step, {}, where="validation loss")
                metrics.close()
                raise Diverged(f"diverged at step {step}: the validation loss is {losses['val']}")
            record = {"step": step, "tokens": step * tokens_per_step, "train_seconds": round(seconds, 3),
                      "train_loss": losses["train"], "val_loss": losses["val"]}
            for block, values in model.geometry_stats(next(loaders["val"].eval_batches(1))[0][:8]).items():
                record.update({f"geometry/{block}/{k}": v for k, v in values.items()})
            metrics.log(record)
            bar.write(f"step {step}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}, "
                      f"{seconds:,.1f} s of training")
            if losses["val"] < best and not config.eval_only:
                best, best_step = losses["val"], step
                if step:
                    save("best", step)
            if config.target_val_loss is not None and losses["val"] <= config.target_val_loss:
                reached = {"target_step": step, "target_tokens": step * tokens_per_step, "target_seconds": seconds}
            if step > start and not config.eval_only:
                save("last", step)
                saved_at = step
        if step == config.max_iters or reached or config.eval_only:
            break
        if stop.signal:
            if saved_at != step:
                save("last", step)
            summarize("stopped", step, losses)
            bar.close()
            metrics.close()
            again = [a for a in argv if not a.startswith(("--init_from=", "--overwrite="))]
            print(f"{stop.signal} at step {step}: saved. To go on: "
                  f"{' '.join(['python train.py', *again, '--init_from=resume'])}")
            return 0

        began = time.perf_counter()
        lr = lr_at(step, config)
        set_lr(optimizers, lr)
        rng_before = rng_state(device_type)
        total_loss = 0.0
        first = step * config.gradient_accumulation_steps
        for micro in range(config.gradient_accumulation_steps):
            x, y = loaders["train"].batch(first + micro)
            with autocast():
                loss = step_model(x, y)[1] / config.gradient_accumulation_steps
            scaler.scale(loss).backward()
            total_loss = total_loss + loss.detach()
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        if config.grad_clip:
            norm = torch.nn.utils.clip_grad_norm_(all_params, config.grad_clip)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in all_params if p.grad is not None])
        # float16 expects an Inf gradient now and then: the scaler skips that step and lowers its scale
        bad = not torch.isfinite(total_loss + (0.0 if scaler.is_enabled() else norm)).item() or (
            scaler.is_enabled() and scaler.get_scale() < 2.0 ** -14)
        if bad:  # before the weights are touched: ckpt/last and the weights in memory are still good
            import diagnose
            set_rng_state(rng_before, device_type)
            where = diagnose.first_non_finite(
                model, [loaders["train"].batch(first + m) for m in range(config.gradient_accumulation_steps)], autocast)
            summarize("diverged", step, losses, where=where)
            bar.close()
            metrics.close()
            raise Diverged(f"diverged at step {step} (lr {lr:.3g}): the first NaN or Inf is in {where}")
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        value = total_loss.item()
        took = time.perf_counter() - began
        seconds, since, since_tokens = seconds + took, since + took, since_tokens + tokens_per_step
        smooth = value if smooth is None else 0.9 * smooth + 0.1 * value

        if step % config.log_interval == 0:
            record = {"step": step, "tokens": (step + 1) * tokens_per_step, "train_seconds": round(seconds, 3),
                      "loss": value, "lr": lr, "grad_norm": norm.item(), "dt": took, "tok_per_s": since_tokens / since}
            metrics.log(record)
            if bar.disable:
                print(f"step {step}: loss {value:.4f}, {took * 1000:.0f} ms, {since_tokens / since:,.0f} tokens/s",
                      flush=True)
            bar.set_postfix_str(f"loss {smooth:.4f}, {since_tokens / since:,.0f} tok/s", refresh=False)
            since, since_tokens = 0.0, 0
        bar.update(1)

    bar.close()
    summarize("finished", step, losses, **(reached or {}),
              **({"target_reached": reached is not None} if config.target_val_loss is not None else {}))
    metrics.close()
    print(f"final: val loss {losses['val']:.4f} (best {min(best, losses['val']):.4f}), {step * tokens_per_step:,} tokens, "
          f"{seconds:,.1f} s of training; run in {config.out_dir}")
    if config.target_val_loss is not None:
        print(f"target_val_loss {config.target_val_loss} " + (
            f"reached after {step * tokens_per_step:,} tokens and {seconds:,.1f} s" if reached else "not reached"))
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
