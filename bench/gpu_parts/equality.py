"""
train.py itself, as commands: the same seed and batches in PyTorch's eager mode, compiled and on the kernels; losses are compared
step by step. A run that is stopped in the middle and resumed is compared with one that is not. And watched runs: what waits
for the device (a host synchronisation) in a step that is not logged is counted (gpu_parts/watched_train.py).
"""

import os

from bench_model import ARMS, ON_KERNELS

from gpu_parts import Job, training

# largest difference of a training loss in 50 steps, in nats: by dtype of the matrix products; float32 is TF32 on a GPU. (On a
# CPU the mixed model in bf16 was at most 0.0054 from float32 in its first 30 steps.)
ALLOWED = {"float32": 0.01, "bfloat16": 0.03, "float16": 0.03}
MIXED = "mixed, c per head"
TRITON = f"{MIXED}, triton"


def size(settings):
    if settings.quick:
        return dict(
            n_layer=1, n_head=2, n_embd=16, block_size=2, batch_size=1, max_iters=2, eval_interval=2, eval_iters=1, warmup_iters=1
        )
    return dict(
        n_layer=4,
        n_head=4,
        n_embd=128,
        block_size=128,
        batch_size=24,
        max_iters=50,
        eval_interval=50,
        eval_iters=2,
        warmup_iters=10,
    )


def jobs(settings):
    """(kind, arm, compiled?, dtype)"""
    if settings.quick:
        cases = [("run", MIXED, False, "float32"), ("resume", MIXED, False, "float32"), ("watch", TRITON, True, "float32")]
    else:
        # the eager runs first: the others are compared with them, and they wait for no compiler
        cases = [
            ("run", arm, compiled, "bfloat16")
            for compiled in (False, True)
            for arm in (
                MIXED,
                TRITON,
                "baseline",
                *(arm for arm in (*ARMS, *ON_KERNELS) if arm not in (MIXED, TRITON, "baseline")),
            )
        ]
        cases[4:4] = [("watch", arm, compiled, "bfloat16") for arm in ("baseline", TRITON) for compiled in (True, False)]
        cases += [("run", arm, False, dtype) for dtype in ("float32", "float16") for arm in (MIXED, TRITON)]
        # (with float16's gradient scaler every step waits: training/guard.py)
        cases += [("resume", TRITON, True, "bfloat16"), ("watch", MIXED, True, "bfloat16")]
    return [
        Job(f"{kind}: {arm}, {'compiled' if compiled else 'eager'}, {dtype}", (kind, arm, compiled, dtype))
        for kind, arm, compiled, dtype in cases
    ]


def workers(settings):
    return 1 if settings.quick else max(1, min(12, (os.cpu_count() or 2) - 2))


def run(job, settings, record):
    kind, arm, compiled, dtype = job.arguments
    model, options = {**ARMS, **ON_KERNELS}[arm]
    keys = dict(model=model, **options, compile=compiled, dtype=dtype, **size(settings))
    # a toy is not worth a compiler: then all of the path is taken but for the compiler itself
    environment = dict(OMP_NUM_THREADS="1", **({"TORCHDYNAMO_DISABLE": "1"} if settings.quick else {}))
    name = job.name.replace(" ", "").replace(":", "-").replace(",", "-")
    row = dict(what=kind, arm=arm, mode="compiled" if compiled else "eager", dtype=dtype)
    if kind == "watch":
        watch(name, row, keys, environment, settings, record)
        return
    keys.update(log_interval=1)
    if kind == "resume":
        half = keys["max_iters"] // 2
        training.train(settings, name, environment, **{**keys, "max_iters": half, "lr_decay_iters": keys["max_iters"]})
        keys.update(init_from="resume", lr_decay_iters=keys["max_iters"])
    metrics, summary, _ = training.train(settings, name, environment, **keys)
    losses = training.losses_of(metrics)
    record(
        **row, losses=[losses[step] for step in sorted(losses)], val_loss=summary["val_loss"], seconds=summary["train_seconds"]
    )


def watch(name, row, keys, environment, settings, record):
    every = 2 if settings.quick else 10  # the last step is a logged one
    keys.update(log_interval=every, max_iters=(1 if settings.quick else 2) * every + 1, eval_interval=1000)
    _, _, said = training.train(settings, name, environment, "bench/gpu_parts/watched_train.py", **keys)
    steps, waits = None, []
    for line in said.splitlines():
        if line.startswith("watched steps: "):
            steps = int(line.split(": ")[1])
        elif line.startswith("waits: "):
            waits.append(line.removeprefix("waits: "))
    if not steps:
        raise RuntimeError(
            "train.py no longer calls lr_at(step, config) once a step: watched_train.py has to be told where a step begins"
        )
    record(
        **row,
        watched_steps=steps,
        waits=len(waits),
        where=sorted(set(waits))[:10],
        applicable=settings.cuda,
        ok=None if not settings.cuda else not waits,
    )


def conclude(rows, settings):
    """Each form of an arm against its eager PyTorch form in the same dtype; the resumed run against one that was not stopped"""
    runs = {(row["arm"], row["mode"], row["dtype"]): row for row in rows if row.get("what") == "run" and "losses" in row}
    found = []
    for row in rows:
        if row.get("what") not in ("run", "resume") or "losses" not in row:
            continue
        arm, mode, dtype = row["arm"], row["mode"], row["dtype"]
        other = (arm, mode, dtype) if row["what"] == "resume" else (arm.removesuffix(", triton"), "eager", dtype)
        if other not in runs or runs[other] is row:
            continue
        pairs = list(zip(row["losses"], runs[other]["losses"], strict=False))
        bad = len(pairs) < size(settings)["max_iters"] or any(a is None or b is None for a, b in pairs)
        apart = None if bad else max(abs(a - b) for a, b in pairs)
        found.append(
            dict(
                what="equality",
                kind=row["what"],
                arm=arm,
                mode=mode,
                dtype=dtype,
                against=", ".join(other),
                steps=len(pairs),
                largest_difference=apart,
                last_difference=None if bad else abs(pairs[-1][0] - pairs[-1][1]),
                allowed=ALLOWED[dtype],
                ok=apart is not None and apart <= ALLOWED[dtype],
            )
        )
    return found
