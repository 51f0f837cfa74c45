"""
What is inside the models of sweeps/high_rates.py at the end of a run.

    python results/stability/high_rates.py out/sweeps/high_rates [--out=results/stability/high_rates.csv]

Of each run: its loss, and for each block the share of rows at the ball's edge, and the largest derivatives of x (+) exp_0(v) by v and of
log_r(x) by x among 64 rows (training/watch.py), and the norm of the loss's gradient by what these two maps give, at the last
evaluation; and the gradient norm of the last block and the size of its updates over that of its weights, the medians of the last 100
steps.
"""
import csv
import json
import os
import statistics

from table import print_table


def read(folder):
    """A dict a run, of text, empty where nothing was measured. ValueError: a run without log_stability."""
    with open(os.path.join(folder, "runs.csv"), newline="") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        with open(os.path.join(folder, row["dir"], "metrics.jsonl")) as f:
            records = list(map(json.loads, f))
        steps, last = max(record["step"] for record in records), [record for record in records if "val_loss" in record][-1]
        blocks = sorted({key.split("/")[1] for record in records for key in record if key.startswith("stability/block")},
                        key=lambda block: int(block.removeprefix("block")))
        if not blocks:
            raise ValueError(f"{row['dir']} was made without --log_stability=True; sweeps/high_rates.py has it")
        late = {name: [record[f"stability/{blocks[-1]}/{name}"] for record in records
                       if record["step"] > steps - 100 and f"stability/{blocks[-1]}/{name}" in record]
                for name in ("grad_norm", "update_ratio")}
        inside = {name: " ".join(f"{last[key.format(block)]:.4g}" for block in blocks if key.format(block) in last) for name, key in (
            ("edge_share", "geometry/{}/edge_share"), ("add_by_v", "stability/{}/add_by_v"), ("log_by_x", "stability/{}/log_by_x"),
            ("add_grad_norm", "stability/{}/add_grad_norm"), ("log_grad_norm", "stability/{}/log_grad_norm"))}
        yield {"arm": row["arm"], "status": row["status"], "loss": f"{last['val_loss']:.4f}", **inside,
               **{f"last_block_{name}": f"{statistics.median(values):.2g}" if values else "" for name, values in late.items()}}


if __name__ == "__main__":
    print_table(__doc__, read, "high_rates")
