"""The question that a sweep states before its runs: the confidence sequence, the power of tests, when a sweep stops, the answer."""
import csv
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from forked import ROOT
from running import one_line, run
from scipy import integrate, stats
from test_summarize import Written

import summarize_sweep
import sweep
from common.errors import UserError
from experiments import answer, question, report, sequential
from experiments import statistics as ss
from experiments.comparison import summarize
from experiments.results import Arm
from experiments.runs import make_runs
from experiments.sweep_file import load

ASKED = dict(hypothesis="a is better", arm="a", against="b", margin=0.004)


# ----------------------------------------------------------------------------------------------------------------------
# the confidence sequence

def test_e_values_are_bayes_factors_of_the_t_statistic():
    """Against an integral over effect sizes of SciPy's noncentral t."""
    d = np.random.default_rng(0).normal(0.3, 1, 9)
    for n in (2, 3, 9):
        t = stats.ttest_1samp(d[:n], 0.1).statistic

        def density(effect, g):
            return stats.nct.pdf(t, n - 1, effect * np.sqrt(n)) * stats.norm.pdf(effect, scale=g ** -0.5)
        for g in (1.0, 0.3):
            expected = integrate.quad(density, -15, 15, args=(g,), limit=200)[0] / stats.t.pdf(t, n - 1)
            assert sequential.e_values(d, 0.1, g)[n - 1] == pytest.approx(expected, rel=1e-6)


def test_intervals_hold_the_means_that_are_not_excluded():
    d = np.random.default_rng(1).normal(0.5, 1, (20, 60))
    low, high = sequential.confidence_sequence(d, 0.05)
    for mean in (0.0, 0.3, 1.3):
        excluded = sequential.e_values(d, mean) >= 20
        assert np.array_equal(excluded, (mean <= low) | (mean >= high)) and excluded.any() and not excluded.all()
    assert np.isinf(low[:, 0]).all() and np.isfinite(low[:, -1]).all()
    assert ((high - low)[:, -1] < 1.5).all() and (np.nanmean(high - low, 0)[-1] < np.mean((high - low)[:, 20]))


@pytest.mark.parametrize("spread", [1.0, 1e-9])
def test_at_most_one_null_sweep_in_a_hundred_is_ever_called_at_one_percent(spread):
    """10,000 sweeps without a difference, each looked at after every one of 100 pairs. Looking with the t-test calls many more."""
    d = spread * np.random.default_rng(2).standard_normal((10_000, 100))
    low, high = sequential.confidence_sequence(d, 0.01)
    assert 0.001 < ((low > 0) | (high < 0)).any(1).mean() <= 0.01
    low5, high5 = sequential.confidence_sequence(d, 0.05)
    assert 0.02 < ((low5 > 0) | (high5 < 0)).any(1).mean() <= 0.03  # as docs/sweeps.md has it
    n, means, s = sequential._running(d)
    t = np.abs(means[:, 1:]) * np.sqrt(n[1:]) / s[:, 1:]
    assert (t > stats.t.ppf(0.995, n[1:] - 1)).any(1).mean() > 0.05


def test_an_effect_is_found_in_about_as_many_pairs_as_a_fixed_design_takes():
    d = np.random.default_rng(3).normal(0.6, 1, (2000, 300))
    low, _ = sequential.confidence_sequence(d, 0.05)
    found = low > 0
    assert found.any(1).all()
    fixed = ss.pairs_needed(lambda n: ss.power_of_difference(n, 0.6), 0.8)
    assert np.median(found.argmax(1) + 1) < 1.3 * fixed


@pytest.mark.parametrize("effect, equivalence", [(0.6, False), (1.0, False), (1.0, True)])
def test_pairs_with_looks_are_what_simulated_sweeps_need(effect, equivalence):
    """Fresh numbers: with that many pairs 80% of sweeps have shown it; and it is far more than one look needs."""
    n = sequential.pairs_needed_with_looks(effect, 0.05, equivalence=equivalence)
    d = np.random.default_rng(8).normal(0 if equivalence else effect, 1, (4000, n))
    low, high = sequential.confidence_sequence(d, 0.05)
    shown = ((low > -effect) & (high < effect) if equivalence else low > 0).any(1).mean()
    power = ss.power_of_equivalence if equivalence else ss.power_of_difference
    assert shown == pytest.approx(0.8, abs=0.03) and n > 1.5 * ss.pairs_needed(lambda n: power(n, effect))
    assert sequential.pairs_needed_with_looks(0.001, 0.05) is None


def test_equal_differences_have_no_spread_to_go_by():
    low, high = sequential.confidence_sequence([0.1, 0.1, 0.1], 0.05)
    assert np.isinf(low).all() and np.isinf(high).all()
    assert sequential.e_values([0.1, 0.1], 0.1).tolist() == [1, 1] and sequential.e_values([0.1, 0.1], 0.0).tolist() == [1, np.inf]


@pytest.mark.parametrize("low, high, said", [
    (-0.02, -0.01, "lower"), (0.01, 0.02, "higher"), (-0.003, 0.002, "equivalent"), (-0.02, -0.001, "lower, not known by how much"),
    (0.001, 0.02, "higher, not known by how much"), (-0.02, 0.001, "open"), (None, None, "open"), (-np.inf, np.inf, "open")])
def test_what_an_interval_says(low, high, said):
    assert sequential.verdict(low, high, 0.004) == said


# ----------------------------------------------------------------------------------------------------------------------
# power

def test_power_is_what_simulated_sweeps_have():
    rng, n = np.random.default_rng(4), 12
    d = rng.standard_normal((20_000, n))
    found = stats.ttest_1samp(d + 0.7, 0, axis=1).pvalue < 0.05
    assert ss.power_of_difference(n, 0.7) == pytest.approx(found.mean(), abs=0.01)
    alike = [stats.ttest_1samp(d, side * 0.8, axis=1, alternative=which).pvalue < 0.05 for side, which in ((-1, "greater"), (1, "less"))]
    assert ss.power_of_equivalence(n, 0.8) == pytest.approx((alike[0] & alike[1]).mean(), abs=0.01)


def test_the_least_number_of_pairs():
    n = ss.pairs_needed(lambda n: ss.power_of_difference(n, 0.5))
    assert ss.power_of_difference(n, 0.5) >= 0.8 > ss.power_of_difference(n - 1, 0.5)
    assert ss.pairs_needed(lambda n: 0.1, most=1000) is None and ss.pairs_needed(lambda n: 1.0) == 2


def test_equivalence_is_a_90_percent_interval_within_the_margin():
    rng = np.random.default_rng(5)
    for shift in (0.0, 0.2, 0.35, 0.6):
        d = rng.normal(shift, 0.5, 15)
        half = stats.t.ppf(0.95, 14) * d.std(ddof=1) / np.sqrt(15)
        within = abs(d.mean()) + half < 0.5
        assert (ss.equivalence_test(d, 0.5) < 0.05) == within
    assert ss.equivalence_test([0.1], 0.5) is None and ss.equivalence_test([0.1, 0.1], 0.5) is None


# ----------------------------------------------------------------------------------------------------------------------
# in a sweep

@pytest.mark.parametrize("change, message", [
    (dict(arm="c"), "there is no arm 'c'; there are a, b"), (dict(against="a"), "both 'a'"),
    (dict(margin="x"), "margin = 'x': must be a number"),
    (dict(margin=-1), "margin must be at least 0"), (dict(alpha=0.5), "alpha between 0 and 0.5"), (dict(stop="soon"), "stop = 'soon'"),
    (dict(arms=3), "unknown name 'arms'"), (dict(hypothesis=2), "must be text"), (dict(margin=None), "must be a number"),
    (dict(spread=0), "spread = 0: must be above 0"), (dict(spread="x"), "spread = 'x': must be a number")])
def test_what_is_no_question_is_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        question.checked({**ASKED, **change}, ["a", "b"], "x.py")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="margin is missing"):
        question.checked({k: v for k, v in ASKED.items() if k != "margin"}, ["a", "b"], "x.py")


def test_a_question_that_changes_is_remembered():
    first = question.checked(ASKED, ["a", "b"], "x.py")
    told = question.stated(first, [], None, 0)
    assert told["ended_before"] == 0 and question.stated(first, [], told, 7) == told and question.from_told(told) == first
    second = question.stated(question.checked({**ASKED, "margin": 0.01}, ["a", "b"], "x.py"), [], told, 7)
    assert second["ended_before"] == 7 and [e["margin"] for e in second["earlier"]] == [0.004] and second["sha256"] != told["sha256"]
    # a question that is taken out for a while leaves its history, and is none
    out = question.stated(None, [], second, 8)
    assert question.from_told(out) is None and question.read_told({"question": out, "arms": []}, "x") is None
    assert [e["margin"] for e in question.stated(first, [], out, 9)["earlier"]] == [0.004, 0.01]
    assert question.stated(question.checked({**ASKED, "margin": 0.01}, ["a", "b"], "x.py"), [], out, 9) == second
    assert question.stated(None, [], None, 7) is None


@pytest.mark.parametrize("stop", ["fixed", "anytime"])
def test_other_runs_are_another_question(stop):
    """Another rate always; other seeds where their number is the rule to stop. What was stated before runs counted is kept."""
    asks = question.checked({**ASKED, "stop": stop}, ["a", "b", "c"], "x.py")

    def planned(seeds, rate, other=1):
        arms = [dict(name=name, config="config/demo_baseline.py", grid={"learning_rate": [r]}, seeds=seeds, overrides={}, start=None)
                for name, r in (("a", rate), ("b", 5e-4), ("c", other * 7e-4))]
        return make_runs({"arms": arms, "defaults": {}, "budget": {"steps": 10}, "runs": []}, "x.py", "out")
    told = question.stated(asks, planned([1, 2], 1e-3), None, 0)
    assert question.stated(asks, planned([1, 2], 1e-3, other=3), told, 5) == told  # an arm that it is not about
    again = question.stated(asks, planned([1, 2, 3], 1e-3), told, 4)
    assert (again == told) == (stop == "anytime") and (stop == "anytime" or again["ended_before"] == 4 and len(again["earlier"]) == 1)
    tuned = question.stated(asks, planned([1, 2], 2e-3), told, 4)
    assert tuned["ended_before"] == 4 and tuned["sha256"] == told["sha256"] and tuned["runs_sha256"] != told["runs_sha256"]
    old = {k: v for k, v in told.items() if k != "runs_sha256"}
    kept = question.stated(asks, planned([1, 2], 1e-3), old, 4)
    assert kept.pop("runs_known_since") and kept == told


def test_how_many_pairs_a_margin_needs_is_said_before(capsys, tmp_path):
    """By the powers that the tests above check; a question that tells no spread keeps its hash, and says nothing."""
    runs = [SimpleNamespace(arm=arm, seed=seed, lr=1e-3) for arm in "ab" for seed in range(7 if arm == "a" else 5)]
    told = question.checked({**ASKED, "spread": 0.01, "alpha": 0.1}, ["a", "b"], "x.py")
    chooses = [*runs, SimpleNamespace(arm="a", seed=0, lr=3e-3)]  # a second rate: one seed chooses, and does not measure
    assert "4 are planned" in question.planned(told, chooses)
    elsewhere = [*runs, *(SimpleNamespace(arm="c", seed=9, lr=lr) for lr in np.arange(9) / 1e3)]  # seed 9, which the two do not have
    assert "5 are planned" in question.planned(told, elsewhere)
    n, m = (int(text) for text in re.findall(r"(\d+) (?:pairs )?show", question.planned(told, runs)))
    for power, pairs in ((ss.power_of_difference, n), (ss.power_of_equivalence, m)):
        assert power(pairs, 0.4, 0.1) >= 0.8 > power(pairs - 1, 0.4, 0.1)
    assert "5 are planned" in question.planned(told, runs) and "Looks" not in question.planned(told, runs)
    silent = question.checked(ASKED, ["a", "b"], "x.py")
    assert question.planned(silent, runs) is question.planned(None, runs) is None and silent.sha256() != told.sha256()
    assert "spread" not in question.stated(silent, [], None, 0) and question.from_told(question.stated(told, [], None, 0)) == told
    wide = question.checked({**ASKED, "spread": 100.0}, ["a", "b"], "x.py")
    assert "more than 100,000 pairs show" in question.planned(wide, runs)
    status, said, _ = run(sweep.main, ["sweeps/verdict.py", "--dry-run", f"--out={tmp_path / 'new'}"], capsys)
    copied = tmp_path / "copied"  # rows of another sweep, as the sweep files say: no sweep.json yet
    copied.mkdir()
    shutil.copy(ROOT / "results" / "verdict_rates" / "runs.csv", copied)
    again = run(sweep.main, ["sweeps/verdict.py", "--dry-run", f"--out={copied}"], capsys)
    assert again[0] == 0 and again[1].count("\npython ") >= 44
    for damaged in ("{", "[]", '{"question": "x"}'):  # the sweep would write it anew
        (copied / "sweep.json").write_text(damaged)
        assert run(sweep.main, ["sweeps/verdict.py", "--dry-run", f"--out={copied}"], capsys) == again
    assert status == 0 and said.startswith("# question: with a spread of 0.0065 a pair, some 4") and said.count("\npython ") == 48


@pytest.mark.parametrize("grid, more", [("dict(learning_rate=[1e-3], weight_decay=[0.1, 0.2])", ""),
                                        ("dict(weight_decay=[0.1])", ""),
                                        ("dict(learning_rate=[1e-3])", "runs = [dict(arms=['b'], grid=dict(weight_decay=[0.1]))]"),
                                        ("dict(learning_rate=[1e-3], muon_lr=[0.02])", "")])
def test_arms_of_a_question_vary_in_their_rate_alone(grid, more, sweep_file):
    """A point of the grid that sets another key is an arm of another name, which the question does not ask about."""
    text = f"grid = {grid}\n{more}\n{asked('anytime')}"
    with pytest.raises(UserError, match="question: [ab] has (weight_decay|learning_rate) in the grid"):
        load(str(sweep_file(text, SEEDS[:2], ARMS.replace(", weight_decay=0.02", ""))))


@pytest.mark.parametrize("line", ["grid = dict(learning_rate=['1e-3'])", "defaults['muon_lr'] = '0.02'",
                                  "defaults['target_val_loss'] = '1.7'", "arms['baseline']['learning_rate'] = '1e-3'"])
def test_rates_and_targets_are_numbers(line, sweep_file):
    """train.py reads them as text, too; a summary does not."""
    with pytest.raises(UserError, match="must be a number"):
        load(str(sweep_file(line)))


def test_arms_without_a_common_seed_are_one_line(sweep_file):
    arms = "arms = {'a': dict(config='config/demo_baseline.py', seeds=[1]), 'b': dict(config='config/demo_baseline.py', seeds=[2, 3])}"
    with pytest.raises(UserError, match="question: a and b have no seed in common"):
        load(str(sweep_file(asked("anytime"), SEEDS[:2], arms)))
    load(str(sweep_file(asked("anytime") + "\nruns = [dict(arms=['a'], seeds=[3])]", SEEDS[:2], arms)))


SEEDS = list(range(1000, 1020))
ARMS = "arms = {'a': dict(config='config/demo_baseline.py'), 'b': dict(config='config/demo_baseline.py', weight_decay=0.02)}"


def asked(stop, margin=0.004, arm="a", against="b"):
    return f"question = dict(hypothesis='a is better', arm={arm!r}, against={against!r}, margin={margin}, stop={stop!r})"


def rows_of(folder):
    with open(folder / "runs.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_a_sweep_stops_when_its_question_is_decided(stub, sweep_file, folder, capsys):
    path = sweep_file(asked("anytime"), SEEDS, ARMS.replace("baseline.py')", "baseline.py', weight_decay=0.0)"))
    with pytest.raises(SystemExit) as ended:
        stub([str(path), "--out", str(folder)])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "the question of the sweep is decided" in said
    rows = rows_of(folder)
    assert 4 <= len(rows) < 20  # an effect of 0.02 with a spread of 0.001
    found = summarize(str(folder))
    assert found.answer.decided and found.answer.verdict == "lower"
    assert "Answer, yes: a is lower than b by more than 0.004" in found.answered
    assert not any(arm.missing() for arm in found.arms) and any("before any run" in note for note in found.notes)
    told = json.loads((folder / "sweep.json").read_text())["question"]
    assert told["ended_before"] == 0 and told["sha256"] == question.from_told(told).sha256()
    with pytest.raises(SystemExit) as again:  # the same command: nothing is left to do
        stub([str(path), "--out", str(folder)])
    assert again.value.code == 0 and len(rows_of(folder)) == len(rows) and "0 to do" in capsys.readouterr().out
    status, out, _ = run(sweep.main, [str(path), "--out", str(folder), "--dry-run"], capsys)
    assert status == 0 and "# 40 runs, 0 to do" in out


def test_a_fixed_question_runs_all_and_says_what_would_change_an_open_answer(stub, sweep_file, folder, capsys):
    path = sweep_file(asked("fixed", margin=0.0205), SEEDS[:6], ARMS.replace("baseline.py')", "baseline.py', weight_decay=0.0)"))
    with pytest.raises(SystemExit):
        stub([str(path), "--out", str(folder)])
    assert len(rows_of(folder)) == 12
    found = summarize(str(folder))
    assert found.answer.verdict in ("open", "lower, not known by how much", "equivalent") and "6 of 6 pairs" in found.answered
    path.write_text(path.read_text().replace("margin=0.0205", "margin=0.019"))
    with pytest.raises(SystemExit):
        stub([str(path), "--out", str(folder)])
    again = summarize(str(folder))
    assert any("when 12 runs of its two arms had ended, so its answer is not a confirmation" in note for note in again.notes)
    assert "changed 1 times" in " ".join(again.notes)
    assert again.answered.endswith("It is no confirmation: 12 runs of its two arms had ended when the question was stated.")
    assert "confirmation" not in found.answered


def test_every_row_has_the_equivalence_test_beside_the_t_test():
    """Of a sweep with a question, against SciPy's two one-sided tests of the losses in its table; a sweep without one has no margin."""
    found = summarize(str(ROOT / "results" / "verdict_muon"))
    losses = {arm.name: {seed: run.loss for (_, seed), run in arm.runs.items() if run.loss is not None} for arm in found.arms}
    tested = 0
    for row in csv.DictReader(report.as_csv(found).splitlines()):
        mine, theirs = losses[row["arm"]], losses["baseline-muon"]
        d = np.array([mine[seed] - theirs[seed] for seed in mine if seed in theirs])
        if row["arm"] != "baseline-muon" and len(d) > 1:
            p = max(stats.ttest_1samp(d, -0.004, alternative="greater").pvalue, stats.ttest_1samp(d, 0.004, alternative="less").pvalue)
            assert float(row["minus_baseline_p_equivalent"]) == pytest.approx(p)
            tested += 1
    assert tested == 7 and report.results_table(found)[0].count("p TOST, 0.004") == 2
    without = summarize(str(ROOT / "results" / "size"))
    assert not any("TOST" in cell for cell in report.results_table(without)[0])


def pair(differences):
    """Two arms of these paired differences."""
    return {name: Arm(name, "other", {(0.1, seed): SimpleNamespace(loss=scale * d) for seed, d in enumerate(differences)})
            for name, scale in (("a", 1.0), ("b", 0.0))}


def test_fixed_answers_are_at_their_own_level_and_not_before_the_end():
    d = np.random.default_rng(6).normal(-0.03, 0.005, 8)
    for alpha in (0.05, 0.01):
        asked_of = question.Question(**ASKED, alpha=alpha)
        found = answer.answer(asked_of, pair(d), None)
        half = stats.t.ppf(1 - alpha / 2, 7) * d.std(ddof=1) / np.sqrt(8)
        assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half))
        assert f"Answer, yes: a is lower than b by more than 0.004 x. a minus b = {d.mean():+.4f} ({1 - alpha:.0%} interval" in \
            answer.in_words(asked_of, found, "x", 8)
        assert "Not the answer yet, for the sweep is to be looked at once" in answer.in_words(asked_of, found, "x", 9)


def test_what_would_change_an_open_answer():
    asked_of = question.Question(**ASKED)
    d = (-0.0136, 0.0025, -0.0056, -0.0036, -0.0080)
    text = answer.what_would_change_it(asked_of, d)
    spread = np.std(d, ddof=1)
    n = ss.pairs_needed(lambda n: ss.power_of_difference(n, 0.004 / spread))
    beyond = ss.pairs_needed(lambda n: ss.power_of_difference(n, (-np.mean(d) - 0.004) / spread))
    assert f"what it is now ({np.mean(d):+.4f}), {beyond} show that it is more than 0.004" in text
    assert f"({spread:.4f} a pair) {n} pairs show that a difference of 0.004 is not 0" in text
    assert answer.what_would_change_it(asked_of, (0.1,)) == "More seeds are needed to say how many would decide."
    assert answer.in_words(asked_of, None, "nats a token", 5).endswith("none yet; no pair of seeds has ended.")
    few = (-0.03, -0.02, 0.01, 0.02)  # mean and spread of these are chance: nothing is planned with them
    assert answer.what_would_change_it(asked_of, few) == "More seeds are needed to say how many would decide."
    text = answer.what_would_change_it(question.Question(**ASKED, spread=0.01), few)
    assert "With the spread that was expected (0.0100 a pair)" in text and "what it is now" not in text
    anytime = question.Question(**ASKED, stop="anytime")
    assert "(no anytime-valid 95% interval yet, after 4 of at most 9 pairs" in answer.in_words(
        anytime, answer.answer(anytime, pair(few), None), "x", 9)


@pytest.mark.parametrize("stop", ["fixed", "anytime"])
@pytest.mark.parametrize("d", [0.0, 0.01])
def test_pairs_that_all_differ_by_the_same(stop, d):
    """An option that does nothing, or a coarse measure."""
    asked_of = question.Question(**ASKED, stop=stop)
    text = answer.in_words(asked_of, answer.answer(asked_of, pair([d] * 5), None), "x", 8)
    assert "More seeds are needed" in text


def test_a_diverged_run_is_said_and_ends_the_sweep():
    """Decided after 8 pairs; a run that was on its way then diverged."""
    asked_of = question.Question(**ASKED, stop="anytime")
    d = np.random.default_rng(6).normal(-0.03, 0.003, 8)
    arms = pair(d)
    assert answer.answer(asked_of, arms, None).decided
    arms["a"].runs[0.1, 8], arms["b"].runs[0.1, 8] = SimpleNamespace(loss=np.inf), SimpleNamespace(loss=0.0)
    found = answer.answer(asked_of, arms, None)
    assert found.impossible and not found.decided
    text = answer.in_words(asked_of, found, "x", 24)
    assert "none, for a diverged with a seed, and has no rate at which it can be compared. Over the 8 pairs that both finished, " in text
    assert f"a minus b = {d.mean():+.4f}" in text
    alone = answer.answer(asked_of, {"a": arms["a"]}, None)  # of the other arm nothing has ended: no pair
    assert alone.impossible and "Over the" not in answer.in_words(asked_of, alone, "x", 24)
    arms["a"].planned.add((0.2, 8))  # another rate, which may do
    found = answer.answer(asked_of, arms, None)
    assert not found.impossible and "compared so far" in answer.in_words(asked_of, found, "x", 24)


def test_rates_that_the_measuring_seeds_chose_are_said():
    asked_of = question.Question(**ASKED)
    arms = pair(np.random.default_rng(6).normal(-0.03, 0.003, 8))
    assert "optimistic" not in answer.in_words(asked_of, answer.answer(asked_of, arms, None), "x", 8)
    arms["a"].runs.update({(0.2, seed): SimpleNamespace(loss=1.0) for seed in range(8)})
    assert "Rates were chosen on the seeds that measure" in answer.in_words(asked_of, answer.answer(asked_of, arms, None), "x", 8)


@pytest.mark.parametrize("stop", ["fixed", "anytime"])
@pytest.mark.parametrize("mean, verdict", [(-0.03, "lower"), (0.03, "higher"), (0.0002, "equivalent")])
def test_what_would_undo_a_decided_answer(stop, mean, verdict):
    """So many more pairs that say the opposite, and no fewer, and the answer is open."""
    asked_of = question.Question(**ASKED, stop=stop)
    d = tuple(np.random.default_rng(7).normal(mean, 0.003, 24))
    found = answer.answer(asked_of, pair(d), None)
    assert found.verdict == verdict
    text = answer.in_words(asked_of, found, "x", 24)
    more, opposite, by = re.search(r" (\d+) more pairs? (without a difference|that differ by ([+-]0.0080)) would leave it open.$",
                                   text).groups()
    assert opposite.startswith("that") == (verdict == "equivalent") and (not by or float(by) * np.mean(d) > 0)
    other = float(by or 0)
    for n, decided in ((int(more), False), (int(more) - 1, True)):
        assert answer.answer(asked_of, pair((*d, *[other] * n)), None).decided == decided


def test_what_nothing_undoes_is_said():
    asked_of = question.Question(**{**ASKED, "margin": 0.0001}, stop="anytime")
    d = tuple(np.random.default_rng(8).normal(-1, 0.01, 200))
    assert "100 more pairs without a difference would not leave it open." in answer.in_words(
        asked_of, answer.answer(asked_of, pair(d), None), "x", 200)


@pytest.mark.parametrize("change, said", [(dict(runs_sha256=3), "'question' is not what sweep.py writes"), (dict(alpha=None), "")])
def test_a_question_that_was_edited_is_one_line_or_read(tmp_path, change, said, capsys):
    written = Written(tmp_path / "s", {"a": "mixed", "b": "baseline"}, lambda arm, lr, seed: 1.5 + 0.01 * (arm == "a") + 0.001 * seed)
    told = question.stated(question.checked(ASKED, ["a", "b"], "x.py"), [], None, 0)
    told = {key: value for key, value in {**told, **change}.items() if value is not None}
    plan = written.folder / "sweep.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "question": told}))
    status, _, err = run(summarize_sweep.main, [str(written.folder), "--batches=0"], capsys)
    assert status == (2 if said else 0), err
    if said:
        one_line(err, said)


def test_what_is_stated_anew_outlives_a_damaged_history():
    told = question.checked(ASKED, ["a", "b"], "x.py")
    for earlier in (None, "x", [{"sha256": "y"}]):
        found = question.stated(told, [], {"earlier": earlier, "sha256": 3}, 0)["earlier"]
        assert found == [*(earlier if isinstance(earlier, list) else []), {"sha256": 3}]


def test_a_margin_beyond_all_numbers_is_named():
    with pytest.raises(UserError, match="margin = 1000.*must be a number"):
        question.checked({**ASKED, "margin": 10 ** 400}, ["a", "b"], "x.py")
