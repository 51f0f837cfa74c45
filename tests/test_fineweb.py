"""data/fineweb/prepare.py: the shards against an independent account of them, and what mistaken input gets."""
import gzip
import hashlib
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fineweb_shards import (
    END_OF_TEXT,
    TEXTS,
    VAL_SHARE,
    contents,
    expected,
    make_documents,
    read,
    refused,
    write_jsonl,
    write_parquet,
)
from hypothesis import given, settings, strategies

from data import tokenizer
from data.fineweb import prepare
from training import dataloader

pytestmark = pytest.mark.usefixtures("surroundings")


# ----------------------------------------------------------------------------------------------------------------------
# text to shards

@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt"])
def test_every_kind_of_file(ending, tmp_path, prepare_fineweb, monkeypatch):
    """The tokens of every kind of file are tiktoken's; several files are read in order, each once."""
    monkeypatch.setattr(prepare, "CHUNK_CHARACTERS", 1000)
    texts = make_documents(1, 60) + ["", "last"]
    if ending == "txt":
        for i, text in enumerate(texts):
            (tmp_path / f"{i:03d}.txt").write_bytes(text.encode())
    else:
        write = write_parquet if ending == "parquet" else write_jsonl
        write(tmp_path / f"a.{ending}", texts[:20])
        write(tmp_path / f"b.{ending}", texts[20:])
    status, out, err = prepare_fineweb(f"--source={tmp_path}/*.{ending},{tmp_path}/*.{ending}", out_dir=tmp_path / "out",
                           val_share=VAL_SHARE, shard_tokens=1000)
    assert (status, err) == (0, "")
    splits, meta = read(tmp_path / "out")
    assert splits == expected(texts)
    assert len(meta["shards"]["train"]) > 2
    for split in splits:
        for i, shard in enumerate(meta["shards"][split]):
            assert shard["file"] == f"{split}_{i:06d}.bin"
            assert shard["tokens"] == 1000 or shard == meta["shards"][split][-1]
        assert meta[f"{split}_documents"] == splits[split].count(END_OF_TEXT)
    assert meta["train_documents"] + meta["val_documents"] == len(texts) - 1 and "1 empty ones" in out
    known = {"tokenizer": "gpt2", "vocab_size": 50257, "dtype": "uint16", "header_bytes": 1024}
    assert known.items() <= meta.items()
    assert str(tmp_path) not in meta["source"] + meta["corpus"]
    assert set(contents(tmp_path / "out")) == {"meta.json"} | {s["file"] for split in splits
                                                                     for s in meta["shards"][split]}
    # what the rest of the program does with it
    assert tokenizer.load_tokenizer(meta).decode(splits["train"][1:4]) in "".join(texts)
    folder = str(tmp_path / "out")
    x, y = dataloader.Loader(folder, "train", dataloader.load_meta(folder), 2, 8, 0).batch(0)
    assert x.shape == (2, 8) and (x[:, 1:] == y[:, :-1]).all()


def test_dates_surrogates_and_copies(tmp_path, prepare_fineweb):
    """Text that looks like a date, lone surrogates and blank lines in JSON; copies are on the same side."""
    texts = ["2024-01-01", "1", "null", "a \ud800 b", "\ud83d\ude42 pair"] + [f"copy {i % 40}" for i in range(120)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n \n", 1).rstrip(b"\n"))
    assert prepare_fineweb(source=path, out_dir=tmp_path / "out", val_share=VAL_SHARE)[0] == 0
    splits, meta = read(tmp_path / "out")
    assert splits == expected(texts)
    assert "\ufffd" in tokenizer.gpt2_encoding().decode(splits["train"] + splits["val"])
    sides = [set(tokenizer.gpt2_encoding().decode(splits[s]).split("<|endoftext|>")) - {""} for s in splits]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 45


@pytest.mark.parametrize("text", ["a" * 10 ** 6, " " * 10 ** 6, "\n" * 10 ** 6])
def test_long_runs(text):
    """Of one character: what tiktoken makes of them, in seconds."""
    encoding = tokenizer.gpt2_encoding()
    tokens, lengths, _ = prepare.encode_chunk(encoding, [text], 0.5)
    assert tokens.tolist() == [END_OF_TEXT, *encoding.encode_ordinary(text)] and lengths.tolist() == [len(tokens)]


def test_whitespace_that_overflows_tiktoken():
    """A million spaces before a word: tiktoken's stack overflows; the same text, shorter, says what is right."""
    encoding = tokenizer.gpt2_encoding()
    for space, n in ((" ", 1_500_000), ("\u3000", 1_100_000)):
        tokens = prepare.encode_chunk(encoding, [f"one{space * n}two{space * 9}"], 0.5)[0]
        head, tail = encoding.encode_ordinary(f"one{space * 20}"), encoding.encode_ordinary(f"{space}two{space * 9}")
        each = len(encoding.encode_ordinary(space * 20)) // 20
        assert tokens[1:1 + len(head)].tolist() == head and tokens[-len(tail):].tolist() == tail
        assert len(tokens) == 1 + 1 + each * (n - 1) + len(tail)


@settings(max_examples=400, deadline=None)
@given(strategies.text(strategies.sampled_from(" \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000"
                                               "\u200bab'sllve1.漢\ufeff")), strategies.integers(1, 6))
def test_pieces_have_the_tokens_of_the_text(text, size):
    encoding = tokenizer.gpt2_encoding()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "PIECE_CHARACTERS", size)
        parts = list(prepare.pieces(text))
    assert "".join(parts) == text
    assert [t for part in parts for t in encoding.encode_ordinary(part)] == encoding.encode_ordinary(text)


def test_big_documents_are_bounded(tmp_path, prepare_fineweb, monkeypatch):
    """Documents beyond every bound pass, one at a time."""
    monkeypatch.setattr(prepare, "WAITING_CHARACTERS", 1000)
    texts = [f"big {i} " + "word " * 40_000 for i in range(6)] + make_documents(2, 20)
    path = write_parquet(tmp_path / "a.parquet", texts)
    assert prepare_fineweb(source=path, out_dir=tmp_path / "out", val_share=VAL_SHARE)[0] == 0
    assert read(tmp_path / "out")[0] == expected(texts)


@pytest.mark.parametrize("limit", [{"num_tokens": 5000}, {"num_tokens": 5001}, {"num_tokens": 6000}, {"num_shards": 3}])
@pytest.mark.parametrize("chunk", [300, 10 ** 6])
def test_limits_are_exact(limit, chunk, tmp_path, prepare_fineweb, monkeypatch):
    """So many train tokens, whatever the chunks; validation text up to there."""
    monkeypatch.setattr(prepare, "CHUNK_CHARACTERS", chunk)
    texts = make_documents(3, 200)
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    assert prepare_fineweb(source=path, out_dir=tmp_path / "out", val_share=VAL_SHARE, shard_tokens=2000, **limit)[0] == 0
    wanted = limit.get("num_tokens", 6000)
    used = next(n for n in range(len(texts)) if len(expected(texts[:n])["train"]) >= wanted)
    truth = expected(texts[:used])
    splits, meta = read(tmp_path / "out")
    assert splits == {"train": truth["train"][:wanted], "val": truth["val"]}
    assert meta["train_documents"] + meta["val_documents"] == used
    assert len(meta["shards"]["train"]) == -(-wanted // 2000)


def test_a_limit_beyond_the_text_takes_all_of_it(tmp_path, prepare_fineweb):
    texts = make_documents(3, 30)
    assert prepare_fineweb(source=write_jsonl(tmp_path / "a.jsonl", texts), out_dir=tmp_path / "out", val_share=VAL_SHARE,
               num_tokens=10 ** 9)[0] == 0
    assert read(tmp_path / "out")[0] == expected(texts)


# ----------------------------------------------------------------------------------------------------------------------
# mistaken input

def damaged(data):
    return data[:len(data) // 2]


@pytest.mark.parametrize("name, data, said", [
    ("none.jsonl", None, "no such file"),
    ("a.csv", b"text\n", "unknown kind of file; known are .parquet, .jsonl,"),
    ("a.jsonl", b"", "has no text"),
    ("a.txt", b"", "has no text"),
    ("a.jsonl", b'{"text": ""}\n{"text": null}\n', "has no text"),
    ("a.jsonl", b'{"text": "a"}\n{"text": oops\n', "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl, line 2: not JSON"),
    ("a.jsonl", b'{"body": "a", "id": 3}\n', "line 1: no key 'text'; it has body, id: choose with --text_column"),
    ("a.jsonl", b'["a"]\n', "line 1: no key 'text'; it is no object"),
    ("a.jsonl", b'{"text": 3}\n', "'text' is int, not text"),
    ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: cannot be read"),
    ("a.jsonl.gz", damaged(gzip.compress(os.urandom(1000).hex().encode())), "cannot be read: Truncated"),
    ("a.jsonl.zst", b"no zstd", "a.jsonl.zst: cannot be read"),
    ("a.jsonl.zst", damaged(zstandard.compress(os.urandom(1000).hex().encode())), "cannot be read: Truncated"),
    ("a.parquet", b"PAR1 not", "a.parquet: cannot be read: Parquet magic bytes not found"),
    ("a.txt", b"\xff\xfe", "a.txt: cannot be read: 'utf-8' codec can't decode byte 0xff"),
    ("a.txt", b"only one document", "none of its 1 documents is in the validation split"),
])
def test_bad_files(name, data, said, tmp_path, prepare_fineweb):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    refused(prepare_fineweb(source=tmp_path / name, out_dir=tmp_path / "out"), said)
    assert not (tmp_path / "out" / "meta.json").exists()


@pytest.mark.parametrize("table, said", [
    ({"body": ["a"], "id": [1]}, "no column 'text'; it has body, id: choose with --text_column"),
    ({"text": [1, 2]}, "column 'text' is int64, not text"),
])
def test_bad_columns(table, said, tmp_path, prepare_fineweb):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    refused(prepare_fineweb(source=tmp_path / "a.parquet", out_dir=tmp_path / "out"), said)


@pytest.mark.parametrize("args, said", [
    (["--source="], "--source is empty"),
    (["--source=,"], "no files"),
    (["--source=."], ". is a folder; give its files"),
    (["--out_dir="], "--out_dir is empty"),
    (["--num_shards=0"], "num_shards = 0: must be at least 1"),
    (["--num_shards=2", "--num_tokens=5"], "give one of them"),
    (["--num_shards=104"], "has 103 train shards"),
    (["--num_tokens=10_300_000_001"], "num_tokens asks for 104 shards"),
    (["--val_share=1.0"], "must be between 0 and 1"),
    (["--shard_tokens=3_000_000_000"], "at most 2,147,483,647"),
    (["--commit_seconds=-1"], "at least 0"),
    (["--val_share=0.1"], "val_share has no effect on --source=shards"),
    (["--source=hub", "--text_column=body"], "text_column has no effect on --source=hub"),
    (["--num_token=5"], "did you mean 'num_tokens'"),
])
def test_bad_options(args, said, tmp_path, prepare_fineweb, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(prepare_fineweb("--out_dir=out", *args), said)


def test_help(prepare_fineweb):
    status, out, err = prepare_fineweb("--help")
    assert status == 0 and "kjj0/fineweb10B-gpt2" in out and "--shard_tokens=100000000" in out


# ----------------------------------------------------------------------------------------------------------------------
# verify

def write_shard(path, tokens, magic=20240520, version=1, count=None):
    words = np.zeros(256, "<i4")
    words[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(words.tobytes() + np.asarray(tokens, "<u2").tobytes())


def test_verify(tmp_path, prepare_fineweb):
    path, folder = write_jsonl(tmp_path / "a.jsonl", TEXTS[:100]), tmp_path / "out"
    assert prepare_fineweb(source=path, out_dir=folder, val_share=VAL_SHARE, shard_tokens=5000)[0] == 0
    status, out, err = prepare_fineweb(out_dir=folder, verify=True)
    assert (status, err) == (0, "") and "verified" in out
    shard, meta = folder / "train_000001.bin", folder / "meta.json"
    whole, told = shard.read_bytes(), meta.read_text()

    def found(said, data):
        shard.write_bytes(data)
        refused(prepare_fineweb(out_dir=folder, verify=True), "train_000001.bin", said)
        shard.write_bytes(whole)

    found("SHA-256", whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    found("truncated or damaged", whole[:-2])
    found("not a shard of tokens", b"<html>" + whole[6:])
    found("version 2", whole[:4] + b"\2" + whole[5:])
    write_shard(tmp_path / "other", [1] * 4000)
    found("has 4,000 tokens, meta.json says 5,000", (tmp_path / "other").read_bytes())
    shard.rename(tmp_path / "away")
    refused(prepare_fineweb(out_dir=folder, verify=True), "train_000001.bin is missing")

    write_shard(shard, [7] * 4999 + [50257])
    changed = json.loads(told)
    changed["shards"]["train"][1]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    meta.write_text(json.dumps(changed))
    refused(prepare_fineweb(out_dir=folder, verify=True), "meta.json is damaged")  # the digest of the digests
    digests = "".join(s["sha256"] for split in ("train", "val") for s in changed["shards"][split])
    changed["sha256"] = hashlib.sha256(digests.encode()).hexdigest()
    meta.write_text(json.dumps(changed))
    refused(prepare_fineweb(out_dir=folder, verify=True), "train_000001.bin: token 50257 is outside the vocabulary of 50,257")
    for text in ("", "[]", "{}", told.replace('"train_tokens": ', '"train_tokens": 1')):
        meta.write_text(text)
        refused(prepare_fineweb(out_dir=folder, verify=True), "meta.json is damaged")
