"""
Train a GPT: one loop for every model. Read it from top to bottom.

    python train.py config/train_shakespeare_mixed.py                  a config file
    python train.py config/demo_mixed.py --max_iters=200 --seed=3      with overrides
    python train.py config/demo_mixed.py --init_from=resume            go on where the run of this out_dir stopped
    torchrun --nproc-per-node=8 train.py config/train_fineweb_mixed.py several GPUs (or CPU processes): training/parallel.py
    python train.py --help                                             every key, its default, what it is

Everything a run leaves is in out_dir:

    config.json    the resolved configuration        env.json      versions, git commit, command, host
    metrics.jsonl  one line a logged step            ckpt/         last and best: weights (safetensors) and state
    summary.json   final and best validation loss, tokens, seconds, status: finished | diverged | stopped
    tensorboard/   the same metrics for TensorBoard

Exit status: 0 finished, or stopped by a signal and resumable; 2 bad input; 3 diverged. (torchrun's own is 1 for
both, and for a run that was stopped by a signal.)

Micro-batch k of a run is a function of the data, the seed and k, and so are the random numbers drawn in it (dropout): a
resumed run is the run that was never stopped, bit for bit on the CPU, and W processes train as one.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import contextlib
import math
import os
import shlex
import sys
import time

import torch

import configurator
import geometry
import models
from common.errors import exit_cleanly, speak_as
from common.interrupts import Stop
from training import onednn, start
from training.clock import Console
from training.config import TrainConfig
from training.dataloader import Loader, load_meta
from training.distill import Lessons, freeze
from training.evaluation import evaluate
from training.guard import Guard
from training.machine import padded_vocabulary, pick_compile, pick_device, pick_dtype, pick_matmul, precision
from training.optimizer import make_optimizers, set_lr, set_momentum
from training.parallel import Parallel
from training.qk_clip import QKClip
from training.run import Run, facts, kept, resolved
from training.run_directory import hold_run
from training.schedule import Deal, lr_at, seed_micro_batch, step_again
from training.shards import clip_gradients, gradient_norm
from training.watch import Watch, gradient_norms, map_norms


@exit_cleanly
def main(argv):
    config, model_config = configurator.resolve(argv, TrainConfig, models.CONFIGS, "model", __doc__)
    parallel = Parallel(config.parallel, pick_device(config.device))
    with parallel.watching(), hold_run(config, parallel):
        status = train(config, model_config, parallel, argv)
    parallel.close()  # not after an error: nccl would wait for processes that wait for this one
    return status


def train(config, model_config, parallel, argv):
    # data
    device, device_type = parallel.device, torch.device(parallel.device).type
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = os.path.join(config.data_dir, config.dataset)
    meta = load_meta(folder)
    model_config.vocab_size = padded_vocabulary(meta["vocab_size"])
    deal = Deal(config, model_config.block_size, parallel)
    loaders = {split: Loader(folder, split, meta, config.batch_size, model_config.block_size, config.seed, device, config.num_workers)
               for split in ("train", "val")}
    dtype = pick_dtype(config.dtype, device_type)
    matmul = pick_matmul(config.matmul, device_type, dtype)

    # model: weights depend on the seed alone, so two models with the same seed share what they have in common
    def new_model():
        torch.manual_seed(config.seed)
        model = models.build(config.model, model_config, device_type)
        model.activation_checkpointing = config.activation_checkpointing
        return (onednn.use_in(model) if matmul == "onednn" else model).train()
    model = new_model()
    autocast, scaler = precision(dtype, device, model_config)
    saving = model.compile_saving.get(device_type, 0.0) - (onednn.COMPILING_SAVES_LESS if matmul == "onednn" else 0.0)
    compiled, why = pick_compile(config.compile, device_type, model.flops_per_token() * deal.tokens * config.max_iters,
                                 model.compile_seconds, saving)
    if config.distill_from:
        compiled, why = False, "layers are listened to"

    # the run: from its start, or from a checkpoint
    everything = resolved(config, model_config, device_type, dtype, matmul, compiled, meta)
    run = Run(config, everything, kept(config), parallel, model, scaler, deal)
    from_trained = start.begin(run, meta)
    if config.freeze:
        from_trained = [*from_trained, f"frozen: {freeze(model, config.freeze):,} numbers"]
    lessons = Lessons(config, model, meta, device) if config.distill_from else None
    qk_clip = QKClip(model, config.qk_clip) if config.qk_clip is not None else None
    step_model, eval_model = parallel.wrap(model, compiled)
    optimizers = make_optimizers(model, config, device_type, parallel)
    run.attach(optimizers)
    run.begin(" ".join(["python train.py", *argv]), facts(model, meta))
    if parallel.main:
        introduce(run, model_config, deal, meta, [*from_trained, *([f"learns from {lessons.name}"] if lessons else [])],
                  f"{device_type}{parallel.describe()}; dtype: {dtype}{' (products: oneDNN)' if matmul == 'onednn' else ''}; "
                  f"compile: {'on' if compiled else 'off'} ({why})")
    speak_as(parallel.rank, parallel.world)
    run.finish_last_save()

    clock, stop, guard = run.clock, Stop(), Guard(optimizers, scaler, device, alone=parallel.world == 1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    watch = Watch(model) if config.log_stability else None
    more = [each for each in (lessons, watch, qk_clip) if each]  # who has numbers for metrics.jsonl
    stream = loaders["train"].batches(k for step in range(run.start, config.max_iters) for k in deal.micro_batches(step))
    value, stopping, out_of_time = None, False, clock.is_over()

    with contextlib.closing(stream), contextlib.closing(Console(clock, run.start, config.max_iters, parallel.main)) as console:
        for step in range(run.start, config.max_iters + 1):
            # evaluate, save (the clock of training does not run here)
            last, improved = step == config.max_iters or out_of_time or config.eval_only, False
            if step % config.eval_interval == 0 or last:
                losses = evaluate(eval_model, loaders, config.eval_iters, autocast, parallel)
                for split, loss in losses.items():
                    if not math.isfinite(loss):
                        batches = lambda: loaders[split].eval_batches(config.eval_iters)
                        run.diverged(step, f": the {split} loss is {loss} in the evaluation; the first NaN or Inf is in",
                                     run.finder(new_model, batches, autocast, in_training=False), losses={})
                improved = run.evaluated(step, losses, telemetry(model, loaders["val"], compiled, watch))
                console.line(step, f"train loss {losses['train']:.4f}, val loss {losses['val']:.4f}"
                             + (f", last batch {value:.4f}" if value is not None else ""))
                last = last or run.reached is not None
            run.save_if_due(step, last or stopping, improved)
            if last or stopping:
                break

            # a step: gradients of its micro-batches
            clock.start()
            lr, loss = lr_at(step, config), 0.0
            set_lr(optimizers, lr)
            set_momentum(optimizers, config, step)
            for k in deal.micro_batches(step):
                asked = time.perf_counter()
                x, y = next(stream)
                clock.waited(asked)
                seed_micro_batch(config.seed, k)
                with parallel.accumulating(step_model, deal.is_last(k)):
                    with autocast():
                        part = step_model(x, y)[1]
                        if lessons:
                            part = lessons.loss(part, x, step)
                        part = part / deal.own
                    scaler.scale(part).backward()
                loss = loss + part.detach()
            parallel.finish_gradients()
            model.end_of_step(parallel.average)
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            norm = gradient_norm(parameters)
            logging = step % config.log_interval == 0
            if watch and logging:
                watch.gradients()
            usable = guard.usable(step, loss, norm)
            if config.grad_clip and usable:
                clip_gradients(parameters, config.grad_clip, norm)

            # numbers are read off a GPU, which the host has to wait for, only where they are wanted
            counts = not (compiled and step == run.start)
            signal, late = bool(stop.signal), parallel.main and counts and clock.is_late()
            reading = guard.waits or logging or not counts or run.is_due(step + 1) or parallel.world == 1 and (signal or late)
            if reading:
                value, stopping, out_of_time = parallel.sum(loss.item() / parallel.world, signal, late)
                bad = guard.bad_step(step, value, usable)
                if bad is not None:  # before the weights are touched: ckpt/last and the weights in memory are still good
                    run.diverged(bad, f" (lr {lr_at(bad, config):.3g}): the first NaN or Inf is in", run.finder(
                        new_model, lambda: step_again(loaders["train"], deal.everyones(bad), config.seed), autocast, in_training=True))

            # the update; of all optimizers or none: each would skip for its own gradients only
            if usable:
                for optimizer in optimizers:
                    scaler.step(optimizer)
            if qk_clip:
                qk_clip.after_update(parallel.largest, skipped=guard.bad if usable else torch.ones_like(guard.bad))
            scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=parallel.kind != "ddp")  # DDP's are its buckets: without them there would be two of each
            if reading:
                if device_type == "cuda":
                    torch.cuda.synchronize()
                dt = clock.read(counts)
            if logging:
                tok_per_s, data_wait = clock.speed(deal.tokens)
                run.logged(step, {"loss": value, "lr": lr, "grad_norm": norm.item(), "dt": dt, "tok_per_s": tok_per_s,
                                  "data_wait": data_wait, **{k: v for each in more for k, v in each.numbers().items()}})
                console.logged(step, value, dt, tok_per_s)
            console.stepped()

    if stopping and not last:
        run.stopped(step)
        command = f"torchrun --nproc-per-node={parallel.world}" if parallel.launched else "python"
        again = shlex.join([*(a for a in argv if not a.startswith(("--init_from=", "--overwrite="))), "--init_from=resume"])
        lines = [f"{stop.signal or 'a signal'} at step {step}: saved. To go on: {command} train.py {again}"]
    else:
        run.finished(step)
        lines = results(run, step)
    if parallel.main:
        print(*lines, sep="\n")
    return 0


def introduce(run, model_config, deal, meta, from_trained, machine):
    """What is going to be done, in some lines."""
    config = run.config
    print(f"corpus: {meta['corpus']} ({meta['train_tokens']:,} train and {meta['val_tokens']:,} validation tokens, "
          f"vocabulary {meta['vocab_size']:,})")
    print(f"model: {config.model}, {run.facts['parameters']:,} parameters without positions; {deal.tokens:,} tokens a step = "
          f"{deal.all} x {config.batch_size} x {model_config.block_size}")
    print(f"device: {machine}")
    if getattr(model_config, "ops", None) == "triton":
        print("ops: Triton kernels; " + {"mhc": "maps of the streams in PyTorch", "tau": "lambda in PyTorch"}.get(
            run.config.model, "projections, transport, gyro-midpoints and the embedding's maps in PyTorch"))
    if hasattr(model_config, "row_scalars"):
        print(geometry.use_row_scalars(model_config.row_scalars))
    for line in getattr(model_config, "advice", list)():
        print(line)
    if hasattr(run.model, "attention_form"):
        print(f"attention: {run.model.attention_form()}")
    for line in from_trained:
        print(line)
    if run.resumed:
        print(f"resumed from step {run.start}" if run.state else "no checkpoint yet: starting from step 0")


def telemetry(model, loader, compiled, watch):
    """What the curvature or the streams do, block by block, on some sequences: numbers for metrics.jsonl."""
    # (not worth compiling FSDP2's blocks once more)
    with torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext():
        idx = next(loader.eval_batches(1))[0][:8]
        return {**model.telemetry(idx), **({**map_norms(model, idx[:2]), **gradient_norms(model, idx[:2])} if watch else {})}


def results(run, step):
    """The last lines of a run that is finished."""
    config, losses, seconds, tokens = run.config, run.losses, run.clock.seconds, step * run.tokens_per_step
    best = f" (best {run.best:.4f}, step {run.best_step})" if run.best_step is not None else ""
    yield f"final: val loss {losses['val']:.4f}{best}, {tokens:,} tokens, {seconds:,.1f} s of training; run in {config.out_dir}"
    if per_token := run.facts["val_bytes_per_token"]:
        yield f"which is {losses['val'] / math.log(2) / per_token:.4f} bits a byte of the validation text ({per_token:.3f} bytes a token)"
    if config.target_val_loss is not None:
        yield f"target_val_loss {config.target_val_loss} " + (f"reached after {tokens:,} tokens and {seconds:,.1f} s" if run.reached
                                                             else "not reached")


if __name__ == "__main__":
    main(sys.argv[1:])
