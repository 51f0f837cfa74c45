"""python -m experiments.scaling: a joint fit of losses whose law is known."""
import csv
import json

import numpy as np
import pytest
from running import one_line, run
from test_summarize import Written

from experiments import scaling

SIZES, TOKENS = {"64": 2e5, "128": 8e5, "256": 3e6}, {"a": 3e5, "b": 6e5, "c": 1.2e6}


def written(folder, loss, names=("x", "y"), seeds=(1, 2, 3, 4), cells=None):
    """A sweep with arms NAME-WIDTH-BUDGET. loss(name, N, D, seed) -> final loss, 'diverged' or None."""
    cells = cells or [(width, budget) for width in SIZES for budget in TOKENS]
    arms = {f"{name}-{width}-{budget}": "other" for name in names for width, budget in cells}

    def of(arm, lr, seed):
        name, width, budget = arm.split("-")
        return loss(name, SIZES[width], TOKENS[budget], seed)
    Written(folder, arms, of, lrs=[1e-3], seeds=list(seeds))
    with open(folder / "runs.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        _, width, budget = row["arm"].split("-")
        row.update(parameters=SIZES[width], tokens=TOKENS[budget])
    with open(folder / "runs.csv", "w", newline="") as f:
        table = csv.DictWriter(f, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return folder


def numbers(folder, tmp_path, capsys):
    status, out, err = run(scaling.main, [folder, "--arm=x", "--against=y", f"--out={tmp_path / 'fit.json'}"], capsys)
    assert status == 0, err
    return json.loads((tmp_path / "fit.json").read_text()), out


def law(name, n, d, seed):
    """x: a power law, another for each seed; y: x minus a plane in log2."""
    x = (5 + seed / 10) * n ** -(0.05 + seed / 1000) * d ** -0.1
    if name == "x":
        return x
    middle = np.exp(np.mean(np.log(list(SIZES.values())))), np.exp(np.mean(np.log(list(TOKENS.values()))))
    return x + 0.02 + seed / 1000 - (0.003 + seed / 10000) * np.log2(n / middle[0]) + 0.001 * seed * np.log2(d / middle[1])


def test_exponents_and_slopes_are_those_of_the_law(tmp_path, capsys):
    found, out = numbers(written(tmp_path / "sweep", law), tmp_path, capsys)
    x = found["families"][0]
    assert x["name"] == "x" and x["largest_error"] < 1e-9
    assert x["alpha"]["mean"] == pytest.approx(0.05 + 2.5 / 1000) and x["beta"]["mean"] == pytest.approx(0.1)
    assert x["alpha"]["low"] == pytest.approx(0.0525 - 3.182446 * np.std([1, 2, 3, 4], ddof=1) / 2 / 1000, rel=1e-6)
    d = found["difference"]  # x minus y
    assert d["at_middle"]["mean"] == pytest.approx(-0.0225) and d["largest_error"] < 1e-9
    assert d["by_size"]["mean"] == pytest.approx(0.00325) and d["by_tokens"]["mean"] == pytest.approx(-0.0025)
    assert "doubling of size changes it by +0.0032 [+0.0030, +0.0035]: the difference shrinks" in out.replace("0.0033", "0.0032")
    assert "of tokens changes it by -0.0025 [-0.0046, -0.0004]: the difference grows" in out
    assert "intervals are over 4 seeds" in out and "left out" not in out


def test_a_name_that_another_begins_with_takes_none_of_its_arms(tmp_path, capsys):
    """x and x-y: arms x-y-64-a are those of x-y. Nothing is left out. A folder for --out is made."""
    folder = written(tmp_path / "sweep", law)
    for name in ("sweep.json", "runs.csv"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"y-', '"x-y-').replace(",y-", ",x-y-"))
    out = tmp_path / "new" / "fit.json"
    status, said, err = run(scaling.main, [folder, "--arm=x", "--against=x-y", f"--out={out}"], capsys)
    assert status == 0 and "left out" not in said, err
    assert json.loads(out.read_text())["difference"]["at_middle"]["mean"] == pytest.approx(-0.0225)


def test_noise_alone_neither_grows_nor_shrinks(tmp_path, capsys):
    noise = np.random.default_rng(0)
    found, out = numbers(written(tmp_path / "sweep", lambda *_: 2 + noise.normal(0, 0.01)), tmp_path, capsys)
    assert out.count("neither growing nor shrinking is shown") == 2
    assert found["difference"]["by_size"]["low"] < 0 < found["difference"]["by_size"]["high"]


def test_seeds_without_all_pairs_are_left_out_and_named(tmp_path, capsys):
    def loss(name, n, d, seed):
        if seed == 2 and name == "y" and n > 1e6:
            return "diverged" if d > 1e6 else None
        return law(name, n, d, seed)
    found, out = numbers(written(tmp_path / "sweep", loss), tmp_path, capsys)
    assert found["seeds"] == [1, 3, 4] and "left out: seeds without all pairs (2)" in out
    assert "left out: 256-c, for y has no result there" in out  # a size that an arm diverged at is not dropped silently


def test_one_budget_gives_the_slope_with_size_alone(tmp_path, capsys):
    found, out = numbers(written(tmp_path / "sweep", law, cells=[(width, "a") for width in SIZES]), tmp_path, capsys)
    assert found["difference"]["by_tokens"]["mean"] is None and "doubling of tokens" not in out and "doubling of size" in out
    assert found["difference"]["by_size"]["mean"] == pytest.approx(0.00325)


def test_one_seed_has_no_interval(tmp_path, capsys):
    found, out = numbers(written(tmp_path / "sweep", law, seeds=(1,)), tmp_path, capsys)
    assert found["difference"]["by_size"]["low"] is None and "no interval" in out


@pytest.mark.parametrize("arguments, parts", [
    (["--arm=z", "--against=y"], ["no arm z-...", "x-64-a"]),
    (["--arm=x"], ["--against"]), (["--arm=x", "--against=x"], ["both 'x'"]),
    (["--arm=x", "--against=y", "--out=/dev/null/fit.json"], ["/dev/null"])])
def test_bad_input_is_one_line(tmp_path, capsys, arguments, parts):
    status, _, err = run(scaling.main, [written(tmp_path / "sweep", law), *arguments], capsys)
    assert status == 2
    one_line(err, *parts)


@pytest.mark.parametrize("cells, part", [([("64", "a")], "sizes or tokens that vary"),
                                         ([("64", "a"), ("128", "b")], "two sizes with two budgets")])
def test_what_cannot_be_fitted_is_one_line(tmp_path, capsys, cells, part):
    status, _, err = run(scaling.main, [written(tmp_path / "sweep", law, cells=cells), "--arm=x", "--against=y"], capsys)
    assert status == 2
    one_line(err, part)


def test_no_seed_with_all_pairs_is_one_line(tmp_path, capsys):
    def loss(name, n, d, seed):
        return None if (name == "x") == (seed < 3) and n > 1e6 else law(name, n, d, seed)
    folder = written(tmp_path / "sweep", loss)
    status, _, err = run(scaling.main, [folder, "--arm=x", "--against=y"], capsys)
    assert status == 2
    one_line(err, "no seed has finished runs of both")
