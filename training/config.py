"""The keys of train.py. Those of each model are in its own file."""
import os
from dataclasses import dataclass, field
from typing import Literal

import models
from common.errors import UserError
from configurator import Path

OWN_STARTS = ("scratch", "resume", "auto")  # of init_from; others are trained weights
ADDED_SINCE = {"freeze": [], "distill_from": None, "distill_text": 1.0, "distill_logits": 1.0, "distill_temperature": 2.0,
               "distill_layers": "none", "distill_layers_weight": 1.0, "distill_steps": None,
               "log_stability": False, "muon_adjust_lr": "original", "muon_momentum_warmup": 0,
               "qk_clip": None, "matmul": "auto"}  # keys that earlier versions lack
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FIRST_MOMENTUM = 0.85  # of muon_momentum_warmup


@dataclass
class TrainConfig:
    model: Literal[*models.MODELS] = "baseline"  # which file: model_baseline.py | model.py | model_controls.py |
        # model_terms.py | model_mhc.py | model_mhc_mixed.py | model_stereographic.py | model_tau.py
    out_dir: Path = "out"  # the run's own directory
    overwrite: bool = False  # replace the run that out_dir holds
    init_from: Path = "scratch"  # 'resume' goes on from out_dir/ckpt/last; 'auto' does so if out_dir holds a run, and starts one if
        # not; or start from trained weights: the folder of a run or of a Hugging Face GPT-2, or gpt2 | gpt2-medium | gpt2-large | gpt2-xl
    seed: int = 1337  # of the weights, of dropout and of the order of the data
    # data
    dataset: str = "shakespeare_char"  # folder in data_dir, prepared by its prepare.py
    data_dir: Path = os.path.join(REPOSITORY, "data")  # where the data sets are
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
    muon_adjust_lr: Literal["original", "match_rms_adamw"] = "original"  # a (out x in) matrix has muon_lr * sqrt(max(1, out / in)); or
        # muon_lr * 0.2 sqrt(max(out, in)), updates as large as AdamW's: then muon_lr = learning_rate is a fair start
    muon_momentum_warmup: int = 0  # steps in which Muon's momentum rises to muon_momentum, from 0.85 (or less, if that is)
    qk_clip: float | None = None  # attention logits above it are scaled down after the step (training/qk_clip.py); 100 is usual
    freeze: list[str] = field(default_factory=list)  # parameters that are not trained, by name: 'transformer.h.*.mlp.*'
    # learning from another run (training/distill.py)
    distill_from: Path | None = None  # its folder, the teacher's
    distill_text: float = 1.0  # weight of the text's own cross-entropy
    distill_logits: float = 1.0  # weight of T^2 KL(teacher || student)
    distill_temperature: float = 2.0  # T of these logits
    distill_layers: Literal["none", "hidden", "attention"] = "none"  # rows that are compared: after each block; what attention adds
    distill_layers_weight: float = 1.0  # of their distance
    distill_steps: int | None = None  # so many steps, then the text alone (None: all)
    # learning-rate schedule: linear warm-up, then cosine
    decay_lr: bool = True  # False: constant after the warm-up
    warmup_iters: int = 100  # steps
    lr_decay_iters: int | None = None  # step at which min_lr is reached (None: max_iters)
    min_lr: float | None = None  # None: learning_rate / 10
    # machine
    device: str = "auto"  # 'auto' | 'cpu' | 'cuda' | 'cuda:1' | 'mps'
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products (autocast); weights are float32
    matmul: Literal["auto", "torch", "onednn"] = "auto"  # of float32 on a CPU: torch's own, or oneDNN's; 'auto': oneDNN's where torch's
        # leaves half of the CPU idle (AMD with AVX-512, training/onednn.py)
    compile: bool | Literal["auto"] = "auto"  # torch.compile; 'auto': where it pays off for the planned steps
    parallel: Literal["ddp", "fsdp"] = "ddp"  # under torchrun: whole weights on each process, or in shards
    activation_checkpointing: bool = False  # keep a block's input alone and compute the block again in the backward pass
    threads: int = 0  # CPU threads (0: torch's choice)
    # logs
    log_stability: bool = False  # by block: norms of gradients, updates and of the maps' Jacobians (training/watch.py); not with fsdp
    tensorboard_log: bool = True  # event files in out_dir/tensorboard
    wandb_log: bool = False  # Weights & Biases (pip install wandb)
    wandb_project: str = "mixed-curvature-gpt"  # Weights & Biases
    wandb_run_name: str | None = None  # None: the name of out_dir

    def __post_init__(self):
        at_least = dict(batch_size=1, gradient_accumulation_steps=1, max_iters=0, eval_interval=1, eval_iters=1,
                        log_interval=1, muon_ns_steps=1, warmup_iters=0, threads=0, seed=0, learning_rate=0,
                        weight_decay=0, grad_clip=0, muon_momentum_warmup=0, curvature_lr_mult=0, muon_lr=0, num_workers=0)
        for key, least in at_least.items():
            if getattr(self, key) < least:
                raise UserError(f"{key} = {getattr(self, key)}: must be at least {least}")
        for key, limit in (("muon_ns_steps", 100), ("threads", 2 ** 16)):
            if getattr(self, key) >= limit:
                raise UserError(f"{key} = {getattr(self, key)}: must be less than {limit}")
        if self.overwrite and self.init_from in ("resume", "auto"):
            raise UserError(f"overwrite = True replaces the run that init_from = {self.init_from!r} goes on with; take one of them")
        if not self.out_dir:
            raise UserError("out_dir is empty: name the run's folder")
        for key in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"{key} = {getattr(self, key)}: must be in [0, 1)")
        for key in ("distill_text", "distill_logits", "distill_layers_weight"):
            if not getattr(self, key) >= 0:
                raise UserError(f"{key} = {getattr(self, key)}: must be at least 0")
        if not 0 < self.distill_temperature <= 1000:
            raise UserError(f"distill_temperature = {self.distill_temperature:g}: must be more than 0, and at most 1,000")
        if self.qk_clip is not None and not 0 < self.qk_clip < float("inf"):
            raise UserError(f"qk_clip = {self.qk_clip:g}: must be more than 0, or None")
        if self.log_stability and self.parallel == "fsdp":
            raise UserError("log_stability = True needs whole weights; use --parallel=ddp")
        if self.init_from not in OWN_STARTS and os.path.lexists(self.init_from) and (
                os.path.realpath(self.init_from) == os.path.realpath(self.out_dir)):
            raise UserError(f"init_from = out_dir = '{self.out_dir}': the new run would replace the weights that it begins with; give it "
                            "another out_dir")
        if self.distill_from is not None:
            if not self.distill_from:
                raise UserError("distill_from is empty: name a run's folder, or leave it out")
            if os.path.realpath(self.distill_from) == os.path.realpath(self.out_dir):
                raise UserError(f"distill_from = out_dir = '{self.out_dir}': a run cannot learn from itself; give it another out_dir")
            if self.compile is True:
                raise UserError("compile = True does not go with distill_from: layers are listened to; leave compile out")
            if not self.distill_text + self.distill_logits + self.distill_layers_weight * (self.distill_layers != "none"):
                raise UserError("distill_text, distill_logits and distill_layers leave nothing to learn from")
        for key in ("save_interval", "max_seconds", "distill_steps"):
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
            muons = (key for key in self.__dataclass_fields__ if key.startswith("muon_"))
            found.update(dict.fromkeys(muons, f"optimizer = {self.optimizer!r}"))
        elif self.muon_momentum <= FIRST_MOMENTUM:
            found["muon_momentum_warmup"] = f"muon_momentum = {self.muon_momentum:g}, which is not above its start"
        if self.distill_from is None:
            found.update(dict.fromkeys((key for key in ADDED_SINCE if key.startswith("distill_") and key != "distill_from"),
                                       "no distill_from"))
        elif self.distill_layers == "none":
            found["distill_layers_weight"] = "distill_layers = 'none'"
        if self.distill_from is not None and not self.distill_logits:
            found["distill_temperature"] = "distill_logits = 0"
        if not self.decay_lr:
            found.update(dict.fromkeys(("min_lr", "lr_decay_iters"), "decay_lr = False"))
        if not self.wandb_log:
            found.update(dict.fromkeys(("wandb_project", "wandb_run_name"), "wandb_log = False"))
        return found
