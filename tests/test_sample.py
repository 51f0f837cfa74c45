"""sample.py, and the checkpoints that it reads: damaged, foreign and missing ones."""
import io
import json
import os
import pickle
import shutil
import sys

import pytest
import torch
from running import MIXED, one_line, run
from safetensors.torch import load_file, save_file

import sample
import train
from common.errors import exit_cleanly
from training import checkpoint


@pytest.fixture
def finished(small_run, tmp_path, capsys):
    assert run(train.main, small_run + MIXED, capsys)[0] == 0
    return tmp_path / "run"


def test_sample_writes_text_that_the_seed_decides(finished, tmp_path, capsys):
    args = [f"--out_dir={finished}", "--start=the king", "--max_new_tokens=40", "--device=cpu"]
    status, out, _ = run(sample.main, args + ["--num_samples=2"], capsys)
    assert status == 0 and out.startswith("the king") and out.count("the king") >= 2
    assert len(out) >= 2 * 48
    assert run(sample.main, args + ["--num_samples=2"], capsys)[1] == out
    assert run(sample.main, args + ["--num_samples=2", "--seed=2"], capsys)[1] != out
    (tmp_path / "prompt.txt").write_text("the king")
    assert run(sample.main, [args[0], f"--start=FILE:{tmp_path / 'prompt.txt'}", *args[2:], "--num_samples=2"],
               capsys)[1] == out


@pytest.mark.parametrize("args, parts", [
    (["--start="], ["prompt is empty"]),
    (["--start=FILE:/nowhere/x.txt"], ["no such file"]),
    (["--start=Ω"], ["not among the"]),
    (["--top_k=0"], ["top_k"]),
    (["--temperature=-1"], ["temperature"]),
    (["--seed=99999999999999999999999"], ["seed", "between -2^63 and 2^63"]),
    (["--checkpoint=first"], ["'best' | 'last'"]),
    (["--out_dir=/nowhere/run"], ["no such run"]),
])
def test_bad_sampling_options_get_one_line(args, parts, finished, capsys):
    status, _, err = run(sample.main, [f"--out_dir={finished}", "--device=cpu", *args], capsys)
    assert status == 2
    one_line(err, *parts)


def test_characters_that_the_output_cannot_show_are_question_marks(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))  # PYTHONIOENCODING=ascii
    with pytest.raises(SystemExit) as stop:
        exit_cleanly(lambda: print("caf\u00e9"))()
    assert raw.getvalue() == b"caf?\n" and stop.value.code == 0


def test_reading_a_run_of_the_kernels_says_that_it_is_computed_without_them(finished, capsys):
    args = [f"--out_dir={finished}", "--device=cpu", "--max_new_tokens=1"]
    assert run(sample.main, args, capsys)[2] == ""
    config = json.loads((finished / "config.json").read_text())
    (finished / "config.json").write_text(json.dumps({**config, "ops": "triton"}))
    status, _, err = run(sample.main, args, capsys)
    assert status == 0 and len(err.splitlines()) == 1
    assert "trained with ops = 'triton'" in err and "ops = 'torch' here" in err


def test_damaged_foreign_and_missing_checkpoints_get_one_line(finished, tmp_path, capsys):
    args = [f"--out_dir={finished}", "--device=cpu", "--max_new_tokens=1"]
    weights = finished / "ckpt" / "best" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:len(good) // 2])
    status, _, err = run(sample.main, args, capsys)
    assert status == 2
    one_line(err, "damaged")
    for byte in (len(good) - 1, len(good) - 4001):  # one bit of a weight
        weights.write_bytes(good[:byte] + bytes([good[byte] ^ 1]) + good[byte + 1:])
        one_line(run(sample.main, args, capsys)[2], "damaged", "checksum")
    tensors = load_file(finished / "ckpt" / "last" / "model.safetensors")
    name = "transformer.h.0.attn.c_attn.weight"
    save_file({**tensors, name: torch.zeros(3, 3)}, weights)
    one_line(run(sample.main, args, capsys)[2], "from another model", name)
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    one_line(run(sample.main, args, capsys)[2], "from another model", name)
    save_file({**tensors, "extra": torch.zeros(1)}, weights)
    one_line(run(sample.main, args, capsys)[2], "from another model", "extra")
    shutil.rmtree(weights.parent)
    one_line(run(sample.main, args, capsys)[2], "no checkpoint 'best'", "there is 'last'")
    config = json.loads((finished / "config.json").read_text())
    for key, value in (("n_embd", "16"), ("n_layer", 2.0), ("model", ["mixed"]), ("tokenizer", "char"), ("curvature", "x"),
                       ("reference", "foo"), ("n_head", None)):
        (finished / "config.json").write_text(json.dumps({**config, key: value}))
        status, _, err = run(sample.main, args, capsys)
        assert status == 2
        one_line(err, key)
    for text in ("{", "[" * 100_000):
        (finished / "config.json").write_text(text)
        one_line(run(sample.main, args, capsys)[2], "not JSON")


class Payload:
    def __reduce__(self):
        return os.system, ("touch hostile-was-here",)


def test_a_checkpoint_that_holds_code_does_not_run_it(finished, small_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(finished / "ckpt" / "last" / "state.pt", "wb") as f:
        pickle.dump(Payload(), f)
    status, _, err = run(train.main, small_run + MIXED + ["--init_from=resume"], capsys)
    assert status == 2
    one_line(err, "state.pt", "not safe to load")
    assert not (tmp_path / "hostile-was-here").exists()


def test_the_previous_checkpoint_survives_a_crash_between_the_renames(finished):
    target = finished / "ckpt" / "best"
    os.rename(target, str(target) + ".old")  # save() stopped right after its first rename
    model, _ = checkpoint.load_model(str(finished), "best")
    assert next(model.parameters()) is not None
