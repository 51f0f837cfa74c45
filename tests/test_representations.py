"""Measures of hidden states over a sweep's seeds: the numbers against SciPy's, from a real analysis of real runs, and bad input."""
import csv
import json
import shutil

import numpy as np
import pytest
from running import one_line, run
from scipy import stats
from test_texts import swept  # noqa: F401  the fixture: two arms of two seeds, really trained

import analyze_representations
from experiments import representations
from experiments.statistics import holm


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
        told = [float(row[key]) for key in ("mean", "difference", "difference_low", "difference_high", "p")]
        assert told == pytest.approx([a.mean(), (a - b).mean(), low, high, t.pvalue], rel=2e-4)
        other = rows["b", layer, measure]
        assert other["difference"] == "" and float(other["mean"]) == pytest.approx(b.mean(), rel=1e-5)
    assert ("a", "ln_f", "delta") in rows
    # printed: the last block and ln_f, and p corrected over what is printed
    lines = [line.split() for line in out.splitlines()[1:-1]]
    assert {line[1] for line in lines} == {"block0", "ln_f"} and {line[0] for line in lines} == {"a", "b"}
    shown = [rows["a", line[1], line[2]] for line in lines if line[0] == "a"]
    expected = holm([float(row["p"]) for row in shown if row["p"]])
    assert [float(line[-1]) for line in lines if line[0] == "a" and rows["a", line[1], line[2]]["p"]] == pytest.approx(expected, rel=0.06)


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
