"""export.py of models that are no GPT-2: transformers loads them with their own code, without this repository, and they are the same."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CHARACTERS
from safetensors.torch import save_file
from test_model_baseline import randomised
from torch.nn import functional as F

import export
import models
from data import laplacian
from training import checkpoint

VOCABULARY = len(CHARACTERS)
SHAPE = dict(vocab_size=40, block_size=12, n_layer=2, n_head=2, n_embd=16)  # rows of tokens are padded
BASIC = {  # of every model
    "smear": ("baseline", dict(token_shift="smear", head_gate="read", bias=True)),
    "mixed": ("mixed", {}),
    "controls": ("controls", dict(control="bound+gate+norm")),
    "mhc": ("mhc", {}),
    "mhc_mixed": ("mhc_mixed", {}),
    "tau": ("tau", {}),
    "terms": ("terms", dict(read="log", write="mobius"))}
MORE = {
    "flat": ("baseline", dict(token_shift="difference", head_gate="attention", value_residual="learned")),
    "likeness": ("baseline", dict(token_shift="likeness", bounded_rows=True)),
    "rope": ("baseline", dict(position="rope", qk_norm=True, activation="gelu_tanh")),
    "fixed": ("mixed", dict(curvature_mode="fixed", curvature=0.3)),
    "sphere": ("mixed", dict(curvature_mode="fixed", curvature=-0.3, per_head_curvature=False, use_embedding_curvature=True)),
    "dynamic": ("mixed", dict(dynamic_curvature=True, curvature_mode="tied", use_embedding_curvature=True)),
    "window": ("mixed", dict(reference="window", residual="transport", position="rope", value_residual="fixed")),
    "ema": ("mixed", dict(reference="ema", residual="reference", curvature_mode="parametric", curvature_initialization=[0.1, 0.2])),
    "grown": ("mixed", dict(curvature_mode="fixed", curvature=0.3, curvature_warmup=9, max_distance=1.5, curvature_heads=[1.0, -0.5])),
    "softplus": ("mixed", dict(curvature_mode="random", curvature_form="softplus", max_update=1.5, update_scale="conformal",
                               project_gradient="straight")),
    "points": ("stereographic", dict(layers="mobius", attention="distance", head="stereographic", head_offset=True)),
    "lorentz": ("stereographic", dict(norm="stereographic", head="lorentz", head_tied=False, head_scale_mode="learned")),
    "frozen": ("mhc", dict(hc_freeze="res", hc_maps="dynamic", token_shift="difference")),
    "frozen_too": ("mhc", dict(hc_freeze="pre+post", hc_res="permutations", hc_num_streams=3)),
    "hc": ("mhc", dict(hc="hc", hc_maps="dynamic")),
    "hc_static": ("mhc", dict(hc="hc", hc_expand="first", hc_collapse="sum")),
    "altup": ("mhc", dict(hc="altup")),
    "one_stream": ("mhc", dict(hc="none")),
    "midpoint": ("mhc_mixed", dict(hc_space="midpoint", hc_maps="dynamic", curvature_mode="fixed", hc_num_streams=3)),
    "alibi": ("tau", dict(position="alibi", temperature="fixed", tau="fixed", n_kv_head=1)),
    "corpus": ("tau", dict(laplacian="corpus", tau="median", manifold_dim=6)),
    "learned": ("tau", dict(laplacian="learned", laplacian_per_head=True, tau="mean", position="rope")),
    "bins": ("tau", dict(laplacian="none", kv_bins=16)),
    "constant": ("terms", dict(read="row", write="constant", ball=False))}
ALL = {**BASIC, **MORE}


def make_run(folder, name, options):
    """A run with random weights, which no training has made."""
    torch.manual_seed(3)
    model = randomised(models.build(name, models.CONFIGS[name](**{**SHAPE, **options})), scale=0.1)
    meta = {"tokenizer": "char", "characters": CHARACTERS, "vocab_size": VOCABULARY}
    config = {"model": name, "tokenizer": meta, "corpus": "test text", "data_dir": "/somewhere/else", **vars(model.config)}
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(str(folder), "best", checkpoint.weights_of(model), {})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Of this file's runs and exported folders; transformers keeps the code that it loads there, too."""
    from transformers import dynamic_module_utils
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))
        patch.setattr(sys, "path", [*sys.path])
        for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:  # another test file's folder
            patch.delitem(sys.modules, name)
        yield folder


@pytest.fixture(scope="module")
def exported(place):
    """A function: a key of ALL -> (folder of the run, exported folder), made once."""
    def make(kind):
        source, out = place / "run" / kind, place / "out" / kind
        if not out.exists():
            name, options = ALL[kind]
            if options.get("laplacian") == "corpus":
                np.save(place / "L.npy", laplacian.laplacian(np.random.default_rng(0).random((40, options["manifold_dim"])), k=3))
                options = {**options, "laplacian_file": str(place / "L.npy")}
            with pytest.raises(SystemExit) as stop:
                export.main([str(make_run(source, name, options)), "--out", str(out)])
            assert stop.value.code == 0
        return source, out
    return make


@pytest.fixture(scope="module")
def both(exported):
    """A function: a key of ALL -> (our model, transformers' model)."""
    from transformers import AutoModelForCausalLM
    kept = {}

    def load(kind):
        if kind not in kept:
            source, out = exported(kind)
            kept[kind] = checkpoint.load_model(str(source))[0], AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
        return kept[kind]
    return load


def prompt(rows=2, length=12):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))


def logits_of(ours, idx):
    """At every position, of the tokens that the text has."""
    return ours(idx, idx)[0][..., :VOCABULARY]


ALONE = """
import sys, torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
try:
    import model_baseline
    raise SystemExit("the repository can be imported")
except ImportError:
    pass
expected = load_file(sys.argv[1])
for name, folder in zip(sys.argv[2::2], sys.argv[3::2]):
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    tied = model.gpt.lm_head.weight is model.gpt.transformer.wte.weight
    assert not model.training and tied == model.config.keys.get("head_tied", True)
    found = model(expected["idx"]).logits
    print(name, (found - expected[name]).abs().max().item() / expected[name].abs().max().item(), sep=":")
"""


def test_every_model_is_the_same_where_the_repository_is_not(exported, place):
    """In a fresh process somewhere else: weights, buffers and code are those of the folder."""
    folders, expected = {}, {"idx": prompt()}
    for kind in ALL:
        source, folders[kind] = exported(kind)
        expected[kind] = logits_of(checkpoint.load_model(str(source))[0], expected["idx"]).contiguous()
    save_file(expected, place / "expected.safetensors")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    arguments = [place / "expected.safetensors", *(x for pair in folders.items() for x in pair)]
    done = subprocess.run([sys.executable, "-I", "-c", ALONE, *arguments], cwd=place, capture_output=True, text=True, timeout=300,
                          env={**environment, "HF_MODULES_CACHE": str(place / "modules alone"), "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    differences = dict(line.split(":") for line in done.stdout.splitlines())
    assert differences.keys() == ALL.keys() and all(float(d) <= 1e-6 for d in differences.values()), differences
    assert "Warning" not in done.stderr and "newly initialized" not in done.stderr, done.stderr


@pytest.mark.parametrize("kind", ALL)
def test_generation_is_the_repositorys(kind, both):
    """Greedily, through the cache and without one, beyond block_size (12), and by beams."""
    ours, theirs = both(kind)
    idx = prompt(length=5)
    expected = torch.cat([idx, *ours.generate(idx, 12, temperature=0, vocab_size=VOCABULARY)], 1)
    assert torch.equal(theirs.generate(idx, max_new_tokens=12, do_sample=False), expected)
    beams = theirs.generate(idx, max_new_tokens=6, num_beams=3, do_sample=False)
    if kind != "bins":  # the cache is not exact
        assert torch.equal(theirs.generate(idx, max_new_tokens=12, do_sample=False, use_cache=False), expected)
        assert torch.equal(theirs.generate(idx, max_new_tokens=6, num_beams=3, do_sample=False, use_cache=False), beams)


def test_operators_of_two_models_are_two(both):
    """A second definition of torch.library's frees the first, which the first model would go on to use."""
    names = {sys.modules[type(both(kind)[1]).__module__.rpartition(".")[0] + ".scalar_attention_tiled"]._tiled._qualname
             for kind in ("tau", "alibi")}
    assert len(names) == 2 and all(name.endswith("scalar_attention_tiled::tiled") for name in names)


@pytest.mark.parametrize("kind", [*BASIC, "dynamic", "corpus"])
def test_loss_and_gradients_are_the_repositorys(kind, both):
    ours, theirs = both(kind)
    idx = prompt()
    labels = idx.clone()
    labels[1, 9:] = -100
    logits = ours.lm_head(ours.transformer.ln_f(ours.one_row(ours.trunk(idx))))[..., :VOCABULARY]  # the others are not there
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    expected.backward()
    for recompute in (False, True):
        theirs.train()
        (theirs.activation_checkpointing_enable if recompute else theirs.activation_checkpointing_disable)()
        loss = theirs(idx, labels=labels).loss
        loss.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        for name, p in theirs.gpt.named_parameters():
            grad = ours.get_parameter(name).grad
            grad = None if grad is None else grad[:VOCABULARY] if name.endswith("wte.weight") else grad
            assert (grad is None) == (p.grad is None), name
            if grad is not None:
                torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
        theirs.zero_grad()
    theirs.eval()
    theirs.activation_checkpointing_disable()
    ours.zero_grad()


@pytest.mark.parametrize("kind", ["fixed", "dynamic", "mhc_mixed", "alibi"])
def test_fine_tuned_saved_and_loaded_again(kind, exported, tmp_path):
    """Some steps lower the loss; save_pretrained() keeps the code and every number; other dtypes are near."""
    from transformers import AutoModelForCausalLM
    source, out = exported(kind)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).train()
    optimizer, idx, losses = torch.optim.AdamW(model.parameters(), 1e-2), prompt(), []
    for _ in range(5):
        losses.append(model(idx, labels=idx).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1
    model.eval().save_pretrained(tmp_path / "again")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again(idx).logits, model(idx).logits)
    assert {p.name for p in out.glob("*.py")} == {p.name for p in (tmp_path / "again").glob("*.py")}
    for half in (AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True, dtype=torch.bfloat16),
                 again.to(torch.bfloat16)):
        found = half(idx).logits
        assert found.dtype == torch.bfloat16 and half.gpt.lm_head.weight.dtype == torch.bfloat16
        assert (found.float() - model(idx).logits).norm() < 0.05 * found.float().norm()
    double = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, dtype=torch.float64)
    torch.testing.assert_close(double(idx).logits.float(), logits_of(checkpoint.load_model(str(source))[0], idx), rtol=1e-5, atol=1e-5)
    lacking = tmp_path / "lacking"
    model.save_pretrained(lacking, state_dict={k: v for k, v in model.state_dict().items() if "h.1.ln_1" not in k})
    with pytest.raises(ValueError, match="weights are missing: those of a LayerNorm"):
        AutoModelForCausalLM.from_pretrained(lacking, trust_remote_code=True)


@pytest.mark.parametrize("kind", ["mixed", "frozen"])
def test_a_model_from_its_config_alone_starts_as_the_repositorys(kind, exported, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM
    config = AutoConfig.from_pretrained(exported(kind)[1], trust_remote_code=True)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    torch.manual_seed(7)
    name, options = ALL[kind]
    ours = models.build(name, models.CONFIGS[name](**{**SHAPE, **options, "vocab_size": VOCABULARY}))
    idx = prompt()
    torch.testing.assert_close(model(idx).logits, ours(idx, idx)[0], rtol=1e-6, atol=1e-7)
    model.resize_token_embeddings(50)
    assert model.config.vocab_size == 50 and model(idx).logits.shape == (2, 12, 50)
    assert model.gpt.lm_head.weight is model.gpt.transformer.wte.weight
    model.eval().save_pretrained(tmp_path / "more_tokens")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "more_tokens", trust_remote_code=True)
    assert torch.equal(again(idx).logits, model(idx).logits)


def test_what_cannot_be_done_right_is_refused(both):
    theirs = both("mixed")[1]
    idx, ones = prompt(), torch.ones(2, 12, dtype=torch.long)
    whole = theirs(idx, attention_mask=ones).logits
    right, left = ones.clone(), ones.clone()
    right[1, 8:] = 0
    left[1, :2] = 0
    torch.testing.assert_close(theirs(idx, attention_mask=right).logits[1, :8], whole[1, :8])
    for call in (lambda: theirs(idx, attention_mask=left), lambda: theirs.generate(idx, attention_mask=left, max_new_tokens=2),
                 lambda: theirs.generate(idx, attention_mask=right, max_new_tokens=2)):
        with pytest.raises(ValueError, match="padding cannot be hidden"):
            call()
    with pytest.raises(ValueError, match="a sequence of 13 tokens does not fit block_size = 12"):
        theirs(prompt(length=13))
    with pytest.raises(ValueError, match="position_ids: these models have none"):
        theirs(idx, position_ids=torch.arange(12)[None])
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        theirs.generate(idx[:1, :4], assistant_model=theirs, max_new_tokens=2)


def test_outputs_are_those_of_transformers_models(both):
    """The cache is continued by hand; hidden states; a tuple; only the last logits."""
    for kind in ("dynamic", "mhc", "hc", "learned"):
        ours, theirs = both(kind)
        idx = prompt()
        whole = theirs(idx, output_hidden_states=True)
        first = theirs(idx[:, :7], use_cache=True)
        second = theirs(idx[:, 7:], past_key_values=first.past_key_values, logits_to_keep=2)
        torch.testing.assert_close(torch.cat((first.logits, second.logits), 1)[:, [*range(7), 7, 8]],
                                   whole.logits[:, [*range(7), 10, 11]], rtol=1e-5, atol=1e-5)
        assert second.past_key_values.get_seq_length() == 12 and len(whole.hidden_states) == 3
        head = lambda rows, model: model.lm_head(model.transformer.ln_f(rows))
        torch.testing.assert_close(head(whole.hidden_states[-1], theirs.gpt), whole.logits)
        torch.testing.assert_close(whole.hidden_states[1], ours.one_row(list(ours.after_blocks(ours.start(idx)))[0]))
        assert torch.equal(theirs(idx, return_dict=False, use_cache=False)[0], whole.logits)


def test_a_pipeline_writes_text(exported, monkeypatch):
    from transformers import pipeline
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for kind in ("mixed", "tau"):
        write = pipeline("text-generation", str(exported(kind)[1]), trust_remote_code=True)
        text = write("the king", max_new_tokens=9, do_sample=False)[0]["generated_text"]
        assert text.startswith("the king") and len(text) == 17 and set(text) <= set(CHARACTERS)


def test_no_code_is_run_unless_it_is_trusted(exported, monkeypatch):
    from transformers import AutoModelForCausalLM
    monkeypatch.setattr("transformers.dynamic_module_utils.TIME_OUT_REMOTE_CODE", 0)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(exported("terms")[1])
