"""
Token files -> batches. Deterministic: the batch of step k is a function of (seed, k) alone.

A data set is data/<name>/{train.bin, val.bin, meta.json}, written by data/<name>/prepare.py: raw little-endian uint16
tokens (format: data/sources.py). Files are memory-mapped, not read.

An epoch cuts the tokens in windows of block_size + 1 (inputs and targets overlap by one) at a random offset and visits
each window once, in random order; offset and order come from a counter-based generator keyed by (seed, epoch). So a run
resumes exactly from its step number, and neither evaluation nor the number of evaluations changes what it reads.
"""
import json
import os

import numpy as np
import torch

from errors import UserError


def load_meta(folder):
    """meta.json of a data set, checked for what training needs."""
    path = os.path.join(folder, "meta.json")
    prepare = os.path.join(folder, "prepare.py")
    if not os.path.isfile(path):
        hint = f"run: python {prepare}" if os.path.isfile(prepare) else f"there is no {prepare}; see data/ for the sets"
        raise UserError(f"no prepared data in {folder}: {hint}")
    try:
        with open(path, encoding="utf-8") as f:
            meta = json.load(f)
        meta["vocab_size"], meta["train_tokens"], meta["val_tokens"], meta["corpus"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; run: python {prepare}") from None
    return meta


class TokenFile:
    """One memory-mapped .bin file of a data set, checked against its meta.json."""

    def __init__(self, folder, split, meta):
        self.path = os.path.join(folder, f"{split}.bin")
        prepare = os.path.join(folder, "prepare.py")
        if not os.path.isfile(self.path):
            raise UserError(f"{self.path} is missing; run: python {prepare}")
        expected, size = 2 * meta[f"{split}_tokens"], os.path.getsize(self.path)
        if size != expected:
            raise UserError(f"{self.path} has {size:,} bytes where meta.json says {expected:,}: it is "
                            f"{'empty' if size == 0 else 'truncated or from another run'}; run: python {prepare}")
        self.tokens = np.memmap(self.path, dtype="<u2", mode="r")
        self.vocab_size = meta["vocab_size"]

    def window(self, start, length):
        """(length,) int64 tokens. A token outside the vocabulary is an error here, not a crash in the embedding."""
        tokens = self.tokens[start:start + length].astype(np.int64)
        worst = int(tokens.max())
        if worst >= self.vocab_size:
            at = start + int(tokens.argmax())
            raise UserError(f"{self.path}: token {worst} at position {at:,} is outside the vocabulary of "
                            f"{self.vocab_size}; prepare the data again")
        return tokens


class Loader:
    """Batches of windows from one split.

    batch(k) -> (x, y), both (batch_size, block_size) int64 on `device`, the k-th batch of the run; y is x moved on by one.
    """

    def __init__(self, folder, split, meta, batch_size, block_size, seed, device="cpu"):
        self.file = TokenFile(folder, split, meta)
        self.batch_size, self.block_size, self.seed = batch_size, block_size, seed
        self.device = torch.device(device)
        n = len(self.file.tokens)
        if n < block_size + 1:
            raise UserError(f"block_size = {block_size} needs {block_size + 1:,} tokens, "
                            f"{self.file.path} has {n:,}; lower block_size")
        self.windows = (n - 1) // block_size  # of an epoch at offset 0
        self._epoch, self._starts = None, None

    def _starts_of(self, epoch):
        if epoch != self._epoch:
            # Philox is counter-based: its stream is a function of the key, whatever was drawn before
            rng = np.random.Generator(np.random.Philox(key=[self.seed % 2 ** 64, epoch]))
            spare = len(self.file.tokens) - 1 - self.windows * self.block_size  # windows * block_size + spare + 1 tokens
            shift = int(rng.integers(0, self.block_size)) if self.windows > 1 else 0
            # with a shift beyond the spare tokens one window no longer fits; the epoch then has one fewer, and takes
            # the first block_size tokens that the shift left out as its last window
            starts = shift + self.block_size * np.arange(self.windows)
            if shift > spare:
                starts[-1] = 0
            self._epoch, self._starts = epoch, rng.permutation(starts)
        return self._starts

    def batch(self, k):
        first = k * self.batch_size
        rows = []
        for i in range(first, first + self.batch_size):
            epoch, place = divmod(i, self.windows)
            rows.append(self.file.window(int(self._starts_of(epoch)[place]), self.block_size + 1))
        tokens = torch.from_numpy(np.stack(rows))
        if self.device.type == "cuda":
            tokens = tokens.pin_memory().to(self.device, non_blocking=True)
        else:
            tokens = tokens.to(self.device)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def eval_batches(self, count):
        """The same windows at every evaluation of every run: spread evenly over the split, each at most once, in whole
        batches (unless the split is smaller than one): a compiled model then sees one shape."""
        total = min(count * self.batch_size, self.windows)
        total -= total % self.batch_size if total > self.batch_size else 0
        picks = (np.arange(total) * self.windows) // total
        for first in range(0, total, self.batch_size):
            rows = [self.file.window(int(p) * self.block_size, self.block_size + 1)
                    for p in picks[first:first + self.batch_size]]
            tokens = torch.from_numpy(np.stack(rows)).to(self.device)
            yield tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
