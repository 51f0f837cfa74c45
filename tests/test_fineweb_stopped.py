"""Runs of data/fineweb/prepare.py that are killed, stopped or run out of disk, and what goes on from them."""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from fineweb_shards import SCRIPT, TEXTS, arguments, contents, expected, read, refused, status_of, write_jsonl, write_parquet

from data import sources
from data.fineweb import prepare

pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three files of different kinds: 2.5 MB, ten chunks of 250 kB, some 0.7M tokens."""
    folder = tmp_path_factory.mktemp("source")
    files = (write_jsonl(folder / "a.jsonl.gz", TEXTS[:500]), write_parquet(folder / "b.parquet", TEXTS[500:900]),
             write_jsonl(folder / "c.jsonl", TEXTS[900:]))
    return ",".join(map(str, files))


@pytest.fixture(scope="module")
def uninterrupted(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    with pytest.raises(SystemExit) as ended:
        prepare.main(arguments(source, folder))
    assert ended.value.code == 0 and read(folder)[0] == expected(TEXTS)
    return contents(folder)


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


def test_done_is_done(source, uninterrupted, tmp_path, prepare_fineweb):
    """A finished run that is started again says so and touches nothing, even where the source has gone; other options
    are refused; --overwrite=True begins anew."""
    folder = tmp_path / "out"
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:50])
    assert prepare_fineweb(*arguments(path, folder))[0] == 0
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    path.unlink()
    status, out, err = prepare_fineweb(*arguments(path, folder))
    assert (status, err, out.count("\n")) == (0, "", 1) and "nothing to do" in out
    refused(prepare_fineweb(*arguments(path, folder, num_tokens=10)), "other options (num_tokens None there, 10 now)")
    refused(prepare_fineweb(out_dir=folder), "tokens from another source")
    refused(prepare_fineweb(*arguments(path, folder, overwrite=True)), "no such file")  # nothing was removed for it
    assert before == {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.iterdir()}
    assert prepare_fineweb(*arguments(source, folder, overwrite=True))[0] == 0
    assert contents(folder) == uninterrupted


@pytest.fixture
def unfinished(tmp_path):
    """A run that was killed: (path of its source, folder)."""
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:200])
    argv = arguments(path, tmp_path / "out")
    assert status_of(argv, 20_000, kill_at=("after", "progress.json", 6)) == -signal.SIGKILL
    assert (tmp_path / "out" / "progress.json").exists()
    return path, tmp_path / "out"


def test_another_run_does_not_go_on(unfinished, prepare_fineweb):
    path, folder = unfinished
    refused(prepare_fineweb(*arguments(path, folder, shard_tokens=60_000)), "unfinished run with other options (shard_tokens 50000")
    refused(prepare_fineweb(out_dir=folder), "tokens from another source")
    refused(prepare_fineweb(out_dir=folder, verify=True), "no meta.json")
    with open(path, "a") as f:
        f.write(json.dumps({"text": "one more"}) + "\n")
    refused(prepare_fineweb(*arguments(path, folder)), "source has changed")
    part = next(folder.glob("train*.part"))
    (folder / "progress.json").rename(folder / "elsewhere")
    refused(prepare_fineweb(*arguments(path, folder)), "shards of which nothing is known")
    (folder / "elsewhere").rename(folder / "progress.json")
    os.utime(path, ns=(0, 0))
    (folder / "progress.json").write_text("{")
    refused(prepare_fineweb(*arguments(path, folder)), "progress.json is damaged")
    assert part.exists()


def test_a_shard_that_was_lost(unfinished, prepare_fineweb):
    path, folder = unfinished
    for shard in folder.glob("train*"):
        shard.unlink()
    refused(prepare_fineweb(*arguments(path, folder)), ".part is missing or shorter than progress.json says")


def test_two_at_once(tmp_path, prepare_fineweb):
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:50])
    with sources.preparing(str(tmp_path / "out")):
        refused(prepare_fineweb(*arguments(path, tmp_path / "out")), "another process is preparing data there")
    assert prepare_fineweb(*arguments(path, tmp_path / "out"))[0] == 0
