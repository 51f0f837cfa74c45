"""
Token files -> batches. Deterministic: micro-batch k of a run is a function of (data, seed, k) alone.

A data set is data/<name>/{*.bin, meta.json}, written by data/<name>/prepare.py, in one of two forms:

    train.bin, val.bin    raw little-endian uint16 tokens (nanoGPT's; format: data/sources.py)
    shards                files that meta.json lists under "shards", each with llm.c's header of 256 int32 words:
                          20240520, version 1, number of tokens; then uint16 tokens

Files are read a window at a time, where it is wanted. An epoch cuts every file in windows of block_size + 1 (inputs and targets overlap by
one) at a random offset and visits each window once, in random order; offset and order come from a counter-based generator
keyed by (seed, epoch). So a run resumes exactly from its step number; evaluations and worker threads change nothing of
what it reads; and the micro-batches of one step can be dealt out to any number of processes.
"""
import collections
import copy
import json
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from common.errors import UserError
from common.paths import missing_above, short, what_is
from data.shard_format import HEADER_WORDS, MAGIC, VERSION

TOKENIZER_KEYS = ("tokenizer", "vocab_size", "characters", "words", "tokens")  # what meta.json says of its tokenizer, and a run keeps


def tokenizer_of(meta):
    """What a run keeps of its data's tokenizer."""
    return {key: meta[key] for key in TOKENIZER_KEYS if key in meta}


def load_meta(folder):
    """meta.json of a data set, checked for what training needs."""
    path, folder = os.path.join(folder, "meta.json"), short(folder)
    prepare = os.path.join(folder, "prepare.py")
    if not os.path.isfile(path):
        there = what_is(folder)
        if os.path.isfile(prepare):
            hint = f"run: python {prepare}"
        elif there is None:
            hint = f"there is no such folder{missing_above(folder)}; see data/ for the sets"
        elif os.path.isdir(folder):
            hint = f"there is no {prepare} either; see data/ for the sets"
        else:
            hint = f"it {there}, a folder is needed"
        raise UserError(f"no prepared data in {folder}: {hint}")
    try:
        with open(path, encoding="utf-8") as f:
            meta = json.load(f)
        numbers = [meta[key] for key in ("vocab_size", "train_tokens", "val_tokens", "val_bytes") if key in meta or key != "val_bytes"]
        texts = [meta["corpus"]]
        for split in ("train", "val") if "shards" in meta else ():
            numbers += [shard["tokens"] for shard in meta["shards"][split]]
            texts += [shard["file"] for shard in meta["shards"][split]]
        if not all(type(n) is int and n > 0 for n in numbers) or not all(type(t) is str and t for t in texts):
            raise ValueError
        if type(meta.get("header_bytes", 0)) is not int or meta.get("header_bytes", 0) < 0 \
                or meta.get("dtype", "uint16") != "uint16":
            raise ValueError
        if not all(type(meta.get(key, "")) is str for key in TOKENIZER_KEYS if key != "vocab_size"):  # for sampling, long after
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{short(path)} is damaged; run: python {prepare}") from None
    return meta


class TokenFile:
    """One file of tokens, checked against what meta.json says of it. It is read, not mapped into memory: a mapped file that is cut
    short kills the process that touches it (SIGBUS)."""

    def __init__(self, path, tokens, header_bytes, vocab_size):
        self.path, self.vocab_size = path, vocab_size
        path = short(path)
        self.prepare = f"run: python {os.path.join(os.path.dirname(path), 'prepare.py')}"
        if not os.path.isfile(path):
            raise UserError(f"{path} is missing; {self.prepare}")
        expected, size = header_bytes + 2 * tokens, os.path.getsize(path)
        if size != expected:
            raise UserError(f"{path} has {size:,} bytes where meta.json says {expected:,}: it is "
                            f"{'empty' if size == 0 else 'truncated or from another run'}; {self.prepare}")
        if header_bytes:
            header = np.fromfile(path, dtype="<i4", count=HEADER_WORDS)
            if header_bytes != 4 * HEADER_WORDS or tuple(header[:3]) != (MAGIC, VERSION, tokens):
                raise UserError(f"{path}: its header is not that of a shard of {tokens:,} tokens (magic {MAGIC}, version "
                                f"{VERSION}); {self.prepare}")
        self.tokens, self.header_bytes = tokens, header_bytes
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self.identity = self._identity()

    def __len__(self):
        return self.tokens

    def _identity(self):
        found = os.stat(self.path)
        return found.st_ino, found.st_size, found.st_mtime_ns

    def window(self, start, length):
        """(length,) int64 tokens. A file that was replaced or cut and a token outside the vocabulary are errors here."""
        try:
            unchanged = self._identity() == self.identity
        except FileNotFoundError:
            unchanged = False
        tokens = np.frombuffer(os.pread(self.descriptor, 2 * length, self.header_bytes + 2 * start), dtype="<u2").astype(np.int64)
        if not unchanged or len(tokens) < length:
            raise UserError(f"{self.path} was changed or removed while this run reads it: its batches would no longer be "
                            f"those of its seed; restore it and go on from the last checkpoint with --init_from=resume")
        worst = int(tokens.max())
        if worst >= self.vocab_size:
            at = start + int(tokens.argmax())
            raise UserError(f"{self.path}: token {worst} at position {at:,} is outside the vocabulary of "
                            f"{self.vocab_size}; prepare the data again")
        return tokens

    def check_small(self, most=2 ** 26, at_once=2 ** 20):
        """All tokens of a file of up to `most` before anything begins; those of larger ones as they are read."""
        for start in range(0, len(self) if len(self) <= most else 0, at_once):
            self.window(start, min(at_once, len(self) - start))


def open_files(folder, split, meta):
    """The files of one split, in meta.json's order."""
    shards = meta["shards"][split] if "shards" in meta else [{"file": f"{split}.bin", "tokens": meta[f"{split}_tokens"]}]
    return [TokenFile(os.path.join(folder, s["file"]), s["tokens"], meta.get("header_bytes", 0), meta["vocab_size"])
            for s in shards]


class Loader:
    """Batches of windows from one split.

    batch(k) -> (x, y), both (batch_size, block_size) int64 on `device`, the k-th micro-batch of the run; y is x moved on
    by one. batches(ks) gives those of many k in order, read ahead by num_workers threads.
    """

    def __init__(self, folder, split, meta, batch_size, block_size, seed, device="cpu", num_workers=0):
        files = open_files(folder, split, meta)
        self.files = [f for f in files if len(f) > block_size]
        self.batch_size, self.block_size, self.seed = batch_size, block_size, seed
        self.device, self.num_workers = torch.device(device), num_workers
        if not self.files:
            name = files[0].path if len(files) == 1 else f"the longest file of {split} in {folder}"
            raise UserError(f"block_size = {block_size} needs {block_size + 1:,} tokens, "
                            f"{name} has {max(map(len, files), default=0):,}; lower block_size")
        for file in self.files:
            file.check_small()
        per_file = [(len(f) - 1) // block_size for f in self.files]
        self.ends = np.cumsum(per_file)  # window w is in the first file whose end is beyond w
        self.windows = int(self.ends[-1])  # of an epoch
        self._orders, self._lock = {}, threading.Lock()

    def _order_of(self, epoch):
        """(offset, order of the windows) of an epoch; the last two epochs are kept."""
        with self._lock:
            if epoch not in self._orders:
                # Philox is counter-based: its stream is a function of the key, whatever was drawn before
                rng = np.random.Generator(np.random.Philox(key=[self.seed % 2 ** 64, epoch]))
                offset = int(rng.integers(0, self.block_size)) if self.windows > 1 else 0
                order = np.arange(self.windows, dtype=np.uint32 if self.windows < 2 ** 32 else np.uint64)
                rng.shuffle(order)
                self._orders = dict([*self._orders.items()][-1:]) | {epoch: (offset, order)}
            return self._orders[epoch]

    def _window(self, index, offset):
        """(block_size + 1,) tokens of window `index` of an epoch that begins `offset` tokens into each file."""
        at = int(np.searchsorted(self.ends, index, side="right"))
        file, start = self.files[at], (index - (int(self.ends[at - 1]) if at else 0)) * self.block_size + offset
        # an offset beyond the file's spare tokens pushes its last window out: it reads the file's first tokens instead,
        # which the offset left out
        return file.window(start if start + self.block_size < len(file) else 0, self.block_size + 1)

    def with_seed(self, seed):
        """The same files in the order of another seed."""
        other = copy.copy(self)
        other.seed, other._orders, other._lock = seed, {}, threading.Lock()
        return other

    def _tokens(self, k):
        rows = []
        for i in range(k * self.batch_size, (k + 1) * self.batch_size):
            epoch, place = divmod(i, self.windows)
            offset, order = self._order_of(epoch)
            rows.append(self._window(int(order[place]), offset))
        return torch.from_numpy(np.stack(rows))

    def _read(self, k):
        tokens = self._tokens(k)
        return tokens.pin_memory() if self.device.type == "cuda" else tokens

    def _split(self, tokens):
        tokens = tokens.to(self.device, non_blocking=True)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def batch(self, k):
        return self._split(self._read(k))

    def batches(self, ks):
        """(x, y) of each k of an iterable, read ahead in threads: the loop finds its next batches in memory."""
        if not self.num_workers:
            yield from map(self.batch, ks)
            return
        ks, waiting = iter(ks), collections.deque()
        with ThreadPoolExecutor(self.num_workers, thread_name_prefix="data") as pool:
            try:
                for k in ks:
                    waiting.append(pool.submit(self._read, k))
                    if len(waiting) > 2 * self.num_workers:
                        yield self._split(waiting.popleft().result())
                while waiting:
                    yield self._split(waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()

    def eval_batches(self, count, rank=0, world=1):
        """The same windows at every evaluation of every run: spread evenly over the split, each at most once, in whole
        batches (unless the split is smaller than one): a compiled model then sees one shape. Of `world` processes, this
        one gets batches rank, rank + world, ..."""
        total = min(count * self.batch_size, self.windows)
        total -= total % self.batch_size if total > self.batch_size else 0
        picks = (np.arange(total) * self.windows) // total
        for first in range(rank * self.batch_size, total, world * self.batch_size):
            yield self._split(torch.from_numpy(np.stack([self._window(int(p), 0)
                                                         for p in picks[first:first + self.batch_size]])))

    def num_eval_batches(self, count):
        return max(1, min(count, self.windows // self.batch_size))


class Together(Loader):
    """Loaders that differ in their seeds, as one: micro-batch k is theirs, one behind the other, (N batch_size, block_size)."""

    def __init__(self, loaders):
        vars(self).update(vars(loaders[0]), loaders=loaders)

    def _tokens(self, k):
        return torch.cat([loader._tokens(k) for loader in self.loaders])
