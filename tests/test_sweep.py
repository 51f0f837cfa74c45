"""sweep.py: what is run and what is skipped, crashes, signals, kills, launchers. Most runs here are of stub_trainer.py; those
that must be exact are real. What is said of a sweep file: test_sweep_file.py."""
import contextlib
import csv
import errno
import fcntl
import glob
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from running import one_line, records, run
from test_sweep_file import ONE, runs_of

import sweep
from common import locks
from common.whole_files import write_file
from experiments.after import run_after
from experiments.rows import COLUMNS, Rows
from experiments.terminal import Table

ROOT = pathlib.Path(__file__).resolve().parent.parent


def rows(folder):
    with open(folder / "runs.csv", newline="") as f:
        return {row["arm"] + " " + row["seed"] + " " + row["lr"]: row for row in csv.DictReader(f)}


def starts(folder, name):
    """What the stub was started with, each time."""
    file, = glob.glob(str(folder / "runs" / name / "starts"))
    return [json.loads(line) for line in pathlib.Path(file).read_text().splitlines()]


def wait_for(condition, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited too long"
        time.sleep(0.02)


# ----------------------------------------------------------------------------------------------------------------------
# the runs, with the stub

def test_outcomes_are_recorded_and_what_ended_is_skipped(sweep_file, folder, stub, capsys):
    path = sweep_file("grid = dict(learning_rate=[3e-3])", seeds=[*range(6), 12])
    status, out, err = run(stub, [path, f"--out={folder}", "--jobs", "3", "--threads", "7"], capsys)
    assert status == 1
    table = rows(folder)
    assert {int(r["seed"]): (r["status"], int(r["attempts"])) for r in table.values()} == {
        0: ("finished", 1), 1: ("finished", 2), 2: ("crashed", 2), 3: ("crashed", 2), 4: ("crashed", 2),
        5: ("diverged", 1), 12: ("finished", 2)}
    good, bad = table["baseline 0 0.003"], table["baseline 2 0.003"]
    assert tuple(good) == COLUMNS
    assert [good[k] for k in ("step", "tokens", "val_loss", "best_val_loss", "best_step", "parameters",
                              "flops_per_token", "target_step")] == ["7", "70", "2.5", "2.25", "5", "11", "66", ""]
    assert (bad["step"], bad["tokens"], bad["val_loss"]) == ("3", "30", "")
    assert json.loads(good["overrides"])["learning_rate"] == 3e-3 and (folder / good["dir"] / "log.txt").exists()
    assert {(s["OMP_NUM_THREADS"], s["threads"]) for s in starts(folder, "*seed0*")} == {("2", "2")}
    for part in ("exit status 1: RuntimeError: no luck", "killed by SIGKILL",
                 "exit status 2: error: out of device memory", "3 runs crashed", "--retry-crashed"):
        assert part in err, part
    assert len(out.splitlines()) == 8  # a line for each run: this is no terminal
    assert json.loads((folder / "sweep.json").read_text())["arms"][0]["role"] == "baseline"

    before = (folder / "runs.csv").read_text()
    status, out, err = run(stub, [path, f"--out={folder}"], capsys)
    assert status == 1 and "7 runs, 0 to do" in out and "no luck" in err
    assert (folder / "runs.csv").read_text() == before and len(starts(folder, "*seed0*")) == 1
    status, out, _ = run(stub, [path, f"--out={folder}", "--retry-crashed", "--dry-run"], capsys)
    assert sum(line.startswith("python ") for line in out.splitlines()) == 3
    status, out, _ = run(stub, [path, f"--out={folder}", "--retry-crashed"], capsys)
    assert status == 1 and "3 to do" in out and len(starts(folder, "*seed2*")) == 4 and len(rows(folder)) == 7


def test_a_changed_default_gives_new_runs_and_a_renamed_arm_none(sweep_file, folder, stub, capsys):
    args = [f"--out={folder}"]
    assert run(stub, [sweep_file(), *args], capsys)[0] == 0
    old = (folder / "runs.csv").read_text()
    status, out, _ = run(stub, [sweep_file(ONE % "role='baseline'"), *args], capsys)
    assert status == 0 and " 0 to do" in out and list(rows(folder)) == ["a 0 0.003"]
    status, out, _ = run(stub, [sweep_file("budget = dict(steps=41)"), *args], capsys)
    assert status == 0 and " 1 to do" in out
    only, = rows(folder).values()  # one row, of the sweep as it is now
    assert json.loads(only["overrides"])["max_iters"] == 41
    status, out, _ = run(stub, [sweep_file(), *args], capsys)
    assert status == 0 and " 0 to do" in out and (folder / "runs.csv").read_text() == old


def test_no_row_is_lost_between_the_two_tables(sweep_file, folder, stub, capsys, monkeypatch):
    """Stopped at any write while rows change sides, every row is still in one of the tables."""
    old, new = sweep_file(), "budget = dict(steps=41)"
    assert run(stub, [old, f"--out={folder}"], capsys)[0] == 0
    table = Rows(str(folder))
    for text in (new, ""):  # there, and back again
        runs = runs_of(sweep_file(text), folder)
        for stop_at in (1, 2, 3, 4):
            writes = iter(range(1, 9))

            def write(path, data):
                if next(writes) == stop_at:
                    raise KeyboardInterrupt
                write_file(path, data)
            monkeypatch.setattr("experiments.rows.write_file", write)
            with contextlib.suppress(KeyboardInterrupt):
                table.sort_out(runs, False)
            assert len(table.known()) == 1
    assert len(table.read()) == 1


def test_another_text_under_the_same_name_is_refused(sweep_file, folder, stub, data_dir, capsys):
    path = sweep_file()
    assert run(stub, [path, f"--out={folder}"], capsys)[0] == 0
    home, = (folder / "runs").iterdir()
    place, told = data_dir / "words" / "meta.json", folder / "sweep.json"
    meta, plan = (json.loads(file.read_text()) for file in (place, told))
    for changed, said in ((dict(sha256="cd", corpus="new text"), ("another text (test text)", "new text")),
                          (dict(characters=meta["characters"][::-1]), ("other tokens",))):
        place.write_text(json.dumps({**meta, **changed}))
        status, _, err = run(stub, [path, f"--out={folder}"], capsys)
        assert status == 2
        one_line(err, *said)
    shutil.move(home, folder / "elsewhere")  # the table goes on, on another machine
    assert run(stub, [path, f"--out={folder}"], capsys)[0] == 2 and json.loads(told.read_text()) == plan
    shutil.move(folder / "elsewhere", home)
    place.write_text(json.dumps({**meta, "sha256": "cd"}))  # and a sweep that kept nothing of what it read
    told.write_text(json.dumps({key: value for key, value in plan.items() if key != "inputs"}))
    (home / "config.json").write_text(json.dumps({"corpus": "old text", "corpus_sha256": "ab"}))
    status, _, err = run(stub, [path, f"--out={folder}"], capsys)
    assert status == 2
    one_line(err, "another text (old text)", "test text")


def test_a_damaged_table_is_one_line(sweep_file, folder, stub, capsys):
    path = sweep_file()
    assert run(stub, [path, f"--out={folder}"], capsys)[0] == 0
    (folder / "runs.csv").write_text("hash,arm\nx,y\n")
    status, _, err = run(stub, [path, f"--out={folder}"], capsys)
    assert status == 2
    one_line(err, "runs.csv", "not a table")


def test_a_run_in_use_is_left_alone_until_it_is_free(sweep_file, folder, stub, tmp_path, capsys):
    path = sweep_file(seeds=(0, 8))
    first = runs_of(path, folder)[0]
    os.makedirs(first.folder)
    holder = subprocess.Popen([sys.executable, "-c", f"""
import fcntl, os, time
home, table = {first.folder!r}, {str(folder / 'runs.csv')!r}
lock = open(home + "/lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print("have it", flush=True)
while not (os.path.exists(table) and ",finished," in open(table).read()):  # until the other run has ended
    time.sleep(0.02)
print(os.path.exists(home + "/starts"), flush=True)
"""], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "have it\n"
    status, out, _ = run(stub, [path, f"--out={folder}"], capsys)
    assert holder.communicate(timeout=10)[0] == "False\n"  # not touched while it was held
    assert status == 0 and "in use by another process" in out
    assert [r["status"] for r in rows(folder).values()] == ["finished"] * 2 and len(starts(folder, "*seed0*")) == 1


def test_gpus_go_round(sweep_file, folder, stub, capsys, monkeypatch):
    monkeypatch.setattr("experiments.launchers.gpus_of_this_machine", lambda: ["4", "6"])
    assert run(stub, [sweep_file(seeds=(8, 9, 10, 11)), f"--out={folder}", "--jobs=2"], capsys)[0] == 0
    used = [starts(folder, f"*seed{s}-*")[0]["CUDA_VISIBLE_DEVICES"] for s in (8, 9, 10, 11)]
    assert used == ["4", "6", "6", "6"]  # the first is slow and keeps its own


def test_commands_after_the_runs_run_once(sweep_file, folder, stub, tmp_path, capsys):
    script = tmp_path / "analyse.py"
    script.write_text("import sys; open(sys.argv[1], 'a').write(' '.join(sys.argv[2:]) + '\\n')")
    path = sweep_file(f"after = ['python {script} {{out}}/said {{runs}}']", seeds=(0, 5, 9))
    for _ in range(2):
        assert run(stub, [path, f"--out={folder}"], capsys)[0] == 0
    said, = (folder / "said").read_text().splitlines()
    assert said.split() == [str(folder / r["dir"]) for r in rows(folder).values() if r["status"] == "finished"]
    path = sweep_file("after = ['python -c \"raise SystemExit(4)\"']", seeds=(0,))
    status, _, err = run(stub, [path, f"--out={folder}"], capsys)
    assert status == 1 and "status 4" in err
    (folder / "after.json").write_text("{")  # damaged: they are run again
    assert run(stub, [path, f"--out={folder}"], capsys)[0] == 1


def test_commands_after_the_runs_are_one_process_s(folder, capsys):
    folder.mkdir()
    with locks.try_lock(folder / "after.lock"):
        assert run_after(["python -c 'raise SystemExit(4)'"], str(folder), [], {})
    assert "another process of this sweep" in capsys.readouterr().out
    assert not run_after(["python -c 'raise SystemExit(4)'"], str(folder), [], {})
    capsys.readouterr()
    assert not run_after(["nosuchprogram {runs}"], str(folder), [], {})
    one_line(capsys.readouterr().err, "did not start (No such file or directory: nosuchprogram); the next start of the sweep runs it again")


def test_rows_on_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(fcntl, "flock", flock)
    table = Rows(str(tmp_path))
    for name in "ab":
        table.put({**dict.fromkeys(COLUMNS, ""), "hash": name})
    assert list(table.read()) == ["a", "b"] and capsys.readouterr().err.count("has no locks") == 1


def trainers(part):
    """Processes of the stub whose command line has this in it."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = pathlib.Path(path).read_bytes().split(b"\0")
            if any(word.endswith(b"stub_trainer.py") for word in words) and any(part.encode() in word for word in words):
                found.append(int(path.split("/")[2]))
    return found


def test_a_run_whose_weights_never_come_is_not_waited_for(sweep_file, folder, stub, capsys):
    """The trainer of a is stopped from outside, by nobody who stops the sweep: b, which begins with its weights, is left."""
    path = sweep_file("", seeds=[6], arms="arms = {'a': dict(config='config/demo_baseline.py'), "
                                          "'b': dict(config='config/demo_baseline.py', start='a', weight_decay=0.02)}")
    sender = when(lambda: glob.glob(str(folder / "runs" / "a-*seed6*" / "metrics.jsonl")),
                  lambda: [os.kill(pid, signal.SIGTERM) for pid in trainers(f"{folder}/runs/a-")])
    status, out, _ = run(stub, [path, f"--out={folder}"], capsys)
    sender.join()
    assert status == 1 and "stopped" in out and not rows(folder)


def when(condition, action):
    """A thread that waits for the condition and acts, while the sweep runs in this one."""
    def body():
        wait_for(condition)
        action()
    thread = threading.Thread(target=body)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(number, sweep_file, folder, stub, capsys):
    path = sweep_file(seeds=(6, 8, 9))
    sender = when(lambda: glob.glob(str(folder / "runs" / "*seed6*" / "metrics.jsonl")),
                  lambda: os.kill(os.getpid(), number))
    status, out, err = run(stub, [path, f"--out={folder}"], capsys)
    sender.join()
    assert status == 0 and not err
    assert "saving 1 runs" in out and f"3 runs are left. To go on: python sweep.py {path} --out={folder}" in out
    summary, = glob.glob(str(folder / "runs" / "*seed6*" / "summary.json"))
    assert json.loads(pathlib.Path(summary).read_text())["status"] == "stopped" and not rows(folder)
    assert run(stub, [path, f"--out={folder}", "--jobs=3"], capsys)[0] == 0
    assert [int(r["attempts"]) for r in sorted(rows(folder).values(), key=lambda r: int(r["seed"]))] == [2, 1, 1]


def test_a_resumed_run_is_timed_by_the_steps_of_this_job(sweep_file, folder, capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    only, = runs_of(sweep_file(), folder)
    os.makedirs(only.folder)

    def at(step):
        pathlib.Path(only.folder, "metrics.jsonl").write_text(json.dumps({"step": step, "loss": 3.0}) + "\n")
    at(20)  # of 40, before the job begins
    table = Table([only], [])
    table.show([only])
    for step, eta in ((30, "0:01:40"),  # 10 steps took 100 s
                      (15, "-"),  # that was from a checkpoint at step 15
                      (25, "0:07:30")):  # 10 took 300 s
        clock[0] += 100
        at(step)
        table.show([only])
        assert f"step {step}/40 loss 3.0000 eta {eta}\n" in capsys.readouterr().out


def test_a_full_disk_is_named_and_what_is_running_is_saved(sweep_file, folder, stub, capsys, monkeypatch):
    def outcome(seed):
        return [json.loads(p.read_text())["status"] for p in folder.glob(f"runs/*seed{seed}-*/summary.json")]
    real = os.fsync

    def fsync(handle):  # of runs.csv: this process writes nothing else while runs are running
        if outcome(0):
            wait_for(lambda: glob.glob(str(folder / "runs" / "*seed6*" / "metrics.jsonl")))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)
    monkeypatch.setattr(os, "fsync", fsync)
    args = [sweep_file(seeds=(0, 6)), f"--out={folder}", "--jobs=2"]
    status, _, err = run(stub, args, capsys)
    assert status == 2 and outcome(6) == ["stopped"]
    one_line(err, f"{folder / 'runs.csv'}: the disk is full")
    monkeypatch.setattr(os, "fsync", real)
    assert run(stub, args, capsys)[0] == 0
    assert [r["status"] for r in rows(folder).values()] == ["finished"] * 2


def test_the_table_redraws_in_place_on_a_terminal(sweep_file, folder, stub, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    status, out, _ = run(stub, [sweep_file(seeds=(8, 9)), f"--out={folder}"], capsys)
    assert status == 0
    first = re.search("2 runs: none ended, 1 running\n"
                      "arm          lr  seed  step    loss      eta\n"
                      r"baseline  0\.003     8  3/40  3\.0000  0:\d\d:\d\d\n", out)  # the clock began with the job
    drawn = out[first.end():]
    assert drawn.startswith("\x1b[3A\x1b[J")  # three lines up, and clear what is below
    assert "\x1b[3A\x1b[Jfinished  baseline  lr 0.003  seed 8  step 7  val loss 2.5000\n" in drawn


# ----------------------------------------------------------------------------------------------------------------------
# submitit

def test_submitit_runs_and_a_preempted_job_saves_and_goes_on(sweep_file, folder, stub, capsys, monkeypatch):
    """Through submitit's local executor: SIGUSR1 to the job, as Slurm sends it; and a job that dies under its run is
    submitted once more."""
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")  # read when it is imported; run_submitit() sets it, too late here
    import submitit
    # how long a job that died is waited for in case that its result is late on a slow file system: 15 s, twice
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)

    def job_of(seed):
        for command in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                below = commands_below(command.parent.name) if str(folder).encode() in command.read_bytes() else []
                if any("stub_trainer.py" in c and f"--seed={seed} " in c for c in below):
                    return int(command.parent.name)
    groups = []

    def preempt():
        job = job_of(6)
        groups.append(os.getpgid(job))
        os.kill(job, signal.SIGUSR1)
    sender = when(lambda: glob.glob(str(folder / "runs" / "*seed6*" / "metrics.jsonl")), preempt)
    args = [sweep_file(seeds=(6, 7)), f"--out={folder}", "--launcher", "local-submitit", "--jobs", "2"]
    status, _, err = run(stub, args, capsys)
    sender.join()
    assert status == 1 and "ended without a result" in err, err
    table = {int(r["seed"]): (r["status"], int(r["attempts"])) for r in rows(folder).values()}
    assert table == {6: ("finished", 2), 7: ("crashed", 2)}
    assert groups != [os.getpgid(0)]  # the terminal's Ctrl-C does not reach jobs


def test_slurm_gets_one_array_and_a_signal_cancels_it(sweep_file, folder, stub, tmp_path, capsys, monkeypatch):
    """With commands in Slurm's place: what is submitted, and what is said when it is refused."""
    for name, body in {"sbatch": f"cp $1 {tmp_path}/submitted; echo Submitted batch job 5", "srun": "exit 1",
                       "sacct": "echo 'JobID|State|NodeList'", "scancel": f"echo $* >> {tmp_path}/cancelled"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    args = [f"--out={folder}", "--launcher=slurm", "--jobs=2"]
    status, _, err = run(stub, [sweep_file(seeds=(1, 2, 3)), *args], capsys)
    assert status == 2
    one_line(err, "time_min")
    path = sweep_file("slurm = dict(time_min=30, partition='short', gpus=1)", seeds=(1, 2, 3))
    sender = when((tmp_path / "submitted").exists, lambda: (time.sleep(0.5), os.kill(os.getpid(), signal.SIGTERM)))
    status, out, _ = run(stub, [path, *args], capsys)
    sender.join()
    assert status == 0 and "submitted 3 jobs: 5_0 to 5_2" in out and "3 runs are left" in out
    script = (tmp_path / "submitted").read_text()
    for line in ("--array=0-2%2", "--time=30", "--partition=short", "--gpus-per-node=1", "--signal=USR1@90"):
        assert f"#SBATCH {line}\n" in script, line
    assert sorted((tmp_path / "cancelled").read_text().split()) == ["5_0", "5_1", "5_2"]
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: short' >&2; exit 1\n")
    status, _, err = run(stub, [path, *args], capsys)
    assert status == 2
    one_line(err, "sbatch refused the jobs", "invalid partition")


def commands_below(pid):
    """Command lines of the children of a process."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found.append(pathlib.Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


# ----------------------------------------------------------------------------------------------------------------------
# the runs, with train.py

REAL = ["--jobs", "2", "--threads", "2"]  # the same everywhere: other threads, other rounding


def test_a_sweep_killed_in_the_middle_of_a_run_goes_on_to_the_same_end(sweep_file, tmp_path, capsys):
    """kill -9 of the sweep; its run saves and ends by itself, the next start resumes it: bit for bit the run of a sweep
    that was never killed. And a learning rate that is too high is a result."""
    arms = "arms = {'mixed': dict(config='config/demo_mixed.py', dropout=0.1, learning_rate=1e-2)}"
    path = sweep_file("budget = dict(steps=100)", arms=arms)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "sweep.py", str(path), f"--out={killed}", *REAL], cwd=ROOT,
                               stdout=subprocess.DEVNULL)
    home = pathlib.Path(runs_of(path, killed)[0].folder)
    wait_for(lambda: (home / "metrics.jsonl").exists() and len((home / "metrics.jsonl").read_text().splitlines()) > 20)
    process.kill()
    process.wait()
    with open(home / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held by the run until it has saved
    saved = json.loads((home / "summary.json").read_text())
    assert saved["status"] == "stopped" and 0 < saved["step"] < 100
    assert run(sweep.main, [path, f"--out={killed}", *REAL], capsys)[0] == 0
    path = sweep_file("budget = dict(steps=100); arms['mad'] = dict(config='config/demo_baseline.py', warmup_iters=0, "
                      "learning_rate=1e30, grad_clip=0)", arms=arms)
    assert run(sweep.main, [path, f"--out={whole}", *REAL], capsys)[0] == 0
    a, b = rows(whole)["mixed 0 0.01"], rows(killed)["mixed 0 0.01"]
    assert (a["status"], a["attempts"], b["attempts"], a["hash"]) == ("finished", "1", "2", b["hash"])
    keep = ("step", "tokens", "val_loss", "best_val_loss", "best_step", "parameters")
    assert [a[k] for k in keep] == [b[k] for k in keep] and float(a["val_loss"]) < 3
    one, two = ([{k: r[k] for k in ("step", "loss", "val_loss") if k in r} for r in records(folder / a["dir"])]
                for folder in (whole, killed))
    assert one == two
    assert rows(whole)["mad 0 1e+30"]["status"] == "diverged"
    status, out, _ = run(sweep.main, [path, f"--out={whole}", *REAL], capsys)
    assert status == 0 and " 0 to do" in out


# ----------------------------------------------------------------------------------------------------------------------
# run_sweeps.sh, with a python3 that is a script

def shell(tmp_path, python, *args):
    shutil.copy(ROOT / "run_sweeps.sh", tmp_path)  # where there is no .venv
    (tmp_path / "summarize_sweep.py").touch()
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "python3").write_text(f"#!/bin/sh\n{python}\n")
    (tmp_path / "bin" / "python3").chmod(0o755)
    return subprocess.Popen([tmp_path / "run_sweeps.sh", *args], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})


ECHO = 'echo "$@" | sed "s#[^ ]*/##g"; case $2 in bad.py) exit 1;; worse.py) exit 2;; esac'


@pytest.mark.parametrize("args, said, status", [
    (["a.py", "--jobs", "2", "b.py"], ["sweep.py a.py --jobs 2", "summarize_sweep.py a", "sweep.py b.py --jobs 2"], 0),
    (["a.py", "--dry-run"], ["sweep.py a.py --dry-run"], 0),
    (["bad.py", "--out=a"], ["sweep.py bad.py --out=a", "summarize_sweep.py a"], 1),
    (["worse.py", "a.py"], ["sweep.py worse.py", "sweep.py a.py", "summarize_sweep.py a"], 2),
    (["--help"], ["sweep.py --help"], 0),
    (["a.py", "b.py", "--out", "x"], [], 2)])
def test_run_sweeps_runs_each_file_and_its_tables(args, said, status, tmp_path):
    for folder in ("out/sweeps/a", "a"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "runs.csv").touch()
    process = shell(tmp_path, ECHO, *args)
    out, err = process.communicate(timeout=30)
    assert (out.splitlines(), process.returncode) == (said, status)
    if not said:
        one_line(err, "--out is the folder of one sweep")


def test_run_sweeps_passes_a_signal_on_and_waits(tmp_path):
    save_slowly = 'trap "sleep 0.3; echo saved; exit 0" TERM; echo began; while :; do sleep 0.05; done'
    (tmp_path / "out/sweeps/a").mkdir(parents=True)
    (tmp_path / "out/sweeps/a/runs.csv").touch()  # sweep.py writes its heading before the first run ends
    process = shell(tmp_path, save_slowly, "a.py", "b.py")
    assert process.stdout.readline() == "began\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("saved\n", "", 0)
