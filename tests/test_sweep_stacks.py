"""sweep.py --stack: which runs are one process, what becomes of them, and that a stopped stack goes on."""
import signal
import sys

import pytest
from conftest import wait_for_step
from forked import Forked
from running import one_line, records, run
from test_sweep import rows

import sweep
import train
from experiments import stacks
from experiments.runs import make_runs
from experiments.sweep_file import load

ARMS = """arms = {'baseline': dict(config='config/demo_baseline.py', role='baseline'),
        'mixed': dict(config='config/demo_mixed.py', role='mixed'),
        'odd': dict(config='config/demo_baseline.py', freeze=['*wte*'])}"""
GRID = "grid = dict(learning_rate=[1e-3, 1e-2])"


def made(path, folder):
    return make_runs(load(str(path)), str(path), str(folder), 1)


def test_runs_of_an_arm_are_one_process_and_what_cannot_be_is_said(sweep_file, folder, monkeypatch):
    runs, said = made(sweep_file(GRID, seeds=range(3), arms=ARMS), folder), []
    assert stacks.make_units(runs, "off", 1, said.append) == [[each] for each in runs]
    assert stacks.make_units(runs, "auto", 1, said.append) == [[each] for each in runs]
    assert len(said) == 1 and "there is no GPU here, and on a CPU one process a run is faster" in said.pop()
    monkeypatch.setattr(stacks, "on_gpu", lambda main: True)
    monkeypatch.setattr(stacks, "fitting", lambda main, model, jobs: 4)
    units = stacks.make_units(runs, "auto", 1, said.append)
    assert [(unit[0].arm, len(unit)) for unit in units] == [("baseline", 3)] * 2 + [("mixed", 3)] * 2 + [("odd", 1)] * 6
    assert said == ["arm 'odd': cannot be stacked: freeze; its runs are done one by one"]
    assert {each.hash for unit in units for each in unit} == {each.hash for each in runs}
    units = stacks.make_units(runs, "auto", 1, said.append, looked_at={"mixed"})  # 3 of 6 were already as many as fit
    assert sorted(len(unit) for unit in units) == [1] * 6 + [3] * 4
    monkeypatch.setattr(stacks, "fitting", lambda main, model, jobs: 64)
    units = stacks.make_units(runs, "auto", 1, said.append, looked_at={"mixed"})
    assert [(unit[0].arm, len(unit)) for unit in units if len(unit) > 1] == [("baseline", 6), ("mixed", 3), ("mixed", 3)]
    with pytest.raises(stacks.UserError, match="--stack=4: arm 'odd': cannot be stacked: freeze; --stack=auto"):
        stacks.make_units(runs, 4, 1, said.append)


def test_the_estimate_of_memory_grows_with_what_takes_it(sweep_file, folder):
    path = sweep_file(arms=ARMS)
    main, model = stacks.resolve(*next((r.config, r.overrides) for r in made(path, folder) if r.arm == "mixed"), "here")
    small = stacks.bytes_of_a_run(main, model)
    main.batch_size *= 2
    assert 1.5 < stacks.bytes_of_a_run(main, model) / small < 2
    model.n_layer *= 2
    assert stacks.bytes_of_a_run(main, model) > 2.5 * small


def test_on_a_cpu_auto_is_one_process_a_thread(sweep_file, folder, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "pick_device", lambda wanted: "cpu")
    for more, said in ((["--stack=auto"], "3 at a time, 1 threads each"), (["--stack=auto", "--jobs=2"], "2 at a time, 1 threads each"),
                       ([], "1 at a time, 3 threads each")):
        status, out, err = run(sweep.main, [sweep_file(), f"--out={folder}", "--dry-run", "--threads=3", *more], capsys)
        assert status == 0 and said in out, err
    monkeypatch.setattr(sweep, "pick_device", lambda wanted: "cuda:0")
    assert "1 at a time" in run(sweep.main, [sweep_file(), f"--out={folder}", "--dry-run", "--threads=3", "--stack=auto"], capsys)[1]


@pytest.mark.parametrize("value", ["0", "-3", "some"])
def test_a_wrong_number_is_one_line(value, sweep_file, folder, capsys):
    status, _, err = run(sweep.main, [sweep_file(), f"--out={folder}", f"--stack={value}"], capsys)
    assert status == 2 and not folder.exists()
    one_line(err, f"--stack={value}")


def test_a_stack_that_crashes_is_done_in_halves(sweep_file, folder, stub, capsys):
    """Stubs: there is no memory for two runs."""
    script = """if True:
        import json, os, sys
        runs = json.load(open(sys.argv[1].partition("=")[2]))
        assert len(os.environ["RUN_LOCK"].split()) == len(runs) > 1
        print("error: out of device memory")
        sys.exit(2)"""
    status, out, err = run(stub, [sweep_file(GRID, seeds=range(20, 23)), f"--out={folder}", "--stack=3"], capsys,
                           stack_command=(sys.executable, "-c", script))
    assert status == 0, err
    for size in (3, 2):
        assert out.count(f"a stack of {size} runs crashed, which are done in two halves: exit status 2 of the stack: error: out of device "
                         "memory") == 2
    table = rows(folder)
    assert len(table) == 6 and {row["status"] for row in table.values()} == {"finished"}
    assert sorted(int(row["attempts"]) for row in table.values()) == [2, 2, 3, 3, 3, 3]


def test_a_stopped_stack_goes_on_and_its_runs_are_those_alone(sweep_file, folder, tmp_path, capsys):
    path = sweep_file("grid = dict(learning_rate=[1e-3, 1e-2, 1e30])", seeds=[3], arms="""arms = {'mixed': dict(
        config='config/demo_mixed.py', role='mixed', grad_clip=0.0, dtype='float32')}""")
    arguments = [str(path), f"--out={folder}", "--stack=8", "--threads=1"]
    names = [each.folder for each in made(path, folder)]
    with Forked("sweep", arguments) as child:
        wait_for_step(names[0], 2, child)
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate()
    assert child.returncode == 0 and "SIGTERM: saving 3 runs" in out and "2 runs are left" in out, out + err
    status, out, err = run(sweep.main, arguments, capsys)
    assert status == 0, err
    table = rows(folder)
    assert {row["lr"]: (row["status"], row["attempts"]) for row in table.values()} == {
        "0.001": ("finished", "2"), "0.01": ("finished", "2"), "1e+30": ("diverged", "1")}
    alone = next(each for each in made(path, folder) if each.lr == 1e-2)
    assert run(train.main, ["config/demo_mixed.py", *stacks.command_of(alone, 1)[1:-2], f"--out_dir={tmp_path / 'alone'}"], capsys)[0] == 0
    mine, theirs = ({(r["step"], key): r[key] for r in records(each) for key in ("loss", "val_loss") if key in r}
                    for each in (alone.folder, tmp_path / "alone"))
    assert mine.keys() == theirs.keys() and max(abs(mine[key] - theirs[key]) for key in mine) < 1e-4
