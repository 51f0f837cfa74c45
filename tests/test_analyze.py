"""analyze_representations.py: the whole script on small runs, and what bad input gets."""
import json
import os
import shutil
import signal
import xml.etree.ElementTree

import numpy as np
import pytest
import torch
from conftest import CHARACTERS, write_dataset

import analyze_representations as analyze
import train
from analysis import hyperbolicity, isotropy
from analysis import report as analysis_report
from training import checkpoint
from training.dataloader import Loader, load_meta


def run(main, args, capsys):
    """(exit status, stdout, stderr) of a script's main."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def refused(args, capsys, *parts):
    status, _, err = run(analyze.main, args, capsys)
    lines = [line for line in err.splitlines() if line.strip()]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), err
    for part in parts:
        assert part in lines[0], (part, lines[0])


ARMS = {"base": [], "curved": ["--model=mixed", "--curvature_mode=parametric", "--curvature=0.7"],
        "dynamic": ["--model=mixed", "--dynamic_curvature=True"]}
QUICK = ["--bootstrap=20", "--pairs=500", "--tokens=1984", "--delta_samples=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the trained runs and their data."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["the", "king", "shall", "go;", "my", "lord,", "to", "rome.\n"]
    text = " ".join(words[i] for i in np.random.default_rng(0).integers(0, len(words), 3000))
    ids = [CHARACTERS.index(c) for c in text]
    write_dataset(folder / "data" / "words", ids[:10000], ids[10000:12000])
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    for name, arm in ARMS.items():
        with pytest.raises(SystemExit) as stop:
            train.main([f"--data_dir={folder / 'data'}", "--dataset=words", f"--out_dir={folder / name}", "--n_layer=2",
                        "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4", "--max_iters=20",
                        "--eval_interval=20", "--eval_iters=8", "--warmup_iters=2", "--learning_rate=1e-2",
                        "--tensorboard_log=False", "--device=cpu", "--dtype=float32", "--compile=False", *arm])
        assert stop.value.code == 0
    for s, handler in handlers.items():
        signal.signal(s, handler)
    return folder


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    """The report of all runs: (folder, terminal output)."""
    out = tmp_path_factory.mktemp("out") / "deep" / "report"
    import contextlib
    import io
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stop:
        analyze.main([*(str(runs / name) for name in ARMS), "--out", str(out), *QUICK])
    assert stop.value.code == 0
    return out, printed.getvalue()


def strict(path):
    """JSON without NaN and Infinity, which are not JSON."""
    def no(name):
        raise AssertionError(name)
    return json.loads(path.read_text(), parse_constant=no)


def estimates(found):
    if isinstance(found, dict):
        if {"value", "low", "high"} <= set(found):
            yield found
        for value in found.values():
            yield from estimates(value)
    elif isinstance(found, list):
        for value in found:
            yield from estimates(value)


def test_the_report_is_whole(report):
    out, printed = report
    content = strict(out / "metrics.json")
    assert sorted(content["files"]) == sorted(os.listdir(out)) and content["written_by"] == "analyze_representations.py"
    assert [(m["run"], m["weights"]) for m in content["models"]] == [
        (r, w) for r in ARMS for w in ("trained", "untrained")]
    for name in content["files"]:
        if name.endswith(".png"):
            assert (out / name).read_bytes().startswith(b"\x89PNG") and name[:-4] + ".svg" in content["files"]
        if name.endswith(".svg"):
            assert xml.etree.ElementTree.parse(out / name).getroot().tag.endswith("svg")
    pictures = {n[:-4] for n in content["files"] if n.endswith(".png")}
    assert pictures == {"isotropy_ambient", "isotropy_tangent", "spectra_ambient", "spectra_tangent", "hyperbolicity",
                        "geometry", "disc_1", "disc_2"}
    text = (out / "report.md").read_text()
    for name in pictures:
        assert f"({name}.png)" in text
    assert "base: no picture: the model is Euclidean" in text and "Every token is in its own ball" in text
    assert content["settings"]["tokens"] == 1984 and content["environment"]["numpy"] == np.__version__
    for line in ("isotropy, ambient", "isotropy, tangent", "relative Gromov delta", "use of the geometry"):
        assert line in printed
    for row in (line for line in text.splitlines() if line.startswith("| base ")):
        assert "nan" not in row and "None" not in row


def test_every_number_has_an_interval_around_it(report):
    found = [e for m in strict(report[0] / "metrics.json")["models"] for e in estimates(m)]
    assert len(found) > 1000
    for e in found:
        assert e["value"] is None or e["low"] <= e["value"] + 1e-9 and e["value"] - 1e-9 <= e["high"], e
    assert sum(e["value"] is not None and e["low"] < e["high"] for e in found) > 0.7 * len(found)


def test_coordinates_are_stated_and_geodesics_are_where_they_exist(report):
    for m in strict(report[0] / "metrics.json")["models"]:
        curved, dynamic = m["run"] != "base", m["run"] == "dynamic"
        assert m["curved"] == curved and m["dynamic"] == dynamic and m["stream_dtype"] == "float32"
        for layer, found in m["layers"].items():
            in_a_ball = curved and layer != "ln_f"
            assert set(found["isotropy"]) == {"ambient"} | ({"tangent"} if in_a_ball else set())
            assert list(found["hyperbolicity"]) == ["euclidean_ambient", "euclidean_tangent", "geodesic"][
                :(3 if not dynamic else 2) if in_a_ball else 1]
            assert (found["geometry"] is not None) == in_a_ball
            for name, sets in found["hyperbolicity"].items():
                assert sets["coordinates"] == ("ambient" if name == "euclidean_ambient" else "tangent")
                assert sets["equidistant"]["value"] == 0
                assert all(0 < sets[k]["value"] <= 1 for k in ("tokens", "gaussian", "shuffled"))
    rows = [line.split("|")[1:-1] for line in (report[0] / "report.md").read_text().splitlines()
            if line.startswith("| base | trained | block0")]
    isotropy_row, hyperbolicity_row, geometry_row = rows
    assert all(cell.strip() == "-" for cell in hyperbolicity_row[8:] + geometry_row[3:])  # never silently Euclidean
    assert all(cell.strip() != "-" for cell in isotropy_row + hyperbolicity_row[:8])


def test_the_untrained_copy_is_the_model_before_its_first_step(runs):
    for name in ARMS:
        config = checkpoint.load_config(str(runs / name))
        model = analyze.untrained_copy(config, "cpu")
        data = str(runs / "data" / "words")
        loader = Loader(data, "val", load_meta(data), 4, 16, 0)
        with torch.no_grad():
            losses = [model(x, y)[1].item() for x, y in loader.eval_batches(8)]
        first = json.loads((runs / name / "metrics.jsonl").read_text().splitlines()[0])
        assert first["step"] == 0 and np.mean(losses) == pytest.approx(first["val_loss"], rel=1e-5)


def test_numbers_are_those_of_the_checkpoint_computed_by_other_means(runs, report):
    """Mean over all tokens of block1 of the trained curved run: effective rank by SVD, geodesic norm by its formula."""
    model, _ = checkpoint.load_model(str(runs / "curved"))
    data = str(runs / "data" / "words")
    loader = Loader(data, "val", load_meta(data), 16, 16, 0)
    rows = torch.cat([model.trunk(x) for x, _ in loader.eval_batches(7)]).detach().double()
    found = next(m for m in strict(report[0] / "metrics.json")["models"] if m["run"] == "curved")
    assert found["tokens"] == rows[..., 0].numel() == 1792
    singular = torch.linalg.svdvals((flat := rows.flatten(0, 1)) - flat.mean(0))
    p = singular / singular.sum()
    layer = found["layers"]["block1"]
    rank = torch.exp(-(p * p.log()).sum()).item()
    assert layer["isotropy"]["ambient"]["effective_rank"]["value"] == pytest.approx(rank)
    c = model.transformer.h[1].curvature.c.detach().double()[:, 0]
    norms = 2 / c.sqrt() * torch.atanh(c.sqrt() * rows.unflatten(-1, (2, -1)).norm(dim=-1))
    assert layer["geometry"]["geodesic_norm"]["value"] == pytest.approx(norms.norm(dim=-1).mean().item(), rel=1e-5)
    assert [h["value"] for h in layer["geometry"]["curvature"]["by_head"]] == pytest.approx(c.tolist())
    assert layer["geometry"]["boundary_margin"]["value"] == pytest.approx(
        (1 - c.sqrt() * rows.unflatten(-1, (2, -1)).norm(dim=-1)).mean().item(), rel=1e-5)


@pytest.fixture
def sketches(monkeypatch):
    """Quick: for tests of the folder. Plots of no content, small samples."""
    def image_bytes(figure):
        analysis_report.plt.close(figure)
        return {".png": b"a plot"}

    monkeypatch.setattr(analysis_report, "image_bytes", image_bytes)
    monkeypatch.setattr(hyperbolicity, "POINTS", 12)


def test_a_report_is_replaced_and_the_same_again(runs, tmp_path, capsys, sketches):
    out = tmp_path / "x"
    args = [runs / "base", runs / "curved", *QUICK, "--checkpoint=last"]
    assert run(analyze.main, [*args, "--out", out], capsys)[0] == 0
    first = strict(out / "metrics.json")
    assert "disc_1.png" in first["files"]
    assert run(analyze.main, [*args, f"--out={out}"], capsys)[0] == 0
    second = strict(out / "metrics.json")
    assert first["models"] == second["models"]
    assert run(analyze.main, [runs / "base", "--out", out, *QUICK], capsys)[0] == 0  # fewer files: the old ones go
    third = strict(out / "metrics.json")
    assert sorted(os.listdir(out)) == third["files"] and "disc_1.png" not in third["files"]
    assert "No run has a geometry" in (out / "report.md").read_text()
    assert os.listdir(tmp_path) == ["x"]  # nothing temporary


def test_another_text_than_that_of_the_run_is_said(runs, tmp_path, capsys, sketches):
    shutil.copytree(runs / "data" / "words", tmp_path / "data" / "words")
    meta = json.loads((tmp_path / "data" / "words" / "meta.json").read_text())
    (tmp_path / "data" / "words" / "meta.json").write_text(json.dumps({**meta, "sha256": "f00", "corpus": "a sequel"}))
    status, out, _ = run(analyze.main, [runs / "base", "--out", tmp_path / "x", "--data_dir", tmp_path / "data", *QUICK],
                         capsys)
    assert status == 0
    for text in (out, (tmp_path / "x" / "report.md").read_text()):
        assert "holds another text (a sequel) than the run was trained on (test text)" in text


def test_a_report_that_cannot_be_written_leaves_the_one_before(runs, tmp_path, capsys, monkeypatch, sketches):
    out = tmp_path / "x"
    assert run(analyze.main, [runs / "base", "--out", out, *QUICK], capsys)[0] == 0
    before = (out / "metrics.json").read_bytes()

    def full(path, data):
        raise OSError(28, "No space left on device", path)
    monkeypatch.setattr(analysis_report, "write_file", full)  # a real full disk needs a disk
    refused([runs / "base", "--out", out, *QUICK, "--seed=5"], capsys, "the disk is full")
    assert (out / "metrics.json").read_bytes() == before and os.listdir(tmp_path) == ["x"]


# ----------------------------------------------------------------------------------------------------------------------
# bad input

def test_bad_command_lines_get_one_line(runs, tmp_path, capsys):
    base = runs / "base"
    out = ["--out", tmp_path / "x"]
    refused(out, capsys, "name at least one run")
    refused([base, "--out"], capsys, "--out needs a value")
    refused([base, "--out", "--tokens=3"], capsys, "--out needs a value")
    refused([base, "--tokns", "5"], capsys, "tokns", "did you mean 'tokens'")
    refused([base, "--tokens=many"], capsys, "tokens", "whole number")
    refused([base, "--checkpoint", "first"], capsys, "checkpoint", "'best' | 'last'")
    refused([base, "--bootstrap=3"], capsys, "bootstrap = 3: must be at least 20")
    refused([base, base, *out], capsys, "given twice")
    refused([base, "--device=tpu", *out], capsys, "device = 'tpu'")
    assert not (tmp_path / "x").exists()


def test_missing_and_unknown_runs_get_one_line(runs, tmp_path, capsys):
    out = ["--out", tmp_path / "x", *QUICK]
    refused([tmp_path / "none", *out], capsys, "none: no such run")
    refused([runs / "base", runs / "data", *out], capsys, "data is not a run")
    copy = tmp_path / "copy"
    shutil.copytree(runs / "base", copy)
    config = json.loads((copy / "config.json").read_text())
    for change, parts in ((dict(model="octonions"), ("unknown model 'octonions'",)),
                          (dict(vocab_size=12, tokenizer={**config["tokenizer"], "vocab_size": 12}), ("other tokens",)),
                          (dict(dataset="prose"), ("no prepared data", "prose")),
                          (dict(n_embd=1, n_head=1), ("n_embd = 1",)),
                          (dict(n_embd=32), ("from another model",))):
        (copy / "config.json").write_text(json.dumps({**config, **change}))
        refused([copy, *out], capsys, *parts)
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "seed"}))
    refused([copy, *out], capsys, "not that of a run of train.py", "seed")
    (copy / "config.json").write_text("[1]")
    refused([copy, *out], capsys, "config.json is damaged")
    (copy / "config.json").write_text("{")
    refused([copy, *out], capsys, "damaged")
    (copy / "config.json").write_text(json.dumps(config))
    refused([copy, "--data_dir", tmp_path, *out], capsys, "no prepared data")
    weights = copy / "ckpt" / "best" / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    refused([copy, *out], capsys, "damaged")
    shutil.rmtree(copy / "ckpt")
    refused([copy, *out], capsys, "no checkpoint 'best'")
    assert not (tmp_path / "x").exists()


def test_too_few_tokens_get_one_line(runs, tmp_path, capsys):
    out = ["--out", tmp_path / "x", "--bootstrap=20", "--pairs=500"]
    refused([runs / "base", *out, "--tokens=100"], capsys, "too few tokens", "at least 16")
    refused([runs / "base", *out, "--tokens=3"], capsys, "too few tokens", "0 sequences")
    refused([runs / "base", *out, "--tokens=320"], capsys, "too few tokens", "12 samples of 60 tokens")
    refused([runs / "base", *out, "--delta_samples=100"], capsys, "delta_samples = 100", "lower --delta_samples")


def test_a_folder_with_other_files_is_refused_before_the_work(runs, report, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(analyze, "open_text", None)  # would fail with a traceback
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    refused([runs / "base", "--out", tmp_path / "mine"], capsys, "files of another origin (notes.txt)")
    mixed = tmp_path / "mixed"
    shutil.copytree(report[0], mixed)
    (mixed / "notes.txt").write_text("keep me")
    refused([runs / "base", "--out", mixed], capsys, "(notes.txt)")
    refused([runs / "base", "--out", runs / "base"], capsys, "files of another origin")
    refused([runs / "base", "--out", mixed / "notes.txt"], capsys, "is a file")
    (mixed / "notes.txt").unlink()
    (mixed / "metrics.json").write_text("{}")
    refused([runs / "base", "--out", mixed], capsys, "files of another origin")
    assert sorted(os.listdir(tmp_path / "mine")) == ["notes.txt"]


# ----------------------------------------------------------------------------------------------------------------------
# small things

def test_names_are_short_where_they_can_be():
    assert analyze.names_of(["out/a", "out/b/"]) == ["a", "b"]
    assert analyze.names_of(["x/run", "y/run", "z/c"]) == ["x/run", "y/run", "c"]
    with pytest.raises(analyze.UserError, match="twice"):
        analyze.names_of(["out/a", "out/a/"])


def test_options_are_written_with_a_space_or_an_equals_sign():
    assert analyze.split_arguments(["a", "--out", "x y", "b", "--seed=3"]) == (["a", "b"], ["--out=x y", "--seed=3"])
    assert analyze.split_arguments(["--help", "a"]) == (["a"], ["--help"])


def test_help_lists_every_option(capsys):
    status, out, _ = run(analyze.main, ["--help"], capsys)
    assert not status
    for option in ("--out", "--checkpoint", "--tokens", "--pairs", "--delta_samples", "--bootstrap", "--seed",
                   "--device", "--data_dir", "--batch_size"):
        assert f"{option}=" in out


def test_points_of_the_disc_have_the_radius_of_their_tangent_vector():
    rng = np.random.default_rng(0)
    c = 0.6
    plane = np.linalg.qr(rng.normal(size=(5, 2)))[0].T  # vectors in a plane of 5 dimensions: nothing is lost
    vectors = rng.normal(size=(50, 2)) @ plane
    places, kept = analysis_report.disc_points(vectors, np.full(50, c))
    assert kept == pytest.approx(1)
    assert np.linalg.norm(places, axis=1) == pytest.approx(np.tanh(np.sqrt(c) * np.linalg.norm(vectors, axis=1)))
    cosines = isotropy.unit(vectors) @ isotropy.unit(vectors).T
    assert np.allclose(isotropy.unit(places) @ isotropy.unit(places).T, cosines)  # angles are those of the vectors
    _, kept = analysis_report.disc_points(rng.normal(size=(4000, 5)), np.full(4000, c))
    assert 0.39 < kept < 0.47  # two of five directions


def test_a_sphere_has_no_disc():
    curvature = np.array([[-0.3, -1.0]] * 5)
    disc = {"layer": "block1", "vectors": np.ones((5, 4)), "curvature": curvature, "per_token": False}
    assert analysis_report.plot_disc("s", disc) == (None, "s: no picture: no head of block1 is hyperbolic (c > 0).")
    disc["vectors"], disc["curvature"] = np.ones((5, 2)), np.ones((5, 2))
    assert analysis_report.plot_disc("s", disc)[0] is None  # heads of one dimension


def test_numbers_are_printed_short():
    assert [analysis_report.number(v) for v in (0.12345, 12345.6, 3.2e-9, 0.0, None, float("nan"))] == [
        "0.123", "12,346", "3.2e-09", "0", "-", "-"]
    cell = {"value": 0.5, "low": 0.45, "high": 0.57}
    assert analysis_report.short_cell(cell) == "0.5±0.06" and analysis_report.long_cell(cell) == "0.5 [0.45, 0.57]"
    assert analysis_report.long_cell(None) == analysis_report.short_cell({**cell, "value": None}) == "-"
