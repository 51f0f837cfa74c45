"""plot_runs.py in every state that a run can be in, and the frame of its plot."""
import json
import os

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import one_line

import plot_runs
from common import locks, plot_style

SUMMARY = {"model": "mixed", "parameters": 10, "tokens": 1500, "train_seconds": 150.0, "val_loss": 1.6, "best_val_loss": 1.5,
           "best_step": 14, "status": "finished"}


def evaluation(tokens, loss):
    return {"step": tokens // 100, "tokens": tokens, "train_seconds": tokens / 10, "val_loss": loss}


def step(tokens):
    return {"step": tokens // 100, "tokens": tokens + 100, "train_seconds": tokens / 10, "loss": 2.0}


def falling(end=1.6, upto=1500):
    """Evaluations and steps of a run: from 4.2 to its end, evaluated every 100 tokens."""
    lines = []
    for tokens in range(0, upto + 1, 100):
        lines += [evaluation(tokens, end + (4.2 - end) * np.exp(-tokens / 150)), step(tokens)]
    return lines[:-1]


@pytest.fixture
def run(tmp_path):
    """Makes the files of a run that are read: config.json, metrics.jsonl of these lines, summary.json unless summary is None.
    texts: a file's text in place of that."""
    def make(name, lines=None, summary=SUMMARY, **texts):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        files = {"config.json": json.dumps({"model": "mixed"}), "summary.json": summary and json.dumps(summary),
                 "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in (falling() if lines is None else lines)),
                 **{f"{key}.json" if key != "metrics" else "metrics.jsonl": text for key, text in texts.items()}}
        for file, text in files.items():
            if text is not None:
                (folder / file).write_text(text)
        return str(folder)
    return make


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn."""
    figures, image = [], plot_style.image
    monkeypatch.setattr(plot_runs, "image", lambda figure, kind: (figures.append(figure), image(figure, kind))[1])
    monkeypatch.setattr(plt, "close", lambda figure: None)
    yield figures
    monkeypatch.undo()
    plt.close("all")


def plot(*argv):
    with pytest.raises(SystemExit) as stopped:
        plot_runs.main(list(argv))
    return stopped.value.code


def row(printed, name):
    """The cells of a run's row."""
    return next(line for line in printed.splitlines() if line.split()[:1] == [name]).split()[1:]


def test_runs_whose_folders_share_a_name_are_all_there(run, tmp_path, capsys):
    folders = [run("a/run"), run("b/run")]
    assert plot(*folders, f"--out={tmp_path / 'p.png'}") == 0
    printed = capsys.readouterr().out
    assert all(folder in printed for folder in folders) and (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize("texts", [dict(summary="{}"), dict(summary="3"), dict(metrics="3\n"),
                                   dict(metrics='{"val_loss": 2}\n'), dict(metrics="{\n"), dict(summary='{"model"'),
                                   dict(summary=json.dumps({**SUMMARY, "tokens": "1"})),
                                   dict(metrics=json.dumps(evaluation(0, float("nan"))) + "\n")])
def test_damaged_runs_are_one_line(run, tmp_path, capsys, texts):
    folder = run("a", **texts)
    assert plot(folder, f"--out={tmp_path / 'p.png'}") == 2
    one_line(capsys.readouterr().err, folder, "damaged")
    assert not (tmp_path / "p.png").exists()


def test_a_run_in_every_state_is_plotted(run, tmp_path, capsys, drawn):
    """Running, with its last line cut off; stopped; stopped or finished and resumed since; diverged; finished at step 0."""
    stopped = {**SUMMARY, "status": "stopped", "tokens": 700, "val_loss": 1.8}
    running = "".join(json.dumps(line) + "\n" for line in falling(upto=700)) + '{"step": 7, "tok'
    folders = [run("done"), run("running", summary=None, metrics=running), run("stopped", falling(upto=700), stopped),
               run("resumed", falling(upto=1200), stopped), run("longer", falling(upto=1200), {**stopped, "status": "finished"}),
               run("diverged", falling(upto=700), {**SUMMARY, "status": "diverged", "val_loss": None}),
               run("start", [evaluation(0, 4.2)],
                   {**SUMMARY, "tokens": 0, "val_loss": 4.2, "best_val_loss": None, "best_step": None})]
    with locks.held(folders[1], "", "lock"):
        assert plot(*folders, "--out", str(tmp_path / "p.svg")) == 0
    said = capsys.readouterr()
    last = {upto: f"{falling(upto=upto)[-1]['val_loss']:.4f}" for upto in (700, 1200)}
    assert said.err == "" and row(said.out, "done") == ["mixed", "10", "1,500", "150.0", "1.6000", "1.5000", "finished"]
    assert row(said.out, "running") == ["mixed", "-", "700", "70.0", last[700], last[700], "running"]
    assert row(said.out, "stopped")[4:] == ["1.8000", "1.5000", "stopped"]
    for name in ("resumed", "longer"):
        assert row(said.out, name) == ["mixed", "10", "1,200", "120.0", last[1200], last[1200], "killed"]
    assert row(said.out, "diverged")[4:] == ["-", "1.5000", "diverged"]
    assert row(said.out, "start")[4:] == ["4.2000", "-", "finished"]
    figure, = drawn
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [16, 8, 8, 13, 13, 8, 1]


@pytest.mark.parametrize("texts", [dict(metrics=""), dict(metrics=None), dict(metrics='{"st'),
                                   dict(metrics=json.dumps(step(0)) + "\n")])
def test_a_run_that_was_not_evaluated_is_named_and_the_others_are_plotted(run, tmp_path, capsys, texts):
    early, picture = run("early", summary=None, **texts), tmp_path / "p.png"
    assert plot(early, f"--out={picture}") == 2
    one_line(capsys.readouterr().err, early, "not evaluated yet", "nothing to draw")
    assert not picture.exists()
    assert plot(early, run("done"), f"--out={picture}") == 0
    said = capsys.readouterr()
    assert said.err == "early: not evaluated yet, it is not in the plot\n" and row(said.out, "early")[-1] == "killed"
    assert picture.exists()


def test_the_picture_is_written_whole_or_not_at_all(run, tmp_path, capsys, monkeypatch):
    folder, picture = run("done"), tmp_path / "new" / "p.png"
    assert plot(folder, f"--out={picture}") == 0
    before = picture.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert plot(folder, f"--out={picture}") == 2
    one_line(capsys.readouterr().err, f"--out={picture}", "the disk is full")
    assert os.listdir(picture.parent) == ["p.png"] and picture.read_bytes() == before


def test_a_place_where_no_picture_can_be_is_one_line(run, tmp_path, capsys):
    folder = run("done")
    (tmp_path / "folder.png").mkdir()
    for out, parts in ((tmp_path / "folder.png", ["is a folder", "name a file in it"]), (tmp_path, ["is a folder"]),
                       (tmp_path / "x.jpg", ["must end in .png"]),
                       (tmp_path / "done" / "config.json" / "x.png", ["config.json is a file; a folder is needed there"])):
        assert plot(folder, f"--out={out}") == 2
        one_line(capsys.readouterr().err, f"--out={out}", *parts)
    assert plot(str(tmp_path / "none")) == 2
    one_line(capsys.readouterr().err, "none: no such run")
    assert plot() == 2 and plot(folder, "--colour=red") == 2


def test_one_run_at_65_nats_does_not_flatten_the_others(run, tmp_path, drawn):
    far = [evaluation(tokens, 65.0 + tokens / 1e4) for tokens in (0, 500, 1000, 1500)]
    for name, others in (("three", [1.5, 1.6, 1.7]), ("two", [1.6])):
        folders = [run(f"{name}/{end}", falling(end)) for end in others]
        assert plot(*folders, run(f"{name}/far", far), f"--out={tmp_path / 'p.png'}") == 0
        low, high = drawn[-1].axes[0].get_ylim()
        assert low < min(others) and max(others) < high < 3
        for axis in drawn[-1].axes:
            assert [text.get_text() for text in axis.texts] == ["\u2191 65.15"]
        assert "far above the rest" in drawn[-1].texts[-1].get_text()
        x, y = drawn[-1].axes[0].texts[0].get_position()
        assert x == pytest.approx(1500 / 1500, abs=0.06) and 1 < y < 1.1  # above its place


# ----------------------------------------------------------------------------------------------------------------------
# the frame

X = np.arange(0, 1501, 100)


def curve(end, x=X, start=4.2):
    return x, end + (start - end) * np.exp(-x / 150)


def test_the_start_is_cut_off_and_nothing_else():
    curves = [curve(end) for end in (1.5, 1.6, 2.0)]
    low, top = plot_style.loss_frame(curves)
    for _, y in curves:
        assert low < y[2:].min() and y[2:].max() < top < y[0]  # 200 tokens are after the first tenth
    assert plot_style.peaks_above(curves, top) == [None] * 3
    assert plot_style.said_of_frame(curves, top) == "Above the frame: the start of the curves."


def test_a_low_start_is_not_cut_off():
    curves = [(X, np.linspace(2.0, end, len(X))) for end in (1.5, 1.6)]
    low, top = plot_style.loss_frame(curves)
    assert top > 2.0 and plot_style.said_of_frame(curves, top) == ""


def test_runs_that_have_just_begun_are_short_curves_of_the_same_frame():
    """What is the start is measured by the longest; a run of one evaluation is marked."""
    curves = [curve(1.5), curve(1.6, X[:4]), (X[:1], np.array([4.2]))]
    low, top = plot_style.loss_frame(curves)
    assert top < 2.5 and plot_style.peaks_above(curves, top) == [None, None, 0]
    assert plot_style.loss_frame([curve(1.5, X[:2]), curve(1.6, X[:2])])[1] > 4.2  # two evaluations: nothing is a start
    low, top = plot_style.loss_frame([(X[:1], np.array([4.2]))])
    assert low < 4.2 < top


def test_a_spike_and_a_blow_up_leave_the_frame_with_a_mark():
    x, y = curve(1.6)
    spike, blown = y.copy(), y.copy()
    spike[8], blown[-2:] = 30.0, (9.0, 65.0)
    curves = [curve(1.5), (x, spike), curve(1.7), (x, blown), curve(1.8)]
    low, top = plot_style.loss_frame(curves)
    assert top < 3 and plot_style.peaks_above(curves, top) == [None, 8, None, 15, None]


@given(st.lists(st.floats(1.0, 2.0), min_size=1, max_size=12), st.lists(st.floats(20, 1e4), max_size=5))
def test_far_runs_never_change_the_frame_of_the_others(ends, far):
    far = far[:len(ends)]
    near = [curve(end) for end in ends]
    assert plot_style.loss_frame(near + [curve(end, start=1e5) for end in far]) == plot_style.loss_frame(near)
