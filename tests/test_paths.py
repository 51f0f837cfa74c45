"""Paths as users give them: ~, links to nowhere, a file in place of a folder and the other way round, for every command."""
import os
import shutil

import bench_kernels
import bench_tokenize
import float64_accuracy
import gpu
import machine_code
import pytest
import roofline
import scaling
from running import ROOT, files_of, one_line, run

import ablate_curvature
import analyze_representations
import configurator
import plot_runs
import sample
import summarize_sweep
import sweep
import train
from common import paths
from common.errors import UserError
from data import documents
from data.fineweb import prepare as fineweb
from data.shakespeare_char import prepare as shakespeare

SWEEP = "arms = {'a': dict(config='config/demo_baseline.py')}\n"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A home folder, which is also the current one, with one thing of each kind in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("to be or not to be\n" * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.py").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "sweep.py").write_text(SWEEP)
    shutil.copytree(os.path.join(ROOT, "tests", "old_run"), tmp_path / "run")
    return tmp_path


def test_expand(places, monkeypatch):
    assert paths.expand("~/x") == f"{places}/x" and paths.expand("a/~b") == "a/~b" and paths.expand("./~") == "./~"
    with pytest.raises(UserError, match="no user 'nobody-of-that-name'"):
        paths.expand("~nobody-of-that-name/x")


def test_a_home_folder_in_every_key_that_is_a_path(places, monkeypatch, tmp_path):
    config, _ = configurator.resolve(["--out_dir=~/run", "--data_dir=~"], train.TrainConfig)
    assert (config.out_dir, config.data_dir) == (f"{places}/run", str(places))
    (places / "config.py").write_text("out_dir = '~/run'\n")
    assert configurator.resolve(["~/config.py"], train.TrainConfig)[0].out_dir == f"{places}/run"
    assert configurator.resolve(["--out_dir=~/run"], sample.SampleConfig)[0].out_dir == f"{places}/run"
    assert configurator.resolve(["--out=~/x", "--data_dir=~/d"], analyze_representations.AnalysisConfig)[0].out == f"{places}/x"
    assert sweep.parse(["~/sweep.py", "--out=~/s"]).out == f"{places}/s"
    assert documents.local_files("~/file.txt") == [f"{places}/file.txt"]


def test_a_preparation_into_the_home_folder_makes_no_folder_of_that_name(places, capsys):
    assert run(shakespeare.main, ["--input=~/file.txt", "--out_dir=~/data"], capsys)[0] == 0
    assert (places / "data" / "train.bin").exists() and not (places / "~").exists()


TRAIN = ["--model=baseline", "--device=cpu"]
# command, its arguments with one path as {}, and what takes it
CASES = [
    (train.main, [*TRAIN, "--out_dir={}"], "writes a folder"),
    (train.main, [*TRAIN, "--out_dir=new", "--data_dir={}"], "reads a folder"),
    (train.main, ["{}"], "reads a file"),
    (sample.main, ["--out_dir={}"], "reads a folder"),
    (plot_runs.main, ["{}"], "reads a folder"),
    (plot_runs.main, ["run", "--out={}.png"], "writes a file"),
    (ablate_curvature.main, ["{}"], "reads a folder"),
    (analyze_representations.main, ["{}", "--out=new"], "reads a folder"),
    (analyze_representations.main, ["run", "--out={}"], "writes a folder"),
    (sweep.main, ["{}", "--dry-run"], "reads a file"),
    (sweep.main, ["sweep.py", "--out={}", "--dry-run"], "writes a folder"),
    (summarize_sweep.main, ["{}"], "reads a folder"),
    (shakespeare.main, ["--input={}"], "reads a file"),
    (shakespeare.main, ["--input=file.txt", "--out_dir={}"], "writes a folder"),
    (fineweb.main, ["--source={}", "--out_dir=new"], "reads a file"),
    (gpu.main, ["--device=cpu", "--quick=True", "--out={}"], "writes a folder"),
    (float64_accuracy.main, ["--plain={}"], "reads a file"),
    (bench_tokenize.main, ["--input={}"], "reads a file"),
    (machine_code.main, ["--json={}"], "writes a file"),
    (roofline.main, ["--out={}"], "writes a file"),
    (scaling.main, ["--out={}"], "writes a file"),
    (bench_kernels.main, ["--out={}"], "writes a file"),
    (fineweb.main, ["--source=file.txt", "--out_dir={}"], "writes a folder"),
]
WRONG = {  # what is at the path, and how that is said
    "reads a file": {"folder": "is a folder", "nowhere": "is a link to", "gone/x": "no such", "file.txt/x": None},
    "reads a folder": {"file.txt": "is a file", "nowhere": "is a link to", "gone": "no such", "file.txt/x": None},
    "writes a folder": {"file.txt": "is a file", "nowhere": "is a link to", "file.txt/x": "file.txt is a file",
                        "nowhere/x": "nowhere is a link to", "folder": "not empty"},
    "writes a file": {"folder": "is a folder", "nowhere": "is a link to", "file.txt/x": "file.txt is a file"},
}


@pytest.mark.parametrize("case", range(len(CASES)))
def test_what_is_at_a_path_is_said_with_what_the_user_gave(case, places, capsys):
    main, args, use = CASES[case]
    if main is plot_runs.main and use == "writes a file":  # its name has an ending
        (places / "folder.png").mkdir()
        (places / "nowhere.png").symlink_to("gone.png")
    before = files_of(places)
    for path, said in WRONG[use].items():
        if path == "folder" and use == "writes a folder" and main in (shakespeare.main, fineweb.main):
            said = "holds mine.py"
        if path == "folder" and main is analyze_representations.main:
            said = "files of another origin (mine.py)"
        status, out, err = run(main, [arg.format(path) for arg in args], capsys)
        assert status == 2 and out == "", (path, out)
        one_line(err, path, *([said] if said else []))
        assert files_of(places) == before, path


def test_a_run_among_the_sources_is_refused_and_a_folder_that_a_run_has_begun_is_not(small_run, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("lock", "log.txt"):  # a sweep's
        (folder / name).write_text("")
    (folder / ".config.json.77.tmp").write_text("")  # killed while it wrote
    assert run(train.main, [*small_run, "--max_iters=0"], capsys)[0] == 0
    (folder / "notes.txt").write_text("mine")  # beside a run that is there
    assert run(train.main, [*small_run, "--max_iters=0", "--overwrite=True"], capsys)[0] == 0
    assert (folder / "notes.txt").read_text() == "mine"
    for more in ([], ["--overwrite=True"], ["--init_from=auto"]):
        before = files_of(tmp_path / "data")
        status, _, err = run(train.main, [*small_run, f"--out_dir={tmp_path / 'data'}", *more], capsys)
        assert status == 2 and files_of(tmp_path / "data") == before
        one_line(err, "is not empty and holds no run (there is words)", f"{tmp_path / 'data' / 'run'}")


def test_paths_in_messages_are_relative_where_the_user_is_above_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(os.path.dirname(os.path.abspath(train.__file__)))
    assert paths.short(os.path.join(os.getcwd(), "data", "x")) == os.path.join("data", "x")
    assert paths.short(str(tmp_path)) == str(tmp_path)
    status, _, err = run(train.main, ["--dataset=shakespeare", "--device=cpu", f"--out_dir={tmp_path / 'run'}",
                                      f"--data_dir={tmp_path}"], capsys)
    assert status == 2
    one_line(err, f"no prepared data in {tmp_path / 'shakespeare'}: there is no such folder")
