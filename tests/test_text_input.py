"""Text as editors and shells leave it: byte-order marks, line ends of Windows, prompts that the data do not have, other locales."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import write_dataset
from running import ROOT, one_line, run

import configurator
import sample
import train
from common.errors import UserError, shown, shown_character
from data import shakespeare_text, sources, tokenizer
from data.fineweb import prepare as fineweb
from data.fineweb.prepare import GPT2_END_OF_TEXT

LINES = "to be\r\nor not\r\n" * 100


@pytest.mark.parametrize("kind", ["char", "gpt2"])
def test_a_byte_order_mark_is_left_out_and_said(kind, tmp_path, capsys):
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_bytes(3 * LINES.replace("\r", "").encode())
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    for path in (plain, marked):
        shakespeare_text.prepare(kind, [f"--input={path}", f"--out_dir={path.with_suffix('')}"], "", "")
    out = capsys.readouterr().out
    assert out.count("byte-order mark") == 1 and "left out" in out
    metas = [json.loads((tmp_path / name / "meta.json").read_text()) for name in ("plain", "marked")]
    for key in ("vocab_size", "sha256", "bytes", "train_sha256", "val_sha256"):
        assert metas[0][key] == metas[1][key]


def test_line_ends_of_windows_are_said_with_the_option_that_turns_them(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_bytes((LINES + "old Mac\r").encode())
    shakespeare_text.prepare("char", [f"--input={path}", f"--out_dir={tmp_path / 'kept'}"], "", "")
    out = capsys.readouterr().out
    assert "201 line ends have a CR" in out and "--newlines=lf" in out
    shakespeare_text.prepare("char", [f"--input={path}", f"--out_dir={tmp_path / 'lf'}", "--newlines=lf"], "", "")
    assert "201 line ends with CR are LF now" in capsys.readouterr().out
    kept, lf = (json.loads((tmp_path / name / "meta.json").read_text()) for name in ("kept", "lf"))
    assert "\r" in kept["characters"] and "\r" not in lf["characters"]
    assert lf["train_tokens"] + lf["val_tokens"] == len(LINES.replace("\r", "")) + len("old Mac\n")
    assert lf["sha256"] != kept["sha256"]  # another text: runs on the two are not comparable


def test_text_without_either_has_nothing_said_of_it():
    assert sources.tidy("to be\n", "keep") == sources.tidy("to be\n", "lf") == ("to be\n", [])


def test_documents_for_shards_are_tidied_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fineweb, "gpt2_encoding", lambda: tokenizer.load_tokenizer({"tokenizer": "gpt2"})._encoding)
    for i in range(40):
        (tmp_path / f"{i:02d}.txt").write_bytes(b"\xef\xbb\xbf" + f"document {i}\r\nof two lines\r\n".encode())
    args = [f"--source={tmp_path}/*.txt", f"--out_dir={tmp_path / 'out'}", "--val_share=0.2"]
    status, out, err = run(fineweb.main, args, capsys)
    assert status == 0 and out.count("note:") == 2 and "00.txt: the byte-order mark" in out and "--newlines=lf" in out
    status, _, err = run(fineweb.main, [*args, "--newlines=lf"], capsys)
    assert status == 2
    one_line(err, "made with other options (newlines None there, 'lf' now)")
    assert run(fineweb.main, [*args, "--newlines=lf", "--overwrite=True"], capsys)[0] == 0
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    tokens = np.concatenate([np.fromfile(tmp_path / "out" / s["file"], dtype="<u2", offset=1024)
                             for split in ("train", "val") for s in meta["shards"][split]])
    text = tokenizer.load_tokenizer(meta).decode([t for t in tokens.tolist() if t != GPT2_END_OF_TEXT])
    assert "\r" not in text and "\ufeff" not in text and sorted(text.splitlines()) == sorted(
        [f"document {i}" for i in range(40)] + ["of two lines"] * 40)


def test_a_vocabulary_of_one_is_one_character(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("a" * 2000)
    shakespeare_text.prepare("char", [f"--input={tmp_path / 'a.txt'}", f"--out_dir={tmp_path / 'a'}"], "", "")
    assert "vocabulary  1 character\n" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# prompts

def run_on(characters, small_run, tmp_path, capsys):
    ids = np.random.default_rng(0).integers(0, len(characters), 4000)
    write_dataset(tmp_path / "data" / "own", ids[:3000], ids[3000:], len(characters), characters=characters)
    assert run(train.main, [*small_run, "--dataset=own", "--max_iters=0"], capsys)[0] == 0
    return [f"--out_dir={tmp_path / 'run'}", "--device=cpu", "--max_new_tokens=5"]


@pytest.mark.parametrize("characters, start", [("ab\n ", "\n"), ("ab ", " "), ("ba", "b")])
def test_the_default_prompt_is_one_that_the_data_have(characters, start, small_run, tmp_path, capsys):
    status, out, _ = run(sample.main, run_on(characters, small_run, tmp_path, capsys), capsys)
    assert status == 0 and out.startswith(start) and len(out) == 1 + 5 + 1


def test_a_backslash_in_a_prompt_is_answered_with_how_a_newline_is_given(small_run, tmp_path, capsys):
    args = run_on("To be\n", small_run, tmp_path, capsys)
    status, _, err = run(sample.main, [*args, r"--start=To be\n"], capsys)
    assert status == 2
    one_line(err, r"the character '\' (U+005C, reverse solidus)", r"--start=$'To be\n'", "--start=FILE:")
    status, _, err = run(sample.main, [*args, "--start=To\\be"], capsys)
    assert status == 2 and "--start=FILE" not in err  # no newline was meant
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfTo be\n")
    assert run(sample.main, [*args, f"--start=FILE:{tmp_path / 'prompt.txt'}"], capsys)[1].startswith("To be\n")


def test_a_character_is_said_as_it_was_typed():
    assert shown_character("\u00e9") == "'\u00e9' (U+00E9, latin small letter e with acute)"
    assert shown_character("\\") == "'\\' (U+005C, reverse solidus)" and shown_character("'") == "''' (U+0027, apostrophe)"
    assert shown_character("\n") == "U+000A, a newline" and shown_character("\u200b") == "U+200B, zero width space"
    assert shown("a\\b") == "'a\\b'" and shown("a\nb") == "'a\\nb'" and shown(3) == "3"
    with pytest.raises(UserError, match=r"optimizer = 'a\\b'"):
        configurator.resolve(["--optimizer=a\\b"], train.TrainConfig)


@pytest.mark.parametrize("locale", [pytest.param({"LC_ALL": "C.UTF-8"}, marks=pytest.mark.exhaustive),
                                    pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
                                                 marks=pytest.mark.exhaustive),  # (the next is stricter)
                                    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"},
                                    {"PYTHONIOENCODING": "latin-1"}])
def test_what_was_typed_is_understood_in_every_locale(locale, small_run, tmp_path, capsys):
    """The terminal sends UTF-8 whatever the locale says."""
    args = run_on("cafe\n", small_run, tmp_path, capsys)
    done = subprocess.run([sys.executable, "sample.py", *args, "--start=caf\u00e9".encode()], cwd=ROOT, capture_output=True,
                          env={k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))} | locale)
    assert done.returncode == 2 and done.stdout == b""
    line = done.stderr.decode("latin-1")
    assert line.startswith("error: ") and line.count("\n") == 1 and "(U+00E9, latin small letter e with acute)" in line


@pytest.mark.parametrize("encoding", ["ascii:strict", "latin-1:strict", "cp037"])
def test_sampled_text_is_written_in_every_encoding(encoding, small_run, tmp_path, capsys):
    args = run_on("\u00e9\u03a9\n", small_run, tmp_path, capsys)
    done = subprocess.run([sys.executable, "sample.py", *args], cwd=ROOT, capture_output=True,
                          env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and done.stderr == b""
    assert len(done.stdout.decode(encoding.partition(":")[0])) == 1 + 5 + 1
