"""
A run under way: what it goes on from, what it has reached, and what it leaves in its folder.

    run = Run(...)                       may it begin, or go on? From which checkpoint? Nothing is written yet
    run.attach(optimizers)               with their state, if it goes on
    run.begin(command)                   now its files are made
    run.evaluated(...), run.logged(...)  numbers
    run.save_if_due(...)                 ckpt/last and ckpt/best
    run.finished(), run.stopped(), run.diverged(...)

run.clock has the seconds that it trained.
"""
import math
import os

import torch

import configurator
import models
from common.errors import Diverged, UserError
from common.whole_files import write_json
from training import checkpoint
from training.clock import Clock
from training.config import OWN_STARTS
from training.dataloader import tokenizer_of
from training.run_directory import Metrics, NoMetrics, check_run, environment, start_run, start_wandb


def resolved(config, model_config, device_type, dtype, matmul, compiled, meta):
    """config.json: every key, and what was chosen for it. meta: of the data set."""
    return {**configurator.as_dict(config, model_config),
            "resolved_device": device_type, "resolved_dtype": dtype, "resolved_matmul": matmul, "resolved_compile": compiled,
            "corpus": meta["corpus"], "corpus_sha256": meta.get("sha256"),
            "tokenizer": tokenizer_of(meta)}


def began_from(config, resumed):
    """With what weights the run began: init_from of the first time. None: not known, of a resumed run of an earlier version."""
    if not resumed:
        return "scratch" if config.init_from in OWN_STARTS else config.init_from
    before = checkpoint.load_config(config.out_dir)
    return before.get("began_from", None if before.get("init_from") in ("resume", "auto") else before.get("init_from"))


def kept(config):
    """The keys of it that a resumed run keeps."""
    return ["model", "optimizer", "dataset", "corpus_sha256", "tokenizer", "seed", "freeze",
            *models.CONFIGS[config.model].__dataclass_fields__]


def facts(model, meta):
    """For summary.json."""
    return {"parameters": model.num_params(), "flops_per_token": model.flops_per_token(), "corpus": meta["corpus"],
            "val_bytes_per_token": meta["val_bytes"] / meta["val_tokens"] if "val_bytes" in meta else None}


class Run:
    """Every process has one, and all call the same methods; the first process writes."""

    def __init__(self, config, full, fixed, parallel, model, scaler, deal):
        """full: the resolved configuration as a dict. fixed: its keys that a resumed run keeps. Fills `model` from ckpt/last where
        the run goes on from one. Raises UserError."""
        self.config, self.full, self.parallel, self.model, self.scaler = config, full, parallel, model, scaler
        self.tokens_per_step, self.sequences_per_step = deal.tokens, deal.sequences
        self.clock = Clock(config.max_seconds)
        # what it goes on from is decided by the first process, and everything is checked before anything is written
        self.resumed, has_checkpoint = parallel.on_main(lambda: check_run(config.out_dir, config.init_from, config.overwrite, full, fixed))
        full["began_from"] = parallel.on_main(lambda: began_from(config, self.resumed))
        self.looking = self.resumed and config.eval_only  # a look at a run changes nothing of it
        self.recording = parallel.main and not self.looking
        self.state = None  # of the checkpoint
        self.start, self.best, self.best_step, self.saved_at = 0, math.inf, None, None
        self.losses, self.reached = {}, None  # of the last evaluation; when the target was reached
        self.metrics, self.optimizers = NoMetrics(), []
        if has_checkpoint:  # a run that was killed before its first one starts again
            self._load()

    def _load(self):
        config = self.config
        path = checkpoint.folder(config.out_dir, "last")
        checkpoint.load_weights(path, self.model)
        state = self.state = checkpoint.load_state(path)
        if state["next_sequence"] != state["step"] * self.sequences_per_step:
            raise UserError(f"cannot resume {config.out_dir}: gradient_accumulation_steps * batch_size was "
                            f"{state['next_sequence'] // state['step']} there and is {self.sequences_per_step} now")
        self.start, self.clock.seconds, self.saved_at = state["step"], state["seconds"], state["step"]
        if self.start > config.max_iters:
            raise UserError(f"{config.out_dir} is at step {self.start} already, beyond max_iters = {config.max_iters}")

    def attach(self, optimizers):
        """After the model was placed on its devices. Raises UserError where the checkpoint's optimizers are others."""
        parallel, state = self.parallel, self.state
        self.optimizers = optimizers
        if state:
            checkpoint.load_optimizer_state(self.model, optimizers, state["optimizers"])
            if self.scaler.is_enabled() and state["scaler"]:  # it was another dtype's run if there is none
                self.scaler.load_state_dict(state["scaler"])
            if parallel.on_main(lambda: checkpoint.exists(self.config.out_dir, "best")) or state["best_step"] == self.start:
                self.best, self.best_step = state["best"], state["best_step"]
            # else its files are gone, and what the run calls best has to be there: the next evaluation makes it anew
        if parallel.sum(self.start) != [self.start * parallel.world]:
            raise UserError(f"the processes do not find the same checkpoint in {self.config.out_dir}; it has to be on a disk that "
                            "all of them see")

    def begin(self, command, facts):
        """Make the run's files. facts: for summary.json."""
        config, self.facts = self.config, facts
        if self.recording:
            wandb = start_wandb(config, self.full) if config.wandb_log else None  # it can fail; nothing is touched before
            with start_run(config.out_dir, self.resumed, self.full):
                write_json(os.path.join(config.out_dir, "env.json"), environment(
                    command, self.parallel.device, torch.get_num_threads(), self.parallel.world))
                self.metrics = Metrics(config, self.start, wandb)

    def finish_last_save(self):
        """The checkpoint that the run goes on from was its best, and it was killed between the writing of the two."""
        if self.state and self.best_step == self.start and not self.looking and not self.parallel.on_main(
                lambda: checkpoint.best_is_last(self.config.out_dir)):
            self._save(["best"], self.start)

    # ------------------------------------------------------------------------------------------------------------------
    # what it has reached

    def evaluated(self, step, losses, more):
        """-> is this the best model so far? more: further numbers for metrics.jsonl."""
        self.losses = losses
        self.metrics.log({"step": step, "tokens": step * self.tokens_per_step, "train_seconds": round(self.clock.seconds, 3),
                          "train_loss": losses["train"], "val_loss": losses["val"], **more})
        target = self.config.target_val_loss
        if target is not None and losses["val"] <= target:
            self.reached = {"target_step": step, "target_tokens": step * self.tokens_per_step, "target_seconds": self.clock.seconds}
        improved = losses["val"] < self.best and not self.looking
        if improved:
            self.best, self.best_step = losses["val"], step
        return improved

    def logged(self, step, numbers):
        """Of a step that was made."""
        self.metrics.log({"step": step, "tokens": (step + 1) * self.tokens_per_step,
                          "train_seconds": round(self.clock.seconds, 3), **numbers})

    def is_due(self, step):
        """Is there to be an evaluation or a checkpoint before step `step`?"""
        every = [self.config.eval_interval, *filter(None, [self.config.save_interval])]
        return step == self.config.max_iters or any(step % interval == 0 for interval in every)

    def save_if_due(self, step, now, improved):
        """now: whatever the intervals say."""
        if ((self.is_due(step) or now) and step != self.saved_at or improved) and not self.looking:
            self._save(["last", "best"] if improved else ["last"], step)  # in this order: checkpoint.can_resume
            self.saved_at = step

    def _save(self, names, step):
        weights, bad = self.whole_weights()
        if bad:  # the checkpoint before it is better
            self.diverged(step, ": the optimizer's last step made a NaN or Inf in", lambda: bad)
        state = {"optimizers": checkpoint.optimizer_state(self.model, self.optimizers, self.parallel.main),
                 "scaler": self.scaler.state_dict(), "step": step, "next_sequence": step * self.sequences_per_step,
                 "best": self.best, "best_step": self.best_step, "seconds": self.clock.seconds}

        def write():
            for name in names:
                checkpoint.save(self.config.out_dir, name, weights, state)
        self.parallel.on_main(write)

    def whole_weights(self):
        """What the first process needs of them: on the CPU where every GPU has a shard, which has no room for the whole.
        Every process has to call this. -> (name -> tensor, {} elsewhere; the first name with a NaN or Inf)"""
        found, bad = {}, None
        for name, tensor in checkpoint.gather_weights(self.model):
            bad = bad or (None if torch.isfinite(tensor).all() else name)
            if self.parallel.main:
                found[name] = tensor.cpu() if self.parallel.kind == "fsdp" else tensor
        return found, bad

    # ------------------------------------------------------------------------------------------------------------------
    # how it ends

    def _summarize(self, status, step, losses, **more):
        if self.recording:
            write_json(os.path.join(self.config.out_dir, "summary.json"), {
                "status": status, "model": self.config.model, "step": step, "tokens": step * self.tokens_per_step,
                "train_seconds": self.clock.seconds, "train_loss": losses.get("train"), "val_loss": losses.get("val"),
                "best_val_loss": self.best if math.isfinite(self.best) else None, "best_step": self.best_step, **self.facts, **more})

    def finished(self, step):
        target = {} if self.config.target_val_loss is None else {"target_reached": self.reached is not None}
        self._summarize("finished", step, self.losses, **(self.reached or {}), **target)
        self.metrics.close()

    def stopped(self, step):
        self._summarize("stopped", step, self.losses)
        self.metrics.close()

    def diverged(self, step, what, where, losses=None):
        """Raises Diverged, on the first process; `where`, which says the place of the first NaN or Inf, is called there alone."""
        def report():
            try:
                place = where()
            except torch.OutOfMemoryError:  # it repeats the step without torch.compile, on a model of its own under FSDP2
                place = "an unknown place: there is no device memory left to look for it"
            self._summarize("diverged", step, self.losses if losses is None else losses, where=place)
            raise Diverged(f"diverged at step {step}{what} {place}")
        self.metrics.close()
        self.parallel.on_main(report)

    def finder(self, new_model, batches, autocast, in_training):
        """`where` for diverged(): repeats the work on batches() and watches. Every process has to call this."""
        weights, _ = self.whole_weights()

        def where():
            from training import diagnose
            plain = self.model if self.parallel.world == 1 else new_model().to(self.parallel.device)  # without the hooks between processes
            checkpoint.fill(plain, weights)
            return diagnose.first_non_finite(plain.train(in_training), batches(), autocast, backward=in_training)
        return where
