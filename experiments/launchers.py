"""Launchers: each runs what is missing and returns when every run has ended or a signal came."""
import collections
import contextlib
import functools
import io
import os
import subprocess
import time
import types

import torch

from common.errors import UserError
from experiments.job import TRIES, Job, crash_reason, in_use, note, progress, readiness, row_of
from experiments.rows import Rows
from experiments.runs import short
from experiments.stacks import AGAIN, StackJob
from experiments.sweep_file import SLURM
from training.config import REPOSITORY

POLL_SECONDS = 0.2


def gpus_of_this_machine():
    """Names for CUDA_VISIBLE_DEVICES, if there are several GPUs; else []."""
    if torch.cuda.device_count() < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def threads_of_a_run(options, slurm):
    return slurm.get("cpus", 1) if options.launcher == "slurm" else max(1, options.threads // options.jobs)


def never(run, ended, not_needed, stopped=()):
    """Will this run not be made? The sweep's question is decided without it, or the run that is to give its weights has none, will not
    be made, or was stopped from outside (stopped: hashes)."""
    state = readiness(run, ended)
    return not_needed(run) or state == "impossible" or state == "waiting" and (run.start.hash in stopped or not_needed(run.start))


def run_local(units, rows, options, command, stack_command, table, stop, not_needed):
    """units: lists of runs, each of which is one process: train.py's where it is one run, else a stack's (stacks.py).
    not_needed: of a Run, whether the sweep's question is decided without it (question.py); asked before it starts."""
    gpus = gpus_of_this_machine()
    threads = threads_of_a_run(options, {})
    waiting, jobs, told, stopped = collections.deque(units), {}, set(), set()  # jobs: slot -> Job or StackJob
    try:
        while jobs or (waiting and not stop.signal):
            ended = rows.read()
            for slot in range(options.jobs) if not stop.signal else ():
                for _ in range(len(waiting) if slot not in jobs else 0):
                    unit = [run for run in waiting.popleft() if not never(run, ended, not_needed, stopped)]
                    if any(readiness(run, ended) == "waiting" for run in unit):
                        waiting.append(unit)
                        continue
                    if not unit:
                        continue
                    gpu = gpus[slot % len(gpus)] if gpus else None
                    job = Job(*unit, rows, command, threads, gpu) if len(unit) == 1 else StackJob(unit, rows, stack_command, threads, gpu)
                    started = job.start()
                    left = list(job.left) if started else unit
                    waiting.extend([left] if left else [])
                    for run in left:
                        if run.hash not in told:
                            told.add(run.hash)
                            table.say(f"in use by another process, waited for: {short(run.folder)}")
                    if started:
                        jobs[slot] = job
                        break
            if stop.signal and not all(job.stopping for job in jobs.values()):
                table.say(f"{stop.signal}: saving {sum(len(job.runs) for job in jobs.values())} runs")
                for job in jobs.values():
                    job.stop()
            for slot, job in list(jobs.items()):
                outcome = job.ended()
                if not outcome:
                    continue
                del jobs[slot]
                again = [run for run, status in outcome if status == AGAIN]
                if again:
                    table.say(f"a stack of {len(job.runs)} runs crashed, which are done in two halves: {crash_reason(again[0])}")
                    half = -(-len(again) // 2)
                    waiting.extendleft(part for part in (again[half:], again[:half]) if part)
                for run, status in outcome:
                    if status == "stopped":
                        stopped.add(run.hash)
                    if status != AGAIN:
                        table.ended(run, status, rows.read().get(run.hash))
            table.show([run for job in jobs.values() for run in job.runs])
            time.sleep(POLL_SECONDS)
    except Exception:  # the sweep's own, a full disk say: what is running saves first, as on a signal
        for job in jobs.values():
            job.stop()
        for job in jobs.values():
            if job.process:
                job.process.wait()
        raise


class Worker:
    """What a Slurm job does: one run, until it has ended. Pickled by submitit."""

    def __init__(self, folder, command, threads):
        self.folder, self.command, self.threads = folder, command, threads
        self.job = None

    def __call__(self, run):
        while True:
            self.job = Job(run, Rows(self.folder), self.command, self.threads)
            while not self.job.start():
                time.sleep(POLL_SECONDS)
            try:
                while (status := self.job.poll()) is None:
                    time.sleep(POLL_SECONDS)
            finally:
                self.job.stop()
            # train.py got a signal that was meant for us too (Slurm's go to all processes): if the job is really to
            # end, nothing is lost by going on until it does
            if status != "stopped":
                return status

    def checkpoint(self, run):
        """submitit calls this in its signal handler, before it queues the job again."""
        import submitit
        self.job.stop()
        if self.job.process:
            with contextlib.suppress(ChildProcessError):  # not Popen.wait(): we may have interrupted Popen.poll()
                os.waitid(os.P_PID, self.job.process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Worker(self.folder, self.command, self.threads), run)


def run_submitit(runs, rows, options, command, table, stop, slurm, not_needed):
    """Through submitit: one job array on Slurm, or (to try it) its local executor with at most --jobs processes. Slurm gets at once all
    runs that wait for no other; jobs that have not begun when the question is decided are cancelled."""
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read when submitit is imported; USR2 would kill train.py
    try:
        import submitit
    except ImportError:
        raise UserError(f"--launcher {options.launcher} needs submitit: pip install submitit==1.5.4") from None
    local = options.launcher == "local-submitit"
    threads = threads_of_a_run(options, slurm)
    # jobs import this module
    os.environ["PYTHONPATH"] = os.pathsep.join([REPOSITORY, *filter(None, [os.environ.get("PYTHONPATH")])])
    executor = submitit.AutoExecutor(os.path.join(rows.folder, "submitit"), cluster="local" if local else "slurm",
                                     slurm_max_num_timeout=100)  # long runs are queued again as often as they need
    if local:  # Ctrl-C is for the sweep alone, which cancels its jobs; submitit would have them in the terminal's group
        said = open(os.path.join(rows.folder, "submitit", "controllers.log"), "a", encoding="utf-8")
        submitit.local.local.subprocess = types.SimpleNamespace(
            Popen=functools.partial(subprocess.Popen, start_new_session=True, stderr=said))
    executor.update_parameters(name=os.path.basename(rows.folder), slurm_array_parallelism=options.jobs,
                               **{SLURM[k]: v for k, v in {"time_min": 7 * 24 * 60, "cpus": 1, **slurm}.items()})
    worker = Worker(rows.folder, command, threads)
    waiting, jobs = collections.deque(runs), {}  # jobs: hash -> (Run, submitit's Job)
    tries = collections.Counter()  # by hash

    def submit(*these):
        if not these:
            return []
        try:
            with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # submitit repeats what sbatch says
                submitted = [executor.submit(worker, run) for run in these]
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            reason = [line for line in str(error).splitlines() if line.strip()]
            raise UserError(f"sbatch refused the jobs: {reason[-1] if reason else type(error).__name__}") from None
        jobs.update({run.hash: (run, job) for run, job in zip(these, submitted)})
        tries.update(run.hash for run in these)
        return [job.job_id for job in submitted]

    def lost(run, job):
        """Its job ended without a result: node, memory, time. Once it is submitted again."""
        os.makedirs(run.folder, exist_ok=True)
        said = [line for line in (job.stderr() or "").splitlines() if line.strip()] or ["no message"]
        note(run, f"\n{said[-1]}\n# job {job.job_id} ended without a result")
        if tries[run.hash] < TRIES:
            try:
                submit(run)
                return
            except UserError as error:
                note(run, error)
        rows.put(row_of(run, "crashed", progress(run)))

    def cancel():
        for _, job in jobs.values():
            job.cancel(check=False)
        while any(in_use(run) for run, _ in jobs.values()):
            time.sleep(POLL_SECONDS)

    try:
        while (waiting or jobs) and not stop.signal:
            ready, ended = [], rows.read()
            for _ in range(len(waiting)):
                run = waiting.popleft()
                if never(run, ended, not_needed):
                    continue
                if readiness(run, ended) == "ready" and not (local and len(jobs) + len(ready) >= options.jobs):
                    ready.append(run)
                else:
                    waiting.append(run)
            ids = submit(*ready)
            if ids and not local:
                table.say(f"submitted {len(ids)} jobs: {ids[0]} to {ids[-1]}")
            # a job that returned has written its row, wherever the file system has it by now
            failed = {h for h, (_, job) in jobs.items() if job.done() and job.exception() is not None}
            ended = rows.read()
            for run, job in list(jobs.values()):
                if run.hash in failed and run.hash not in ended and not in_use(run):
                    lost(run, job)
                    ended = rows.read()
                if run.hash in ended:
                    del jobs[run.hash]
                    table.ended(run, ended[run.hash]["status"], ended[run.hash])
                elif not in_use(run) and not_needed(run):
                    job.cancel(check=False)
                    del jobs[run.hash]
            table.show([run for run, _ in jobs.values() if in_use(run)])
            time.sleep(POLL_SECONDS if local else 2)
    except Exception:  # as in run_local
        cancel()
        raise
    if jobs:
        table.say(f"{stop.signal}: cancelling {len(jobs)} jobs, which save their runs")
        cancel()
