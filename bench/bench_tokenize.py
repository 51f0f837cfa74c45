"""
data/fineweb/prepare.py against tiktoken's own encode_ordinary_batch: same text, same cores, in one run.

    python bench/bench_tokenize.py                          Shakespeare, cut in documents of 3,000 characters on average
    python bench/bench_tokenize.py --input=FILE --megabytes=64

tiktoken has its documents in memory and leaves its tokens there. The script does all its work: it reads JSON lines
from the disk, tokenises, splits by hash, writes shards, hashes them, syncs everything to the disk. They take turns;
the table gives the median throughput of each, the median over rounds of the ratio within a round, and the CPU seconds,
which other work on the machine disturbs less than the throughput. Then the script's peak memory (Linux), as a command
of its own, for the text and for four times the text: flat is the same number twice.
"""
import contextlib
import io
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import configurator
from common.errors import UserError, exit_cleanly
from configurator import Path
from data import shards
from data.fineweb import prepare
from data.shakespeare_text import get_text
from data.tokenizer import gpt2_encoding


@dataclass
class BenchConfig:
    input: Path | None = None  # a UTF-8 text file; without it Shakespeare
    megabytes: int = 16  # of documents, drawn from the text
    characters: int = 3000  # of a document, on average (FineWeb's)
    rounds: int = 7  # timed runs of each

    def __post_init__(self):
        if min(self.megabytes, self.characters, self.rounds) < 1:
            raise UserError("megabytes, characters and rounds must be at least 1")


def documents_of(text, config):
    """Pieces of the text at random places, of exponentially distributed lengths."""
    rng, documents, size = random.Random(0), [], 0
    while size < config.megabytes * 1_000_000:
        length = 1 + int(rng.expovariate(1 / config.characters))
        start = rng.randrange(max(1, len(text) - length))
        documents.append(text[start:start + length])
        size += len(documents[-1])
    return documents


def write_jsonl(path, documents, copies=1):
    with open(path, "w", encoding="utf-8") as f:
        for _ in range(copies):
            f.writelines(json.dumps({"text": document}) + "\n" for document in documents)


def arguments(source, out_dir):
    return {"source": source, "out_dir": out_dir, "val_share": 0.01}


def tokens_of_script(source, folder):
    """One run of the script, in this process. Returns how many tokens it wrote."""
    options = prepare.Options(**arguments(source, folder))
    with contextlib.redirect_stdout(io.StringIO()), shards.locked(folder):
        prepare.prepare_text(options, folder, prepare.Stop())
    meta = shards.read_json(folder, shards.META)
    return meta["train_tokens"] + meta["val_tokens"]


def peak_megabytes(source, folder):
    """The peak resident memory of the command, from /proc: getrusage() would give ours where that is more, because a
    child begins as a copy of us."""
    command = [sys.executable, prepare.__file__, *(f"--{k}={v}" for k, v in arguments(source, folder).items())]
    process, peak = subprocess.Popen(command, stdout=subprocess.DEVNULL), 0
    while process.poll() is None:
        with open(f"/proc/{process.pid}/status") as f:
            found = re.search(r"VmHWM:\s+(\d+) kB", f.read())
        peak = int(found[1]) if found else peak  # a process that has ended has none
        time.sleep(0.02)
    if process.returncode:
        raise UserError(f"{' '.join(command)}: ended with status {process.returncode}")
    return peak * 1024 / 1e6


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, BenchConfig, script_doc=__doc__)
    raw, corpus, _ = get_text(config.input)
    documents = documents_of(raw.decode("utf-8"), config)
    size = sum(len(document.encode("utf-8")) for document in documents)
    cores, encoding = shards.available_cores(), gpt2_encoding()

    with tempfile.TemporaryDirectory() as folder:
        source, bigger = os.path.join(folder, "text.jsonl"), os.path.join(folder, "four.jsonl")
        write_jsonl(source, documents)
        write_jsonl(bigger, documents, copies=4)

        def by_tiktoken(_):
            # every document gets one end-of-text more
            return sum(len(ids) + 1 for ids in encoding.encode_ordinary_batch(documents, num_threads=cores))

        providers = {"encode_ordinary_batch": by_tiktoken,
                     "data/fineweb/prepare.py": lambda name: tokens_of_script(source, os.path.join(folder, name))}
        counts = {provider: call("warm up") for provider, call in providers.items()}
        assert len(set(counts.values())) == 1, f"they differ: {counts}"
        tokens = counts["encode_ordinary_batch"]
        print(f"{corpus}: {len(documents):,} documents, {size / 1e6:.1f} MB, {tokens:,} tokens, {cores} cores")
        times, cpu = {provider: [] for provider in providers}, {provider: [] for provider in providers}
        for number in range(config.rounds):
            for provider, call in providers.items():
                began, cpu_began = time.perf_counter(), time.process_time()
                call(f"round {number}")
                times[provider].append(time.perf_counter() - began)
                cpu[provider].append(time.process_time() - cpu_began)
        for provider, taken in times.items():
            seconds = statistics.median(taken)
            ratio = statistics.median(a / b for a, b in zip(times["encode_ordinary_batch"], taken))
            print(f"  {provider:25}{tokens / seconds / 1e6:7.3f} M tokens/s {size / seconds / 1e6:7.2f} MB/s"
                  f"{ratio:7.2f} x {statistics.median(cpu[provider]):7.2f} CPU s")
        for path, name in ((source, "the text"), (bigger, "four times")):
            print(f"  peak memory, {name:16}{peak_megabytes(path, os.path.join(folder, name)):7.0f} MB")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
