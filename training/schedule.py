"""The learning rate of a step, which micro-batches make it, and what is drawn in each: functions of the configuration alone."""
import math

import numpy as np
import torch

from common.errors import UserError


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


class Deal:
    """How the micro-batches of each step are dealt out to the processes: rank r of W takes r, r + W, ... Raises UserError where
    that is not even."""

    def __init__(self, config, block_size, parallel):
        self.all, self.rank, self.world = config.gradient_accumulation_steps, parallel.rank, parallel.world
        if self.all % self.world:
            raise UserError(f"gradient_accumulation_steps = {self.all} micro-batches cannot be dealt out to {self.world} processes "
                            f"evenly: take a multiple of {self.world}, or another number of processes")
        self.own = self.all // self.world  # micro-batches of this process in a step
        self.sequences = self.all * config.batch_size  # of a step, all processes
        self.tokens = self.sequences * block_size

    def micro_batches(self, step):
        """Numbers of this process's micro-batches of a step."""
        return range(step * self.all + self.rank, (step + 1) * self.all, self.world)

    def everyones(self, step):
        """Numbers of all micro-batches of a step."""
        return range(step * self.all, (step + 1) * self.all)

    def is_last(self, k):
        """Is micro-batch k this process's last one of its step?"""
        return k % self.all + self.world >= self.all


def seed_micro_batch(seed, k):
    """The random numbers of micro-batch k, whatever was drawn before and whichever process runs it."""
    torch.manual_seed(int(np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)[0]))


def step_again(loader, micro_batches, seed):
    """The micro-batches of a step once more, with their random numbers."""
    for k in micro_batches:
        batch = loader.batch(k)
        seed_micro_batch(seed, k)
        yield batch
