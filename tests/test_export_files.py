"""What export.py puts in the folder of a model with code: the repository's own files, nothing of this machine, and the sweep's table."""
import ast
import importlib
import json
import re
import sys

import pytest
from running import one_line, run
from safetensors import SafetensorError
from test_export_curved import make_run
from test_summarize import Written

import export
import models
from common.errors import UserError
from hub import curved, source_files
from training.config import REPOSITORY


@pytest.mark.parametrize("name", models.MODELS)
def test_the_code_is_the_repositorys(name):
    """Line by line, but for imports; it needs torch, transformers and Python, and imports nothing that is not there."""
    files = curved.code(name)
    for file, text in files.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert all(f"{module}.py" in files for module in ([node.module] if node.module else [a.name for a in node.names])), file
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for module in [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]:
                    assert module.partition(".")[0] in {"torch", "transformers", *sys.stdlib_module_names} - {"argparse", "signal"}, module
        about = re.match("# (.*) of mixed-curvature-gpt: ", text)
        if not about:
            assert file == "modeling_curved_gpt.py" and "what export.py replaces" not in text
            continue
        with open(f"{REPOSITORY}/{about[1]}", encoding="utf-8") as f:
            original = f.read().splitlines()
        other = [line for line in text.splitlines()[1:] if line and line not in original]
        allowed = re.compile(r'\s*(from \.|@torch\.library\.custom_op\("|raise ImportError\("data\.laplacian is of the repository)')
        assert all(allowed.match(line) for line in other), other
        if about[1] not in ("configurator.py", "common/errors.py"):
            assert len(text.splitlines()) >= len(original)  # nothing is left out
    assert set(re.findall(r"^from \.(\w+) import __name__ as _$", files["modeling_curved_gpt.py"], re.M)) | {
        "modeling_curved_gpt"} == {file.removesuffix(".py") for file in files}


FILES = {
    "top.py": "import os, pack as p\nfrom pack import deep, ten as ten_\nfrom pack.deep import (\n    one,  # a comment\n    two,\n)\n"
              "try:\n    import other\nexcept ImportError:\n    other = None\n\n\ndef lazy():\n    from heavy import thing  # takes long\n"
              "    return thing\n\n\nVALUE = p.ten + ten_ + deep.one + one + two + other.five + len(os.sep)\n",
    "pack/__init__.py": "from pack.deep import one\n\nten = 10 * one\n",
    "pack/deep.py": "from settings import two\n\none = 1\n",
    "other.py": "import top\n\nfive = 5\n",  # a circle
    "heavy.py": "raise RuntimeError\n",
    "settings.py": "import sys\nimport math\n\nsys.unwanted = True\nhalf = math.sqrt(0.25)\n\n\ndef twice(x):\n    return x / half\n\n\n"
                   "two = twice(1)\nthree = 3\n"}


def test_imports_become_relative(tmp_path, monkeypatch):
    repository, flat = tmp_path / "repository", tmp_path / "exported"
    for name, text in FILES.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)
    monkeypatch.setattr(source_files, "REPOSITORY", str(repository))
    monkeypatch.setattr(source_files, "PARTS", ("settings",))
    made = source_files.Files().of(["top"])
    assert sorted(made) == ["other.py", "pack.py", "pack_deep.py", "settings.py", "top.py"]
    flat.mkdir()
    for name, text in {**made, "__init__.py": ""}.items():
        (flat / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    top = importlib.import_module("exported.top")
    assert top.VALUE == 10 + 10 + 1 + 1 + 2 + 5 + 1
    with pytest.raises(ImportError, match="heavy.thing is of|heavy is of the repository"):
        top.lazy()
    assert "one,  # a comment" in made["top.py"] and "  # takes long" in made["top.py"]
    assert "half" in made["settings.py"] and "three" not in made["settings.py"] and not hasattr(sys, "unwanted")
    for name, text, message in (("pack_deep.py", "x = 1\n", "would be one file, pack_deep.py"),
                                ("top.py", "import pack.deep\nimport pack_deep\n", "import pack.deep: cannot be exported")):
        (repository / name).write_text(text)
        (repository / "other.py").write_text("import pack_deep\n")
        with pytest.raises(UserError, match=message):
            source_files.Files().of(["top"])


def test_the_card_has_the_row_of_the_sweep(tmp_path, capsys):
    losses = {"baseline": 2.0, "curved": 1.5}
    (tmp_path / "sweep.py").write_text("raise SystemExit('run')")  # of the sweep, and not to be run
    sweep = Written(tmp_path / "three_arms", {"baseline": "baseline", "flat": "flat", "curved": "mixed"},
                    lambda arm, lr, seed: losses.get(arm, 1.75) + 0.01 * seed + lr, file=str(tmp_path / "sweep.py"))
    source = make_run(sweep.folder / "runs" / "curved-0.003-2", "mixed", {})
    (source / "summary.json").write_text(json.dumps({"parameters": 1234, "val_loss": 1.523, "tokens": 4000, "step": 9, "best_val_loss": 1.4,
                                                     "best_step": 7}))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "init_from": "resume", "began_from": str(tmp_path / "teacher")}))
    status, said, error = run(export.main, [source, "--out", tmp_path / "out"], capsys)
    assert (status, error) == (0, "") and "with trust_remote_code=True. To share it: hf upload USER/NAME" in said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained from teacher with" in card and "checkpoint 'best' of the run (step 7, validation loss 1.4000)" in card
    assert "of 1,234 parameters" in card and "| validation loss at the end, nats a token | 1.5230 |" in card
    assert "## In the sweep three_arms" in card and "of the arm curved: learning rate 0.003, seed 2." in card
    ended = len((sweep.folder / "runs.csv").read_text().splitlines()) - 1
    assert f"and of the baseline, from the {ended} runs that had ended on 20" in card
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith(("| arm ", "| curved ",
                                                                                                          "| baseline ", "| flat "))]
    assert "Best mixed arm (curved, lr 0.001) against best control (flat, lr 0.001): mixed minus control = -0.2500" in card
    assert [row[0] for row in rows] == ["arm", "baseline", "curved"]
    of = dict(zip(rows[0], rows[2]))
    assert of["validation loss [95%]"].startswith("1.531") and of["minus baseline [95%]"].startswith("-0.5000")
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes() and b"/somewhere" not in path.read_bytes(), path
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["do_sample"] is True

    (source / "config.json").write_text(json.dumps({**config, "init_from": "resume"}))  # of an earlier version: not known
    assert run(export.main, [source, "--checkpoint=last", "--out", tmp_path / "again"], capsys)[0] == 2  # it has no such checkpoint
    assert run(export.main, [source, "--out", tmp_path / "again"], capsys)[0] == 0
    assert "(without positions), trained with the repository" in (tmp_path / "again" / "README.md").read_text()

    alone = make_run(sweep.folder / "runs" / "another", "mixed", {})
    status, _, error = run(export.main, [alone, "--out", tmp_path / "second"], capsys)
    assert status == 0 and "the card is without the sweep's table" in error and "has no row of this run" in error
    assert "In the sweep" not in (tmp_path / "second" / "README.md").read_text()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    """safetensors wraps it in an error of its own."""
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    source = make_run(tmp_path / "run", "tau", {})
    monkeypatch.setattr(export, "save_file", full)
    status, _, error = run(export.main, [source, "--out", tmp_path / "out"], capsys)
    assert status == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["run"]
    one_line(error, "cannot be written: the disk is full")


def test_bad_runs_are_one_line_and_leave_nothing(tmp_path, capsys):
    source = make_run(tmp_path / "run", "tau", {})
    (source / "summary.json").write_text("{")
    status, _, error = run(export.main, [source, "--out", tmp_path / "out"], capsys)
    one_line(error, "summary.json is damaged")
    (source / "summary.json").unlink()
    weights = source / "ckpt" / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    again, _, error = run(export.main, [source, "--out", tmp_path / "out"], capsys)
    one_line(error, "is damaged")
    assert status == again == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["run"]
