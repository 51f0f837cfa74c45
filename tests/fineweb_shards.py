"""Texts for data/fineweb/prepare.py, an independent account of the shards it makes of them, and runs of it in other processes."""
import gzip
import hashlib
import json
import os
import pathlib
import random
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from forked import processes, start_server

from data import tokenizer
from data.fineweb import prepare

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "data" / "fineweb" / "prepare.py"
END_OF_TEXT = 50256
VAL_SHARE = 0.2
HAZARDS = ["<|endoftext|>", "a <|endoftext|> b", "it's déjà – 漢字 🙂\r\n\u2028x", "nul \0 and \x1c", "  2  ", "\n"]


def make_documents(seed, count, words=300):
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(1, 9))) for _ in range(500)]
    return HAZARDS + [" ".join(rng.choices(vocabulary, k=rng.randrange(1, words))) for _ in range(count)]


def write_jsonl(path, texts):
    data = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


def write_parquet(path, texts, group=64):
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=group)
    return path


def expected(texts, val_share=VAL_SHARE):
    """{split: tokens}, by tiktoken's own encode_ordinary, one document after another."""
    encode = tokenizer.gpt2_encoding().encode_ordinary
    splits = {"train": [], "val": []}
    for text in texts:
        if text:
            data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
            place = int(hashlib.blake2b(data, digest_size=8).hexdigest(), 16) / 2 ** 64
            splits["val" if place < val_share else "train"] += [END_OF_TEXT, *encode(text)]
    return splits


def read(folder):
    """({split: tokens}, meta), each shard by its header and checked against meta.json."""
    meta = json.loads((folder / "meta.json").read_text())
    splits, digests = {}, ""
    for split in ("train", "val"):
        splits[split] = []
        for shard in meta["shards"][split]:
            data = (folder / shard["file"]).read_bytes()
            words = np.frombuffer(data[:1024], "<i4")
            assert words[:3].tolist() == [20240520, 1, shard["tokens"]] and not words[3:].any()
            tokens = np.frombuffer(data[1024:], "<u2").tolist()
            assert len(tokens) == shard["tokens"]
            assert hashlib.sha256(data).hexdigest() == shard["sha256"]
            digests += shard["sha256"]
            splits[split] += tokens
        assert meta[f"{split}_tokens"] == len(splits[split])
    assert meta["sha256"] == hashlib.sha256(digests.encode()).hexdigest()
    return splits, meta


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def refused(result, *said):
    status, out, err = result
    assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    for words in said:
        assert words in err
    assert "Traceback" not in err


TEXTS = make_documents(4, 1500, words=600)


def arguments(source, folder, **more):
    options = dict(source=source, out_dir=folder, val_share=VAL_SHARE, shard_tokens=50_000, commit_seconds=0) | more
    return [f"--{key}={value}" for key, value in options.items()]


def child(argv, chunk, kill_at=()):
    """Runs in a process of its own. kill_at = (when, name, nth): it kills itself just before or after the nth time that
    a file gets this name, which are the moments between which the files of a folder do not belong together."""
    prepare.CHUNK_CHARACTERS = chunk
    replace, seen = os.replace, []

    def deadly(origin, name):
        seen.append(os.path.basename(name))
        nth = seen.count(seen[-1])
        if ("before", seen[-1], nth) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(origin, name)
        if ("after", seen[-1], nth) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly
    prepare.main(argv)


def status_of(argv, chunk=100_000, kill_at=(), kill_after=None):
    """Exit status of the run in a process of its own; kill_after: seconds until it is killed."""
    start_server()
    process = processes.Process(target=child, args=(argv, chunk, kill_at))
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    return process.exitcode
