"""
FineWeb as GPT-2 tokens -> shards and meta.json (their format: data/shards.py).

    python data/fineweb/prepare.py                     fetch tokens made by others: 0.9B train, 0.1B val, 2 GB
    python data/fineweb/prepare.py --num_shards=103    all 10B of them, 21 GB
    python data/fineweb/prepare.py --source=hub --num_tokens=1_000_000_000      text from the hub, tokenised here
    python data/fineweb/prepare.py --source='crawl/*.parquet,more.jsonl.zst'    text of your own
    python data/fineweb/prepare.py --verify=True       check the shards against meta.json

--source=shards (the default) fetches kjj0/fineweb10B-gpt2: FineWeb's 10B-token sample in 103 train shards and a
validation shard of 100M tokens each. --num_shards=9, the default, is about what modded-nanogpt's speed runs fetch;
--num_tokens=N means as many whole shards as hold N. A download that breaks off goes on where it stopped; a shard gets
its name when its header fits its size and, where the server tells the SHA-256, the bytes have it. With another
--num_shards later only what is missing is fetched. --mirror=URL (or HF_ENDPOINT) takes the place of huggingface.co.

--source=hub streams HuggingFaceFW/fineweb, sample-10BT, through `datasets`. --source=FILES takes files and patterns,
separated by commas, in that order:

    .parquet                          one document a row, in the column --text_column
    .jsonl, .jsonl.gz, .jsonl.zst     one document a line, under the key --text_column
    .txt                              one document a file

Text is tokenised with tiktoken's GPT-2 on all cores; text that looks like a special token is text. Before each
document comes end-of-text (50256). Empty documents are left out; a lone surrogate becomes U+FFFD. A document is
validation text if the BLAKE2b hash of its UTF-8 bytes falls in the lowest --val_share of all hashes: the same on every
machine, and two copies are on the same side. --num_tokens=N (or --num_shards) stops after exactly N train tokens, if
need be within a document.

Killed at any moment, the same command goes on from the last commit (progress.json, every --commit_seconds) and ends
with the same bytes. Ctrl-C and SIGTERM commit first; a second Ctrl-C does not wait. Once it is done, the same command
does nothing, whatever has become of the source; other options are refused until --overwrite=True.
"""
import collections
import contextlib
import hashlib
import os
import re
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(FOLDER)))  # the repository, for a script that is run by its path
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import numpy as np
import requests
import tqdm

import configurator
from common.errors import UserError, exit_cleanly
from common.interrupts import Stop, Stopped
from configurator import Path
from data import downloads, shards
from data.documents import first_line, forget_what_was_said, local_files, local_fingerprint, open_local
from data.sources import READ_SECONDS, network_reason, preparing
from data.tokenizer import GPT2_END_OF_TEXT, gpt2_encoding

HUB = "https://huggingface.co"
SHARDS_REPO = "kjj0/fineweb10B-gpt2"
SHARDS_TRAIN = 103            # upstream's train shards, of 100M tokens each
SHARDS_TOKENS = 100_000_000
SHARDS_DEFAULT = 9

TEXT_REPO, TEXT_CONFIG = "HuggingFaceFW/fineweb", "sample-10BT"

CHUNK_CHARACTERS = 1 << 18    # of text that a core tokenises in one go
WAITING_CHARACTERS = 1 << 21  # of text a core that may be under way: bounds the memory, bridges a slow write
PIECE_CHARACTERS = 100_000    # of one document that tiktoken gets at once


@dataclass
class Options:
    source: str = "shards"  # 'shards': tokens made by others | 'hub': FineWeb's text | files and patterns, with commas
    out_dir: Path | None = None  # folder for the shards and meta.json; without it the script's own
    num_shards: int | None = None  # train shards to make; without it 9 of 'shards', all of a text
    num_tokens: int | None = None  # train tokens to make, instead of num_shards
    mirror: str | None = None  # address in place of https://huggingface.co; HF_ENDPOINT does the same
    text_column: str = "text"  # of FILES: column or key of the text
    newlines: Literal["keep", "lf"] = "keep"  # of FILES: 'lf' turns line ends with CR (Windows) into LF
    val_share: float = 0.005  # of a text: share of the documents for validation
    shard_tokens: int = 100_000_000  # of a text: tokens a shard
    commit_seconds: float = 10.0  # of a text: how much work a kill may cost
    verify: bool = False  # check the shards of out_dir against its meta.json, and do nothing else
    overwrite: bool = False  # remove the data set in out_dir first

    def __post_init__(self):
        for key in ("source", "out_dir", "mirror", "text_column"):
            if getattr(self, key) == "":
                raise UserError(f"--{key} is empty; give a value, or leave the option out")
        for key in ("num_shards", "num_tokens", "shard_tokens"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"{key} = {getattr(self, key)}: must be at least 1")
        if self.num_shards is not None and self.num_tokens is not None:
            raise UserError("num_shards and num_tokens: give one of them")
        if not 0 < self.val_share < 1:
            raise UserError(f"val_share = {self.val_share}: must be between 0 and 1")
        if self.shard_tokens >= 2 ** 31:
            raise UserError(f"shard_tokens = {self.shard_tokens}: a shard's header holds at most {2 ** 31 - 1:,}")
        if self.commit_seconds < 0:
            raise UserError(f"commit_seconds = {self.commit_seconds}: must be at least 0")
        keys = {"shards": ("text_column", "newlines", "val_share", "shard_tokens", "commit_seconds"),
                "hub": ("text_column", "newlines")}
        for key in keys.get(self.source, ()):
            if getattr(self, key) != getattr(Options, key):
                raise UserError(f"{key} has no effect on --source={self.source}; leave it out")


def hub_address(mirror):
    return (mirror or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def differences(options, earlier):
    """What distinguishes two sets of options, in words; '' where nothing does."""
    if not isinstance(earlier, dict):
        return "it does not say which"
    return ", ".join(f"{key} {earlier.get(key)!r} there, {options.get(key)!r} now"
                     for key in dict.fromkeys([*options, *earlier]) if options.get(key) != earlier.get(key))


def describe(meta, folder):
    print(f"corpus      {meta['corpus']}")
    print(f"source      {meta['source']}")
    print(f"tokens      {meta['train_tokens']:,} train, {meta['val_tokens']:,} val (GPT-2's)")
    print(f"files       {len(meta['shards']['train'])} train and {len(meta['shards']['val'])} val shards and "
          f"{shards.META} in {folder}")


def already_done(meta, folder):
    with contextlib.suppress(FileNotFoundError):  # killed after meta.json was written
        os.remove(os.path.join(folder, shards.PROGRESS))
    print(f"{folder} has it already, {meta['train_tokens']:,} train and {meta['val_tokens']:,} val tokens: nothing to "
          "do (--overwrite=True makes it anew)")


def refuse(folder, what):
    raise UserError(f"{folder} {what}; give another --out_dir, or --overwrite=True to remove it")


# ----------------------------------------------------------------------------------------------------------------------
# tokens made by others

def unreachable(url, error):
    return UserError(f"{url}: {network_reason(error)}; what has come is kept and the same command goes on; where the "
                     "hub cannot be reached, give --mirror=URL or text of your own, --source=FILES")


def check_reachable(url):
    try:
        response = downloads.head(url, allow_redirects=True)
    except requests.exceptions.RequestException as error:
        raise unreachable(url, error) from None
    if not response.ok:
        raise downloads.bad_answer(url, response)


def fetch_shard(url, path, stop):
    """Fetch one shard, or the rest of it, check it and give it its name. Raises UserError."""
    part = path + shards.PART
    try:
        expected = downloads.fetch(url, part, stop)
    except requests.exceptions.RequestException as error:
        raise unreachable(url, error) from None
    try:
        shards.token_count(part)
        digest = expected and shards.sha256_of_file(part)
        if digest != expected:
            raise UserError(f"{part}: SHA-256 {digest}, the server announced {expected}")
    except UserError as error:
        os.remove(part)
        raise UserError(f"{url}: what came is not the shard, and was removed: {error}") from None
    os.replace(part, path)


def prepare_shards(options, folder, stop):
    wanted = options.num_shards or SHARDS_DEFAULT
    if options.num_tokens is not None:
        wanted = -(-options.num_tokens // SHARDS_TOKENS)
    if wanted > SHARDS_TRAIN:
        raise UserError(f"{SHARDS_REPO} has {SHARDS_TRAIN} train shards of {SHARDS_TOKENS:,} tokens; "
                        f"num_{'tokens' if options.num_tokens else 'shards'} asks for {wanted} shards")
    made_with = {"source": "shards", "num_shards": wanted}
    files = {"train": [f"fineweb_train_{i:06d}.bin" for i in range(1, wanted + 1)], "val": ["fineweb_val_000000.bin"]}
    repo = f"{hub_address(options.mirror)}/datasets/{SHARDS_REPO}"

    if not options.overwrite:
        meta = shards.read_json(folder, shards.META)
        if meta and meta.get("options") == made_with:
            return already_done(meta, folder)
        if shards.read_json(folder, shards.PROGRESS) or meta and meta.get("options", {}).get("source") != "shards":
            refuse(folder, "has tokens from another source")
    else:
        check_reachable(f"{repo}/resolve/main/{files['val'][0]}")  # before anything is removed
        shards.clear(folder)

    for name in files["val"] + files["train"]:
        if not os.path.exists(os.path.join(folder, name)):
            fetch_shard(f"{repo}/resolve/main/{name}", os.path.join(folder, name), stop)
    about = {"corpus": f"FineWeb's 10B-token sample ({SHARDS_REPO}, {wanted} of {SHARDS_TRAIN} train shards)",
             "source": repo}
    describe(shards.write_meta(folder, about, files, {"train": None, "val": None}, made_with), folder)


# ----------------------------------------------------------------------------------------------------------------------
# text

@contextlib.contextmanager
def reading_the_hub():
    """What a failure to read from the hub says. Its client raises exceptions of several libraries."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{TEXT_REPO} cannot be read from {os.environ['HF_ENDPOINT']}: {type(error).__name__}: "
                        f"{first_line(error)}; the same command goes on; where the hub cannot be reached, give "
                        "--mirror=URL or text of your own, --source=FILES") from None


def hub_revision():
    """The commit that the hub has now: a run that is killed goes on with the text that it began with."""
    with reading_the_hub():
        import huggingface_hub

        return huggingface_hub.HfApi().dataset_info(TEXT_REPO, timeout=READ_SECONDS).sha


def open_hub(revision):
    with reading_the_hub():
        import datasets

        datasets.disable_progress_bars()
        return datasets.load_dataset(TEXT_REPO, TEXT_CONFIG, split="train", streaming=True, revision=revision,
                                     columns=["text"])


def hub_rows(dataset):
    rows = iter(dataset)
    while True:
        with reading_the_hub():
            row = next(rows, None)
        if row is None:
            return
        yield row


def open_source(options, version):
    """(version, dataset, its rows, {"corpus", "source"}). version: the one that an earlier process began with, or None;
    what the hub still has is read in that version, and files are as they are."""
    if options.source == "hub":
        os.environ["HF_ENDPOINT"] = hub_address(options.mirror)  # before the hub's client is imported
        version = version or hub_revision()
        dataset = open_hub(version)
        return version, dataset, hub_rows(dataset), {"corpus": f"FineWeb ({TEXT_REPO}, {TEXT_CONFIG})",
                                                     "source": f"{os.environ['HF_ENDPOINT']}/datasets/{TEXT_REPO}, "
                                                               f"commit {version}"}
    files = local_files(options.source)
    names = [os.path.basename(path) for path in files]
    names = ", ".join(names if len(names) <= 4 else [*names[:2], f"... ({len(names):,} files)", names[-1]])
    dataset = open_local(files, options.text_column, options.newlines)
    return local_fingerprint(files), dataset, dataset, {"corpus": names, "source": names}


# ----------------------------------------------------------------------------------------------------------------------
# text to tokens

# Whitespace as tiktoken's regular expressions have it (Unicode's White_Space; Python's \s has four more).
WHITESPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
LAST_WHITESPACE = re.compile(f"[{WHITESPACE}](?=[^{WHITESPACE}])")


def pieces(text):
    """A long text in pieces whose tokens, one after another, are the text's.

    tiktoken's stack overflows in a million whitespace characters before another one. GPT-2's pattern (\\s+(?!\\S)) ends
    a token before the last whitespace character of a run, whatever is around it, so that is where a text may be cut.
    """
    start = 0
    while cut := LAST_WHITESPACE.search(text, start + PIECE_CHARACTERS):
        yield text[start:cut.start()]
        start = cut.start()
    yield text[start:]


def encode_chunk(encoding, texts, val_share):
    """(tokens uint16, lengths int64, in_val bool) of a list of documents: their tokens one after another, each with
    end-of-text before it, how many tokens each has, and whether it is validation text."""
    end_of_text = np.array([GPT2_END_OF_TEXT], dtype=np.uint32)
    parts, lengths, in_val = [], [], []
    for text in texts:
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:  # lone surrogates: what tiktoken's encode_ordinary makes of them
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            data = text.encode("utf-8")
        # encode_to_numpy gives the tokens of encode_ordinary without a Python list of them
        document = [end_of_text, *(encoding.encode_to_numpy(piece, disallowed_special=()) for piece in pieces(text))]
        parts += document
        lengths.append(sum(map(len, document)))
        in_val.append(int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") < val_share * 2 ** 64)
    return np.concatenate(parts, dtype="<u2", casting="same_kind"), np.array(lengths), np.array(in_val)


def chunks(rows, dataset, column, empty=0):
    """Documents in lists of some CHUNK_CHARACTERS, each with where the source then is: (texts, (state, empty)).
    empty: documents without text so far, which are left out."""
    texts, size = [], 0
    for row in rows:
        text = row[column]
        if not text:
            empty += 1
            continue
        texts.append(text)
        size += len(text)
        if size >= CHUNK_CHARACTERS:
            yield texts, (dataset.state_dict(), empty)
            texts, size = [], 0
    if texts:
        yield texts, (dataset.state_dict(), empty)


def encoded(encoding, chunks, val_share):
    """(what encode_chunk gives, where the source then is) of each chunk in order, encoded ahead on all cores."""
    threads = shards.available_cores()
    waiting, characters = collections.deque(), 0
    with ThreadPoolExecutor(threads) as pool:  # threads: tiktoken and the hashes let go of Python's lock
        try:
            for texts, state in chunks:
                size = sum(map(len, texts))
                waiting.append((pool.submit(encode_chunk, encoding, texts, val_share), size, state))
                characters += size
                while characters > threads * WAITING_CHARACTERS:
                    future, size, state = waiting.popleft()
                    characters -= size
                    yield future.result(), state
            while waiting:
                future, _, state = waiting.popleft()
                yield future.result(), state
        finally:
            for future, _, _ in waiting:
                future.cancel()


def cut_at(tokens, lengths, in_val, room):
    """The documents up to the one in which the train tokens reach `room`, which ends there."""
    train = np.cumsum(np.where(in_val, 0, lengths))
    last = int(np.searchsorted(train, room))
    lengths = lengths[:last + 1].copy()
    lengths[last] -= train[last] - room
    return tokens[:lengths.sum()], lengths, in_val[:last + 1]


def write_text(options, folder, num_tokens, progress, texts, encoding, stop):
    """Tokenise and write what is left of a source. progress: where an earlier process stopped; kept up to date, and
    committed now and then. texts: what chunks() gives. Returns {split: names of the shards}. Raises Stopped."""
    written, documents = progress["tokens"], progress["documents"]
    writers = {split: shards.ShardWriter(folder, split, options.shard_tokens, written[split]) for split in written}

    def commit():
        for writer in writers.values():
            writer.sync()
        shards.write_json(folder, shards.PROGRESS, progress)
        return time.monotonic()

    if written["train"] == num_tokens:
        texts = ()
    committed = time.monotonic()
    with contextlib.ExitStack() as stack:
        for writer in writers.values():
            stack.callback(writer.close)
        bar = stack.enter_context(tqdm.tqdm(desc="train tokens", initial=written["train"], total=num_tokens, unit="tok",
                                            unit_scale=True, disable=None, leave=False))
        results = stack.enter_context(contextlib.closing(encoded(encoding, texts, options.val_share)))
        for (tokens, lengths, in_val), (progress["state"], progress["empty"]) in results:
            if num_tokens and written["train"] + lengths[~in_val].sum() >= num_tokens:
                tokens, lengths, in_val = cut_at(tokens, lengths, in_val, num_tokens - written["train"])
            for split, chosen in (("train", ~in_val), ("val", in_val)):
                writers[split].write(tokens[np.repeat(chosen, lengths)])
                documents[split] += int(chosen.sum())
                written[split] = writers[split].tokens
            bar.update(written["train"] - bar.n)
            if stop.signal or time.monotonic() - committed >= options.commit_seconds:
                committed = commit()
            if stop.signal:
                raise Stopped
            if written["train"] == num_tokens:
                break
        if not any(written.values()):
            raise UserError(f"--source={options.source}: has no text")
        if not all(written.values()):
            empty = "validation" if written["train"] else "train"
            raise UserError(f"--source={options.source}: none of its {sum(documents.values()):,} documents is in the "
                            f"{empty} split; give more text, or another --val_share with --overwrite=True")
        for writer in writers.values():
            writer.finish()
    return {split: writer.files() for split, writer in writers.items()}


def prepare_text(options, folder, stop):
    num_tokens = options.num_shards * options.shard_tokens if options.num_shards else options.num_tokens
    made_with = {"source": options.source, "text_column": options.text_column, "num_tokens": num_tokens,
                 "val_share": options.val_share, "shard_tokens": options.shard_tokens}
    if options.newlines != "keep":  # data made before there was this option kept them
        made_with["newlines"] = options.newlines
    progress = None
    if not options.overwrite:
        if meta := shards.read_json(folder, shards.META):
            if differ := differences(made_with, meta.get("options")):
                refuse(folder, f"has a data set made with other options ({differ})")
            return already_done(meta, folder)
        progress = shards.read_json(folder, shards.PROGRESS)
        if progress and (differ := differences(made_with, progress.get("options"))):
            refuse(folder, f"has an unfinished run with other options ({differ})")
        if not progress and shards.shard_files(folder):
            refuse(folder, "has shards of which nothing is known")

    forget_what_was_said()
    version, dataset, rows, about = open_source(options, progress and progress["version"])
    if progress and progress["version"] != version:
        refuse(folder, "has an unfinished run, and its source has changed since")
    encoding = gpt2_encoding()  # may have to be fetched: before anything is removed or made
    if options.overwrite:
        shards.clear(folder)
    if progress is None:
        progress = {"options": made_with, "version": version, "state": None, "empty": 0,
                    "tokens": {"train": 0, "val": 0}, "documents": {"train": 0, "val": 0}}
        shards.write_json(folder, shards.PROGRESS, progress)
    if progress["state"]:
        dataset.load_state_dict(progress["state"])

    before, began = sum(progress["tokens"].values()), time.monotonic()
    texts = chunks(rows, dataset, options.text_column, progress["empty"])
    files = write_text(options, folder, num_tokens, progress, texts, encoding, stop)
    speed = (sum(progress["tokens"].values()) - before) / (time.monotonic() - began)
    meta = shards.write_meta(folder, about, files, progress["documents"], made_with)
    os.remove(os.path.join(folder, shards.PROGRESS))
    describe(meta, folder)
    print(f"documents   {meta['train_documents']:,} train, {meta['val_documents']:,} val; {progress['empty']:,} empty "
          "ones left out")
    print(f"speed       {speed:,.0f} tokens/s on {shards.available_cores()} cores")


# ----------------------------------------------------------------------------------------------------------------------

@exit_cleanly
def main(argv):
    options, _ = configurator.resolve(argv, Options, script_doc=__doc__)
    folder = FOLDER if options.out_dir is None else options.out_dir
    if options.verify:
        meta = shards.verify(folder)
        describe(meta, folder)
        print("verified    header, size, SHA-256 and greatest token of every shard")
        return 0
    stop = Stop()
    with preparing(folder):
        try:
            (prepare_shards if options.source == "shards" else prepare_text)(options, folder, stop)
        except Stopped:
            again = [shlex.quote(arg) for arg in argv if not arg.startswith("--overwrite=")]
            print(f"{stop.signal}: stopped; what is done is kept. To go on: python {' '.join([sys.argv[0], *again])}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
