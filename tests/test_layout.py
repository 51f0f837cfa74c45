"""The house: imports go one way, files are short, few doors, a README that is read, and a worked example that works."""
import ast
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from running import ROOT

ROOT = pathlib.Path(ROOT)
TRACKED = [ROOT / line for line in subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True).stdout.splitlines()]
FILES = [p for p in TRACKED if p.exists()] or [p for p in ROOT.rglob("*") if p.is_file() and ".venv" not in p.parts]
PYTHON = [p for p in FILES if p.suffix == ".py"]

# from the top to the bottom: a file imports from its own layer and those below
LAYERS = [
    {"train", "sample", "sweep", "summarize_sweep", "plot_runs", "ablate_curvature", "analyze_representations", "evaluate", "export",
     "bench"},
    {"hub"},
    {"experiments"},
    {"analysis"},
    {"training"},
    {"models", "model_triton", "model_mhc_mixed", "model_mhc", "model_controls", "model_terms", "model_tau", "model_stereographic", "model",
     "model_baseline"},
    {"streams"},
    {"kernels"},
    {"geometry", "scalar_attention", "stereographic"},
    {"data"},
    {"configurator"},
    {"common"},
]
LAYER = {name: place for place, names in enumerate(LAYERS) for name in names}


def imports_of(path):
    """Names of this project's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
            [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        yield from (name.partition(".")[0] for name in names if name.partition(".")[0] in LAYER)


def layer_of(path):
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", [p for p in PYTHON if layer_of(p) in LAYER], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    own = layer_of(path)
    for name in imports_of(path):
        assert LAYER[name] >= LAYER[own], f"{path.relative_to(ROOT)} imports {name}, which is above it"


def test_every_module_has_a_layer():
    places = {layer_of(p) for p in PYTHON} - {"tests", "config", "sweeps", "results"}
    assert places == set(LAYER)


def test_no_file_has_more_than_600_lines():
    long = {str(p.relative_to(ROOT)): n for p in PYTHON if (n := len(p.read_text(encoding="utf-8").splitlines())) > 600}
    assert not long


def test_what_is_at_the_top_is_run_or_edited():
    assert len([p for p in PYTHON if p.parent == ROOT]) <= 20


def test_the_readme_is_short_and_its_links_are_there():
    assert len((ROOT / "README.md").read_bytes()) <= 8192
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "results").glob("**/README.md"),
                 ROOT / "results" / "stability.md"]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_files_that_the_prose_names_are_there():
    """`train.py`, `docs/gpu.md`, `geometry/`: a name with a slash or an ending of ours, in backquotes."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"\.py[a-z_]", page.read_text(encoding="utf-8")), page
        for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|\.sh|/))`", page.read_text(encoding="utf-8")):
            made = "ckpt/", "tensorboard/", "summary/", "model_scaled.py", "prepare.py", "results/gpu/"  # by the user, or by a run
            there = any((folder / name).exists() for folder in (ROOT, page.parent, ROOT / "training"))
            assert there or name in made, f"{page.relative_to(ROOT)} names {name}"


def test_the_worked_example_trains(small_run, tmp_path):
    """CONTRIBUTING.md's new model: the file and the line as printed, in a copy of the repository."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    line = re.search(r'^ {4}("scaled": .*,)$', text, re.MULTILINE)[1]
    imported = re.search(r"^ {4}(import model_scaled)$", text, re.MULTILINE)[1]
    copy = tmp_path / "copy"
    for path in PYTHON:
        if layer_of(path) not in ("tests", "bench", "sweeps", "results"):
            (copy / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(ROOT))
    (copy / "model_scaled.py").write_text(example)
    models = (copy / "models.py").read_text()
    models = models.replace("import model_controls\n", f"import model_controls\n{imported}\n", 1)
    (copy / "models.py").write_text(models.replace("MODELS = {", f"MODELS = {{\n    {line}", 1))
    both = """if True:
        import sys, train
        for more in ["--scale_start=0.3"], ["--scale_start=0", "--overwrite=True"]:
            try:
                train.main([*sys.argv[1:], *more])
            except SystemExit as stop:
                print("status", stop.code, flush=True)"""
    command = [sys.executable, "-c", both, "config/demo_baseline.py", "--model=scaled", *small_run]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120)
    assert "model: scaled" in done.stdout and re.findall("^status (.*)", done.stdout, re.M) == ["0", "2"], done.stderr
    assert "scale_start = 0.0: must be more than 0" in done.stderr
    assert len(example.splitlines()) <= 40
