"""
Shards: how a large data set is stored. llm.c's format, in which kjj0/fineweb10B-gpt2 comes too.

    1,024 bytes   256 little-endian int32: magic 20240520, version 1, number of tokens, zeros
    the rest      the tokens, little-endian uint16

A data set of shards is a folder with the shards and meta.json, which is written last and says what they are:

    corpus, source                       a name for people, and what it was made from
    tokenizer, vocab_size                'gpt2', 50257 (tokenizer.load_tokenizer reads them)
    dtype, header_bytes                  'uint16', 1024
    train_tokens, val_tokens             tokens of each split
    train_documents, val_documents       documents of each split, null where nobody counted them
    shards                               {"train": [{"file", "tokens", "sha256"}, ...], "val": [...]} in reading order
    sha256                               SHA-256 of the shards' hexadecimal digests in a row, train's then val's
    options                              the options that it was made with
"""
import contextlib
import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm

from common import whole_files
from common.errors import UserError
from data.shard_format import HEADER_WORDS, MAGIC, VERSION
from data.sources import sha256_of
from data.tokenizer import GPT2_VOCAB_SIZE

HEADER_BYTES = 4 * HEADER_WORDS
BLOCK_BYTES = 1 << 22  # of a file that is read through

PART = ".part"  # ending of a shard that is not whole yet
SHARD_NAME = re.compile(r"(fineweb_)?(train|val)_\d{6}\.bin(\.part)?")

PROGRESS = "progress.json"
META = "meta.json"


def available_cores():
    """The cores that this process may use (Slurm and taskset give it a part of the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def header(tokens):
    """The 1,024 bytes in front of `tokens` tokens."""
    words = np.zeros(HEADER_WORDS, dtype="<i4")
    words[:3] = MAGIC, VERSION, tokens
    return words.tobytes()


def token_count(path):
    """How many tokens a shard holds, by a header that fits the file. Raises UserError."""
    with open(path, "rb") as f:
        start = f.read(HEADER_BYTES)
        size = f.seek(0, os.SEEK_END)
    words = np.frombuffer(start[:len(start) // 4 * 4], dtype="<i4")
    if size < HEADER_BYTES or words[0] != MAGIC:
        raise UserError(f"{path}: not a shard of tokens: it begins with {start[:16]!r}, not with the number {MAGIC}")
    if words[1] != VERSION:
        raise UserError(f"{path}: a shard of version {words[1]}; version {VERSION} is known")
    tokens = int(words[2])
    if size != HEADER_BYTES + 2 * tokens:
        raise UserError(f"{path}: {size:,} bytes, and its header's {tokens:,} tokens need {HEADER_BYTES + 2 * tokens:,}"
                        ": truncated or damaged")
    return tokens


def blocks_of(path, bar=None):
    """The bytes of a file, a few MB at a time. bar: a tqdm that counts them."""
    with open(path, "rb") as f:
        while block := f.read(BLOCK_BYTES):
            yield block
            if bar is not None:
                bar.update(len(block))


def sha256_of_file(path, bar=None):
    digest = hashlib.sha256()
    for block in blocks_of(path, bar):
        digest.update(block)
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# the folder

@contextlib.contextmanager
def writing(path):
    """What a failed write says: the disk is full, say."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; the same command goes on where this "
                        "one stopped") from None


def shard_files(folder):
    """Names of the shards, whole or not, that lie in a folder."""
    return sorted(name for name in os.listdir(folder) if SHARD_NAME.fullmatch(name))


def clear(folder):
    """Remove an earlier data set, or what there is of one. meta.json goes first: without it there is no data set."""
    for name in [META, PROGRESS, *shard_files(folder)]:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))


def read_json(folder, name):
    """A JSON object of a folder, or None where there is none. Raises UserError for a damaged one."""
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except FileNotFoundError:
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged; --overwrite=True makes the data anew")
    return value


def write_json(folder, name, value):
    path = os.path.join(folder, name)
    with writing(path):
        whole_files.write_json(path, value)


def write_meta(folder, about, files, documents, options):
    """Hash the shards (on all cores) and write meta.json.

    about: {"corpus", "source"}. files: {"train": names in order, "val": names}. documents: {"train": n or None, "val"}.
    Returns the whole meta. Raises UserError where a split has no tokens.
    """
    names = files["train"] + files["val"]
    paths = {name: os.path.join(folder, name) for name in names}
    counts = {name: token_count(path) for name, path in paths.items()}
    total = sum(map(os.path.getsize, paths.values()))
    with (tqdm.tqdm(desc="SHA-256", total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar,
          ThreadPoolExecutor(available_cores()) as pool):
        digests = dict(zip(names, pool.map(lambda path: sha256_of_file(path, bar), paths.values())))
    tokens = {split: sum(counts[name] for name in files[split]) for split in files}
    meta = {
        **about,
        "tokenizer": "gpt2",
        "vocab_size": GPT2_VOCAB_SIZE,
        "dtype": "uint16",
        "header_bytes": HEADER_BYTES,
        **{f"{split}_tokens": tokens[split] for split in ("train", "val")},
        **{f"{split}_documents": documents[split] for split in ("train", "val")},
        "shards": {split: [{"file": name, "tokens": counts[name], "sha256": digests[name]} for name in files[split]]
                   for split in ("train", "val")},
        "sha256": sha256_of("".join(digests[name] for name in names).encode("ascii")),
        "options": options,
    }
    write_json(folder, META, meta)
    return meta


def verify(folder):
    """Check every shard that meta.json lists: header, size, SHA-256, and that no token is outside the vocabulary.
    Returns meta. Raises UserError at the first that is wrong."""
    meta = read_json(folder, META)
    if meta is None:
        raise UserError(f"{folder}: no {META}, so there is no finished data set to verify")
    try:
        shards = [(os.path.join(folder, s["file"]), s["tokens"], s["sha256"], split)
                  for split in ("train", "val") for s in meta["shards"][split]]
        told = {f"{split}_tokens": sum(n for _, n, _, s in shards if s == split) for split in ("train", "val")}
        told["sha256"] = sha256_of("".join(digest for _, _, digest, _ in shards).encode("ascii"))
        agrees = all(meta[key] == value for key, value in told.items())
        vocab_size = meta["vocab_size"]
    except (KeyError, TypeError):
        agrees = False
    if not agrees:
        raise UserError(f"{os.path.join(folder, META)} is damaged: its totals are not those of its shards; "
                        "--overwrite=True makes the data anew")
    total = sum(HEADER_BYTES + 2 * tokens for _, tokens, _, _ in shards)
    with tqdm.tqdm(desc="verify", total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for path, tokens, digest, _ in shards:
            if not os.path.isfile(path):
                raise UserError(f"{path} is missing; --overwrite=True makes the data anew")
            found = token_count(path)
            if found != tokens:
                raise UserError(f"{path}: has {found:,} tokens, {META} says {tokens:,}; --overwrite=True makes the "
                                "data anew")
            got, greatest, skip = hashlib.sha256(), 0, HEADER_BYTES
            for block in blocks_of(path, bar):
                got.update(block)
                greatest = max(greatest, int(np.frombuffer(block, dtype="<u2", offset=skip).max(initial=0)))
                skip = 0
            if got.hexdigest() != digest:
                raise UserError(f"{path}: its SHA-256 is {got.hexdigest()}, {META} says {digest}: it was changed or "
                                "damaged; --overwrite=True makes the data anew")
            if greatest >= vocab_size:
                raise UserError(f"{path}: token {greatest} is outside the vocabulary of {vocab_size:,}: not GPT-2's")
    return meta


# ----------------------------------------------------------------------------------------------------------------------
# writing

class ShardWriter:
    """Writes one split as <split>_000000.bin, <split>_000001.bin, ... of exactly shard_tokens tokens each; the last one
    has what is left.

    tokens: how many of them an earlier process has committed. Whatever it wrote beyond them is cut off, so that a run
    that was killed anywhere goes on as if it had stopped there. After sync(), self.tokens may be committed. Raises
    UserError.
    """

    def __init__(self, folder, split, shard_tokens, tokens=0):
        self.folder, self.split, self.shard_tokens, self.tokens = folder, split, shard_tokens, tokens
        self._file = None
        self._go_on()

    def _path(self, number):
        return os.path.join(self.folder, f"{self.split}_{number:06d}.bin")

    def files(self):
        """Names of the shards; after finish() they are all whole."""
        return [os.path.basename(self._path(i)) for i in range(-(-self.tokens // self.shard_tokens))]

    def _go_on(self):
        whole, rest = divmod(self.tokens, self.shard_tokens)
        keep = [self._path(i) for i in range(whole)]
        path = self._path(whole)
        with writing(path):
            if rest:
                if os.path.exists(path):  # it was finished, but that was not committed any more
                    os.replace(path, path + PART)
                keep.append(path + PART)
            sizes = [HEADER_BYTES + 2 * self.shard_tokens] * whole + [HEADER_BYTES + 2 * rest] * (rest > 0)
            for name, size in zip(keep, sizes):
                if not os.path.exists(name) or os.path.getsize(name) < size:
                    raise UserError(f"{name} is missing or shorter than {PROGRESS} says; --overwrite=True begins anew")
            for name in shard_files(self.folder):
                name = os.path.join(self.folder, name)
                if os.path.basename(name).startswith(f"{self.split}_") and name not in keep:
                    os.remove(name)
            if rest:
                self._file = open(path + PART, "r+b")
                self._file.truncate(sizes[-1])
                self._file.seek(0, os.SEEK_END)

    def write(self, tokens):
        """tokens: a one-dimensional uint16 array of any length."""
        data = np.ascontiguousarray(tokens, dtype="<u2")
        while len(data):
            whole, rest = divmod(self.tokens, self.shard_tokens)
            path = self._path(whole)
            piece = data[:self.shard_tokens - rest]
            with writing(path + PART):
                if self._file is None:
                    self._file = open(path + PART, "wb")
                    self._file.write(header(0))
                self._file.write(memoryview(piece).cast("B"))
            self.tokens += len(piece)
            data = data[len(piece):]
            if rest + len(piece) == self.shard_tokens:
                self._finish(path, self.shard_tokens)

    def _finish(self, path, tokens):
        with writing(path):
            self._file.seek(0)
            self._file.write(header(tokens))
            self.sync()
            self._file.close()
            self._file = None
            os.replace(path + PART, path)
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)  # the new name, before anything is committed that counts on it
            finally:
                os.close(folder)

    def finish(self):
        """Make the open shard, if there is one, the last one."""
        if self._file is not None:
            whole, rest = divmod(self.tokens, self.shard_tokens)
            self._finish(self._path(whole), rest)

    def sync(self):
        """Everything written so far is on the disk when this returns."""
        if self._file is not None:
            with writing(self._file.name):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self):
        """Let go of the open shard. What could not be written (a full disk) was not committed either."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
