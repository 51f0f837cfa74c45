"""
Training steps (forward, backward, clipping, AdamW) of the arms at the shapes of bench_model.py, in bf16: time of a step,
tokens/s, TFLOP/s, peak memory. In eager mode, compiled, and the mixed model also on the kernels. Steps follow each other without
the host waiting for the device; each is timed by device events. All arms have the same batch and, where they share weights, the
same ones, so that the third loss says whether an arm computes what its eager form does.
"""

import statistics
import time

import bench_model
import numpy as np
import torch
from bench_model import ARMS, ON_KERNELS, SHAPES

from gpu_parts import Job
from gpu_parts.ceilings import smi

MIXED, ONE_C = "mixed, c per head", "mixed, one c a block"
DTYPE = "bfloat16"
WITHIN = 0.02  # of the third loss, relatively: arms that should be the same


def jobs(settings):
    if settings.quick:
        cases = (
            [("toy", "baseline", "eager"), ("toy", "baseline", "compiled")]
            if settings.part == "gpt2"
            else [("toy", f"{MIXED}, triton", "eager")]
        )
    elif settings.part == "gpt2":
        cases = [
            ("124M", arm, "compiled")
            for arm in ("baseline", f"{MIXED}, triton", MIXED, f"{ONE_C}, triton", ONE_C, "flat", "smear")
        ]
        cases += [
            ("124M", arm, "eager") for arm in (f"{MIXED}, triton", "baseline", MIXED, f"{ONE_C}, triton", ONE_C, "flat", "smear")
        ]
        cases.insert(3, ("124M", "baseline", "compiled"))  # twice: what differs between the two is noise
    else:
        cases = [
            (shape, arm, "compiled") for shape in ("350M", "large", "small") for arm in ("baseline", f"{MIXED}, triton", MIXED)
        ]
        cases += [(shape, arm, "eager") for shape in ("large", "small") for arm in ("baseline", f"{MIXED}, triton", MIXED)]
        cases += [
            (shape, arm, mode)
            for shape in ("large", "small", "350M")
            for mode in ("compiled", "eager")
            for arm in (ONE_C, f"{ONE_C}, triton", "flat", "smear")
        ]
    return [
        Job(f"{shape}, {arm}, {mode}{', again' if (shape, arm, mode) in cases[:i] else ''}", (shape, arm, mode))
        for i, (shape, arm, mode) in enumerate(cases)
    ]


def workers(settings):
    return 1


def run(job, settings, record):
    shape, arm, mode = job.arguments
    dtype = "float32" if settings.quick else DTYPE
    began = time.perf_counter()
    options = dict(backend="aot_eager") if settings.quick and mode == "compiled" else {}
    step, model = bench_model.make_step(arm, shape, mode == "compiled", settings.device, dtype, checked=False, **options)
    losses = [float(step()) for _ in range(1 if settings.quick else 3)]
    first_steps = time.perf_counter() - began
    if settings.cuda:
        torch.cuda.reset_peak_memory_stats()
    times = time_steps(step, settings)
    peak = torch.cuda.max_memory_allocated() / 2**20 if settings.cuda else None
    seconds, (low, high) = statistics.median(times), np.quantile(times, [0.2, 0.8])
    _, _, _, block_size, batch_size, _ = SHAPES[shape]
    tokens, flops = block_size * batch_size, model.flops_per_token()
    record(
        what="step",
        shape=shape,
        arm=arm,
        mode=mode,
        dtype=dtype,
        tokens=tokens,
        parameters=model.num_params(),
        ms=1e3 * seconds,
        ms_20=1e3 * low,
        ms_80=1e3 * high,
        steps=len(times),
        tokens_s=tokens / seconds,
        flops_per_token=flops,
        TFLOP_s=flops * tokens / seconds / 1e12,
        peak_MiB=peak,
        losses=losses,
        first_3_steps_s=first_steps,
        **smi(settings.device),
    )


def time_steps(step, settings):
    """Seconds of each step: for some 2 s, after the first, which says how many that is"""
    if not settings.cuda:
        times = []
        for _ in range(1):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        return times
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    count = int(min(40, max(6, 2 / (time.perf_counter() - began))))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    for mark in marks[:-1]:
        mark.record()
        step()
    marks[-1].record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in zip(marks[1:], marks[2:])]  # without the first: the queue was empty then


def conclude(rows, settings):
    """Ratios to the baseline of the same shape and mode (the mean of its measurements), and whether arms agree"""
    timed = [row for row in rows if row.get("what") == "step"]
    found = []
    for shape in dict.fromkeys(row["shape"] for row in timed):
        here = [row for row in timed if row["shape"] == shape]
        for row in here:
            base = [r["ms"] for r in here if r["arm"] == "baseline" and r["mode"] == row["mode"]]
            if base and row["arm"] != "baseline":
                found.append(
                    dict(what="ratio", shape=shape, arm=row["arm"], mode=row["mode"], ratio=row["ms"] / statistics.mean(base))
                )
            elif len(base) > 1 and row["ms"] == base[-1]:
                found.append(dict(what="noise", shape=shape, mode=row["mode"], ratio=max(base) / min(base)))
        for arm in ARMS:
            same = [row for row in here if row["arm"].removesuffix(", triton") == arm]
            if len(same) > 1:
                last = [row["losses"][-1] for row in same]
                apart = (max(last) - min(last)) / max(last) if None not in last else None
                found.append(
                    dict(
                        what="agreement",
                        shape=shape,
                        arm=arm,
                        forms=[f"{row['mode']}{', triton' if row['arm'] in ON_KERNELS else ''}" for row in same],
                        third_losses=last,
                        apart=apart,
                        ok=apart is not None and apart <= WITHIN,
                    )
                )
    return found
