"""data/fineweb/prepare.py: the shards against an independent account of them, runs that are killed, stopped or run out
of disk, downloads from a stand-in server, text from a stand-in hub, and what mistaken input gets."""
import gzip
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import pathlib
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import urllib.parse

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings, strategies

from data import sources, tokenizer
from data.fineweb import prepare
from training import dataloader

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


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(capsys):
    """run(arguments...) -> (exit status, standard output, standard error) of the script's main."""
    def call(*args, **options):
        with pytest.raises(SystemExit) as ended:
            prepare.main([*map(str, args), *(f"--{key}={value}" for key, value in options.items())])
        return ended.value.code, *capsys.readouterr()
    return call


def refused(result, *said):
    status, out, err = result
    assert status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    for words in said:
        assert words in err
    assert "Traceback" not in err


# ----------------------------------------------------------------------------------------------------------------------
# text to shards

@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt"])
def test_every_kind_of_file(ending, tmp_path, run, monkeypatch):
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
    status, out, err = run(f"--source={tmp_path}/*.{ending},{tmp_path}/*.{ending}", out_dir=tmp_path / "out",
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


def test_dates_surrogates_and_copies(tmp_path, run):
    """Text that looks like a date, lone surrogates and blank lines in JSON; copies are on the same side."""
    texts = ["2024-01-01", "1", "null", "a \ud800 b", "\ud83d\ude42 pair"] + [f"copy {i % 40}" for i in range(120)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n \n", 1).rstrip(b"\n"))
    assert run(source=path, out_dir=tmp_path / "out", val_share=VAL_SHARE)[0] == 0
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


def test_big_documents_are_bounded(tmp_path, run, monkeypatch):
    """Documents beyond every bound pass, one at a time."""
    monkeypatch.setattr(prepare, "WAITING_CHARACTERS", 1000)
    texts = [f"big {i} " + "word " * 40_000 for i in range(6)] + make_documents(2, 20)
    path = write_parquet(tmp_path / "a.parquet", texts)
    assert run(source=path, out_dir=tmp_path / "out", val_share=VAL_SHARE)[0] == 0
    assert read(tmp_path / "out")[0] == expected(texts)


@pytest.mark.parametrize("limit", [{"num_tokens": 5000}, {"num_tokens": 5001}, {"num_tokens": 6000}, {"num_shards": 3}])
@pytest.mark.parametrize("chunk", [300, 10 ** 6])
def test_limits_are_exact(limit, chunk, tmp_path, run, monkeypatch):
    """So many train tokens, whatever the chunks; validation text up to there."""
    monkeypatch.setattr(prepare, "CHUNK_CHARACTERS", chunk)
    texts = make_documents(3, 200)
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    assert run(source=path, out_dir=tmp_path / "out", val_share=VAL_SHARE, shard_tokens=2000, **limit)[0] == 0
    wanted = limit.get("num_tokens", 6000)
    used = next(n for n in range(len(texts)) if len(expected(texts[:n])["train"]) >= wanted)
    truth = expected(texts[:used])
    splits, meta = read(tmp_path / "out")
    assert splits == {"train": truth["train"][:wanted], "val": truth["val"]}
    assert meta["train_documents"] + meta["val_documents"] == used
    assert len(meta["shards"]["train"]) == -(-wanted // 2000)


def test_a_limit_beyond_the_text_takes_all_of_it(tmp_path, run):
    texts = make_documents(3, 30)
    assert run(source=write_jsonl(tmp_path / "a.jsonl", texts), out_dir=tmp_path / "out", val_share=VAL_SHARE,
               num_tokens=10 ** 9)[0] == 0
    assert read(tmp_path / "out")[0] == expected(texts)


# ----------------------------------------------------------------------------------------------------------------------
# runs that end before they are done

TEXTS = make_documents(4, 1500, words=600)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three files of different kinds: 2.5 MB, ten chunks of 250 kB, some 0.7M tokens."""
    folder = tmp_path_factory.mktemp("source")
    files = (write_jsonl(folder / "a.jsonl.gz", TEXTS[:500]), write_parquet(folder / "b.parquet", TEXTS[500:900]),
             write_jsonl(folder / "c.jsonl", TEXTS[900:]))
    return ",".join(map(str, files))


def arguments(source, folder, **more):
    options = dict(source=source, out_dir=folder, val_share=VAL_SHARE, shard_tokens=50_000, commit_seconds=0) | more
    return [f"--{key}={value}" for key, value in options.items()]


@pytest.fixture(scope="module")
def uninterrupted(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    with pytest.raises(SystemExit) as ended:
        prepare.main(arguments(source, folder))
    assert ended.value.code == 0 and read(folder)[0] == expected(TEXTS)
    return contents(folder)


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


processes = multiprocessing.get_context("forkserver")  # a fresh process in milliseconds, with the imports done
processes.set_forkserver_preload(["data.fineweb.prepare", "datasets", "test_fineweb"])


def status_of(argv, chunk=100_000, kill_at=(), kill_after=None):
    """Exit status of the run in a process of its own; kill_after: seconds until it is killed."""
    process = processes.Process(target=child, args=(argv, chunk, kill_at))
    process.start()
    process.join(kill_after)
    process.kill()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("kills", [8, pytest.param(60, marks=pytest.mark.exhaustive)])
def test_kills_at_random_moments(kills, source, uninterrupted, tmp_path):
    """kill -9 at random moments, then to the end: the same bytes and the same meta.json, and nothing else."""
    for folder in ("warm up", "clock"):
        began = time.monotonic()
        assert status_of(arguments(source, tmp_path / folder)) == 0
        duration = time.monotonic() - began
    rng, done, number = random.Random(), 0, 0
    while done < kills:
        argv = arguments(source, tmp_path / f"out{number}")
        status = status_of(argv, kill_after=rng.uniform(0, 0.8) * duration)
        if status == 0:
            assert contents(tmp_path / f"out{number}") == uninterrupted
            number += 1
        else:
            assert status == -signal.SIGKILL
            done += 1
    assert status_of(arguments(source, tmp_path / f"out{number}")) == 0
    assert contents(tmp_path / f"out{number}") == uninterrupted


def test_kills_between_two_names(source, uninterrupted, tmp_path):
    """Killed just before and just after files get their names, one place after another, then to the end."""
    argv = arguments(source, tmp_path / "out")
    last = max(name for name in uninterrupted if name.startswith("train"))
    for name, nth in (("progress.json", 1), ("progress.json", 2), ("train_000000.bin", 1), ("train_000002.bin", 1),
                      ("val_000001.bin", 1), (last, 1), ("meta.json", 1)):
        for when in ("before", "after"):
            if nth == 2 or not (tmp_path / "out" / name).exists():  # what has its name does not get it again
                assert status_of(argv, kill_at=(when, name, nth)) == -signal.SIGKILL, (when, name)
                assert (tmp_path / "out" / name).exists() == (when == "after" or nth == 2)
    assert status_of(argv) == 0
    assert contents(tmp_path / "out") == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_commit(number, source, uninterrupted, tmp_path):
    """A signal in the middle ends it with status 0; the command it prints ends the work. In small pieces, or it would have
    read everything before the signal comes."""
    folder, script = tmp_path / "out", tmp_path / "in_pieces.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(SCRIPT.parent.parent.parent)!r})\n"
                      "from data.fineweb import prepare\n"
                      "prepare.CHUNK_CHARACTERS = 5_000\n"
                      "prepare.main(sys.argv[1:])\n")
    command = [sys.executable, str(script), *arguments(source, folder, overwrite=True)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "train_000000.bin.part").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "") and number.name in out
    assert not (folder / "meta.json").exists()
    assert json.loads((folder / "progress.json").read_text())["tokens"]["train"] > 0
    again = out.partition("To go on: python ")[2].split()
    assert again == [a for a in command[1:] if "overwrite" not in a]
    assert status_of(again[1:]) == 0
    assert contents(folder) == uninterrupted


def test_full_disk(source, uninterrupted, tmp_path):
    """A write that fails in its middle is one line; with room again the same command ends the work."""
    def limit():  # a file may have 60,000 bytes: less than a shard
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

    argv = arguments(source, tmp_path / "out")
    done = subprocess.run([sys.executable, SCRIPT, *argv], preexec_fn=limit, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("note: ") and done.stdout.count("\n") == 1  # one of its texts has CR LF
    refused((done.returncode, "", done.stderr),
            "train_000000.bin.part: cannot be written: File too large; the same command goes on")
    assert status_of(argv) == 0
    assert contents(tmp_path / "out") == uninterrupted


def test_done_is_done(source, uninterrupted, tmp_path, run):
    """A finished run that is started again says so and touches nothing, even where the source has gone; other options
    are refused; --overwrite=True begins anew."""
    folder = tmp_path / "out"
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:50])
    assert run(*arguments(path, folder))[0] == 0
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    path.unlink()
    status, out, err = run(*arguments(path, folder))
    assert (status, err, out.count("\n")) == (0, "", 1) and "nothing to do" in out
    refused(run(*arguments(path, folder, num_tokens=10)), "other options (num_tokens None there, 10 now)")
    refused(run(out_dir=folder), "tokens from another source")
    refused(run(*arguments(path, folder, overwrite=True)), "no such file")  # nothing was removed for it
    assert before == {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    assert run(*arguments(source, folder, overwrite=True))[0] == 0
    assert contents(folder) == uninterrupted


@pytest.fixture
def unfinished(tmp_path):
    """A run that was killed: (path of its source, folder)."""
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:200])
    argv = arguments(path, tmp_path / "out")
    assert status_of(argv, 20_000, kill_at=("after", "progress.json", 6)) == -signal.SIGKILL
    assert (tmp_path / "out" / "progress.json").exists()
    return path, tmp_path / "out"


def test_another_run_does_not_go_on(unfinished, run):
    path, folder = unfinished
    refused(run(*arguments(path, folder, shard_tokens=60_000)), "unfinished run with other options (shard_tokens 50000")
    refused(run(out_dir=folder), "tokens from another source")
    refused(run(out_dir=folder, verify=True), "no meta.json")
    with open(path, "a") as f:
        f.write(json.dumps({"text": "one more"}) + "\n")
    refused(run(*arguments(path, folder)), "source has changed")
    part = next(folder.glob("train*.part"))
    (folder / "progress.json").rename(folder / "elsewhere")
    refused(run(*arguments(path, folder)), "shards of which nothing is known")
    (folder / "elsewhere").rename(folder / "progress.json")
    os.utime(path, ns=(0, 0))
    (folder / "progress.json").write_text("{")
    refused(run(*arguments(path, folder)), "progress.json is damaged")
    assert part.exists()


def test_a_shard_that_was_lost(unfinished, run):
    path, folder = unfinished
    for shard in folder.glob("train*"):
        shard.unlink()
    refused(run(*arguments(path, folder)), ".part is missing or shorter than progress.json says")


def test_two_at_once(tmp_path, run):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:50])
    with sources.preparing(str(tmp_path / "out")):
        refused(run(*arguments(path, tmp_path / "out")), "another process is preparing data there")
    assert run(*arguments(path, tmp_path / "out"))[0] == 0


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
def test_bad_files(name, data, said, tmp_path, run):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    refused(run(source=tmp_path / name, out_dir=tmp_path / "out"), said)
    assert not (tmp_path / "out" / "meta.json").exists()


@pytest.mark.parametrize("table, said", [
    ({"body": ["a"], "id": [1]}, "no column 'text'; it has body, id: choose with --text_column"),
    ({"text": [1, 2]}, "column 'text' is int64, not text"),
])
def test_bad_columns(table, said, tmp_path, run):
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    refused(run(source=tmp_path / "a.parquet", out_dir=tmp_path / "out"), said)


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
def test_bad_options(args, said, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(run("--out_dir=out", *args), said)


def test_help(run):
    status, out, err = run("--help")
    assert status == 0 and "kjj0/fineweb10B-gpt2" in out and "--shard_tokens=100000000" in out


# ----------------------------------------------------------------------------------------------------------------------
# verify

def write_shard(path, tokens, magic=20240520, version=1, count=None):
    words = np.zeros(256, "<i4")
    words[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(words.tobytes() + np.asarray(tokens, "<u2").tobytes())


def test_verify(tmp_path, run):
    path, folder = write_jsonl(tmp_path / "a.jsonl", TEXTS[:100]), tmp_path / "out"
    assert run(source=path, out_dir=folder, val_share=VAL_SHARE, shard_tokens=5000)[0] == 0
    status, out, err = run(out_dir=folder, verify=True)
    assert (status, err) == (0, "") and "verified" in out
    shard, meta = folder / "train_000001.bin", folder / "meta.json"
    whole, told = shard.read_bytes(), meta.read_text()

    def found(said, data):
        shard.write_bytes(data)
        refused(run(out_dir=folder, verify=True), "train_000001.bin", said)
        shard.write_bytes(whole)

    found("SHA-256", whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    found("truncated or damaged", whole[:-2])
    found("not a shard of tokens", b"<html>" + whole[6:])
    found("version 2", whole[:4] + b"\2" + whole[5:])
    write_shard(tmp_path / "other", [1] * 4000)
    found("has 4,000 tokens, meta.json says 5,000", (tmp_path / "other").read_bytes())
    shard.rename(tmp_path / "away")
    refused(run(out_dir=folder, verify=True), "train_000001.bin is missing")

    write_shard(shard, [7] * 4999 + [50257])
    changed = json.loads(told)
    changed["shards"]["train"][1]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    meta.write_text(json.dumps(changed))
    refused(run(out_dir=folder, verify=True), "meta.json is damaged")  # the digest of the digests
    digests = "".join(s["sha256"] for split in ("train", "val") for s in changed["shards"][split])
    changed["sha256"] = hashlib.sha256(digests.encode()).hexdigest()
    meta.write_text(json.dumps(changed))
    refused(run(out_dir=folder, verify=True), "train_000001.bin: token 50257 is outside the vocabulary of 50,257")
    for text in ("", "[]", "{}", told.replace('"train_tokens": ', '"train_tokens": 1')):
        meta.write_text(text)
        refused(run(out_dir=folder, verify=True), "meta.json is damaged")


# ----------------------------------------------------------------------------------------------------------------------
# tokens made by others, from a stand-in for the hub

def shard_bytes(seed, tokens=200_000):
    words = np.zeros(256, "<i4")
    words[:3] = 20240520, 1, tokens
    return words.tobytes() + np.random.default_rng(seed).integers(0, 50257, tokens).astype("<u2").tobytes()


UPSTREAM = {"fineweb_val_000000.bin": shard_bytes(0)}
UPSTREAM |= {f"fineweb_train_{i:06d}.bin": shard_bytes(i) for i in (1, 2, 3)}


class Hub(http.server.BaseHTTPRequestHandler):
    """kjj0/fineweb10B-gpt2, with the faults that `server.faults` says."""

    def do_GET(self):
        name, faults = self.path.rpartition("/")[2], self.server.faults
        self.server.asked.append((self.command, name, self.headers.get("Range")))
        if self.path.startswith("/datasets/kjj0/fineweb10B-gpt2/resolve/main/"):  # as the hub: to where the bytes are
            self.send_response(302)
            self.send_header("Location", f"/storage/{name}")
            if "no hash" not in faults:
                self.send_header("X-Linked-Etag", f'"{hashlib.sha256(UPSTREAM[name]).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        body = UPSTREAM.get(name)
        if body is None or "missing" in faults:
            return self.send_error(404)
        body = {"page": b"<!DOCTYPE html><p>log in", "magic": b"\1" + body[1:], "count": body + b"\0\0",
                "changed": body[:-1] + bytes([body[-1] ^ 1])}.get(faults.get("sends"), body)
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range") or "bytes=0-")[1])
        if start >= len(body):
            return self.send_error(416)
        if "Range" in self.headers and "no range" not in faults:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{"e" * 64}"')  # of the storage: not the file's SHA-256
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if faults.pop("interrupt", None):
            os.kill(os.getpid(), signal.SIGINT)
        if faults.get("breaks", 0) > 0:
            faults["breaks"] -= 1
            body = body[:150_000]
            self.close_connection = True
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.faults, server.asked = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def upstream_tokens(*names):
    return [t for name in names for t in np.frombuffer(UPSTREAM[name][1024:], "<u2").tolist()]


def test_shards(hub, tmp_path, run, monkeypatch):
    """Fetched, under their names, recorded; done is done; more of them later; fewer."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    folder = tmp_path / "out"
    status, out, err = run(out_dir=folder, num_shards=2)
    assert (status, err) == (0, "")
    splits, meta = read(folder)
    names = ["fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    assert splits == {"train": upstream_tokens(*names), "val": upstream_tokens("fineweb_val_000000.bin")}
    for name in [*names, "fineweb_val_000000.bin"]:
        assert (folder / name).read_bytes() == UPSTREAM[name]
    assert meta["source"] == f"{hub.url}/datasets/kjj0/fineweb10B-gpt2" and meta["train_documents"] is None
    assert run(out_dir=folder, verify=True)[0] == 0

    hub.asked.clear()
    status, out, err = run(out_dir=folder, num_tokens=200_000_000)  # the same two shards
    assert (status, err, hub.asked) == (0, "", []) and "nothing to do" in out
    assert run(out_dir=folder, num_tokens=200_000_001)[0] == 0
    assert [a[1] for a in hub.asked] == ["fineweb_train_000003.bin"] * 2  # the hub and its storage
    assert len(read(folder)[1]["shards"]["train"]) == 3
    assert run(out_dir=folder, num_shards=1)[0] == 0 and len(read(folder)[1]["shards"]["train"]) == 1

    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:50])
    refused(run(*arguments(path, folder)), "a data set made with other options (source 'shards' there")
    hub.faults["missing"] = True
    before = contents(folder)
    refused(run(out_dir=folder, num_shards=2, overwrite=True), "answered 404")
    assert contents(folder) == before
    hub.faults.clear()
    (folder / names[0]).write_bytes(b"damaged")
    assert run(out_dir=folder, num_shards=2, overwrite=True)[0] == 0
    assert read(folder)[0]["train"] == upstream_tokens(*names)


@pytest.mark.parametrize("faults, requests", [({"breaks": 2}, 3), ({"breaks": 1, "no range": True}, 2),
                                              ({"no hash": True}, 1)])
def test_shards_from_a_poor_server(faults, requests, hub, tmp_path, run):
    """One that breaks off is asked for the rest, one that cannot begin in the middle is read from the start."""
    hub.faults.update(faults)
    assert run(out_dir=tmp_path / "out", num_shards=1, mirror=hub.url)[0] == 0
    assert read(tmp_path / "out")[0]["train"] == upstream_tokens("fineweb_train_000001.bin")
    ranges = [r for _, name, r in hub.asked if "val" in name][::2]
    assert ranges == [None, "bytes=131072-", "bytes=262144-"][:requests]  # whole blocks of 64 kB are kept


def test_shards_go_on_in_the_next_process(hub, tmp_path, run):
    """After a kill in the middle, or between the last byte and the rename; after a server that broke off for good."""
    folder, name = tmp_path / "out", "fineweb_val_000000.bin"
    for there in (UPSTREAM[name][:100_000], UPSTREAM[name]):
        folder.mkdir(exist_ok=True)
        (folder / (name + ".part")).write_bytes(there)
        hub.asked.clear()
        assert run(out_dir=folder, num_shards=1, mirror=hub.url)[0] == 0
        assert hub.asked[0][2] == f"bytes={len(there)}-"
        assert read(folder)[0]["val"] == upstream_tokens(name)
        for path in folder.iterdir():
            path.unlink()
    hub.faults["breaks"] = 100
    hub.faults["no range"] = True
    refused(run(out_dir=folder, num_shards=1, mirror=hub.url), name, "broke off", "same command goes on")
    assert (folder / (name + ".part")).read_bytes() == UPSTREAM[name][:131_072]
    hub.faults.clear()
    assert run(out_dir=folder, num_shards=1, mirror=hub.url)[0] == 0


def test_shards_stop_at_a_signal(hub, tmp_path, run):
    hub.faults["interrupt"] = True
    status, out, err = run(out_dir=tmp_path / "out", num_shards=1, mirror=hub.url)
    assert (status, err) == (0, "") and "SIGINT: stopped" in out and "--num_shards=1" in out.partition("To go on")[2]
    assert (tmp_path / "out" / "fineweb_val_000000.bin.part").stat().st_size > 0
    assert run(out_dir=tmp_path / "out", num_shards=1, mirror=hub.url)[0] == 0
    assert read(tmp_path / "out")[0]["val"] == upstream_tokens("fineweb_val_000000.bin")


@pytest.mark.parametrize("faults, said", [
    ({"sends": "page"}, "not a shard of tokens: it begins with b'<!DOCTYPE html>"),
    ({"sends": "page", "no hash": True}, "not a shard of tokens"),
    ({"sends": "magic"}, "not with the number 20240520"),
    ({"sends": "count"}, "header's 200,000 tokens need 401,024"),
    ({"sends": "changed"}, "the server announced"),
    ({"missing": True}, "answered 404"),
])
def test_shards_that_are_none(faults, said, hub, tmp_path, run):
    hub.faults.update(faults)
    refused(run(out_dir=tmp_path / "out", num_shards=1, mirror=hub.url), hub.url, "fineweb_val_000000.bin", said)
    assert not (tmp_path / "out").exists()


def test_no_network(tmp_path, run):
    """One line that says so and what to do, soon, and no other corpus."""
    mirror = "http://127.0.0.1:9"  # nobody listens there
    said = mirror, "--mirror=URL", "--source=FILES"
    refused(run(out_dir=tmp_path, mirror=mirror), "no connection", *said)
    # the hub's client takes its address once in a process
    argv = ["--source=hub", f"--out_dir={tmp_path}", f"--mirror={mirror}"]
    done = subprocess.run([sys.executable, SCRIPT, *argv], capture_output=True, text=True, timeout=60)
    refused((done.returncode, done.stdout, done.stderr), "HuggingFaceFW/fineweb cannot be read", *said)
    assert contents(tmp_path) == {}


# ----------------------------------------------------------------------------------------------------------------------
# FineWeb's text, from a stand-in for the hub

COMMIT = "0123456789" * 4
API = "/api/datasets/HuggingFaceFW/fineweb"
CARD = b"""---
configs:
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
"""


def parquet_bytes(texts):
    buffer = io.BytesIO()
    write_parquet(buffer, texts)
    return buffer.getvalue()


FILES = {"README.md": CARD, "sample/10BT/000.parquet": parquet_bytes(TEXTS[:150]),
         "sample/10BT/001.parquet": parquet_bytes(TEXTS[150:300])}


class TextHub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as `datasets` asks for."""

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        if path in (API, f"{API}/revision/{COMMIT}"):
            value = {"id": "HuggingFaceFW/fineweb", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES],
                     "tags": [], "downloads": 0, "likes": 0, "private": False, "disabled": False, "gated": False}
            return self.answer(200, json.dumps(value).encode(), Content_Type="application/json")
        if path.startswith(f"{API}/tree/{COMMIT}"):
            folder = path.removeprefix(f"{API}/tree/{COMMIT}").strip("/")
            found = {}
            for name, data in FILES.items():
                if name.startswith(folder):
                    first, _, below = name[len(folder):].lstrip("/").partition("/")
                    at = f"{folder}/{first}".strip("/")
                    found[at] = {"type": "directory", "path": at, "oid": "0" * 40} if below else {
                        "type": "file", "path": name, "size": len(data), "oid": "0" * 40}
            return self.answer(200, json.dumps([*found.values()]).encode(), Content_Type="application/json")
        data = FILES.get(path.removeprefix(f"/datasets/HuggingFaceFW/fineweb/resolve/{COMMIT}/"))
        if data is None:
            return self.answer(404, b"{}", X_Error_Code="EntryNotFound")
        start, end = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "bytes=0-").groups()
        part = data[int(start):int(end or len(data)) + 1]
        headers = {"ETag": f'"{"0" * 40}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if "Range" in self.headers:
            headers["Content_Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}"
        self.answer(206 if "Range" in self.headers else 200, part, **headers)

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


def hub_child(argv, home, kill_at):
    os.environ["HF_HOME"] = home  # before the hub's client is imported
    child(argv, 20_000, kill_at)


def test_text_from_the_hub(tmp_path):
    """Through `datasets` streaming, killed in its middle (within a file, within a row group), then to the end."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), TextHub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    fresh = multiprocessing.get_context("spawn")
    argv = arguments("hub", tmp_path / "out", mirror=f"http://127.0.0.1:{server.server_port}")
    for kill_at, status in ((("after", "progress.json", 4), -signal.SIGKILL), ((), 0)):
        process = fresh.Process(target=hub_child, args=(argv, str(tmp_path / "home"), kill_at))
        process.start()
        process.join()
        assert process.exitcode == status
        if kill_at:
            progress = json.loads((tmp_path / "out" / "progress.json").read_text())
            assert progress["version"] == COMMIT and 0 < sum(progress["documents"].values()) < 150
    server.shutdown()
    server.server_close()
    splits, meta = read(tmp_path / "out")
    assert splits == expected(TEXTS[:300]) and COMMIT in meta["source"]
