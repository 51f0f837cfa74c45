"""Measures of hidden states over a sweep's seeds: the numbers against SciPy's, from a real analysis of real runs, and bad input."""
import csv
import json
import shutil

import numpy as np
import pytest
from running import one_line, run
from scipy import stats
from test_summarize import Written
from test_texts import swept  # noqa: F401  the fixture: two arms of two seeds, really trained

import analyze_representations
from common.intervals import mean_interval
from experiments import representations
from experiments.statistics import holm, paired_difference


@pytest.fixture(scope="module")
def analysed(swept, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("representations") / "sweep"
    shutil.copytree(swept[0], folder, symlinks=True)
    runs = sorted(str(path) for path in (folder / "runs").iterdir())
    with pytest.raises(SystemExit) as ended:
        analyze_representations.main([*runs, f"--out={folder / 'analysis'}", "--tokens=512", "--pairs=200", "--delta_samples=2",
                                      "--bootstrap=20", "--device=cpu"])
    assert ended.value.code == 0
    return folder


def rows_of(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def test_means_and_paired_differences_are_over_seeds(analysed, capsys):
    status, out, err = run(representations.main, [analysed], capsys)
    assert status == 0, err
    models = json.loads((analysed / "analysis" / "metrics.json").read_text())["models"]

    def read(arm, layer, measure):  # another way to the numbers
        found = {m["run"].rsplit("-", 1)[1]: m["layers"][layer] for m in models
                 if m["weights"] == "trained" and m["run"].startswith(f"{arm}-")}
        return np.array([found[seed]["isotropy"]["ambient"][measure]["value"] for seed in sorted(found)])

    rows = {(row["arm"], row["layer"], row["measure"]): row for row in rows_of(analysed / "representations.csv")}
    assert {layer for _, layer, _ in rows} == {"embedding", "block0", "ln_f"}
    for layer, measure in (("block0", "mean_cosine"), ("ln_f", "effective_rank"), ("embedding", "isoscore")):
        a, b = read("a", layer, measure), read("b", layer, measure)
        row = rows["a", layer, measure]
        assert len(a) == len(b) == int(row["seeds"]) == int(row["pairs"]) == 2
        t = stats.ttest_rel(a, b)
        low, high = t.confidence_interval(0.95)
        told = [float(row[key]) for key in ("mean", "difference", "difference_low", "difference_high", "p_uncorrected")]
        assert told == pytest.approx([a.mean(), (a - b).mean(), low, high, t.pvalue], rel=2e-4)
        other = rows["b", layer, measure]
        assert other["difference"] == "" and float(other["mean"]) == pytest.approx(b.mean(), rel=1e-5)
    assert ("a", "ln_f", "delta") in rows
    # printed: the last block and ln_f, and p corrected over what is printed
    lines = [line.split() for line in out.splitlines()[1:-1]]
    assert {line[1] for line in lines} == {"block0", "ln_f"} and {line[0] for line in lines} == {"a", "b"}
    shown = [rows["a", line[1], line[2]] for line in lines if line[0] == "a"]
    expected = holm([float(row["p_uncorrected"]) for row in shown if row["p_uncorrected"]])
    told = [float(line[-1]) for line in lines if line[0] == "a" and rows["a", line[1], line[2]]["p_uncorrected"]]
    assert told == pytest.approx(expected, rel=0.06)


def test_what_is_printed_can_be_chosen(analysed, capsys):
    status, out, _ = run(representations.main, [analysed, "--layers=embedding", "--measures=isoscore,mean_cosine", "--against=a"], capsys)
    assert status == 0 and len(out.splitlines()) == 2 * 2 + 2
    assert "minus a [95%]" in out.splitlines()[0] and "block0" not in out


def test_a_second_analysis_may_replace_the_first(analysed, tmp_path, capsys):
    """The table is beside the analysis, not in it: a folder with files of another origin would be refused."""
    run(representations.main, [analysed], capsys)
    assert not (analysed / "analysis" / "representations.csv").exists() and (analysed / "representations.csv").exists()


@pytest.mark.parametrize("arguments, parts", [
    (["--against=c"], ["--against=c", "a, b"]),
    (["--layers=block7"], ["layer 'block7'", "embedding, block0, ln_f"]),
    (["--measures="], ["at least one measure", "mean_cosine"]),
    (["--analysis=/nowhere"], ["/nowhere/metrics.json", "analyze_representations.py RUNS"])])
def test_bad_input_is_one_line(analysed, capsys, arguments, parts):
    status, _, err = run(representations.main, [analysed, *arguments], capsys)
    assert status == 2
    one_line(err, *parts)


@pytest.mark.parametrize("text, parts", [("{", ["is not the numbers of an analysis"]), ('{"models": 3}', ["is not the numbers"]),
                                         ('{"models": []}', ["has no run of"])])
def test_a_damaged_analysis_is_one_line(analysed, tmp_path, capsys, text, parts):
    (tmp_path / "metrics.json").write_text(text)
    status, _, err = run(representations.main, [analysed, f"--analysis={tmp_path}"], capsys)
    assert status == 2
    one_line(err, *parts)


def layers(*names, value=0.5):
    found = {"isotropy": {"ambient": {"mean_cosine": {"value": value}}}, "hyperbolicity": {}}
    return dict.fromkeys(names, found)


def analysis_of(folder, runs):
    """An analysis/ with these runs: {name of a run's folder: layers}."""
    (folder / "analysis").mkdir()
    (folder / "analysis" / "metrics.json").write_text(json.dumps(
        {"models": [{"folder": f"x/{name}", "weights": "trained", "layers": found} for name, found in runs.items()]}))


def test_each_arms_last_block_is_shown_where_depths_differ(tmp_path, capsys):
    Written(tmp_path / "s", {"deep": "mixed", "shallow": "baseline"}, lambda *_: 1.0, lrs=[1e-3], seeds=[1, 2])
    deep, shallow = ("embedding", *(f"block{i}" for i in range(12)), "ln_f"), ("embedding", "block0", "ln_f")
    analysis_of(tmp_path / "s", {f"{arm}-0.001-{seed}": layers(*names, value=0.1 * seed)
                                 for arm, names in (("deep", deep), ("shallow", shallow)) for seed in (1, 2)})
    status, out, _ = run(representations.main, [tmp_path / "s"], capsys)
    assert status == 0
    assert [line.split()[:2] for line in out.splitlines()[1:5]] == [["deep", "block11"], ["deep", "ln_f"], ["shallow", "block0"],
                                                                     ["shallow", "ln_f"]]
    assert [row["layer"] for row in rows_of(tmp_path / "s" / "representations.csv")][:3] == ["embedding", "block0", "block1"]


def test_what_was_not_analysed_is_told(tmp_path, capsys):
    Written(tmp_path / "s", {"a": "mixed", "base": "baseline"}, lambda *_: 1.0, lrs=[1e-3], seeds=[1, 2])
    analysis_of(tmp_path / "s", {"a-0.001-1": layers("block0", "ln_f")})
    status, out, _ = run(representations.main, [tmp_path / "s"], capsys)
    assert status == 0 and "left out: base" in out and "not analysed: a-0.001-2, base-0.001-1" in out and "nothing is compared" in out


def test_a_difference_without_spread_counts_in_the_correction():
    pairs = {1: 1.0, 2: 1.1, 3: 1.3}, {1: 0.9, 2: 0.8, 3: 1.0}
    d, equal = paired_difference(*pairs), paired_difference({1: 2.0, 2: 2.0}, {1: 1.0, 2: 1.0})
    row = ("a", "ln_f", "isoscore", mean_interval([1.0, 2.0]))
    one, two = (representations.table([(*row, x) for x in found], ["ln_f"], ["isoscore"], "b").splitlines()
                for found in ((d,), (d, equal)))
    assert float(two[1].split()[-1]) == pytest.approx(2 * float(one[1].split()[-1]), rel=0.1) and two[2].endswith("]")


@pytest.mark.parametrize("value, said", [(float("nan"), "no measure of any layer"), (True, "no measure of any layer"),
                                         (None, "no measure of any layer"), (10 ** 400, "is not the numbers of an analysis")])
def test_a_value_that_is_no_number_is_none(tmp_path, capsys, value, said):
    Written(tmp_path / "s", {"a": "mixed"}, lambda *_: 1.0, lrs=[1e-3], seeds=[1])
    analysis_of(tmp_path / "s", {"a-0.001-1": layers("ln_f", value=value)})
    status, _, err = run(representations.main, [tmp_path / "s"], capsys)
    assert status == 2
    one_line(err, said)
