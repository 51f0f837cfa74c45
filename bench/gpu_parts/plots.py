"""Pictures of a card's results, from its JSON file: <card>-steps.png, <card>-kernels.png, <card>-losses.png. Needs no GPU."""

import importlib.util
import os

from gpu_parts.report import rows_of

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")


def draw(content, stem):
    """-> (paths of the pictures, why there are none or None)"""
    if importlib.util.find_spec("matplotlib") is None:
        return [], "matplotlib is not installed; make the plots later: python bench/gpu.py --replot=DIR"
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made = []
    for name, picture in (("steps", steps), ("kernels", kernels), ("losses", losses)):
        figure = picture(content, plt)
        if figure is not None:
            made.append(f"{stem}-{name}.png")
            figure.tight_layout()
            figure.savefig(f"{stem}-{name}.tmp", format="png", dpi=110)
            os.replace(f"{stem}-{name}.tmp", made[-1])
            plt.close(figure)
    return made, None


def steps(content, plt):
    rows = [row for part in ("gpt2", "shapes") for row in rows_of(content, part, "ratio")]
    if not rows:
        return None
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.26 * len(rows)))
    axis.barh(
        [f"{row['shape']}, {row['arm']}, {row['mode']}" for row in rows],
        [row["ratio"] for row in rows],
        color=[COLOURS[row["mode"] == "eager"] for row in rows],
    )
    axis.axvline(1, color="grey", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_xlabel("time of a training step, baseline of the same shape and mode = 1")
    axis.tick_params(labelsize=7)
    return figure


def kernels(content, plt):
    rows = [row for row in rows_of(content, "kernels", "speed") if "ms" in row and row["dtype"] == "bfloat16"]
    if not rows:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, passes in zip(axes, ("forward", "backward")):
        for i, op in enumerate(dict.fromkeys(row["op"] for row in rows)):
            for provider, style in (("triton", "o-"), ("inductor", "x:")):
                points = sorted(
                    (row["D"], 100 * row["share_of_copy"])
                    for row in rows
                    if (row["op"], row["provider"], row["passes"]) == (op, provider, passes)
                )
                if points:
                    axis.plot(*zip(*points), style, color=COLOURS[i % len(COLOURS)], label=f"{op}, {provider}", markersize=4)
        axis.set_xscale("log", base=2)
        axis.axhline(100, color="grey", linewidth=0.8)
        axis.axhline(90 if passes == "forward" else 80, color="grey", linewidth=0.8, linestyle="--")
        axis.set_title(f"{passes}, bf16 (dashed: the goal)", fontsize=9)
        axis.set_xlabel("numbers in a row, D")
    axes[0].set_ylabel("% of the copy's bandwidth")
    axes[1].legend(fontsize=6)
    return figure


def losses(content, plt):
    rows = [row for row in rows_of(content, "target", "target") if row["curve"]]
    if not rows:
        return None
    figure, axis = plt.subplots(figsize=(6, 4))
    for i, row in enumerate(rows):
        axis.plot(
            [point[1] for point in row["curve"]],
            [point[2] for point in row["curve"]],
            "o-",
            markersize=3,
            label=row["arm"],
            color=COLOURS[i % len(COLOURS)],
        )
    axis.axhline(rows[0]["target"], color="grey", linewidth=0.8, linestyle="--")
    axis.set_xlabel("seconds of training")
    axis.set_ylabel("validation loss, nats a character")
    axis.legend(fontsize=8)
    return figure
