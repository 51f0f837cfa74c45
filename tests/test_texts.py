"""Intervals over seeds and texts together: the arithmetic on tables made by a known law, and the command on real runs."""
import csv
import json
import shutil

import numpy as np
import pytest
from conftest import write_dataset
from running import ended, one_line, run
from scipy import stats
from test_summarize import Written

from common.intervals import mean_interval
from experiments import texts
from experiments.crossed import crossed


def table(rng, seeds, pieces, of_seed, of_piece, of_both):
    return (of_seed * rng.normal(size=(seeds, 1)) + of_piece * rng.normal(size=(1, pieces)) + of_both * rng.normal(size=(seeds, pieces)))


@pytest.mark.parametrize("spreads", [(1, 0, 0.1), (0, 1, 0.1), (0, 0, 1), (1, 1, 1), (0.3, 1, 2), (1, 1.8, 0.7)])
@pytest.mark.parametrize("seeds, pieces", [(3, 16), (8, 32)])
def test_the_interval_holds_the_truth_as_often_as_it_says(spreads, seeds, pieces):
    rng, held, n = np.random.default_rng(0), 0, 400
    for _ in range(n):
        e = crossed(0.7 + table(rng, seeds, pieces, *spreads)).over_both
        held += e.low <= 0.7 <= e.high
    assert held / n > 0.92


def test_an_interval_over_seeds_alone_misses_other_texts():
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        e = crossed(table(rng, 8, 16, 0.1, 1, 0.1)).over_seeds
        held += e.low <= 0 <= e.high
    assert held / 200 < 0.5


def test_the_parts_are_those_of_an_analysis_of_variance():
    d = table(np.random.default_rng(1), 5, 7, 0.5, 1, 0.3)
    found = crossed(d)
    assert found.over_seeds == mean_interval(d.mean(1)) and found.over_texts == mean_interval(d.mean(0))
    # mean squares by SciPy's one-way analysis of rows, and of what is left when each row's mean is taken away
    f_rows = stats.f_oneway(*d).statistic
    f_columns = stats.f_oneway(*(d - d.mean(1, keepdims=True)).T).statistic
    rest = ((d - d.mean(1, keepdims=True) - d.mean(0, keepdims=True) + d.mean()) ** 2).sum() / 24
    within_rows, within_columns = ((d - d.mean(1, keepdims=True)) ** 2).sum() / 30, rest * 24 / 28
    rows, columns = f_rows * within_rows, f_columns * within_columns
    both = rows + columns - rest
    free = both ** 2 / (rows ** 2 / 4 + columns ** 2 / 6 + rest ** 2 / 24)
    half = stats.t.ppf(0.975, free) * np.sqrt(both / 35)
    alone = max(found.over_seeds.high, found.over_texts.high) - d.mean()
    assert found.over_both.high - d.mean() == pytest.approx(max(half, alone)) and half > alone
    assert found.p == pytest.approx(2 * stats.t.sf(abs(d.mean()) / np.sqrt(both / 35), free))
    assert found.shares == pytest.approx(np.array([rows - rest, columns - rest, rest]) / both)


def test_never_shorter_than_over_seeds_or_texts_alone():
    rng = np.random.default_rng(2)
    for _ in range(200):
        d = rng.normal() + table(rng, *rng.integers(2, 7, 2), *rng.random(3))
        found = crossed(d)
        assert found.p >= max(stats.ttest_1samp(d.mean(axis), 0).pvalue for axis in (0, 1)) - 1e-12
        assert (found.p < 0.05) == (found.over_both.low > 0 or found.over_both.high < 0)
        for alone in (found.over_seeds, found.over_texts):
            assert found.over_both.low <= alone.low + 1e-12 and found.over_both.high >= alone.high - 1e-12
        assert sum(found.shares) == pytest.approx(1) and 0 <= found.p <= 1


@pytest.mark.parametrize("d", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 2.0, 3.0]], [[1.0, -1.0], [-1.0, 1.0]]])
def test_where_nothing_can_be_said_there_is_no_interval(d):
    found = crossed(d)
    assert found.over_both.low is None and found.p is None and found.over_both.mean == np.mean(d)


# ----------------------------------------------------------------------------------------------------------------------
# the command

@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep folder with two arms of two seeds, really trained; every evaluation reads all of the text."""
    folder = tmp_path_factory.mktemp("texts")
    ids = np.random.default_rng(0).integers(0, 8, (500, 1)) + np.arange(30) % 9
    write_dataset(folder / "data" / "words", ids.reshape(-1)[:12000], ids.reshape(-1)[12000:12000 + 16 * 4 * 16 + 1])
    losses = {}
    for arm, rate in (("a", 1e-2), ("b", 3e-3)):
        for seed in (1, 2):
            out = folder / f"{arm}{seed}"
            status, _, err = ended("train", [
                f"--data_dir={folder / 'data'}", "--dataset=words", f"--out_dir={out}", "--n_layer=1", "--n_head=2", "--n_embd=16",
                "--block_size=16", "--batch_size=4", "--max_iters=12", "--eval_interval=12", "--eval_iters=16", "--warmup_iters=2",
                "--tensorboard_log=False", "--device=cpu", "--dtype=float32", f"--learning_rate={rate}", f"--seed={seed}"])
            assert status == 0, err
            losses[arm, seed] = json.loads((out / "summary.json").read_text())["val_loss"]
    Written(folder / "sweep", {"a": "other", "b": "baseline"}, lambda arm, lr, seed: losses[arm, seed], lrs=[1e-3], seeds=[1, 2])
    for arm, seed in losses:
        there = folder / "sweep" / "runs" / f"{arm}-0.001-{seed}"
        for file in there.iterdir():
            file.unlink()
        there.rmdir()
        there.symlink_to(folder / f"{arm}{seed}")
    return folder / "sweep", losses


def test_the_command_says_the_sweeps_differences_piece_by_piece(swept, capsys):
    folder, losses = swept
    status, out, err = run(texts.main, [folder, "--arm=a", "--against=b", "--pieces=8", "--device=cpu"], capsys)
    assert status == 0, err
    with open(folder / "texts" / "a-b-last-8.csv", newline="") as f:
        rows = list(csv.reader(f))
    assert len(rows[0]) == 9 and [row[0] for row in rows[1:]] == ["1", "2"]
    d = np.array([[float(x) for x in row[1:]] for row in rows[1:]])
    expected = [losses["a", seed] - losses["b", seed] for seed in (1, 2)]
    assert d.mean(1) == pytest.approx(expected, abs=2e-6)  # the files' digits
    e = crossed(d).over_both
    assert f"over both                              {e.mean:+.4f} [" in out and "2 seeds, 1,024 tokens in 8 pieces" in out


@pytest.mark.parametrize("arguments, parts", [
    (["--arm=c", "--against=b"], ["no run of an arm 'c'", "a, b"]),
    (["--arm=a", "--against=a"], ["both 'a'"]),
    (["--arm=a", "--against=b", "--pieces=60"], ["64 sequences of 16", "--pieces=32"])])
def test_bad_input_is_one_line(swept, capsys, arguments, parts):
    status, _, err = run(texts.main, [swept[0], *arguments, "--device=cpu"], capsys)
    assert status == 2
    one_line(err, *parts)


def test_arms_that_read_differently_are_one_line(swept, tmp_path, capsys):
    folder = tmp_path / "sweep"
    shutil.copytree(swept[0], folder, symlinks=True)
    for link in folder.glob("runs/a-*"):
        there = link.resolve()
        link.unlink()
        shutil.copytree(there, link)
        config = json.loads((link / "config.json").read_text())
        other = tmp_path / "other" / "words"
        shutil.copytree(f"{config['data_dir']}/words", other, dirs_exist_ok=True)
        meta = json.loads((other / "meta.json").read_text())
        (other / "meta.json").write_text(json.dumps({**meta, "sha256": "other"}))
        (link / "config.json").write_text(json.dumps({**config, "data_dir": str(other.parent), "corpus_sha256": "other"}))
    status, _, err = run(texts.main, [folder, "--arm=a", "--against=b", "--device=cpu"], capsys)
    assert status == 2
    one_line(err, "did not read the same pieces of text")


def test_a_table_without_its_runs_is_one_line(tmp_path, capsys):
    folder = Written(tmp_path / "sweep", {"a": "other", "b": "baseline"}, lambda *_: 2.0 + np.random.default_rng(0).random()).folder
    for metrics in folder.glob("runs/*/metrics.jsonl"):
        metrics.unlink()
        metrics.parent.rmdir()
    status, _, err = run(texts.main, [folder, "--arm=a", "--against=b", "--device=cpu"], capsys)
    assert status == 2
    one_line(err, "is not there", "not their table alone")
