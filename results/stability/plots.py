"""
The plot of results/stability.md, of runs with --log_stability=True.

    python results/stability/plots.py out/watch/* --out=results/stability/watch.png

Three panels by step: the share of the last block's rows at the ball's edge, the derivative of x (+) exp_0(v) by v there, and the
gradient norm of that block.
"""
import argparse
import json
import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = (("geometry/{}/edge_share", "rows at the ball's edge", "linear"), ("stability/{}/add_by_v", "|d (x (+) exp_0(v)) / dv|", "log"),
          ("stability/{}/grad_norm", "gradient norm of the block", "log"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of runs")
    parser.add_argument("--out", required=True, help="a PNG file")
    options = parser.parse_args()
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for number, run in enumerate(options.runs):
        with open(os.path.join(run, "metrics.jsonl")) as f:
            records = [json.loads(line) for line in f]
        last = max((key.split("/")[1] for record in records for key in record if key.startswith("stability/block")),
                   key=lambda block: int(block.removeprefix("block")))
        for axis, (key, title, scale) in zip(axes, PANELS):
            points = [(record["step"], record[key.format(last)]) for record in records if key.format(last) in record]
            if points:
                axis.plot(*zip(*points), label=os.path.basename(os.path.normpath(run)), lw=1.4, color=f"C{number}")
            axis.set(title=title, xlabel="step", yscale=scale)
            axis.grid(alpha=0.3)
    figure.legend(*axes[2].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
