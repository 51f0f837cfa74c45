"""data/packages/prepare.py, with a stand-in for pip."""
import json
import os

import numpy as np
import pytest
from running import one_line, run

from data import package_text
from data.packages import prepare
from data.sources import FetchError, sha256_of
from data.tokenizer import load_tokenizer

FILES = {f"sympy/part{i}/file{i}.py": f"def f{i}(x):\n    return x + {i}\n".encode() * (3 + i) for i in range(30)}
OTHERS = {"sympy/core/tests/test_a.py": b"def test(): pass\n" * 50, "sympy/empty.py": b"\n", "sympy/greek.py": "π = 3\n".encode()}


@pytest.fixture
def wheel(monkeypatch):
    """What was asked of pip."""
    asked = []
    monkeypatch.setattr(package_text, "pip_wheel_member", lambda *args: asked.append(args) or {**FILES, **OTHERS})
    return asked


def test_documents_are_whole_files_of_the_right_kind_in_an_order_of_their_names(wheel):
    documents = package_text.documents_of("code")
    assert wheel == [("sympy==1.14.0", package_text.CORPORA["code"].sha256, "sympy/*.py")]
    assert sorted(documents) == sorted(text.decode().strip("\n") + "\n\n" for text in FILES.values())
    assert documents != sorted(documents) and documents == package_text.documents_of("code")


def test_no_document_is_in_both_parts(wheel):
    documents = package_text.documents_of("code")
    for most in (1e9, 5000, 400, 1):
        train, val = package_text.parts(documents, most)
        assert documents[0] in train and (train + val) in "".join(documents)
        assert len(train + val) <= max(most, len(documents[0]))
        whole = [text for text in documents if text in val]
        assert "".join(whole) == val and not any(text in train for text in whole)
        if most > 5000:
            assert train + val == "".join(documents) and 0.1 <= len(val) / len(train + val) < 0.25


@pytest.mark.parametrize("options", [[], ["--tokens=bpe", "--vocab_size=300"]])
def test_a_data_set(options, wheel, tmp_path, capsys):
    out = tmp_path / "code"
    assert run(prepare.main, ["--corpus=code", f"--out_dir={out}", *options], capsys)[0] == 0
    meta = json.loads((out / "meta.json").read_text())
    train, val = package_text.parts(package_text.documents_of("code"), 4e6)
    tokenizer = load_tokenizer(meta)
    for split, text in (("train", train), ("val", val)):
        assert tokenizer.decode(np.fromfile(out / f"{split}.bin", "<u2").tolist()) == text
    assert meta["corpus"] == "source code of SymPy 1.14.0" and "sympy==1.14.0" in meta["source"]
    assert meta["sha256"] == sha256_of((train + val).encode()) and meta["val_bytes"] == len(val)


def test_the_folder_is_named_after_text_and_tokens(wheel, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "FOLDER", str(tmp_path / "packages"))
    assert run(prepare.main, ["--corpus=code", "--megabytes=0.01"], capsys)[0] == 0
    assert sorted(os.listdir(tmp_path / "code_char")) == ["meta.json", "train.bin", "val.bin"]


def test_one_file_is_too_little(wheel, tmp_path, capsys, monkeypatch):
    long = {f"sympy/{name}.py": b"x = 1\n" * 5000 for name in "ab"}
    monkeypatch.setattr(package_text, "pip_wheel_member", lambda *args: long)
    status, _, err = run(prepare.main, ["--corpus=code", "--megabytes=0.01", f"--out_dir={tmp_path / 'new'}"], capsys)
    assert status == 2 and not (tmp_path / "new").exists()
    one_line(err, "megabytes = 0.01 is one file of source code of SymPy", "take more")


@pytest.mark.parametrize("options, parts", [
    (["--corpus=news"], ["corpus takes 'plays' | 'documentation' | 'code'"]),
    (["--vocab_size=300"], ["vocab_size has no effect with tokens = 'char'"]),
    (["--tokens=bpe", "--vocab_size=256"], ["vocab_size = 256: must be from 257"]),
    (["--megabytes=0"], ["megabytes = 0: must be from 0.01"]),
    (["--out_dir="], ["--out_dir is empty"]),
    (["--corpus=documentation"], ["examples of the AWS command line (awscli 1.44.0) cannot be had: pip says no"])])
def test_bad_input_is_one_line(options, parts, tmp_path, capsys, monkeypatch):
    def fail(*args):
        raise FetchError("pip says no")
    monkeypatch.setattr(package_text, "pip_wheel_member", fail)
    status, _, err = run(prepare.main, [f"--out_dir={tmp_path / 'new'}", *options], capsys)
    assert status == 2 and not (tmp_path / "new").exists()
    one_line(err, *parts)
