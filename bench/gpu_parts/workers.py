"""
Jobs in processes of their own: what a job breaks (a CUDA error spoils its whole process; a crash; a hang) costs that job alone.

The parent sends job numbers down a worker's standard input. The worker answers with JSON lines: {"row": ...} as soon as
there is one, then {"done": number}. What libraries print goes to a log file.
"""

import gc
import json
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import traceback

from gpu_parts import ROOT, module_of

SPOILED = 17  # exit status of a worker whose CUDA context is lost


# ----------------------------------------------------------------------------------------------------------------------
# in the worker


def _plain(value):
    """For JSON: no NaN, no Inf."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def one_line(error):
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _spoiled(settings):
    import torch

    try:
        if settings.cuda:
            torch.cuda.synchronize()
    except Exception:
        return True
    return False


def serve(settings, numbers=sys.stdin):
    """Does the jobs whose numbers come, one a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(**message):
        answers.write(json.dumps(_plain(message)) + "\n")
        answers.flush()

    import torch

    if settings.cuda:
        torch.cuda.set_device(settings.device)
    module = module_of(settings.part)
    if module.workers(settings) > 1:  # else each of them would start as many compilers as there are cores
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")
    jobs = module.jobs(settings)
    for line in numbers:
        number, spoiled = int(line), False
        try:
            module.run(jobs[number], settings, lambda **row: send(row=row))
        except Exception as error:  # any: the job is a row with its error
            text = traceback.format_exc()
            print(text, file=sys.stderr, flush=True)
            send(row=dict(error=one_line(error), traceback=text[-3000:]))
            spoiled = _spoiled(settings)
        send(done=number)
        if spoiled:
            os._exit(SPOILED)
        torch._dynamo.reset()
        gc.collect()
        if settings.cuda:
            torch.cuda.empty_cache()


# ----------------------------------------------------------------------------------------------------------------------
# in the parent


class Failed(Exception):
    """A worker died, or was stopped."""


class Worker:
    def __init__(self, command, log):
        self.log = log
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, start_new_session=True
            )
        self.buffer = b""

    def messages(self, number, until, stopped):
        """Starts a job and yields its messages. Raises Failed."""
        try:
            self.process.stdin.write(f"{number}\n".encode())
            self.process.stdin.flush()
        except OSError:
            raise Failed("the worker process had ended") from None
        while True:
            while b"\n" in self.buffer:
                line, self.buffer = self.buffer.split(b"\n", 1)
                message = json.loads(line)
                yield message
                if "done" in message:
                    return
            if stopped():
                raise Failed("the script was stopped")
            if time.time() > until:
                raise Failed("stopped: it took too long")
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                data = os.read(self.process.stdout.fileno(), 1 << 16)
                if not data:
                    raise Failed(self.why_it_died())
                self.buffer += data

    def why_it_died(self):
        status = self.process.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        with open(self.log, errors="replace") as f:
            last = [line.strip() for line in f.read()[-3000:].splitlines() if line.strip()]
        return f"the process died ({how}){f': {last[-1][:200]}' if last else ''}"

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # what it has started, too
        except ProcessLookupError:
            pass
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:
                pass


def run_jobs(jobs, count, command, until, on_row, stopped, logs):
    """Starts threads that do all jobs in `count` processes, each started as `command`, and end by the time `until`. on_row(row)
    is called, one call at a time, as rows come; stopped() says that the user wants an end. logs: a folder. -> the threads"""
    waiting, lock = queue.SimpleQueue(), threading.Lock()
    for number in range(len(jobs)):
        waiting.put(number)

    def tell(job, row):
        with lock:
            on_row({"job": job.name, **row})

    def work(name):
        worker = None
        try:
            while not stopped():
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                job = jobs[number]
                if time.time() > until - 1:
                    tell(job, dict(error="not measured: the time was up"))
                    continue
                if worker is None or worker.process.poll() is not None:
                    worker = Worker(command, os.path.join(logs, f"{name}.log"))
                began = time.time()
                try:
                    for message in worker.messages(number, min(began + job.seconds, until), stopped):
                        if "row" in message:
                            tell(job, message["row"])
                except Failed as error:
                    tell(job, dict(error=f"{error} (after {time.time() - began:.0f} s)"))
                    worker.kill()
                    worker = None
        finally:
            if worker is not None:
                worker.kill()

    threads = [threading.Thread(target=work, args=(f"worker{i}",), daemon=True) for i in range(min(count, len(jobs)))]
    for thread in threads:
        thread.start()
    return threads


def command_of(settings):
    """What starts a worker of a part"""
    return [
        sys.executable,
        os.path.join(ROOT, "bench", "gpu.py"),
        f"--worker={settings.part}",
        f"--device={settings.device}",
        f"--quick={settings.quick}",
        f"--work={settings.work}",
        f"--until={settings.until}",
    ]
