"""In train.py's place for tests of sweeps: it keeps its contract and takes no time. The seed says what becomes of a run."""
import json
import math
import os
import signal
import sys
import time

options = dict(a[2:].split("=", 1) for a in sys.argv[1:] if a.startswith("--"))
out, seed = options["out_dir"], int(options["seed"])
with open(os.path.join(out, "starts"), "a") as f:
    f.write(json.dumps({k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")} | options) + "\n")
starts = len(open(os.path.join(out, "starts")).readlines())


def summary(status):
    decay = float(options.get("weight_decay", 0))
    loss = 2.5 if seed < 1000 else 2.5 + decay + 0.001 * math.sin(seed * (1 + 100 * decay))  # an effect, and a spread of pairs
    with open(os.path.join(out, "summary.json"), "w") as f:
        json.dump({"status": status, "step": 7, "tokens": 70, "train_seconds": 1.5, "val_loss": loss,
                   "best_val_loss": 2.25, "best_step": 5, "parameters": 11, "flops_per_token": 66}, f)


asked = []
for s in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(s, lambda *_: asked.append(1))
with open(os.path.join(out, "metrics.jsonl"), "w") as f:
    f.write('{"step": 3, "tokens": 30, "train_seconds": 0.5, "loss": 3.0}\n')
if seed == 1 and starts == 1 or seed == 2:
    sys.exit("RuntimeError: no luck")
if seed == 3:
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 4:
    print("error: out of device memory", file=sys.stderr)
    sys.exit(2)
if seed == 12 and starts == 1:
    print("error: the disk is full", file=sys.stderr)
    sys.exit(2)
if seed == 5:
    summary("diverged")
    sys.exit(3)
if seed == 6 and starts == 1:
    while not asked:
        time.sleep(0.01)
    summary("stopped")
    sys.exit(0)
if seed == 7:
    os.kill(os.getppid(), signal.SIGKILL)  # the job of submitit
    sys.exit(1)
if seed == 8:
    time.sleep(1.2)
summary("finished")
