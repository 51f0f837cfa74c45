"""
Training to a validation loss: config/train_shakespeare_*.py (6 x 384) on the text of this repository, compiled, in bf16: how many
steps, tokens and seconds (without evaluations and the compiler) each arm takes. One seed: it shows that training works and how
fast it is, not which arm is better.
"""

from gpu_parts import Job, training

TARGET = 1.6  # nats a character
SECONDS = 10  # of training, at most

CASES = {
    "baseline": ("baseline", {}),
    "mixed, triton": ("mixed", dict(ops="triton")),
    "mixed": ("mixed", {}),
    "flat": ("flat", {}),
    "smear": ("smear", {}),
}


def jobs(settings):
    return [Job(name, (name,)) for name in (list(CASES)[:1] if settings.quick else CASES)]


def workers(settings):
    return 1


def run(job, settings, record):
    config, keys = CASES[job.arguments[0]]
    keys = dict(
        keys,
        dropout=0.0,
        target_val_loss=TARGET,
        max_seconds=SECONDS,
        max_iters=2000,
        eval_interval=50,
        eval_iters=10,
        warmup_iters=50,
        lr_decay_iters=1000,
        log_interval=10,
        compile=True,
        dtype="bfloat16",
    )
    environment = {}
    if settings.quick:
        keys.update(
            n_layer=1,
            n_head=2,
            n_embd=16,
            block_size=8,
            batch_size=2,
            max_iters=4,
            lr_decay_iters=4,
            eval_interval=2,
            eval_iters=1,
            warmup_iters=1,
            log_interval=1,
            target_val_loss=100.0,
            dtype="float32",
        )
        environment = dict(TORCHDYNAMO_DISABLE="1", OMP_NUM_THREADS="1")
    metrics, summary, _ = training.train(
        settings, f"target-{job.name.replace(', ', '-')}", environment, config=f"config/train_shakespeare_{config}.py", **keys
    )
    curve = [(line["step"], line["train_seconds"], line["val_loss"]) for line in metrics if "val_loss" in line]
    speeds = sorted(line["tok_per_s"] for line in metrics if "tok_per_s" in line)
    record(
        what="target",
        arm=job.name,
        target=keys["target_val_loss"],
        reached=summary["target_reached"],
        steps=summary.get("target_step"),
        tokens=summary.get("target_tokens"),
        seconds=summary.get("target_seconds"),
        best_val_loss=summary["best_val_loss"],
        last_step=summary["step"],
        train_seconds=summary["train_seconds"],
        tokens_s=speeds[len(speeds) // 2] if speeds else None,
        curve=curve,
    )
