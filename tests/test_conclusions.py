"""What a sweep's report says above each of its tables, for sweeps that the tests write with known numbers."""
import numpy as np
from test_summarize import ARMS, Written, known

from experiments import conclusions, report


def test_budgets_say_who_is_ahead_at_each_of_them(tmp_path):
    """The mixed arm ends lowest, but takes four times as long: at the seconds of the shortest run another is ahead."""
    found, arms = Written(tmp_path / "s", ARMS, known, seconds={"mixed": 40.0}).summary(target=2.4)
    said = conclusions.of_budgets(found)
    means = {name: {key: np.mean(list(arm.at_budget[key].values())) for key in arm.at_budget} for name, arm in arms.items()}
    first = {key: min(means, key=lambda name: means[name][key]) for key in ("step", "train_seconds")}
    assert first == {"step": "mixed", "train_seconds": "gate"}
    assert f"at 40 steps {means['mixed']['step']:.4f} (mixed)" in said
    assert f"at 10.0 training seconds {means['gate']['train_seconds']:.4f} (gate)" in said
    assert "The target takes at least 40 steps (baseline, flat, gate and mixed); 4,000 tokens" in said
    assert "10.0 training seconds (baseline, flat and gate)" in said
    assert said.endswith("The arms differ in parameters by 0.0% and FLOPs a token by 0.0% at most.")
    found.target = 0.0
    for arm in found.arms:
        arm.to_target = {}
    assert "No arm reaches the target" in conclusions.of_budgets(found)


def test_the_seed_that_chose_is_left_out_where_others_measure(tmp_path):
    """Its loss is too low: 'mixed', which has no other seed, is not said to be ahead."""
    found, _ = Written(tmp_path / "s", ARMS, lambda arm, lr, seed: None if arm == "mixed" and seed > 1 else known(arm, lr, seed)).summary()
    said = conclusions.of_budgets(found)
    assert "(gate)" in said.partition("The target")[0] and "(mixed)" not in said.partition("The target")[0]


def test_wins_and_runs_are_counted(tmp_path):
    def loss(arm, lr, seed):
        if (arm, lr, seed) == ("flat", 3e-3, 2):
            return "diverged"
        if (arm, lr, seed) == ("gate", 3e-3, 3):
            return "crashed"
        if arm == "flat" and lr == 1e-2:
            return None
        return known(arm, lr, seed) + (5 if arm == "gate" and lr == 1e-3 else 9 if arm == "mixed" else 0)
    found, _ = Written(tmp_path / "s", ARMS, loss).summary()
    assert conclusions.of_wins(found, "baseline") == "Lower than the baseline in none: mixed; in some: flat 7/8, gate 7/11."
    assert conclusions.of_runs(found) == "Of 48 planned runs 42 finished; 4 are missing, 1 diverged and 1 crashed."
    flat = next(arm for arm in found.arms if arm.name == "flat")
    flat.planned = {key for key in flat.planned if key[0] == 1e-3}
    assert conclusions.of_runs(found) == "Of 40 planned runs 39 finished; 1 crashed. 4 more ran that are not in the plan."
    whole, _ = Written(tmp_path / "whole", ARMS, known).summary()
    assert conclusions.of_runs(whole) == "All 48 planned runs finished."
    assert conclusions.of_wins(whole, "flat") == "Lower than the flat control in all pairs: gate, mixed."


def test_changes_of_c():
    said = conclusions.of_effects({"c = 0": [2.0, 2.1, 2.2], "c negated": [0.1, -0.1, 0.2], "c as it started": [0.0, 0.0, 0.0]})
    assert said == "Changing c changes the loss by between +0.0667 (c negated) and +2.1000 (c = 0). 1 of 2 intervals are above 0."
    assert conclusions.of_effects({"c = 0": [2.0]}) == "Changing c changes the loss by +2.0000 (c = 0). There are no intervals."
    assert conclusions.of_effects({"c as it started": [0.0]}) == "No change of c changes the loss."
    assert conclusions.of_effects({"c = 0": [2.0], "head: c = 0": [9.0]}) == \
        "Changing c changes the loss by +2.0000 (c = 0). There are no intervals."


def test_how_far_training_moved_c():
    places = {"block 0": np.array([[0.1, 0.4, 1.0], [0.2, 0.1, 1.0]]), "block 1": np.array([[0.3, 0.1, -1.0]])}
    assert conclusions.of_slopes(places) == "Training moved c by 0.300 at most, and on average from 0.200 to 0.200."
    assert conclusions.of_slopes({"block 0": np.array([[0.1, 0.1, 2.0]])}) == "Training did not move c."
    fixed = {"block 0": np.array([[1.0, 1.0, 2.0]]), "head": np.array([[0.01, 0.05, 2.0]])}  # of another scale
    assert conclusions.of_slopes(fixed) == "Training did not move c. That of the output head went from 0.0100 to 0.0500."


def test_every_table_of_the_report_has_a_sentence_above_it(tmp_path):
    found, _ = Written(tmp_path / "s", ARMS, known).summary()
    parts = report.document(found, [])
    tables = [place for place, (kind, _) in enumerate(parts) if kind == "table"]
    assert len(tables) == 6 and all(parts[place - 1][0] == "text" for place in tables)
