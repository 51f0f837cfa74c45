"""
Run a sweep: every arm at every point of a grid with every seed, what is missing of it, in parallel.

    ./run_sweeps.sh sweeps/shakespeare_lr.py --jobs 2                     run what is missing, then its tables
    python sweep.py sweeps/shakespeare_lr.py --jobs 2 --threads 8         the runs alone; 4 threads each
    python sweep.py sweeps/shakespeare_lr.py --dry-run                    print the commands, create nothing
    python sweep.py sweeps/fineweb_lr.py --jobs 8 --launcher slurm        the same on a Slurm cluster (submitit)
    python sweep.py sweeps/verdict.py --stack=auto                        on a GPU: many runs of an arm as one program (docs/sweeps.md)

A sweep file is Python with flat assignments, like a config file:

    arms = {name: dict(config='config/x.py', role='baseline', key=value, ...), ...}
                        a config file and what the arm changes in it; role: baseline | flat | control | mixed | other
                        (default). `grid` and `seeds` in an arm stand for that arm in place of the sweep's; start='ARM': its
                        runs begin with the trained weights of that arm's run with the same seed, and wait for it
    grid = {key: [values]}                   every combination of the values
    seeds = [1337, 1338]
    runs = [dict(arms=[names], grid={...}, seeds=[...])]     more runs of some arms: a learning rate is chosen with one
                                                             seed, then seeds are spent on the arms that compete
    budget = dict(steps=1500)                or tokens=, or seconds= of training (max_iters of the config then shapes
                                             the schedule and bounds the run); none: max_iters of the config
    defaults = dict(key=value, ...)          for all arms
    slurm = dict(partition=, account=, qos=, constraint=, time_min=, gpus=, cpus=, mem_gb=)     of one run
    question = dict(hypothesis='...', arm=name, against=name, margin=0.004, stop='fixed' | 'anytime')    what the sweep is to decide, stated
                        before its runs; with 'anytime' it stops when it is decided; spread=0.0065, of a pair
                        of seeds, has it say first how many pairs that takes (experiments/question.py)
    after = ['python analyze_representations.py {runs} --out={out}/analysis']    commands for when every run has ended; {runs} are the
                                                                 folders of the finished ones

Everything is in out/sweeps/<name of the file> (--out is another place):

    sweep.json    the sweep as resolved, and hashes of what its runs read (experiments/inputs.py)
    runs.csv      one row for each ended run
    runs/<arm>-lr<lr>-seed<seed>[-key=value]-<hash>/    train.py's out_dir; log.txt, all that its attempts said; lock

A run is known by the SHA-256 of its resolved configuration without the keys of NOT_IN_HASH, so a changed arm or default
(or a key that is new in train.py) gives new runs and the others are skipped; rows that no longer belong to the sweep
wait in runs_before.csv. With a budget of seconds the keys of SPEED (device, threads of a run, ...) are part of it.
Ctrl-C (or SIGTERM) saves what is running; the same command goes on. It also does after a kill -9, from the last
checkpoints: on Linux the runs get SIGTERM when their sweep dies. A run's lock is held by its processes, so several
sweeps, or Slurm jobs, can share a folder (where the file system has locks); a run in use elsewhere is waited for. A
resumed run is the one that was never stopped, bit for bit on a CPU with as many threads.

A run that diverged has ended and is a result. One that crashed goes on from its checkpoint once; then it is recorded,
reported, and left alone until --retry-crashed. With Slurm, each run is a job of one array, at most --jobs at a time; a
preempted job, or one at its time limit, saves, is queued again and goes on; one that died under its run (its node, its
memory) is submitted once more. Ctrl-C cancels the jobs (they save too).

Exit status: 0 every run finished or diverged, or a signal stopped the sweep; 1 some crashed or were stopped, or a
command of `after` failed; 2 bad input, of which most is found before anything starts, or runs.csv cannot be written
(a full disk): what is running is saved first, and the same command goes on.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import os
import shlex
import shutil
import sys

from common import paths
from common.errors import UserError, exit_cleanly
from common.interrupts import Stop
from common.whole_files import write_json
from configurator import Parser
from experiments import inputs, question, sweep_file
from experiments.after import run_after
from experiments.folder import check_folder, located, told_in
from experiments.job import TRAIN, command_of, crash_reason, readiness
from experiments.launchers import run_local, run_submitit, threads_of_a_run
from experiments.rows import Rows
from experiments.runs import description, make_runs, short, sweep_name
from experiments.stacks import STACK, make_units, stack_size
from experiments.terminal import Table
from training.machine import pick_device


def parse(argv):
    parser = Parser("sweep.py", __doc__)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("sweep", type=paths.expand, help="a sweep file")
    parser.add_argument("--out", type=paths.expand, help="folder of the sweep (default: out/sweeps/<name of the file>)")
    parser.add_argument("--jobs", type=int, help="runs at a time (1; with --stack=auto on a CPU one a thread)")
    parser.add_argument("--threads", type=int, default=cores,
                        help="CPU threads of all jobs together (%(default)s); on Slurm each has the cpus of the file")
    parser.add_argument("--launcher", choices=("local", "slurm", "local-submitit"), default="local",
                        help="where the runs are done; local-submitit is there to try what slurm does (local)")
    parser.add_argument("--stack", type=stack_size, default="off", metavar="auto|N|off",
                        help="runs of an arm that differ in seed and learning rate as one process: auto: on a GPU as many as fit; N at "
                             "most (off)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and create nothing")
    parser.add_argument("--retry-crashed", action="store_true", help="run again what crashed before")
    options = parser.parse_args(argv)
    if options.jobs is None:
        options.jobs = options.threads if options.stack == "auto" and pick_device("auto") == "cpu" else 1
    for name in ("threads", "jobs"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name}={getattr(options, name)}: must be at least 1")
    if options.stack != "off" and options.launcher != "local":
        raise UserError(f"--stack={options.stack} is for --launcher local: a Slurm job is one run")
    return options


@exit_cleanly
def main(argv, command=TRAIN, stack_command=STACK):
    options = parse(argv)
    sweep = sweep_file.load(options.sweep)
    given = options.out or os.path.join("out", "sweeps", sweep_name(options.sweep))
    folder = os.path.abspath(given)
    check_folder(folder, given)
    threads = threads_of_a_run(options, sweep["slurm"])
    runs = located(make_runs(sweep, options.sweep, folder, threads), folder)
    asked = sweep["question"]
    looked_at = {asked.arm, asked.against} if asked and asked.stop == "anytime" else set()
    rows, pairs_needed, not_needed = Rows(folder), question.planned(asked, runs), question.not_needed_in(folder, asked, options.dry_run)

    if options.dry_run:
        if pairs_needed:
            print(f"# {pairs_needed}")
        ended = {h: r for h, r in rows.known().items() if not (options.retry_crashed and r["status"] == "crashed")}
        missing = [run for run in runs if run.hash not in ended and not not_needed(run)]
        print(f"# {len(runs)} runs, {len(missing)} to do, {options.jobs} at a time, {threads} threads each")
        for unit in make_units(missing, options.stack, options.jobs, print, looked_at):
            if len(unit) > 1:
                print(f"# {len(unit)} runs as one process:")
            for run in unit:
                print(shlex.join(["python", *command[1:], *command_of(run, threads)]))
        return 0

    if options.launcher == "slurm":
        if not shutil.which("sbatch"):
            raise UserError("--launcher slurm: there is no sbatch here; start it on the cluster's login node, or leave "
                            "the option out")
        if "time_min" not in sweep["slurm"]:
            raise UserError(f"{options.sweep}: --launcher slurm needs slurm = dict(time_min=...), the minutes of a job "
                            f"(a run that takes longer is queued again)")
    before = told_in(folder)
    read = inputs.check(runs, before.get("inputs"), rows.known())
    os.makedirs(os.path.join(folder, "runs"), exist_ok=True)
    rows.sort_out(runs, options.retry_crashed)
    ended = rows.read()
    plan = {**description(sweep, options.sweep, runs), "inputs": read}
    pair = {asked.arm, asked.against} if asked else set()
    plan["question"] = question.stated(asked, runs, before.get("question"), sum(row["arm"] in pair for row in ended.values()))
    write_json(os.path.join(folder, "sweep.json"), plan)

    missing = [run for run in runs if run.hash not in ended and not not_needed(run)]
    print(f"{sweep_name(options.sweep)}: {len(runs)} runs, {len(missing)} to do; everything is in {short(folder)}",
          flush=True)
    if missing and pairs_needed:
        print(pairs_needed, flush=True)
    table = Table(runs, [row["status"] for row in ended.values()])
    stop = Stop()
    if missing and options.launcher == "local":
        units = make_units(missing, options.stack, options.jobs, table.say, looked_at)
        run_local(units, rows, options, command, stack_command, table, stop, not_needed)
    elif missing:
        run_submitit(missing, rows, options, command, table, stop, sweep["slurm"], not_needed)

    ended = rows.read()
    crashed = [run for run in runs if run.hash in ended and ended[run.hash]["status"] == "crashed"]
    spared = [run for run in runs if run.hash not in ended and not_needed(run)]
    if spared:
        print(f"the question of the sweep is decided, or cannot be: {len(spared)} runs are not needed")
    left = [run for run in runs if run.hash not in ended and run not in spared]
    for run in left:
        if readiness(run, ended) == "impossible":
            print(f"not started: {short(run.folder)}: {short(run.start.folder)} has no trained weights to begin with", file=sys.stderr)
    for run in crashed:
        print(f"crashed: {short(run.folder)}: {crash_reason(run)}", file=sys.stderr)
    if crashed:
        print(f"{len(crashed)} runs crashed; --retry-crashed runs them again", file=sys.stderr)
    if left:
        print(f"{len(left)} runs are left. To go on: {shlex.join(['python', 'sweep.py', *argv])}")
        return 0 if stop.signal else 1
    succeeded = run_after(sweep["after"], folder, runs, ended)
    return 1 if crashed or not succeeded else 0


if __name__ == "__main__":
    main(sys.argv[1:])
