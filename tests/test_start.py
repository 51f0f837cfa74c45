"""init_from = a run, or GPT-2 in Hugging Face's layout: what is taken, what is said, and that functions stay what they were."""
import hashlib
import http.server
import json
import math
import pathlib
import re
import shutil
import threading

import pytest
import torch
from conftest import TINY
from running import ended, one_line
from safetensors.torch import load_file, save_file
from test_model_baseline import randomised

import models
from common.errors import UserError
from training import start

GPT2 = {"tokenizer": "gpt2"}


def build(name, **options):
    torch.manual_seed(3)
    return models.build(name, models.CONFIGS[name](**{**TINY, **options}))


@pytest.fixture
def published(tmp_path):
    """A function that saves a random GPT-2 as transformers does -> (it, folder)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def make(shards=None, **options):
        torch.manual_seed(0)
        net = GPT2LMHeadModel(GPT2Config(vocab_size=37, n_positions=12, n_embd=16, n_layer=2, n_head=2, **options)).eval()
        randomised(net, scale=0.1)
        net.save_pretrained(tmp_path / "gpt2", **({"max_shard_size": shards} if shards else {}))
        return net, str(tmp_path / "gpt2")
    return make


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("shards", [None, "10KB"])
def test_logits_are_those_of_the_published_model(activation, shards, published, tokens):
    theirs, folder = published(shards, activation_function=activation)
    ours = build("baseline", bias=True, activation=start.ACTIVATIONS[activation]).eval()
    lines = start.take(start.find(folder), ours, GPT2)
    torch.testing.assert_close(ours(*tokens)[0], theirs(tokens[0]).logits, rtol=1e-5, atol=1e-5)
    assert len(lines) == 1 and f"of {len(ours.state_dict()) - 1} tensors from" in lines[0]  # the head is the embedding


def test_a_longer_context_and_a_padded_vocabulary_take_the_rows_that_are_there(published, tokens):
    theirs, folder = published(activation_function="gelu")
    ours = build("baseline", bias=True, block_size=9, vocab_size=64).eval()
    lines = start.take(start.find(folder), ours, GPT2)
    idx = tokens[0][:, :9]
    torch.testing.assert_close(ours(idx, idx)[0][..., :37], theirs(idx).logits, rtol=1e-5, atol=1e-5)
    assert "in part: transformer.wte.weight (37 rows of 64), transformer.wpe.weight (9 rows of 9)" in lines[1]


def test_rows_beyond_the_vocabulary_take_little_from_the_tokens(published, tokens):
    """All logits 30 lower, as GPT-2's are: the softmax is the same, and so is the loss, whatever the padding's logits would have been."""
    theirs, folder = published(activation_function="gelu")
    source = start.find(folder)
    with torch.no_grad():  # a bias of the last LayerNorm along a direction that all tokens have
        weights = source.weights
        weights["transformer.wte.weight"][:, 0] = 1.0
        weights["transformer.ln_f.weight"][0] = 0.0
        weights["transformer.ln_f.bias"][0] = -30.0
    plain, padded = (build("baseline", bias=True, vocab_size=size).eval() for size in (37, 64))
    for model in (plain, padded):
        start.take(source, model, GPT2)
    logits, loss = plain(*tokens)
    assert logits.mean() < -25
    assert padded(*tokens)[1].item() == pytest.approx(loss.item(), abs=math.log(64 / 37))


class Hub(http.server.BaseHTTPRequestHandler):
    """A model's two files, as the hub gives them, with the faults that `server.faults` says."""

    def do_GET(self):
        file, faults = pathlib.Path(self.server.folder, self.path.rpartition("/")[2]), self.server.faults
        if not self.path.startswith("/openai-community/gpt2/resolve/main/") or not file.exists():
            return self.send_error(404)
        body = file.read_bytes()
        tag = (hashlib.sha256(body) if file.suffix == ".safetensors" else hashlib.sha1(f"blob {len(body)}\0".encode() + body)).hexdigest()
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if "changed" in faults:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if self.command == "GET":
            self.server.asked.append((file.name, start))
        self.send_response(206 if start else 200)
        for name, value in (("ETag", f'"{tag}"'), ("X-Repo-Commit", "c" * 40), ("Content-Length", str(len(body) - start)),
                            ("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            breaks = file.suffix == ".safetensors" and faults.get("breaks", 0) > 0
            faults["breaks"] = faults.get("breaks", 0) - breaks
            self.close_connection = True
            self.wfile.write(body[start:start + self.server.piece] if breaks else body[start:])

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """A stand-in for the hub with a random GPT-2, .theirs."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.theirs, server.folder = published(activation_function="gelu")
    server.faults, server.asked, server.piece = {}, [], 1 << 16
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def blobs(tmp_path):
    return tmp_path / "cache" / "models--openai-community--gpt2" / "blobs"


def weights_are(hub, tokens):
    ours = build("baseline", bias=True).eval()
    start.take(start.find("gpt2"), ours, GPT2)
    torch.testing.assert_close(ours(*tokens)[0], hub.theirs(tokens[0]).logits, rtol=1e-5, atol=1e-5)
    return True


def test_a_name_is_downloaded(hub, tokens):
    """Then taken from the cache, also without a network; what the hub does not have is one line."""
    assert weights_are(hub, tokens) and hub.asked == [("config.json", 0), ("model.safetensors", 0)]
    with pytest.raises(UserError, match="init_from = 'gpt2-xl': openai-community/gpt2-xl cannot be downloaded") as caught:
        start.find("gpt2-xl")
    assert "\n" not in str(caught.value)
    hub.asked.clear()
    assert weights_are(hub, tokens) and not hub.asked
    hub.shutdown()
    hub.server_close()
    assert start.find("gpt2").wanted["n_head"] == 2


def test_a_download_that_breaks_off_goes_on(hub, tokens, tmp_path, monkeypatch):
    """Within a process; in the next one, where the server broke off for good or the first one was killed; and what is whole is checked."""
    monkeypatch.setattr("data.downloads.BLOCK", 512)
    whole = pathlib.Path(hub.folder, "model.safetensors").read_bytes()
    hub.piece, hub.faults["breaks"] = len(whole) // 3, 1
    assert weights_are(hub, tokens)
    first, second = (start for name, start in hub.asked if name == "model.safetensors")
    assert first == 0 and 0 < second <= hub.piece
    tag = hashlib.sha256(whole).hexdigest()
    assert (blobs(tmp_path) / tag).read_bytes() == whole and not list(blobs(tmp_path).glob("*.part"))

    for have in (whole[:1000], whole[:-1]):
        shutil.rmtree(tmp_path / "cache")
        blobs(tmp_path).mkdir(parents=True)
        (blobs(tmp_path) / f"{tag}.part").write_bytes(have)
        hub.asked.clear()
        assert weights_are(hub, tokens) and ("model.safetensors", len(have)) in hub.asked

    shutil.rmtree(tmp_path / "cache")
    hub.piece, hub.faults["breaks"] = 600, 100
    with pytest.raises(UserError, match="cannot be downloaded .*broke off.* what has come is kept and the same command goes on") as caught:
        start.find("gpt2")
    assert "\n" not in str(caught.value)
    hub.faults.clear()
    assert weights_are(hub, tokens) and hub.asked[-1][1] == 5 * 512


def test_bytes_that_are_not_the_hubs_are_refused(hub, tokens, tmp_path):
    hub.faults["changed"] = True
    with pytest.raises(UserError, match="its hash is [0-9a-f]{40}, the hub announced [0-9a-f]{40}; it was removed"):
        start.find("gpt2")
    hub.faults.clear()
    assert weights_are(hub, tokens)
    blob = blobs(tmp_path) / hashlib.sha256(pathlib.Path(hub.folder, "model.safetensors").read_bytes()).hexdigest()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")  # damaged since
    with pytest.raises(UserError, match="model.safetensors: its hash is"):
        start.find("gpt2")
    assert weights_are(hub, tokens)


def test_what_does_not_fit_is_one_line(published, tmp_path):
    _, folder = published()
    with pytest.raises(UserError, match="another model than the one asked for; add --n_head=2 --bias=True --activation=gelu_tanh$"):
        start.take(start.find(folder), build("baseline", n_head=4), GPT2)
    with pytest.raises(UserError, match="trained on other tokens"):
        start.take(start.find(folder), build("baseline", bias=True, activation="gelu_tanh"), {"tokenizer": "char", "corpus": "x"})
    config = json.loads((tmp_path / "gpt2" / "config.json").read_text())
    for change, message in ((dict(model_type="llama"), "only 'gpt2' can be read"), (dict(activation_function="relu"), "no 'relu'"),
                            (dict(layer_norm_epsilon=1e-6), "layer_norm_epsilon = 1e-06"),
                            (dict(tie_word_embeddings=False), "tie_word_embeddings = False, and True is what can be computed here")):
        (tmp_path / "gpt2" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message):
            start.find(folder)
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(config))
    (tmp_path / "gpt2" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="damaged"):
        start.find(folder)
    (tmp_path / "gpt2" / "model.safetensors").unlink()
    (tmp_path / "gpt2" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="only safetensors is read"):
        start.find(folder)
    with pytest.raises(UserError, match="no such folder, and none of scratch, resume, auto, gpt2"):
        start.find("gpt3")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="neither a run's nor"):
        start.find(str(tmp_path / "x"))


@pytest.mark.parametrize("kind, other, options", [
    ("none", "mixed", dict(curvature_mode="fixed", curvature=0.0, reference="origin")),
    ("none", "mixed", dict(curvature_mode="parametric", curvature=0.0, reference="origin", per_head_curvature=False)),
    ("difference", "mixed", dict(curvature_mode="fixed", curvature=0.0)),
    ("none", "mhc", dict(hc_start="uniform", hc_expand="copy", hc_collapse="mean")),
    ("difference", "controls", dict(control="gate"))])
def test_a_baseline_becomes_another_model_with_the_same_function(kind, other, options, tokens):
    before = randomised(build("baseline", token_shift=kind)).double()
    source = start.Source("x", {k: v.float() for k, v in before.state_dict().items()}, {"n_head": 2}, {})
    after = build(other, **options).double()
    lines = start.take(source, after, {})
    torch.testing.assert_close(after(*tokens)[0], before.float().double()(*tokens)[0], rtol=1e-6, atol=1e-6)
    new = [k for k in after.state_dict() if k not in before.state_dict()]
    assert ("new here: " in "".join(lines)) == bool(new) and all(name in "".join(lines) for name in new[:3])


def test_a_run_starts_from_another_run(small_run, tmp_path):
    """The first evaluation has the loss that the other run ended with; what goes wrong is one line; the new run resumes by itself."""
    first, second = tmp_path / "run", tmp_path / "second"
    status, _, error = ended("train", [*small_run, "--max_iters=6"])
    assert status == 0, error
    again = [a for a in small_run if not a.startswith("--out_dir")] + [f"--out_dir={second}", "--max_iters=6"]
    mixed = [*again, "--model=mixed", "--curvature_mode=fixed", "--curvature=0.0", "--reference=origin"]
    status, said, error = ended("train", [*mixed, f"--init_from={first}"])
    assert status == 0 and re.search(rf"weights: (\d+) of \1 tensors from {first} \(baseline, checkpoint 'best'\)\n", said), error
    losses = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (first, second)]
    last, start_of_second = ([r["val_loss"] for r in lines if "val_loss" in r] for lines in losses)
    assert start_of_second[0] == pytest.approx(min(last), abs=1e-6)
    status, said, error = ended("train", [*mixed, "--init_from=resume", "--max_iters=8"])
    assert status == 0 and "resumed from step 6" in said and "weights:" not in said, error
    config = json.loads((second / "config.json").read_text())
    assert config["init_from"] == "resume" and config["began_from"] == str(first)  # what its model card says
    shutil.rmtree(second / "ckpt")  # killed before it
    (second / "summary.json").unlink()
    status, said, error = ended("train", [*mixed, "--init_from=auto", "--max_iters=2"])
    assert status == 0 and "starting from step 0" in said and "weights: " in said, error
    first_loss = next(r["val_loss"] for r in map(json.loads, (second / "metrics.jsonl").read_text().splitlines()) if "val_loss" in r)
    assert first_loss == start_of_second[0]
    shifted = [*again, f"--init_from={first}", f"--out_dir={tmp_path / 'shifted'}", "--token_shift=difference", "--max_iters=0"]
    status, said, error = ended("train", shifted)
    assert status == 0 and "another function there: token_shift = 'none' ('difference' here)\n" in said, error
    kept = [a for a in again if not a.startswith("--out_dir")]
    status, _, error = ended("train", [*kept, f"--init_from={first}", f"--out_dir={first}", "--overwrite=True"])
    assert status == 2 and (first / "ckpt" / "best").exists()
    one_line(error, "the new run would replace the weights that it begins with")
    for more, message in ((["--n_head=4"], "add --n_head=2"), (["--n_embd=32"], "nothing of it has a name and a shape of this model")):
        other = [*again, f"--init_from={first}", f"--out_dir={tmp_path / 'third'}", *more]
        status, _, error = ended("train", other)
        assert status == 2 and not (tmp_path / "third" / "config.json").exists()
        one_line(error, message)


def test_another_function_is_named_where_the_other_model_has_other_keys():
    def keys(model, **options):
        return {"model": model, **vars(models.CONFIGS[model](**{**TINY, **options}))}
    likeness, plain, curved = keys("baseline", token_shift="likeness", bounded_rows=True), keys("baseline"), keys("mixed", curvature=3.0)
    own = lambda config: {k: v for k, v in config.items() if k != "model"}
    assert start.elsewhere(likeness, own(curved)) == ["token_shift = 'likeness' (not in this model)",
                                                      "bounded_rows = True (not in this model)"]
    assert start.elsewhere(curved, own(plain)) == ["curvature = 3.0 (not in this model)"]
    assert start.elsewhere(plain, own(plain)) == start.elsewhere(plain, own(keys("mixed"))) == start.elsewhere({}, own(plain)) == []
    older = {k: v for k, v in plain.items() if k != "bounded_rows"}  # as a version wrote it that had no such key
    assert start.elsewhere(older, own(likeness)) == ["token_shift = 'none' ('likeness' here)", "bounded_rows = False (True here)"]


def test_weights_that_are_not_used_are_listed(published, tokens, tmp_path):
    _, folder = published(activation_function="gelu")
    path = tmp_path / "gpt2" / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "transformer.h.7.ln_1.weight": torch.ones(16)}, path)
    lines = start.take(start.find(folder), build("tau", bias=True, n_kv_head=1), GPT2)
    text = "\n".join(lines)
    assert "there and not used: transformer.h.7.ln_1.weight" in text
    assert "another shape there, new here: transformer.h.0.attn.c_attn.weight ((48, 16), not (" in text and "log_temperature" in text
