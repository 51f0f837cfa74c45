"""Sweeps that the tests write with known numbers: what is computed of them, what becomes of diverged, crashed and missing runs,
the terminal and the files. The statistics: test_sweep_statistics.py; the plots: test_sweep_plots.py; the curvature of a real run:
test_ablate_curvature.py."""
import csv
import html.parser
import itertools
import json
import math
import os
import shutil
import xml.etree.ElementTree as ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from running import one_line, run
from scipy import stats

import summarize_sweep
from experiments import plots, report
from experiments import statistics as ss
from experiments.comparison import summarize
from experiments.rows import COLUMNS
from training.config import REPOSITORY

SEEDS, LRS = [1, 2, 3, 4], [1e-3, 3e-3, 1e-2]


# ----------------------------------------------------------------------------------------------------------------------
# sweeps

class Written:
    """A sweep folder. loss(arm, lr, seed) -> final loss, 'diverged', 'crashed', or None for a run that is missing."""

    def __init__(self, folder, arms, loss, lrs=LRS, seeds=SEEDS, seconds=None, file="/nowhere/sweep.py"):
        self.folder = folder
        folder.mkdir()
        (folder / "sweep.json").write_text(json.dumps({
            "name": folder.name, "file": file, "grid": {"learning_rate": lrs}, "seeds": seeds, "budget": {"steps": 40},
            "arms": [{"name": n, "config": "c.py", "overrides": {}, "role": r} for n, r in arms.items()],
            "defaults": {}}))
        rows = []
        for arm, lr, seed in itertools.product(arms, lrs, seeds):
            final = loss(arm, lr, seed)
            if final is None:
                continue
            row = dict.fromkeys(COLUMNS, "")
            name = f"{arm}-{lr}-{seed}"
            row.update(hash=name, arm=arm, lr=lr, seed=seed, dir=f"runs/{name}", overrides="{}", parameters=1000,
                       flops_per_token=6000, status=final if isinstance(final, str) else "finished")
            if row["status"] == "finished":
                duration = (seconds or {}).get(arm, 10.0)
                row.update(step=40, tokens=4000, train_seconds=duration, val_loss=final, best_val_loss=final - 0.5)
                self.metrics(folder / row["dir"], final, duration, arms[arm] == "mixed")
            rows.append(row)
        with open(folder / "runs.csv", "w", newline="") as f:
            table = csv.DictWriter(f, COLUMNS)
            table.writeheader()
            table.writerows(rows)

    @staticmethod
    def metrics(folder, final, duration, curved):
        """Falls by 1 every 10 steps to `final` at step 40, evaluated every 10 steps."""
        folder.mkdir(parents=True)
        lines = []
        for step in range(0, 41, 10):
            lines.append({"step": step, "tokens": step * 100, "train_seconds": duration * step / 40,
                          "train_loss": 0.0, "val_loss": final + (40 - step) / 10})
            for block in range(2) if curved else ():
                lines[-1].update({f"geometry/block{block}/{k}": v for k, v in {
                    "curvature": 0.5, "curvature_min": 0.4, "curvature_max": 0.6, "curvature_head0": 0.4,
                    "curvature_head1": math.nan, "edge_share": 0.1, "geodesic_norm": 1.0}.items()})
            lines.append({"step": step, "tokens": step * 100 + 100, "train_seconds": 0, "loss": 1.0, "lr": 1e-3,
                          "grad_norm": 0.0 if step else math.nan})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def summary(self, **options):
        found = summarize(str(self.folder), **{"batches": 0, **options})
        return found, {arm.name: arm for arm in found.arms}


ARMS = {"baseline": "baseline", "flat": "flat", "gate": "control", "mixed": "mixed"}
LEVEL = {"baseline": 2.0, "flat": 1.9, "gate": 1.85, "mixed": 1.8}
RATE = {1e-3: 0.1, 3e-3: 0.0, 1e-2: 0.2}


def known(arm, lr, seed):
    """The seeds' noise is shared by the arms, but for a little."""
    return LEVEL[arm] + RATE[lr] + 0.05 * seed + 0.001 * (seed ** 2 * len(arm) % 7)


def test_the_numbers_of_a_whole_sweep(tmp_path):
    found, arms = Written(tmp_path / "s", ARMS, known, seconds={"baseline": 10.0, "mixed": 20.0}).summary()
    assert "all 16 compared runs were made is not known here" in found.notes[1]
    assert found.selection_seed == 1 and found.notes[2:] == ["The best control, with which the mixed arms are compared, is gate."]
    at = {name: [known(name, 3e-3, s) for s in (2, 3, 4)] for name in ARMS}
    p = {}
    for name, arm in arms.items():
        assert (arm.choice.lr, arm.choice.selection_seed, arm.edge) == (3e-3, 1, "")
        low, high = stats.t.interval(0.95, 2, np.mean(at[name]), stats.sem(at[name]))
        assert (arm.estimate.low, arm.estimate.mean, arm.estimate.high) == pytest.approx((low, np.mean(at[name]), high))
        if name != "baseline":
            difference, adjusted = arm.against["baseline"]
            truth = stats.ttest_rel(at[name], at["baseline"])
            assert difference.p == pytest.approx(truth.pvalue)
            e, interval = difference.estimate, truth.confidence_interval()
            assert (e.low, e.high) == pytest.approx((interval.low, interval.high))
            p[name] = truth.pvalue, adjusted
            assert [arm.wins["baseline"][lr][:2] for lr in LRS] == [(4, 4)] * 3
    least = sorted(raw for raw, _ in p.values())
    assert sorted(a for _, a in p.values())[0] == pytest.approx(min(1, 3 * least[0]))
    assert set(arms["mixed"].against) == {"baseline", "flat", "best_control"} and "flat" not in arms["baseline"].against
    # the best control is 'gate', and the mixed arm the only one that is compared with it: no correction
    assert not any("best_control" in arms[name].against for name in ("baseline", "flat", "gate"))
    difference, adjusted = arms["mixed"].against["best_control"]
    assert adjusted == difference.p == pytest.approx(stats.ttest_rel(at["mixed"], at["gate"]).pvalue)

    # all end at step 40; the shortest run takes 10 s, when the mixed one is at step 20 of 40 and 2 above its end
    assert found.budgets == {"step": 40, "tokens": 4000, "train_seconds": 10.0}
    assert found.shortest.startswith("baseline")
    ends = {s: known("mixed", 3e-3, s) for s in (2, 3, 4)}
    assert arms["mixed"].at_budget["step"] == pytest.approx(ends)
    assert arms["mixed"].at_budget["train_seconds"] == pytest.approx({s: v + 2 for s, v in ends.items()})
    # the target is the highest of the baseline's: all reach it
    assert found.target == max(at["baseline"])
    assert arms["baseline"].to_target["step"] == [40] * 3
    assert arms["mixed"].to_target == {"step": [40] * 3, "tokens": [4000] * 3, "train_seconds": [20.0] * 3}
    assert arms["mixed"].reached_share() == 1.0 and arms["mixed"].constant("flops_per_token") == 6000


def test_other_targets_metrics_and_selections(tmp_path):
    written = Written(tmp_path / "s", ARMS, known)
    found, arms = written.summary(target=known("mixed", 3e-3, 2) + 1.0)
    assert arms["mixed"].to_target["step"][0] == 30 and found.target == known("mixed", 3e-3, 2) + 1.0
    _, best = written.summary(metric="best")
    assert best["mixed"].estimate.mean == pytest.approx(arms["mixed"].estimate.mean - 0.5)
    _, same = written.summary(selection_seed=None)
    assert same["mixed"].estimate.n == 4 and same["mixed"].choice.selection_seed is None
    _, third = written.summary(selection_seed=3)
    assert set(third["mixed"].choice.losses) == {1, 2, 4}


def test_the_headline_says_what_the_numbers_say(tmp_path):
    headline = Written(tmp_path / "a", ARMS, known).summary()[0].headline
    difference = np.mean([known("mixed", 3e-3, s) - known("gate", 3e-3, s) for s in (2, 3, 4)])
    assert "(mixed, lr 0.003) against best control (gate, lr 0.003)" in headline and f"{difference:+.4f}" in headline
    assert "3 seeds" in headline and "does not contain 0" in headline and "mixed is better than gate" in headline
    assert "seed 1 alone" in headline

    noisy = Written(tmp_path / "b", ARMS, lambda a, lr, s: known(a, lr, s) + (0.3 * (-1) ** s if a == "mixed" else 0))
    headline = noisy.summary(selection_seed=None)[0].headline
    assert "contains 0: these seeds do not tell" in headline and "optimistic" in headline

    worse = Written(tmp_path / "c", ARMS, lambda a, lr, s: known(a, lr, s) + (0.3 if a == "mixed" else 0))
    assert "gate is better than mixed" in worse.summary()[0].headline

    one = Written(tmp_path / "d", ARMS, known, seeds=[1]).summary()[0].headline
    assert "one seed: no interval, no test" in one and "decides nothing" in one
    alone = Written(tmp_path / "e", {"baseline": "baseline", "mixed": "mixed"}, known)
    assert "not possible" in alone.summary()[0].headline

    other = Written(tmp_path / "f", {"baseline": "baseline", "gate": "other", "mixed": "other"}, known).summary()[0].headline
    difference = np.mean([known("mixed", 3e-3, s) - known("baseline", 3e-3, s) for s in (2, 3, 4)])
    assert other.startswith("Best arm (mixed, lr 0.003) against the baseline (baseline, lr 0.003): mixed minus baseline = "
                            f"{difference:+.4f}")
    assert "mixed is better than baseline" in other
    only = Written(tmp_path / "g", {"baseline": "baseline", "flat": "flat", "gate": "other"}, known).summary()[0].headline
    assert only.startswith("Best mixed arm against best control: not possible. No arm has the role 'mixed'")


def test_arms_that_are_equal_in_every_seed(tmp_path):
    found, arms = Written(tmp_path / "s", ARMS, lambda a, lr, s: known("gate" if a == "mixed" else a, lr, s)).summary()
    assert arms["mixed"].against["best_control"][0].estimate == ss.Estimate(3, 0.0)
    assert "(no interval: equal in all 3 seeds, paired t-test p = 1.00)" in found.headline and "do not tell" in found.headline


def test_what_is_corrected_for_several_comparisons_is_said(tmp_path):
    said = " ".join(report.method(Written(tmp_path / "s", ARMS, known).summary()[0]))
    assert "only the tables' p (Holm) are corrected" in said and "No interval is" in said and "p of the headline" in said


def test_with_one_rate_every_seed_measures(tmp_path):
    found, arms = Written(tmp_path / "s", {k: ARMS[k] for k in ("baseline", "flat", "mixed")}, known, lrs=[3e-3]).summary()
    assert found.selection_seed is None and arms["mixed"].estimate.n == 4
    assert "one arm of each and one rate: nothing was chosen" in found.headline
    assert "which is optimistic" in Written(tmp_path / "t", ARMS, known, lrs=[3e-3]).summary()[0].headline  # two controls


def test_a_measuring_seed_that_diverges_at_the_best_rate_is_told(tmp_path):
    """It takes part in the choice: without that rate another control, or rate, is the best."""
    def loss(arm, lr, seed):
        return "diverged" if (arm, lr, seed) == ("gate", 3e-3, 3) else known(arm, lr, seed)
    headline = Written(tmp_path / "s", ARMS, loss).summary()[0].headline
    assert "best control (flat" in headline
    assert ("gate at lr 0.003 was lower than flat at lr 0.003 with seed 1 and is left out, for another seed diverged there"
            in headline)


def test_a_rate_at_which_an_arm_diverged_is_not_won(tmp_path):
    def loss(arm, lr, seed):
        return "diverged" if arm == "mixed" and (lr == 1e-2 or (lr == 1e-3 and seed > 2)) else known(arm, lr, seed)
    found, _ = Written(tmp_path / "s", ARMS, loss).summary()
    row = next(r for r in report.wins_table(found, "baseline") if r[0] == "mixed")
    assert row[-2:] == ["6/12", "1/3"]  # at 1e-3 two of four seeds are lower, and the mean is infinite


def test_what_the_selection_seed_measured_is_marked(tmp_path):
    found, arms = Written(tmp_path / "s", ARMS, lambda a, lr, s: known(a, lr, s) if s == 1 or a != "gate" else None).summary()
    rows = {r[0]: r for r in report.results_table(found)}
    assert rows["gate"][5].endswith("*") and not rows["mixed"][5].endswith("*")
    table = {r["arm"]: r for r in csv.DictReader(report.as_csv(found).splitlines())}
    assert table["gate"]["val_loss_on_selection_seed"] == table["gate"]["minus_flat_on_selection_seed"] == "True"
    assert table["mixed"]["val_loss_on_selection_seed"] == table["mixed"]["minus_flat_on_selection_seed"] == "False"


def test_arms_with_the_selection_seed_alone_are_compared_but_not_preferred(tmp_path):
    """More seeds for the arms that compete: the others have one, and a lucky value there makes no best control."""
    def loss(arm, lr, seed):
        if arm == "gate":
            return 1.0 if seed == 1 else None
        return known(arm, lr, seed) if seed == 1 or lr == 3e-3 else None
    found, arms = Written(tmp_path / "s", ARMS, loss).summary()
    difference, p = arms["gate"].against["baseline"]
    assert difference.seeds == (1,) and p is None and arms["gate"].choice.selection_seed is None
    assert arms["mixed"].against["baseline"][0].seeds == (2, 3, 4)
    assert "best control (flat" in found.headline and "gate was lower than flat with that seed" in found.headline


def test_an_arm_without_the_selection_seed_is_named_with_its_numbers(tmp_path):
    """Its run crashed: the arm is not chosen as the others are, but the best control is not passed over in silence."""
    def loss(arm, lr, seed):
        return "crashed" if arm == "gate" and seed == 1 else known(arm, lr, seed)
    found, arms = Written(tmp_path / "s", ARMS, loss).summary()
    assert arms["gate"].choice.selection_seed is None and arms["gate"].estimate.n == 3
    difference = np.mean([known("gate", 3e-3, s) - known("flat", 3e-3, s) for s in (2, 3, 4)])
    assert "best control (flat" in found.headline and "has no other" not in found.headline
    assert f"no run of seed 1 ended there: gate minus flat = {difference:+.4f} nats" in found.headline


def test_a_rate_that_lacks_the_selection_seed_is_named(tmp_path):
    found, arms = Written(tmp_path / "s", ARMS, lambda a, lr, s: "crashed" if (a, lr, s) == ("baseline", 3e-3, 1)
                          else known(a, lr, s)).summary()
    assert arms["baseline"].choice.lr == 1e-3
    assert "baseline: lr 0.003 could not be chosen, for the run of seed 1" in " ".join(found.notes)


def test_differences_that_contain_the_selection_seed_are_marked(tmp_path):
    found, _ = Written(tmp_path / "s", ARMS, lambda a, lr, s: known(a, lr, s) if a != "flat" or s == 1 else None).summary()
    rows = {row[0]: row for row in report.results_table(found)}
    minus_baseline, minus_flat = (rows["arm"].index(f"minus {name} [95%]") for name in ("baseline", "flat control"))
    assert rows["mixed"][minus_baseline].endswith("], n = 3") and rows["mixed"][minus_flat].endswith(", n = 1*")


def test_a_rate_that_has_not_run_is_not_tried(tmp_path):
    """0.001 is planned, but 0.003 is the lowest that ran."""
    found, arms = Written(tmp_path / "s", ARMS, lambda a, lr, s: None if lr == 1e-3 else known(a, lr, s)).summary()
    assert {arm.edge for arm in arms.values()} == {"lowest"}


def test_the_selection_seed_is_one_that_ran(tmp_path):
    """The plan is every seed at every rate where the sweep's file is gone; seed 1 has run at one of them."""
    found, _ = Written(tmp_path / "s", ARMS, lambda a, lr, s: None if s == 1 and lr != 3e-3 else known(a, lr, s)).summary()
    assert found.selection_seed == 2


def test_surroundings_that_differ_are_named(tmp_path):
    written = Written(tmp_path / "s", ARMS, known)
    for seed, threads in ((2, 1), (3, 2)):
        env = {"threads": threads, "git_commit": "a" * 40, "git_dirty": seed == 3}
        (written.folder / f"runs/mixed-{3e-3}-{seed}" / "env.json").write_text(json.dumps(env))
    notes = " ".join(written.summary()[0].notes)
    assert "differ in threads: 1, 2." in notes and "not committed" in notes and "differ in commit" not in notes


def test_seconds_of_an_arm_that_differ_too_much_are_not_compared(tmp_path):
    """Its last run had other work beside it. Losses, steps and tokens are compared as before."""
    written = Written(tmp_path / "s", ARMS, known)
    path = written.folder / f"runs/mixed-{3e-3}-3" / "metrics.jsonl"
    path.write_text("".join(json.dumps({**line, "train_seconds": 1.4 * line["train_seconds"]}) + "\n"
                            for line in map(json.loads, path.read_text().splitlines())))
    found, arms = written.summary()
    assert found.budgets.keys() == {"step", "tokens"} and "train_seconds" not in arms["mixed"].to_target
    assert "seconds" not in found.headline and "a step of mixed took 0.25 to 0.35 s" in " ".join(found.notes)


def test_a_sweep_with_a_target_is_about_the_time_to_it(tmp_path):
    """Runs stop below the target, so what they end with is no measure of them: rates, differences and the headline are of
    the steps. mixed is fastest at 0.001, where its final loss is highest; flat does not reach the target at 0.01."""
    def steps(arm, lr, seed):
        if arm == "flat" and lr == 1e-2 and seed == 2:
            return None
        return {"baseline": 40, "flat": 30, "mixed": 20}[arm] + {1e-3: 0, 3e-3: 4, 1e-2: 8}[lr] * (1, -1)[arm == "flat"] + seed
    arms = {"baseline": "baseline", "flat": "flat", "mixed": "mixed"}
    written = Written(tmp_path / "s", arms, lambda a, lr, s: 1.7 - 0.01 * (a == "mixed" and lr == 1e-2))
    plan = json.loads((written.folder / "sweep.json").read_text())
    (written.folder / "sweep.json").write_text(json.dumps({**plan, "defaults": {"target_val_loss": 1.7}}))
    rows = list(csv.DictReader((written.folder / "runs.csv").open()))
    for row in rows:
        found = steps(row["arm"], float(row["lr"]), int(row["seed"]))
        row.update(target_step=found or "", target_seconds=2 * found if found else "")
    with open(written.folder / "runs.csv", "w", newline="") as f:
        table = csv.DictWriter(f, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    found, arms = written.summary()
    assert (found.metric, found.target) == ("target", 1.7)
    assert {name: arm.choice.lr for name, arm in arms.items()} == {"baseline": 1e-3, "flat": 3e-3, "mixed": 1e-3}
    assert arms["mixed"].estimate.mean == 23 and arms["mixed"].against["baseline"][0].estimate.mean == -20
    assert "flat: 1 of 4 seeds diverged or did not reach the target at lr 0.01" in " ".join(found.notes)
    assert ("steps to a validation loss of 1.7: mixed minus control = -6 steps (no interval: equal in all 3 seeds"
            in found.headline)
    assert "p = -). All seeds differ by the same: the resolution of the measure hides their spread" in found.headline
    assert "In training seconds to the target: -12.0 s" in found.headline and "equal training seconds" not in found.headline
    assert "steps to the target [95%]" in report.results_table(found)[0]
    assert "-6 [no interval], n = 3" in report.results_table(found)[3]
    assert "target_step," in report.as_csv(found).splitlines()[0]
    assert all(plot(found) for plot in (plots.lr_plot, plots.differences_plot))
    final, arms = written.summary(metric="final")
    assert final.target == 1.7 and arms["mixed"].choice.lr == 1e-2


def test_diverged_crashed_and_missing_runs(tmp_path):
    def loss(arm, lr, seed):
        if arm == "mixed" and lr == 3e-3 and seed == 4:
            return "diverged"  # its best rate otherwise
        if arm == "gate" and lr == 3e-3 and seed in (2, 3):
            return "crashed"
        if arm == "flat" and (lr == 1e-2 or seed == 4):
            return None
        return known(arm, lr, seed) if arm != "smear" else "diverged"
    LEVEL["smear"] = 0.0
    written = Written(tmp_path / "s", {**ARMS, "smear": "control"}, loss)
    found, arms = written.summary()
    assert arms["mixed"].choice.lr == 1e-3 and arms["mixed"].edge == "lowest"
    assert arms["mixed"].diverged_share() == pytest.approx(1 / 12)
    assert arms["mixed"].wins["baseline"][3e-3][:2] == (3, 4)
    assert list(arms["gate"].choice.losses) == [4] and arms["gate"].estimate.low is None
    assert arms["gate"].count("crashed") == 2 and arms["gate"].diverged_share() == 0
    assert len(arms["flat"].missing()) == 6 and arms["flat"].choice.lr == 3e-3
    assert arms["smear"].choice is None and arms["smear"].diverged_share() == 1
    assert arms["smear"].wins["baseline"][1e-3][:2] == (0, 4)
    notes = " ".join(found.notes)
    for part in ("mixed: 1 of 4 seeds diverged at lr 0.003", "flat is incomplete, 6 of 12 runs are missing",
                 "gate: lr 0.003 seed 2 crashed", "smear has no learning rate"):
        assert part in notes
    text = report.as_markdown(report.document(found, []))
    assert "6 of 60 runs are missing" in text and "0.001 (lowest tried)" in text
    for plot in (plots.lr_plot, plots.differences_plot):
        assert plot(found).files["png"].startswith(b"\x89PNG")


def test_without_baseline_metrics_or_shared_seeds(tmp_path):
    found, arms = Written(tmp_path / "a", {"mixed": "mixed"}, known, lrs=[3e-3]).summary()
    assert arms["mixed"].edge == "only" and found.target is None
    assert ("No arm has the role 'baseline': set role='baseline' in the arm of /nowhere/sweep.py that the others are to be "
            "compared with, and start sweep.py again") in " ".join(found.notes)
    assert "No arm has the role 'flat' or 'control': set one of them in the arms of /nowhere/sweep.py" in found.headline
    assert "'mixed'" not in found.headline and "role='baseline'" in report.on_terminal(found, "x")
    assert [f.name for f in plots.draw(found)] == ["loss", "curvature", "stability"]  # one rate is no plot of rates

    apart = Written(tmp_path / "b", ARMS, lambda a, lr, s: known(a, lr, s) if (s % 2 == 1) == (a == "mixed") else None)
    found, arms = apart.summary(selection_seed=None)
    assert arms["mixed"].against["baseline"][0].seeds == () and "share no seed" in found.headline
    assert plots.differences_plot(found).files["svg"]  # with a row that says so

    written = Written(tmp_path / "c", ARMS, known)
    os.remove(written.folder / f"runs/mixed-{3e-3}-2" / "metrics.jsonl")
    found, arms = written.summary()
    assert set(arms["mixed"].curves) == {3, 4} and arms["mixed"].estimate.n == 3
    assert "no metrics.jsonl" in " ".join(found.notes)
    shutil.rmtree(written.folder / "runs")  # the table alone
    assert [note for note in written.summary(batches=8)[0].notes if "curv" in note] == [
        "The table of runs is here without the runs: there are losses, but no curves, nothing at equal budgets and no changes "
        "of c."]


def test_other_keys_of_the_grid_make_arms_of_their_own(tmp_path):
    written = Written(tmp_path / "s", {"baseline": "baseline", "mixed": "mixed"}, known, lrs=[3e-3])
    plan = json.loads((written.folder / "sweep.json").read_text())
    plan["grid"]["curvature"] = [0.1, 1.0]
    (written.folder / "sweep.json").write_text(json.dumps(plan))
    rows = list(csv.DictReader((written.folder / "runs.csv").open()))
    for i, row in enumerate(rows):
        if row["arm"] == "mixed":
            row["overrides"] = json.dumps({"learning_rate": 3e-3, "curvature": [0.1, 1.0][i % 2]})
    with open(written.folder / "runs.csv", "w", newline="") as f:
        table = csv.DictWriter(f, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    _, arms = written.summary()
    assert {"baseline", "mixed curvature=0.1", "mixed curvature=1.0"} <= set(arms)
    assert len(arms["mixed curvature=0.1"].runs) == 2
    # also where the sweep has a default for that key
    (written.folder / "sweep.json").write_text(json.dumps({**plan, "defaults": {"curvature": 0.1}}))
    assert {"mixed curvature=0.1", "mixed curvature=1.0"} <= set(written.summary()[1])


def test_the_plan_is_the_sweep_files(tmp_path):
    """More seeds for one arm at one rate are planned for it alone."""
    file = tmp_path / "plan.py"
    file.write_text("arms = {'baseline': dict(config='config/demo_baseline.py', role='baseline'),\n"
                    "        'flat': dict(config='config/demo_flat.py', role='flat')}\n"
                    "grid = dict(learning_rate=[1e-3, 3e-3])\nseeds = [1]\n"
                    "runs = [dict(arms=['flat'], grid=dict(learning_rate=[3e-3]), seeds=[2, 3])]\n")
    arms = {"baseline": "baseline", "flat": "flat"}
    written = Written(tmp_path / "s", arms, lambda a, lr, s: known(a, lr, s) if s == 1 else None, lrs=LRS[:2],
                      seeds=[1, 2, 3], file=str(file))
    found, arms = written.summary()
    assert arms["baseline"].missing() == [] and arms["flat"].missing() == [(3e-3, 2), (3e-3, 3)]
    assert found.selection_seed == 1
    os.rename(file, written.folder / "plan.py")
    plan = json.loads((written.folder / "sweep.json").read_text())
    (written.folder / "sweep.json").write_text(json.dumps({**plan, "file": str(written.folder / "plan.py")}))
    found, arms = written.summary()  # code that came with the folder is not run
    assert "not read" in found.notes[0] and len(arms["baseline"].missing()) == 4


# ----------------------------------------------------------------------------------------------------------------------
# files

class Balanced(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_command_writes_table_plots_and_report(tmp_path, capsys):
    written = Written(tmp_path / "s", ARMS, known)
    status, out, _ = run(summarize_sweep.main, [written.folder, f"--out={tmp_path / 'out'}", "--batches=0"], capsys)
    assert status == 0 and "\nmixed " in out and "report.html: all tables" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 120 and "How to read this" not in out
    assert "How to read this" in (tmp_path / "out" / "summary.md").read_text()
    assert "How to read this" in (tmp_path / "out" / "report.html").read_text()
    names = ["loss", "lr", "differences", "curvature", "stability"]
    files = {f"{n}.{kind}" for n in names for kind in ("svg", "png")}
    assert set(os.listdir(tmp_path / "out")) == files | {"summary.md", "summary.csv", "summary.json", "report.html"}
    for name in names:
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        ElementTree.parse(tmp_path / "out" / f"{name}.svg")
    text = (tmp_path / "out" / "summary.md").read_text()
    assert all(f"({n}.png)" in text for n in names) and text.startswith("# Sweep s")

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")
    content = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=refuse)
    mixed = next(a for a in content["arms"] if a["name"] == "mixed")
    rows = {r["arm"]: r for r in csv.DictReader((tmp_path / "out" / "summary.csv").open())}
    assert float(rows["mixed"]["val_loss"]) == mixed["estimate"]["mean"] == pytest.approx(
        np.mean([known("mixed", 3e-3, s) for s in (2, 3, 4)]))
    assert float(rows["mixed"]["minus_flat_p_holm"]) == mixed["against"]["flat"]["p_holm"]
    assert rows["baseline"]["minus_baseline"] == "" and rows["mixed"]["wins_baseline"] == "12"
    parsed, page = Balanced(), (tmp_path / "out" / "report.html").read_text()
    parsed.feed(page)
    assert parsed.open == [] and len(parsed.sources) == 5 and all(s.startswith("data:image/svg+xml") for s in parsed.sources)
    assert page.count("<table>") == 6
    with plt.rc_context(plots.SETTINGS):  # the same numbers give the same bytes
        assert plots.lr_plot(written.summary()[0]).files["svg"] == (tmp_path / "out" / "lr.svg").read_bytes()


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_the_terminal_fits(columns, tmp_path, monkeypatch):
    """Whatever the arms are called; the table needs its 120 columns, words are wrapped to fewer."""
    monkeypatch.setenv("COLUMNS", str(columns))
    names = {name: f"{name} residual=transport reference=previous use_embedding_curvature=True per_head_curvature={role}"
             for name, role in ARMS.items()}
    LEVEL.update({long: LEVEL[name] for name, long in names.items()})

    def loss(arm, lr, seed):
        if arm == names["gate"] and lr == 1e-2:
            return "crashed"
        if arm == names["mixed"] and lr == 1e-2:
            return "diverged" if seed > 1 else None
        return known(next(name for name in ARMS if names[name] == arm), lr, seed)
    found, arms = Written(tmp_path / "s", {long: ARMS[name] for name, long in names.items()}, loss).summary()
    text = report.on_terminal(found, "out")
    head, table = text[:text.index("\narm ")], text[text.index("\narm "):].split("\n\n")[0]
    assert max(map(len, text.splitlines())) <= 120 and all(len(line) <= columns for line in head.splitlines())
    rows = table.splitlines()[3:]
    assert len(rows) == 4 and all("\u2026" in row for row in rows)
    e, d = arms[names["mixed"]].estimate, arms[names["mixed"]].against["best_control"][0].estimate
    assert f"{e.mean:.4f} [{e.low:.4f}, {e.high:.4f}]" in rows[3] and f"{d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}]" in rows[3]
    assert f"{arms[names['mixed']].against['baseline'][0].estimate.mean:+.4f}" in rows[3]
    said = " ".join(text.split())
    assert "Not complete, 1 of 48 runs are missing: mixed" in said and "Crashed and left out: gate" in said
    assert "Diverged: mixed" in said and "all tables, plots, notes and how to read them" in said


def test_short_names_are_not_shortened():
    assert report.shortened("gate+norm", 12) == "gate+norm"
    assert report.shortened("mixed curvature=0.1", 12) == "mixed \u2026e=0.1"
    assert report.listed(list("abc"), 2) == "a, b and 1 more"


def test_a_finished_run_without_a_best_checkpoint_is_left_out_of_the_best(tmp_path):
    """best_val_loss is of a checkpoint; a run that saved none has an empty field."""
    written = Written(tmp_path / "s", ARMS, known)
    file = written.folder / "runs.csv"
    rows = list(csv.DictReader(file.open()))
    for row in rows:
        if (row["arm"], row["lr"], row["seed"]) == ("mixed", "0.003", "3"):
            row["best_val_loss"] = ""
    with open(file, "w", newline="") as f:
        table = csv.DictWriter(f, COLUMNS)
        table.writeheader()
        table.writerows(rows)
    found, arms = written.summary(metric="best")
    assert set(arms["mixed"].choice.losses) == {2, 4} and arms["mixed"].missing() == []
    assert "mixed: lr 0.003 seed 3 has no best validation loss, for it has saved no checkpoint" in " ".join(found.notes)
    assert "No checkpoint, so no best validation loss; left out: mixed 1." in report.on_terminal(found, "x")
    assert set(written.summary()[1]["mixed"].choice.losses) == {2, 3, 4}


def test_hostile_names_stay_text(tmp_path):
    arms = {"baseline": "baseline", "<script>alert(1)</script> $x_": "flat"}
    LEVEL["<script>alert(1)</script> $x_"] = 1.9
    found, _ = Written(tmp_path / "s", arms, lambda a, lr, s: 2.0 if "/" not in a else None).summary()
    page = report.as_html(report.document(found, [plots.lr_plot(found)]), "x")
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("args, parts", [
    (["--selection_seed=99"], ["--selection_seed=99", "1, 2, 3, 4"]),
    (["--selection_seed=x"], ["'x' is neither a seed"]),
    (["--target=nan"], ["'nan' is not a number"]),
    (["--metric=worst"], ["--metric", "'worst'"]),
    (["--metric=target"], ["--metric=target", "no target_val_loss in common"]),
    (["--batches=-1"], ["'-1' is not a whole number"]),
    (["--unknown"], ["--unknown"]),
])
def test_bad_options_get_one_line(args, parts, tmp_path, capsys):
    written = Written(tmp_path / "s", ARMS, known)
    status, _, err = run(summarize_sweep.main, [written.folder, *args], capsys)
    assert status == 2
    one_line(err, *parts)
    assert not (written.folder / "summary").exists()


def test_the_committed_results_say_what_their_readme_says():
    """results/shakespeare_lr: the tables are of the committed runs, and the headline of its README.md is theirs."""
    results = os.path.join(REPOSITORY, "results")
    found = summarize(os.path.join(results, "shakespeare_lr"), batches=0)
    with open(os.path.join(results, "shakespeare_lr", "README.md"), encoding="utf-8") as f:
        text = " ".join(f.read().split())
    arms = {arm.name: arm for arm in found.arms}
    difference = arms["c0.1-head"].against["best_control"][0]
    e = difference.estimate
    assert (f"**{e.mean:+.4f} nats a character, 95% interval [{e.low:+.4f}, {e.high:+.4f}], paired t-test "
            f"p = {difference.p:.2f}**") in text
    with open(os.path.join(results, "shakespeare_lr", "summary", "summary.json"), encoding="utf-8") as f:
        assert json.load(f)["headline"] == found.headline
    for arm in found.arms:
        assert len({seed for _, seed in arm.runs}) >= 3 and len({lr for lr, _ in arm.runs}) >= 4, arm.name
        assert f"{arm.estimate.mean:.4f}" in text, arm.name
