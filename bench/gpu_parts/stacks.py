"""
Runs of 4 x 128 as one program (training/stacked.py): a step of N runs, in bf16, as a CUDA graph and without, beside a run by itself. What
bench_stack.py measures, some seconds each. The goal is 400 runs of 1,500 steps in 8 minutes (evaluations, saving and data come on top).
"""

import bench_stack

from gpu_parts import Job

STEPS = 1500  # of a run
ARMS = ("baseline", "mixed, c per head")


def jobs(settings):
    if settings.quick:
        cases = [("baseline", (2,), True)]
    else:
        cases = [(arm, (64, 16, 1), True) for arm in ARMS] + [("baseline", (16,), False)]
    return [Job(f"{arm}, N = {Ns}{'' if graph else ', no graph'}", (arm, Ns, graph), seconds=30) for arm, Ns, graph in cases]


def workers(settings):
    return 1


def run(job, settings, record):
    arm, Ns, graph = job.arguments
    shape, rounds = ("toy", 1) if settings.quick else ("small", 20)
    config = bench_stack.BenchConfig(N=list(Ns), shape=shape, steps=STEPS, graph=graph, rounds=rounds)
    for row in bench_stack.rows_of(arm, config, settings.device, "float32" if settings.quick else "bfloat16"):
        record(what="stack", **row)
