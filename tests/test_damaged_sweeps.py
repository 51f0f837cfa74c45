"""What a summary makes of a sweep's folder that is not as sweep.py left it: one line, exit status 2; and of runs that have no result."""
import json
import re

import pytest
from running import one_line, run
from test_summarize import ARMS, Written, known

import summarize_sweep
from common.errors import UserError
from experiments import answer, question
from experiments.comparison import summarize

TOLD = {"hypothesis": "x", "arm": "mixed", "against": "flat", "margin": 0.004, "sha256": "x", "earlier": [], "ended_before": 0}


def test_damaged_sweeps_get_one_line(tmp_path, capsys):
    def says(*parts):
        status, _, err = run(summarize_sweep.main, [tmp_path / "s"], capsys)
        assert status == 2
        one_line(err, *parts)
    says("s: no such folder")
    (tmp_path / "s").mkdir()
    says("sweep.json is missing")
    (tmp_path / "s").rmdir()
    one_line(run(summarize_sweep.main, [], capsys)[2], "sweep")
    Written(tmp_path / "s", ARMS, known)
    names = "sweep.json", "runs.csv", f"runs/mixed-{3e-3}-2/metrics.jsonl"
    plan, table, metrics = (tmp_path / "s" / name for name in names)
    good = {f: f.read_text() for f in (plan, table, metrics)}
    for file, content, parts in (
            (plan, "{", ["not JSON"]),
            (plan, "{}", ["sweep.json: 'name' is missing"]),
            (plan, "3", ["sweep.json: 'name' is missing"]),
            (plan, good[plan].replace('"arms": [', '"arms": [{}, '), ["an arm is not what sweep.py writes"]),
            (plan, good[plan].replace('"seeds": [1, 2, 3, 4]', '"seeds": 3'), ["'seeds' is missing or not"]),
            (table, good[table].splitlines()[0] + "\n", ["no run of", "has ended yet"]),
            (table, "a,b\n1,2\n", ["is not a table of sweep.py"]),
            (table, good[table].replace(",finished,", ",fine,"), ["line 2", "is damaged", "'fine'"]),
            (table, good[table].replace(",0.001,", ",fast,"), ["is damaged", "'fast'"]),
            (table, good[table].replace(",1000,6000,", ",1000,many,"), ["line 2", "is damaged", "'many'"]),
            (table, good[table].replace(",1000,6000,", ",inf,6000,"), ["line 2", "parameters is inf"]),
            (table, good[table].replace(",0.001,", ",-1,"), ["is damaged", "lr is -1"]),
            (table, re.sub(r",(2\.\d+),", ",1e300,", good[table], count=1), ["is damaged", "a loss of 1e300"]),
            (table, good[table].replace(",{}", "," + "[" * 100_000), ["is damaged"]),
            (plan, "[" * 100_000, ["not JSON"]),
            (plan, good[plan].replace('"role": "flat"', '"role": "level"'), ["an arm is not what"]),
            (plan, good[plan].replace('"grid": {"learning_rate": [', '"grid": {"learning_rate": ["x", '), ["grid of 'learning_rate'"]),
            (plan, good[plan].replace('"grid": {', '"grid": {"n_layer": 3, '), ["grid of 'n_layer'"]),
            (plan, good[plan].replace('"seeds": [1,', '"seeds": ["1",'), ["'seeds' or 'file'"]),
            (plan, good[plan].replace('"file": "', '"file": "\\u0000'), ["'seeds' or 'file'"]),
            (plan, good[plan].replace('"name": "s"', '"name": "\\ud800"'), ["not Unicode"]),
            (plan, good[plan].replace('"defaults": {', '"defaults": {"target_val_loss": [1]'), ["target_val_loss", "not a number"]),
            *((plan, good[plan].replace('"defaults": {', f'"question": {text}, "defaults": {{'), ["'question' is not what"])
              for text in ('"x"', "3", "{}", json.dumps({**TOLD, "margin": "x"}), json.dumps({**TOLD, "earlier": None}))),
            (metrics, '{"step":\n', ["metrics.jsonl is damaged"]),
            (metrics, good[metrics] + "3\n", ["metrics.jsonl is damaged"]),
            (metrics, good[metrics].replace('"val_loss": 1', '"val_loss": "1", "was": 1'), ["metrics.jsonl is damaged"]),
            (metrics, good[metrics].replace('"loss": 1.0', '"loss": null'), ["metrics.jsonl is damaged"]),
            (metrics, good[metrics].replace('"val_loss": 1', f'"val_loss": {"9" * 400}, "was": 1'), ["metrics.jsonl is damaged"]),
            (metrics, good[metrics].replace('"tokens": 1000, ', ""), ["metrics.jsonl is damaged"]),
            (metrics, good[metrics].replace('"tokens": 1000, ', '"tokens": NaN, '), ["metrics.jsonl is damaged"]),
            (metrics, good[metrics].replace('"val_loss": 1', '"val_loss": Infinity, "was": 1'), ["metrics.jsonl is damaged"]),
            (metrics, good[metrics].replace('"val_loss": 1', '"val_loss": null, "was": 1'), ["metrics.jsonl is damaged"])):
        file.write_text(content)
        says(*parts)
        file.write_text(good[file])
    table.unlink()
    says("no run of", "has ended yet")


# ----------------------------------------------------------------------------------------------------------------------
# questions

def asked(folder, losses, told, seeds=range(1, 9), **more):
    """A sweep of two arms with one rate and a question."""
    written = Written(folder, {"a": "mixed", "b": "flat"}, losses, lrs=[1e-3], seeds=list(seeds), **more)
    plan = json.loads((folder / "sweep.json").read_text())
    stated = question.stated(question.checked(told, ["a", "b"], "x"), [], None, 0)
    (folder / "sweep.json").write_text(json.dumps({**plan, "question": stated}))
    return written


ASKED = dict(hypothesis="a is better", arm="a", against="b", margin=0.004)


def noise(arm, lr, seed):
    return 2.0 + 0.001 * (seed % 3) + (0.0 if arm == "b" else -0.01 + 0.0004 * (seed % 2))


def test_the_answer_is_as_asked_whatever_the_table_is_of(tmp_path):
    written = asked(tmp_path / "s", noise, ASKED)
    first, best, chosen = (written.summary(**options)[0] for options in ({}, dict(metric="best"), dict(selection_seed=2)))
    assert "Answer, yes: a is lower than b by more than 0.004 nats a token" in first.answered
    assert first.answered == best.answered == chosen.answered


def test_an_equivalence_that_is_shown_is_said_where_the_interval_excludes_zero_too(tmp_path):
    """The 95% interval reaches beyond the margin, the 90% interval of TOST does not."""
    d = [-0.0022 + 0.0027 * x for x in (-1.2, -0.9, -0.5, -0.2, 0.0, 0.2, 0.5, 0.9, 1.0, 0.2)]
    found = summarize(str(asked(tmp_path / "s", lambda a, lr, s: 2.0 + (d[s - 1] if a == "a" else 0), {**ASKED, "margin": 0.0034},
                                seeds=range(1, 11)).folder), batches=0)
    assert found.answer.low < -0.0034 and found.answer.high < 0 and found.answer.p_equivalent < 0.05
    assert found.answer.verdict == "equivalent" and "no: a and b differ by less than 0.0034" in found.answered


def test_pairs_that_have_no_result_are_not_waited_for(tmp_path):
    def crashed(arm, lr, seed):
        return "crashed" if (arm, seed) == ("a", 3) else noise(arm, lr, seed)
    said = asked(tmp_path / "s", crashed, ASKED).summary()[0].answered
    assert "Answer, yes: a is lower" in said and "7 of 8 pairs" in said and "1 of the planned pairs has no result" in said

    def diverged(arm, lr, seed):
        return "diverged" if (arm, seed) == ("a", 3) else noise(arm, lr, seed)
    said = asked(tmp_path / "t", diverged, ASKED).summary()[0].answered
    assert "none, for a diverged with a seed, and has no rate at which it can be compared. Over the 7 pairs that both finished" in said
    said = asked(tmp_path / "u", lambda arm, lr, seed: "crashed" if arm == "a" else noise(arm, lr, seed), ASKED).summary()[0].answered
    assert "Answer: none; the runs have ended, and no pair of seeds has a result" in said


def test_runs_that_are_not_needed_are_not_missing(tmp_path, capsys):
    def half(arm, lr, seed):
        return noise(arm, lr, seed) if seed < 9 else None
    written = asked(tmp_path / "s", half, {**ASKED, "stop": "anytime"}, seeds=range(1, 21))
    assert run(summarize_sweep.main, [written.folder], capsys)[0] == 0
    text = (written.folder / "summary" / "summary.md").read_text()
    assert "Of 40 planned runs 16 finished; 24 are not needed, for the question is decided." in text
    assert "is not complete" not in text and "Answer, yes" in text and "no result" not in text


@pytest.mark.parametrize("alpha, level", [(0.05, "95%"), (0.025, "97.5%"), (0.001, "99.9%")])
def test_the_level_is_said_in_full(alpha, level):
    d = answer.paired_difference({s: 1.0 + 0.001 * s for s in range(5)}, dict.fromkeys(range(5), 1.01))
    found = answer.Answer("lower", d, -0.02, -0.005, 0.9)
    assert f"({level} interval" in answer.in_words(question.Question(**ASKED, alpha=alpha), found, "x", 5)


def test_another_target_is_not_put_on_steps_to_the_sweeps_own(tmp_path):
    written = Written(tmp_path / "s", ARMS, known)
    plan = json.loads((written.folder / "sweep.json").read_text())
    (written.folder / "sweep.json").write_text(json.dumps({**plan, "defaults": {"target_val_loss": 1.7}}))
    with pytest.raises(UserError, match="--target=2.5: the runs of this sweep stopped at a loss of 1.7"):
        summarize(str(written.folder), target=2.5, batches=0)
    assert summarize(str(written.folder), metric="final", target=2.5, batches=0).target == 2.5
