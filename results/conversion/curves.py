"""
Loss against tokens of sweeps/conversion.py, those of a run's start included: curves.csv and curves.png.

    python results/conversion/curves.py out/sweeps/conversion

At lr 6e-3, the mean over the seeds that measure (1338 to 1342).
"""
import csv
import json
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = os.path.dirname(os.path.abspath(__file__))
STARTED = ("continued", "converted", "at-once")  # after the half's 409,600 tokens


def main(folder):
    with open(os.path.join(folder, "runs.csv"), newline="") as f:
        runs = [row for row in csv.DictReader(f) if float(row["lr"]) == 6e-3 and row["seed"] != "1337"]
    curves = {}
    for row in runs:
        with open(os.path.join(folder, row["dir"], "metrics.jsonl")) as f:
            for record in map(json.loads, f):
                if "val_loss" in record:
                    tokens = record["tokens"] + 409600 * (row["arm"] in STARTED)
                    curves.setdefault(row["arm"], {}).setdefault(tokens, []).append(record["val_loss"])
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    with open(os.path.join(HERE, "curves.csv"), "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("arm", "tokens", "mean_val_loss", "seeds"))
        for arm, points in curves.items():
            means = [(tokens, sum(losses) / len(losses)) for tokens, losses in sorted(points.items())]
            writer.writerows((arm, tokens, f"{mean:.4f}", len(points[tokens])) for tokens, mean in means)
            axis.plot(*zip(*((tokens / 1e6, mean) for tokens, mean in means if tokens)), label=arm, marker=".")
    axis.set(xlabel="million tokens, the start's included", ylabel="validation loss, nats a character", ylim=(1.95, 2.8))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(os.path.join(HERE, "curves.png"), dpi=110)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not os.path.exists(os.path.join(sys.argv[1], "runs.csv")):
        sys.exit(__doc__)
    main(sys.argv[1])
