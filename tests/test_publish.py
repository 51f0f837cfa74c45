"""python -m experiments.publish: what is kept of a sweep says the same as the sweep."""
import csv
import json
import math
import re
import shutil

import pytest
from running import one_line, run
from test_summarize import ARMS, Written, known

from common.errors import UserError
from experiments import publish
from experiments.comparison import summarize
from experiments.curves import read_kept


def rows_of(folder):
    with open(folder / "runs.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_the_summary_of_what_is_kept_is_the_sweeps(tmp_path, capsys):
    written, to = Written(tmp_path / "sweep", ARMS, known), tmp_path / "kept"
    table = (written.folder / "runs.csv").read_text()
    (written.folder / "texts").mkdir()
    (written.folder / "texts" / "mixed-gate.csv").write_text("seed,piece 1\n1,0.5\n")
    (written.folder / "texts" / "notes.txt").write_text("mine")
    status, out, err = run(publish.main, [str(written.folder), f"--to={to}"], capsys)
    assert status == 0 and not err and "48 runs, 240 evaluations of 48 of them" in out
    assert sorted(p.name for p in to.iterdir()) == ["curves.jsonl", "runs.csv", "sweep.json", "texts"]
    assert [p.name for p in (to / "texts").iterdir()] == ["mixed-gate.csv"]
    first, second = (summarize(str(folder), batches=0) for folder in (written.folder, to))
    assert first.headline == second.headline and first.budgets == second.budgets
    for one, other in zip(first.arms, second.arms):
        assert one.to_target == other.to_target and one.at_budget.keys() == other.at_budget.keys() != set()
        for key, losses in one.at_budget.items():
            assert losses == pytest.approx(other.at_budget[key], rel=1e-5)
        for seed, curve in one.curves.items():
            assert curve.column("val_loss") == pytest.approx(other.curves[seed].column("val_loss"), rel=1e-5)
    curve = read_kept(str(to))[f"mixed-{3e-3}-2"]
    assert curve.evaluations[0]["geometry/block0/edge_share"] == 0.1 and not curve.steps
    assert math.isnan(curve.evaluations[0]["geometry/block1/curvature_head1"])
    assert table == (written.folder / "runs.csv").read_text()  # of the sweep nothing is changed


def test_hosts_are_left_out_and_digits_are_six_but_of_losses(tmp_path, capsys):
    written, to = Written(tmp_path / "sweep", {"baseline": "baseline"}, lambda *_: 1.23456789, lrs=[1e-3]), tmp_path / "kept"
    with open(written.folder / "runs.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    with open(written.folder / "runs.csv", "w", newline="") as f:
        table = csv.DictWriter(f, rows[0])
        table.writeheader()
        table.writerows({**row, "host": "at-home"} for row in rows)
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0
    assert "at-home" not in "".join(p.read_text() for p in to.iterdir())
    assert [row["val_loss"] for row in rows_of(to)] == ["1.23456789"] * 4
    last = json.loads((to / "curves.jsonl").read_text().splitlines()[4])
    assert last["val_loss"] == 1.23456789  # rounded, a run would miss a target that is its own loss
    found = summarize(str(to), batches=0)
    assert found.target == 1.23456789 and found.arms[0].reached_share() == 1


def test_how_unlike_the_runs_were_is_kept_without_names(tmp_path, capsys):
    written, to = Written(tmp_path / "sweep", ARMS, known), tmp_path / "kept"
    for folder in sorted((written.folder / "runs").iterdir()):
        env = {"host": "at-home", "cpu": "secret 1" if folder.name.startswith("mixed") else "secret 2", "threads": 1,
               "git_commit": "a" * 40, "git_dirty": folder.name.startswith("gate"), "torch": "2.13.0"}
        if folder.name == f"gate-{3e-3}-2":  # not known yet
            continue
        (folder / "env.json").write_text(json.dumps(env))
        (folder / "summary.json").write_text(json.dumps({"stacked": 4} if folder.name.startswith("flat") else {}))
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0
    text = "".join(p.read_text() for p in to.iterdir())
    assert "at-home" not in text and "secret" not in text
    own, kept = (summarize(str(folder), batches=0) for folder in (written.folder, to))
    assert own.notes[-6:] == kept.notes[-6:] and own.headline == kept.headline and "seconds" not in own.headline
    said = " ".join(kept.notes)
    for note in ("with what code 1 of the 16 compared runs were made", "from 2 machines",
                 "differ in how many runs were trained together: 1, 4.", "not committed",
                 "Training seconds are not compared: the runs are from 2 machines."):
        assert note in said
    assert kept.budgets.keys() == {"step", "tokens"}
    # the study goes on elsewhere: the first runs are gone, a third machine's is new
    shutil.rmtree(written.folder / "runs" / f"mixed-{3e-3}-2")
    (written.folder / f"runs/gate-{3e-3}-2" / "env.json").write_text(json.dumps({"host": "third"}))
    before = {line["run"]: line for line in map(json.loads, (to / "surroundings.jsonl").read_text().splitlines())}
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0
    after = {line["run"]: line for line in map(json.loads, (to / "surroundings.jsonl").read_text().splitlines())}
    assert after.pop(f"gate-{3e-3}-2")["machine"] == 3 and after == before
    (to / "surroundings.jsonl").write_text('{"step": 1}')
    status, _, err = run(publish.main, [str(written.folder), f"--to={to}"], capsys)
    assert status == 2
    one_line(err, "surroundings.jsonl is damaged")


def machines(folder):
    """As the summary counts them."""
    found = re.findall(r"The compared runs are from (\d+) machines", " ".join(summarize(str(folder), batches=0).notes))
    return int(found[0]) if found else 1


def made_on(written, host, which="", **more):
    """env.json of the runs whose folder begins with `which`."""
    for folder in (written.folder / "runs").iterdir():
        if folder.name.startswith(which):
            (folder / "env.json").write_text(json.dumps({"host": host, **more}))


def test_machines_of_two_studies_do_not_become_one(tmp_path, capsys):
    """Each numbers its own from 1. The rows of the second were copied, its runs were not."""
    written, to = Written(tmp_path / "sweep", ARMS, known), tmp_path / "kept"
    made_on(written, "B", cpu="B")
    table = (written.folder / "runs.csv").read_text().splitlines(keepends=True)
    (written.folder / "runs.csv").write_text("".join(row for row in table if ",mixed," not in row))
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0
    copied = [row.split(",")[0] for row in table if ",mixed," in row]
    assert len(copied) > 1
    (written.folder / "runs.csv").write_text("".join(table))
    for folder in (written.folder / "runs").glob("mixed-*"):
        shutil.rmtree(folder)
    (written.folder / "surroundings.jsonl").write_text("".join(json.dumps({"run": name, "machine": 1}) + "\n" for name in copied))
    assert machines(written.folder) == 2
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0
    assert machines(to) == 2


def test_one_machine_is_not_two(tmp_path, capsys):
    written, to = Written(tmp_path / "sweep", ARMS, known), tmp_path / "kept"
    made_on(written, "h", cpu="c")
    made_on(written, "h", "mixed")  # by a version that did not write the cpu
    assert machines(written.folder) == 1
    made_on(written, "h", "mixed", cpu="c")
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0
    shutil.copy(to / "surroundings.jsonl", written.folder)
    for folder in (written.folder / "runs").glob("mixed-*"):
        shutil.rmtree(folder)
    assert machines(written.folder) == machines(to) == 1
    for line in ('{"run": "a", "machine": [1]}', '{"run": "a", "machine": 1, "stacked": [1]}'):
        (written.folder / "surroundings.jsonl").write_text(line)
        with pytest.raises(UserError, match="surroundings.jsonl is damaged"):
            machines(written.folder)


def test_what_failed_can_be_tried_again(tmp_path, capsys):
    written, to = Written(tmp_path / "sweep", ARMS, known), tmp_path / "kept"
    (written.folder / "texts").mkdir()
    (written.folder / "texts" / "a.csv").write_text("x\n")
    env = written.folder / f"runs/mixed-{3e-3}-2" / "env.json"
    env.write_text("{")
    status, _, err = run(publish.main, [str(written.folder), f"--to={to}"], capsys)
    assert status == 2 and not to.exists()
    one_line(err, "env.json is damaged")
    env.unlink()
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0 and (to / "texts" / "a.csv").exists()
    before = (written.folder / "runs.csv").read_text()
    status, _, err = run(publish.main, [str(written.folder), f"--to={written.folder}"], capsys)
    assert status == 2 and (written.folder / "runs.csv").read_text() == before
    one_line(err, "the sweep's own folder")


def test_curves_stay_when_the_runs_are_gone(tmp_path, capsys):
    """A study that goes on elsewhere: its table was copied, its first runs were not."""
    written, to = Written(tmp_path / "sweep", ARMS, known), tmp_path / "kept"
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0
    whole = read_kept(str(to))
    gone = f"mixed-{3e-3}-2"
    shutil.rmtree(written.folder / "runs" / gone)
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0
    assert read_kept(str(to)).keys() == whole.keys() and read_kept(str(to))[gone] == whole[gone]
    (to / "curves.jsonl").unlink()
    status, out, err = run(publish.main, [str(written.folder), f"--to={to}"], capsys)
    assert status == 0 and "of 47 of them" in out and "no curve of mixed, lr 0.003, seed 2" in err


def test_nothing_is_lost(tmp_path, capsys):
    written, to = Written(tmp_path / "sweep", ARMS, known), tmp_path / "kept"
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0
    fewer = Written(tmp_path / "again", ARMS, lambda a, lr, s: known(a, lr, s) if s < 4 else None)
    plan = json.loads((fewer.folder / "sweep.json").read_text())
    before = (to / "runs.csv").read_bytes()
    for name, said in (("sweep", "12 runs that"), ("other", "another sweep, sweep")):
        (fewer.folder / "sweep.json").write_text(json.dumps({**plan, "name": name}))
        status, _, err = run(publish.main, [str(fewer.folder), f"--to={to}"], capsys)
        assert status == 2 and (to / "runs.csv").read_bytes() == before
        one_line(err, said)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    status, _, err = run(publish.main, [str(written.folder), f"--to={tmp_path / 'mine'}"], capsys)
    assert status == 2
    one_line(err, "holds no sweep")
    none = Written(tmp_path / "none", ARMS, lambda *_: None)
    status, _, err = run(publish.main, [str(none.folder), f"--to={tmp_path / 'new'}"], capsys)
    assert status == 2 and not (tmp_path / "new").exists()
    one_line(err, "nothing to publish")


@pytest.mark.parametrize("line", ["not json", "[1]", '{"step": 1}', '{"run": "a", "step": 1}',
                                  '{"run": "a", "val_loss": "x", "step": 1, "tokens": 1, "train_seconds": 1}'])
def test_damaged_curves_are_named(line, tmp_path, capsys):
    written, to = Written(tmp_path / "sweep", ARMS, known), tmp_path / "kept"
    assert run(publish.main, [str(written.folder), f"--to={to}"], capsys)[0] == 0
    with open(to / "curves.jsonl", "a") as f:
        f.write(line + "\n")
    status, _, err = run(publish.main, [str(written.folder), f"--to={to}"], capsys)
    assert status == 2
    one_line(err, "curves.jsonl is damaged: not the lines that experiments.publish writes")
