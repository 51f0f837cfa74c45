"""
Train several runs as one program: runs that differ in their seeds and learning rates alone. For a GPU, which waits for launches where a
model is small; on a CPU one process a run is faster.

    python -m training.stacked --runs=FILE.json     FILE: a list of runs, each the list of arguments that train.py would get

Each leaves the folder that train.py leaves, and goes on from one (--init_from=auto or resume), here or there. What is each run's own:
weights, data order, learning rate, gradient norm and clipping, random numbers, divergence. A run that diverged stands still and is
reported; the others go on. (training/stacked_modules.py: the forward pass; training/stacked_optimizer.py: the update.)

A run of a stack is the run that train.py would have made, to rounding: products of N matrices at once are summed in another order. On a CPU
dropout draws the same numbers. On a GPU, and compiled, all runs of a stack draw from one stream.

Seconds of a run (train_seconds, dt) are its share: those of the stack over N. Runs that begin at different steps (some were killed) are
stacks of their own, one after the other. Ctrl-C saves all.

Exit status: 0 finished, or stopped by a signal; 2 bad input; 3 some diverged.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import contextlib
import copy
import itertools
import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

import configurator
import geometry
import models
from common import paths
from common.errors import Diverged, UserError, exit_cleanly
from common.interrupts import Stop
from configurator import Path
from training import start
from training.clock import Clock, Console
from training.config import TrainConfig
from training.dataloader import Loader, Together, load_meta
from training.machine import padded_vocabulary, pick_compile, pick_device, pick_dtype, precision
from training.optimizer import make_optimizers
from training.parallel import Parallel
from training.qk_clip import QKClip
from training.run import Run, facts, kept, resolved
from training.run_directory import hold_run
from training.schedule import Deal, lr_at, step_again
from training.stacked_modules import stack_modules
from training.stacked_step import free_memory, stacked_step

OWN = ("seed", "learning_rate", "min_lr", "muon_lr", "curvature_lr_mult", "out_dir", "init_from", "overwrite", "wandb_run_name")  # keys
SAVERS = 8  # threads that write checkpoints


@dataclass
class StackConfig:
    runs: Path = "runs.json"  # a JSON list of runs: each a list of train.py's arguments
    cuda_graph: bool = True  # on a GPU: a step as two CUDA graphs (a micro-batch, the update), where the model has no dropout and reads no
        # number back


@dataclass
class Member:
    """A run of the stack."""
    argv: list
    config: TrainConfig
    model_config: object
    model: torch.nn.Module = None
    run: Run = None
    loader: Loader = None
    optimizers: list = None
    open: bool = True  # neither finished nor diverged
    diverged: bool = False

    @property
    def name(self):
        return os.path.basename(os.path.normpath(self.config.out_dir))


# ----------------------------------------------------------------------------------------------------------------------
# what goes together

def why_not(config, model_config):
    """Why a run cannot be in a stack, in a line, or None."""
    device_type = torch.device(pick_device(config.device)).type
    refused = {
        "distill_from": config.distill_from is not None, "freeze": bool(config.freeze),
        "log_stability, which is of one model": config.log_stability,
        "eval_only": config.eval_only, "wandb_log, which takes one run a process": config.wandb_log,
        "max_seconds, which are those of a run alone": config.max_seconds is not None,
        "ops = 'triton', whose kernels take one LayerNorm": getattr(model_config, "ops", "torch") == "triton",
        "activation_checkpointing with dropout": config.activation_checkpointing and model_config.dropout > 0,
        "matmul = 'onednn', whose products are of one model": config.matmul == "onednn",
        "dtype = 'float16', whose scaler is one for all": pick_dtype(config.dtype, device_type) == "float16",
    }
    for what, is_so in refused.items():
        if is_so:
            return f"cannot be stacked: {what}"
    small = copy.copy(model_config)
    small.vocab_size = 64
    try:
        model = models.build(config.model, small)
        if config.qk_clip is not None:
            QKClip(model, config.qk_clip)
        stack_modules(model, 1, config.model)
    except UserError as error:
        return str(error)
    return None


def alike(config, model_config):
    """What runs of one stack have in common: a dict."""
    return {key: value for key, value in configurator.as_dict(config, model_config).items() if key not in OWN}


def read_runs(path):
    """The members of a file. Raises UserError."""
    paths.file_to_read(path, f"runs = '{path}'")
    try:
        with open(path, encoding="utf-8") as f:
            given = json.load(f)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON") from None
    if not (isinstance(given, list) and given and all(isinstance(run, list) and all(isinstance(a, str) for a in run) for run in given)):
        raise UserError(f"{path}: a list of runs is needed, each a list of train.py's arguments")
    members = [Member(argv, *configurator.resolve(argv, TrainConfig, models.CONFIGS, "model")) for argv in given]
    first = alike(members[0].config, members[0].model_config)
    for member in members:
        here = alike(member.config, member.model_config)
        for key in {**first, **here}:
            if first.get(key) != here.get(key):
                raise UserError(f"{path}: the runs of a stack differ in {', '.join(OWN[:5])} alone, and {key} is {first.get(key)!r} and "
                                f"{here.get(key)!r}")
    folders = [os.path.realpath(member.config.out_dir) for member in members]
    twice = next((f for f in folders if folders.count(f) > 1), None)
    if twice:
        raise UserError(f"{path}: out_dir = '{twice}' is that of two runs")
    problem = why_not(members[0].config, members[0].model_config)
    if problem:
        raise UserError(f"{path}: {problem}")
    return members


# ----------------------------------------------------------------------------------------------------------------------

@exit_cleanly
def main(argv):
    options, _ = configurator.resolve(argv, StackConfig, script_doc=__doc__)
    members = read_runs(options.runs)
    config = members[0].config
    parallel = Parallel(config.parallel, pick_device(config.device))
    if parallel.launched:
        raise UserError("a stack is one process: start it without torchrun")
    with contextlib.ExitStack() as held:
        for member in members:
            held.enter_context(hold_run(member.config, parallel))
        return train(members, parallel, options)


def train(members, parallel, options):
    config, model_config, N = members[0].config, members[0].model_config, len(members)
    device, device_type = parallel.device, torch.device(parallel.device).type
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = os.path.join(config.data_dir, config.dataset)
    meta = load_meta(folder)
    deal = Deal(config, model_config.block_size, parallel)
    loaders = {split: Loader(folder, split, meta, config.batch_size, model_config.block_size, config.seed, device, config.num_workers)
               for split in ("train", "val")}
    dtype = pick_dtype(config.dtype, device_type)
    autocast, scaler = precision(dtype, device, model_config)

    def new_model(member):
        torch.manual_seed(member.config.seed)
        member.model_config.vocab_size = padded_vocabulary(meta["vocab_size"])
        return models.build(config.model, member.model_config, device_type).train()

    model = new_model(members[0])
    compiled, why = pick_compile(config.compile, device_type, N * model.flops_per_token() * deal.tokens * config.max_iters,
                                 model.compile_seconds, model.compile_saving.get(device_type, 0.0))
    from_trained = {}  # what is said of trained weights: once, where all begin alike
    for member in members:  # everything is checked before anything is written
        member.model, own = new_model(member), member.config
        member.loader = loaders["train"].with_seed(own.seed)
        everything = resolved(own, member.model_config, device_type, dtype, "torch", compiled, meta)
        member.run = Run(own, everything, kept(own), parallel, member.model, scaler, deal)
        if said := start.begin(member.run, meta):
            from_trained.setdefault("\n".join(said))
        member.model.to(device)
        member.optimizers = make_optimizers(member.model, own, device_type)
        member.run.attach(member.optimizers)

    print(f"{N} runs of {config.model} at once, {model.num_params():,} parameters each; {N} x {deal.tokens:,} tokens a step; corpus: "
          f"{meta['corpus']}\ndevice: {device_type}; dtype: {dtype}; compile: {'on' if compiled else 'off'} ({why})")
    for said in from_trained:
        print(said)
    if hasattr(model_config, "row_scalars"):
        print(geometry.use_row_scalars(model_config.row_scalars))
    stop = Stop()
    for begins, together in itertools.groupby(sorted(members, key=lambda member: member.run.start), lambda member: member.run.start):
        together = list(together)
        if len(together) < N:
            print(f"{len(together)} of them begin at step {begins}")
        if not stop.signal:
            for member in together:
                member.run.begin(f"python -m training.stacked --runs={options.runs} ({len(together)} runs at once; alone: python train.py "
                                 f"{' '.join(member.argv)})", {**facts(member.model, meta), "stacked": len(together)})
                member.run.finish_last_save()
            stack = Stack(together, new_model(together[0]), device, autocast, compiled, loaders, deal, options)
            stack.train(stop)
            del stack
            free_memory(device)
    return 3 if any(member.diverged for member in members) else 0


def is_gpu(device):
    """Has it CUDA graphs, and does reading a number make the host wait?"""
    return device.startswith("cuda")


class Stack:
    """Runs that begin at one step, under way."""

    def __init__(self, members, model, device, autocast, compiled, loaders, deal, options):
        self.members, self.device, self.autocast, self.compiled, self.deal = members, device, autocast, compiled, deal
        self.config, self.loaders, self.start = members[0].config, loaders, members[0].run.start
        on_gpu, dropout = is_gpu(device), members[0].model_config.dropout > 0
        # (the attention of model_tau.py asks its numbers how to compute, and dropout draws other numbers in each step)
        graph = on_gpu and options.cuda_graph and not dropout and self.config.model != "tau"
        self.step = stacked_step(self.config.model, model, [m.model for m in members], [m.optimizers for m in members],
                                 [m.config for m in members], device, autocast, compiled, deal.own, graph, self.start)
        self.model = self.step.model
        self.draws_own = dropout and not on_gpu and not compiled
        self.clock = Clock(None)

    def reads_every_step(self):
        """Does it cost nothing to read a number of the device?"""
        return not is_gpu(self.device)

    def open(self):
        return [(n, member) for n, member in enumerate(self.members) if member.open]

    def train(self, stop):
        config, deal, clock, N = self.config, self.deal, self.clock, len(self.members)
        batches = Together([member.loader for member in self.members])
        stream = batches.batches(k for step in range(self.start, config.max_iters) for k in deal.micro_batches(step))
        stopping, seeds = bool(stop.signal), [member.config.seed for member in self.members]
        with contextlib.closing(stream), contextlib.closing(Console(clock, self.start, config.max_iters, True)) as console:
            for step in range(self.start, config.max_iters + 1):
                last, improved = step == config.max_iters, {}
                if step % config.eval_interval == 0 or last:
                    improved = self.evaluate(step, console)
                self.save(step, last or stopping, improved)
                for n, member in self.open():
                    if last or member.run.reached is not None:
                        self.finish(n, member, step)
                if not self.open():
                    return
                if stopping:
                    for _, member in self.open():
                        member.run.stopped(step)
                    print(f"{stop.signal} at step {step}: saved. To go on: the same command, with --init_from=auto in each run")
                    return

                clock.start()
                for k in deal.micro_batches(step):
                    asked = time.perf_counter()
                    x, y = next(stream)
                    clock.waited(asked)
                    self.step.runs.seed(seeds, k, self.draws_own)
                    self.step.backward(x, y)
                self.step.finish(step)

                logging, counts = step % config.log_interval == 0, not (self.compiled and step == self.start)
                stopping = bool(stop.signal)
                due = any(member.run.is_due(step + 1) for _, member in self.open())
                reading = self.reads_every_step() or logging or not counts or stopping or due
                if reading:
                    losses, norms, bad = self.step.read()
                    for n, member in self.open():
                        if bad[n] >= 0:  # before its weights were touched
                            again = lambda member=member, at=bad[n]: step_again(member.loader, deal.everyones(at), member.config.seed)
                            self.diverged(n, member, bad[n], f" (lr {lr_at(bad[n], member.config):.3g}): the first NaN or Inf is in",
                                          again, in_training=True)
                    before = clock.seconds
                    dt = clock.read(counts) / N
                    for _, member in self.open():
                        member.run.clock.seconds += (clock.seconds - before) / N
                if logging:
                    tok_per_s, data_wait = clock.speed(deal.tokens * N)
                    clip = self.step.qk_clip
                    for n, member in self.open():
                        member.run.logged(step, {"loss": losses[n], "lr": lr_at(step, member.config), "grad_norm": norms[n], "dt": dt,
                                                 "tok_per_s": tok_per_s, "data_wait": data_wait, **(clip.numbers(n) if clip else {})})
                    if self.open():
                        console.logged(step, sum(losses[n] for n, _ in self.open()) / len(self.open()), dt * N, tok_per_s)
                console.stepped()

    # ------------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def losses(self):
        """Of each split, a list: each run's mean loss over the evaluation batches, which are the same for all."""
        N, found = len(self.members), {}
        self.model.eval()
        for split, loader in self.loaders.items():
            losses, sizes = [], []
            for x, y in loader.eval_batches(self.config.eval_iters):
                with self.autocast():
                    losses.append(self.model(x.repeat(N, 1), y.repeat(N, 1))[1])
                sizes.append(y.numel())
            sizes = torch.tensor(sizes, dtype=torch.float64).unsqueeze(1)
            found[split] = ((torch.stack(losses).cpu().double() * sizes).sum(0) / sizes.sum()).tolist()
        self.model.train()
        return found

    def evaluate(self, step, console):
        """-> number of a run -> is its model the best so far?"""
        found, improved = self.losses(), {}
        some = next(self.loaders["val"].eval_batches(1))[0][:8]
        for n, member in self.open():
            losses = {split: each[n] for split, each in found.items()}
            split = next((split for split, loss in losses.items() if not math.isfinite(loss)), None)
            if split:
                self.diverged(n, member, step, f": the {split} loss is {losses[split]} in the evaluation; the first NaN or Inf is in",
                              lambda split=split: self.loaders[split].eval_batches(self.config.eval_iters), in_training=False, losses={})
            else:
                improved[n] = member.run.evaluated(step, losses, member.model.telemetry(some))
        values = [found["val"][n] for n, _ in self.open()]
        if values:
            console.line(step, f"val loss {min(values):.4f} to {max(values):.4f} ({len(values)} of {len(self.members)} runs)")
        return improved

    def save(self, step, now, improved):
        """Checkpoints of all open runs, several at a time: most of it is waiting for the disk."""
        def save(member, is_best, at_end):
            member.run.save_if_due(step, now or at_end, is_best)
        with ThreadPoolExecutor(SAVERS, thread_name_prefix="save") as pool:
            going = [(n, member, pool.submit(save, member, improved.get(n, False), member.run.reached is not None))
                     for n, member in self.open()]
            for n, member, done in going:
                try:
                    done.result()
                except Diverged as error:  # the optimizer's last step made a NaN
                    self.say_diverged(n, member, error)

    def finish(self, n, member, step):
        run = member.run
        run.finished(step)
        self.close(n, member)
        print(f"{member.name}: final: val loss {run.losses['val']:.4f} (best {run.best:.4f}, step {run.best_step}), "
              f"{step * run.tokens_per_step:,} tokens, {run.clock.seconds:,.1f} s of training")

    def diverged(self, n, member, step, what, batches, in_training, losses=None):
        where = member.run.finder(None, batches, self.autocast, in_training)
        try:
            member.run.diverged(step, what, where, losses)
        except Diverged as error:
            self.say_diverged(n, member, error)

    def say_diverged(self, n, member, error):
        print(f"{member.name}: {error}", file=sys.stderr, flush=True)
        member.diverged = True
        self.close(n, member)

    def close(self, n, member):
        """It stands still from here on."""
        member.open = False
        self.step.going[n] = False


if __name__ == "__main__":
    main(sys.argv[1:])
