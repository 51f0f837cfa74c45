"""export.py: transformers loads what it writes, with the same logits and the same tokens."""
import json

import pytest
import torch
from conftest import CHARACTERS, write_dataset
from running import ended, one_line, run
from test_data import TEXT, bpe_meta

import export
from data import tokenizer
from training import checkpoint, start


@pytest.fixture
def exported(small_run, tmp_path, capsys):
    """A function that trains a run of these options and exports it -> (our model, folder)."""
    def make(*options):
        status, _, error = ended("train", [*small_run, "--max_iters=4", "--eval_interval=2", *options])
        assert status == 0, error
        status, said, error = run(export.main, [tmp_path / "run", "--out", tmp_path / "out"], capsys)
        assert status == 0 and "hf upload" in said, error
        return checkpoint.load_model(str(tmp_path / "run"))[0], tmp_path / "out"
    return make


@pytest.mark.parametrize("options", [[], ["--bias=True", "--activation=gelu_tanh"]])
def test_transformers_computes_the_same_logits(options, exported):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    ours, folder = exported(*options)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    idx = torch.randint(36, (3, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(idx).logits, ours(idx, idx)[0], rtol=1e-6, atol=1e-6)
    made = AutoTokenizer.from_pretrained(folder)
    text = "the king shall go; my lord,\nto rome"
    ids = made(text)["input_ids"]
    assert ids == [CHARACTERS.index(c) for c in text] and made.decode(ids) == text
    with pytest.raises(Exception, match="UNK"):  # a character that the text does not have
        made("A")
    first = theirs.generate(idx[:1, :5], max_new_tokens=8, do_sample=False)
    expected = torch.cat([idx[:1, :5], *ours.generate(idx[:1, :5], 8, temperature=0)], 1)
    assert torch.equal(first, expected)
    card = (folder / "README.md").read_text()
    assert "| text | test text |" in card and "validation loss at the end" in card and "a random start" in card
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "generation_config.json", "model.safetensors",
                                                      "tokenizer.json", "tokenizer_config.json"]


def test_what_was_exported_can_be_trained_on(exported, small_run, data_dir, tmp_path):
    """export.py and init_from are each other's inverse; on other tokens it is refused."""
    _, folder = exported("--bias=True")
    write_dataset(data_dir / "gpt2", [1, 2, 3, 4] * 100, [1, 2, 3, 4] * 50, tokenizer="gpt2")
    again = [*small_run, "--bias=True", f"--init_from={folder}", f"--out_dir={tmp_path / 'second'}", "--max_iters=0"]
    refused = ended("train", [a for a in again if not a.startswith("--dataset")] + ["--dataset=gpt2"])
    assert refused[0] == 2
    one_line(refused[2], "trained on other tokens")
    status, said, error = ended("train", again)
    assert status == 0 and "tensors from" in said, error
    first, second = (checkpoint.load_model(str(tmp_path / name), "last")[0].state_dict() for name in ("run", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, start.TOKENIZER: 7}))
    refused = ended("train", [*again, "--overwrite=True"])
    assert refused[0] == 2
    one_line(refused[2], "is damaged: curved_gpt_tokenizer = 7")
    del about[start.TOKENIZER]  # as any other GPT-2
    (folder / "config.json").write_text(json.dumps(about))
    one_line(ended("train", [*again, "--overwrite=True"])[2], "trained on other tokens")


@pytest.mark.parametrize("kind", ["bpe", "gpt2", "words"])
def test_tokenizers_give_the_same_tokens(kind):
    meta = {"bpe": lambda: bpe_meta(TEXT, 320), "gpt2": lambda: {"tokenizer": "gpt2"},
            "words": lambda: {"tokenizer": "words", "words": "to be or not", "vocab_size": 4}}[kind]()
    ours, theirs = tokenizer.load_tokenizer(meta), tokenizer.as_hugging_face(meta)
    assert theirs.get_vocab_size() == ours.vocab_size
    for text in ["to be or not to be"] if kind == "words" else [TEXT[:500], "Other words, 123 of  them;\n\n naïve 日本 🙂"]:
        ids = ours.encode(text)
        assert theirs.encode(text).ids == ids and theirs.decode(ids) == text
    if kind == "words":
        with pytest.raises(Exception, match="UNK"):
            theirs.encode("to see")


def test_bad_places_are_one_line(exported, tmp_path, capsys):
    exported()
    for arguments, message in (([tmp_path / "run", "--out", tmp_path / "out"], "is not empty"),
                               ([tmp_path / "none", "--out", "x"], "no such run"),
                               ([tmp_path / "run", "--out", tmp_path / "run" / "config.json"], "config.json"),
                               ([tmp_path / "run"], "--out")):
        status, _, error = run(export.main, arguments, capsys)
        assert status == 2
        one_line(error, message)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["tokenizer"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    one_line(run(export.main, [tmp_path / "run", "--out", tmp_path / "y"], capsys)[2], "does not say how its tokens are made")
