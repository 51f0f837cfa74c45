"""data/fineweb/prepare.py with stand-ins for the hub: tokens made by others, and FineWeb's text."""
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest
from fineweb_shards import (
    SCRIPT,
    TEXTS,
    arguments,
    child,
    contents,
    expected,
    read,
    refused,
    write_jsonl,
    write_parquet,
)

pytestmark = pytest.mark.usefixtures("surroundings")


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


def test_shards(hub, tmp_path, prepare_fineweb, monkeypatch):
    """Fetched, under their names, recorded; done is done; more of them later; fewer."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url + "/")
    folder = tmp_path / "out"
    status, out, err = prepare_fineweb(out_dir=folder, num_shards=2)
    assert (status, err) == (0, "")
    splits, meta = read(folder)
    names = ["fineweb_train_000001.bin", "fineweb_train_000002.bin"]
    assert splits == {"train": upstream_tokens(*names), "val": upstream_tokens("fineweb_val_000000.bin")}
    for name in [*names, "fineweb_val_000000.bin"]:
        assert (folder / name).read_bytes() == UPSTREAM[name]
    assert meta["source"] == f"{hub.url}/datasets/kjj0/fineweb10B-gpt2" and meta["train_documents"] is None
    assert prepare_fineweb(out_dir=folder, verify=True)[0] == 0

    hub.asked.clear()
    status, out, err = prepare_fineweb(out_dir=folder, num_tokens=200_000_000)  # the same two shards
    assert (status, err, hub.asked) == (0, "", []) and "nothing to do" in out
    assert prepare_fineweb(out_dir=folder, num_tokens=200_000_001)[0] == 0
    assert [a[1] for a in hub.asked] == ["fineweb_train_000003.bin"] * 2  # the hub and its storage
    assert len(read(folder)[1]["shards"]["train"]) == 3
    assert prepare_fineweb(out_dir=folder, num_shards=1)[0] == 0 and len(read(folder)[1]["shards"]["train"]) == 1

    path = write_jsonl(tmp_path / "a.jsonl", TEXTS[:50])
    refused(prepare_fineweb(*arguments(path, folder)), "a data set made with other options (source 'shards' there")
    hub.faults["missing"] = True
    before = contents(folder)
    refused(prepare_fineweb(out_dir=folder, num_shards=2, overwrite=True), "answered 404")
    assert contents(folder) == before
    hub.faults.clear()
    (folder / names[0]).write_bytes(b"damaged")
    assert prepare_fineweb(out_dir=folder, num_shards=2, overwrite=True)[0] == 0
    assert read(folder)[0]["train"] == upstream_tokens(*names)


@pytest.mark.parametrize("faults, requests", [({"breaks": 2}, 3), ({"breaks": 1, "no range": True}, 2),
                                              ({"no hash": True}, 1)])
def test_shards_from_a_poor_server(faults, requests, hub, tmp_path, prepare_fineweb):
    """One that breaks off is asked for the rest, one that cannot begin in the middle is read from the start."""
    hub.faults.update(faults)
    assert prepare_fineweb(out_dir=tmp_path / "out", num_shards=1, mirror=hub.url)[0] == 0
    assert read(tmp_path / "out")[0]["train"] == upstream_tokens("fineweb_train_000001.bin")
    ranges = [r for _, name, r in hub.asked if "val" in name][::2]
    assert ranges == [None, "bytes=131072-", "bytes=262144-"][:requests]  # whole blocks of 64 kB are kept


def test_shards_go_on_in_the_next_process(hub, tmp_path, prepare_fineweb):
    """After a kill in the middle, or between the last byte and the rename; after a server that broke off for good."""
    folder, name = tmp_path / "out", "fineweb_val_000000.bin"
    for there in (UPSTREAM[name][:100_000], UPSTREAM[name]):
        folder.mkdir(exist_ok=True)
        (folder / (name + ".part")).write_bytes(there)
        hub.asked.clear()
        assert prepare_fineweb(out_dir=folder, num_shards=1, mirror=hub.url)[0] == 0
        assert hub.asked[0][2] == f"bytes={len(there)}-"
        assert read(folder)[0]["val"] == upstream_tokens(name)
        for path in folder.iterdir():
            path.unlink()
    hub.faults["breaks"] = 100
    hub.faults["no range"] = True
    refused(prepare_fineweb(out_dir=folder, num_shards=1, mirror=hub.url), name, "broke off", "same command goes on")
    assert (folder / (name + ".part")).read_bytes() == UPSTREAM[name][:131_072]
    hub.faults.clear()
    assert prepare_fineweb(out_dir=folder, num_shards=1, mirror=hub.url)[0] == 0


def test_shards_stop_at_a_signal(hub, tmp_path, prepare_fineweb):
    hub.faults["interrupt"] = True
    status, out, err = prepare_fineweb(out_dir=tmp_path / "out", num_shards=1, mirror=hub.url)
    assert (status, err) == (0, "") and "SIGINT: stopped" in out and "--num_shards=1" in out.partition("To go on")[2]
    assert (tmp_path / "out" / "fineweb_val_000000.bin.part").stat().st_size > 0
    assert prepare_fineweb(out_dir=tmp_path / "out", num_shards=1, mirror=hub.url)[0] == 0
    assert read(tmp_path / "out")[0]["val"] == upstream_tokens("fineweb_val_000000.bin")


@pytest.mark.parametrize("faults, said", [
    ({"sends": "page"}, "not a shard of tokens: it begins with b'<!DOCTYPE html>"),
    ({"sends": "page", "no hash": True}, "not a shard of tokens"),
    ({"sends": "magic"}, "not with the number 20240520"),
    ({"sends": "count"}, "header's 200,000 tokens need 401,024"),
    ({"sends": "changed"}, "the server announced"),
    ({"missing": True}, "answered 404"),
])
def test_shards_that_are_none(faults, said, hub, tmp_path, prepare_fineweb):
    hub.faults.update(faults)
    refused(prepare_fineweb(out_dir=tmp_path / "out", num_shards=1, mirror=hub.url), hub.url, "fineweb_val_000000.bin", said)
    assert not (tmp_path / "out").exists()


def test_no_network(tmp_path, prepare_fineweb):
    """One line that says so and what to do, soon, and no other corpus."""
    mirror = "http://127.0.0.1:9"  # nobody listens there
    said = mirror, "--mirror=URL", "--source=FILES"
    refused(prepare_fineweb(out_dir=tmp_path, mirror=mirror), "no connection", *said)
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
