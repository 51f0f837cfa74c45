"""
Stacks: runs of one arm that differ in seed and learning rates, as one process (training/stacked.py), for a GPU.

How many fit is estimated, for --stack=auto: of each run 28 bytes a parameter (weights, gradients, two moments, what an update makes), and
for the backward pass 200 bytes a token, block and number of the residual stream (400 in curved models and with streams), and 16 a token of
the vocabulary, and where scores are distances 40 a pair of tokens, head and block; 70% of the card's memory, at most MOST. It is meant to
be on the safe side, and was not compared with a GPU.
"""
import json
import os
import platform
import shlex
import sys
import time

import torch

import models
from common import locks
from common.errors import UserError
from experiments.job import command_of, how_it_ended, note, row_of, spawn, summary_of
from experiments.runs import resolve, short
from training.dataloader import load_meta
from training.machine import padded_vocabulary, pick_device
from training.run_directory import LOCK
from training.stacked import alike, why_not

STACK = (sys.executable, "-m", "training.stacked")
AGAIN = "again"  # what became of a run whose stack crashed: it is done in a smaller one, or by itself
MOST = 64  # runs; at 4 x 128 some 200,000 tokens a step, which is enough for a card to be busy
LOOKED_AT = 4  # runs of an arm whose question may be decided before all have run


def stack_size(text):
    """The value of --stack: 'auto', 'off' or a number."""
    if text in ("auto", "off"):
        return text
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise UserError(f"--stack={text}: auto, off, or how many runs are one process at most")
    return number


def make_units(runs, stack, jobs, say, looked_at=()):
    """Lists of runs, each of which is one process. stack: as stack_size() has it. jobs: processes that share a card. say: is told, in a
    line, why runs are not stacked. looked_at: arms that are looked at after every pair, of which 'auto' takes LOOKED_AT runs at a time.
    Raises UserError where a number was asked for and an arm cannot be stacked."""
    if stack == "off" or not runs:
        return [[run] for run in runs]
    groups, alone = {}, [[run] for run in runs if run.start]  # (those begin with the weights of another run each)
    for run in runs:
        if run.start:
            continue
        configs = resolve(run.config, run.overrides, f"arm {run.arm!r}")
        groups.setdefault(json.dumps(alike(*configs), sort_keys=True), (configs, []))[1].append(run)
    if stack == "auto" and not any(on_gpu(main) for (main, _), _ in groups.values()):
        say("--stack=auto: there is no GPU here, and on a CPU one process a run is faster, as many at a time as --jobs says; no stacks")
        return [[run] for run in runs]
    units = alone
    for (main, model), members in groups.values():
        problem = why_not(main, model)
        if problem and stack != "auto":
            raise UserError(f"--stack={stack}: arm {members[0].arm!r}: {problem}; --stack=auto does such runs one by one")
        if problem and len(members) > 1:
            say(f"arm {members[0].arm!r}: {problem}; its runs are done one by one")
        most = 1 if problem or stack == "auto" and not on_gpu(main) else fitting(main, model, jobs) if stack == "auto" else stack
        if stack == "auto" and members[0].arm in looked_at:
            most = min(most, LOOKED_AT)
        parts = -(-len(members) // most)
        units += [members[i * len(members) // parts:(i + 1) * len(members) // parts] for i in range(parts)]
    return units


def on_gpu(main):
    return pick_device(main.device).startswith("cuda")


def bytes_of_a_run(main, model):
    """An estimate of the device memory that a run takes in a stack."""
    vocabulary = padded_vocabulary(load_meta(os.path.join(main.data_dir, main.dataset))["vocab_size"])
    model.vocab_size = vocabulary
    parameters = models.build(main.model, model).num_params()
    a_number = 200 if main.model in ("baseline", "controls") else 400
    streams = getattr(model, "hc_num_streams", 1)
    tokens = main.batch_size * model.block_size
    pairs = 40 * model.n_head * model.block_size if getattr(model, "attention", None) == "distance" else 0  # a token
    return 28 * parameters + tokens * (model.n_layer * (model.n_embd * a_number * max(1, streams // 2) + pairs) + 16 * vocabulary)


def fitting(main, model, jobs):
    """How many runs a card takes."""
    device = torch.device(pick_device(main.device))
    memory = torch.cuda.get_device_properties(device).total_memory
    sharing = -(-jobs // max(1, torch.cuda.device_count()))
    return max(1, min(MOST, int(0.7 * memory / sharing / bytes_of_a_run(main, model))))


class StackJob:
    """Runs in the care of this process, as one process: their locks, their rows. What it says is in stacks/. A stack that crashes (it may
    have been too large for the card) is done in two halves, each run from its checkpoint, down to single runs."""

    def __init__(self, runs, rows, command=STACK, threads=1, gpu=None):
        self.runs, self.rows, self.command, self.threads, self.gpu = list(runs), rows, command, threads, gpu
        self.process, self.locks, self.stopping = None, [], False
        self.left, self.over = [], []  # in use elsewhere; ended elsewhere since we looked, with their statuses

    def start(self):
        """False: all are in use by other processes."""
        taken = []
        for run in self.runs:
            os.makedirs(run.folder, exist_ok=True)
            lock = locks.try_lock(os.path.join(run.folder, LOCK))
            if lock is None:
                self.left.append(run)
            else:
                taken.append(run)
                self.locks.append(lock)
        ended = self.rows.read()
        self.over = [(run, ended[run.hash]["status"]) for run in taken if run.hash in ended]
        self.runs = [run for run in taken if run.hash not in ended]
        if self.runs:
            self._begin()
        return bool(taken)

    def _begin(self):
        folder = os.path.join(self.rows.folder, "stacks")
        os.makedirs(folder, exist_ok=True)
        stem = os.path.join(folder, f"{os.path.basename(self.runs[0].folder)}-and-{len(self.runs) - 1}")
        self.log = stem + ".log"
        with open(stem + ".json", "w", encoding="utf-8") as f:
            json.dump([command_of(run, self.threads) for run in self.runs], f, indent=1)
        arguments = [*self.command, f"--runs={short(stem + '.json')}"]
        line = f"# attempt of {time.strftime('%Y-%m-%dT%H:%M:%S%z')} on {platform.node()}: {shlex.join(arguments)}"
        for run in self.runs:
            note(run, f"{line}\n# one of {len(self.runs)} runs at once, which say what they say in {short(self.log)}")
        with open(self.log, "a", encoding="utf-8") as f:
            print(line, file=f)
        self.process = spawn(arguments, self.log, self.locks, self.threads, self.gpu)

    def ended(self):
        """None while it runs; then [(run, finished | diverged | stopped | AGAIN)], and rows in runs.csv."""
        code = self.process.poll() if self.process else 0
        if code is None:
            return None
        found = list(self.over)
        for run in self.runs:
            summary = summary_of(run)
            status = summary.get("status") if code in (0, 3) else None
            if status not in ("finished", "diverged", "stopped"):
                status = "stopped" if self.stopping else AGAIN
                note(run, f"\n{self.last_line()}\n# {how_it_ended(code)} of the stack")
            elif status != "stopped":
                self.rows.put(row_of(run, status, summary))
            found.append((run, status))
        for lock in self.locks:
            lock.close()
        return found

    def last_line(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            said = [line.strip() for line in f if line.strip() and not line.startswith("# ")]
        return said[-1] if said else "it said nothing"

    def stop(self):
        """Ask it to save and end; ended() says when it has."""
        if self.process and not self.stopping:
            self.stopping = True
            self.process.terminate()
