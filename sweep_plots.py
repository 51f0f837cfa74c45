"""
The plots of a sweep, from summarize_sweep.py's Summary. Each is a Figure: SVG and PNG as bytes; the caller writes them.

Colours are Okabe and Ito's (plot_runs.STYLES, black) and a grey, which the colour-blind tell apart; with the line's dashes, or
the marker, 32 arms look different, so that the plots can be read in print, too. What has no finite number is left out; a plot
with nothing in it is not drawn.
"""
import io
import math
import re
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from experiments.statistics import mean_interval
from plot_runs import STYLES  # also chooses a backend that needs no display

COLOURS = [colour for colour, _ in STYLES] + ["#000000", "#999999"]
MARKERS = "osD^vPX*<"  # one more than colours: together they begin again after 72 arms
# what arms are compared with: the arms of two roles, and (for mixed arms) the best of those without curvature
REFERENCES = {"baseline": "baseline", "flat": "flat control", "best_control": "best control"}
DASHES = ("-", "--", ":", "-.")
# same input, same bytes; arm names are text and not formulas
SETTINGS = {"svg.hashsalt": "sweep", "text.parse_math": False, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3,
            "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True)
class Figure:
    name: str  # of its files, without extension
    title: str
    caption: str
    files: dict  # {"svg" | "png": bytes}


def finish(figure, name, title, caption):
    figure.suptitle(title)
    figure.tight_layout()
    files = {}
    for kind in ("svg", "png"):
        data = io.BytesIO()
        figure.savefig(data, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        files[kind] = data.getvalue()
    plt.close(figure)
    return Figure(name, title, caption, files)


def style(place):
    """Of the arm at this place of the sweep, the same in all plots. The dashes change where the colours begin again."""
    return dict(color=COLOURS[place % len(COLOURS)], linestyle=DASHES[place // len(COLOURS) % len(DASHES)],
                marker=MARKERS[place % len(MARKERS)])


def top_of(lowest, highest):
    """The largest loss to show, of arms with these lowest and highest ones: three times as far from the best arm as the median
    arm is, but all of three arms in four; and everything, if that is not half as much again. A few that are worse are not to
    flatten what there is to see of the others."""
    best = min(lowest)
    top = max(best + 3 * (np.median(lowest) - best), np.quantile(highest, 0.75, method="lower"))
    return top if max(highest) - best > 1.5 * (top - best) else max(highest)


def number_ticks(axis):
    """Ticks of a logarithmic y axis as plain numbers, three or more: decades, else 1 2 5, else as on a linear axis."""
    low, high = axis.get_ylim()
    for locator in (LogLocator(), LogLocator(subs=(1, 2, 5)), MaxNLocator(5)):
        if sum(low <= v <= high for v in locator.tick_values(low, high)) >= 3:
            break
    axis.yaxis.set_major_locator(locator)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}")  # matplotlib's own writes formulas


def spread(heights, gap):
    """The heights moved apart, in their order, until neighbours are at least `gap` apart: for labels."""
    order = np.argsort(heights, kind="stable")
    moved = np.array(heights, dtype=float)
    for below, above in zip(order, order[1:]):
        moved[above] = max(moved[above], moved[below] + gap)
    return moved - (moved - heights).mean()


def over_seeds(curves, x_key, y_of, most=400):
    """(x, mean, low, high) of curves of several seeds, where all of them are: linear between points, 95% over seeds
    (low and high None for one seed, NaN where all are equal). curves: {seed: list of records}; y_of: record -> number. None if
    no curve has a finite point."""
    lines = []
    for records in curves.values():
        points = np.array([(r[x_key], y_of(r)) for r in records], dtype=float).reshape(-1, 2)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            lines.append(points)
    if not lines:
        return None
    first, last = max(p[0, 0] for p in lines), min(p[-1, 0] for p in lines)
    x = np.unique(np.concatenate([p[:, 0] for p in lines]))
    x = x[(x >= first) & (x <= last)]
    if not len(x):
        return None
    x = x[np.unique(np.linspace(0, len(x) - 1, most).astype(int))]
    found = [mean_interval(column) for column in zip(*(np.interp(x, p[:, 0], p[:, 1]) for p in lines))]
    mean = np.array([e.mean for e in found])
    if len(lines) == 1:
        return x, mean, None, None
    return x, mean, np.array([e.low for e in found], dtype=float), np.array([e.high for e in found], dtype=float)


def draw_line(axis, line, place, label, **more):
    x, mean, low, high = line
    axis.plot(x, mean, label=label, markevery=max(1, len(x) // 8), markersize=4, linewidth=1.4, **style(place), **more)
    if low is not None:
        axis.fill_between(x, low, high, color=style(place)["color"], alpha=0.15, linewidth=0)


# ----------------------------------------------------------------------------------------------------------------------

def loss_plot(summary):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True)
    seen = []
    for place, arm in enumerate(summary.arms):
        for axis, key in zip(axes, ("tokens", "train_seconds")):
            records = {s: c.evaluations for s, c in arm.curves.items()}
            line, when = (over_seeds(records, "step", lambda r, k=k: r[k]) for k in ("val_loss", key))
            if line and when:  # both at equal steps: seconds differ from run to run, and the slowest is not to cut the others off
                line = (np.interp(line[0], *when[:2]), *line[1:])
                draw_line(axis, line, place, arm.name)
                seen.append(line)
    if not seen:
        plt.close(figure)
        return None
    # the first tenth is a cliff that would flatten the rest
    late = [mean[x >= x[0] + 0.1 * (x[-1] - x[0])] for x, mean, _, _ in seen]
    low, high, top = min(map(min, late)), max(map(max, late)), top_of([*map(min, late)], [*map(max, late)])
    margin = 0.05 * (top - low or 1.0)
    axes[0].xaxis.set_major_formatter(EngFormatter())
    axes[0].set(xlabel="tokens", ylabel="validation loss (nats a token)",
                ylim=(low - margin, top + margin))
    axes[1].set(xlabel="seconds of training")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return finish(figure, "loss", "Validation loss, each arm at its own best learning rate",
                  "Mean over the seeds that measure, at equal steps (right: at the mean of their seconds there); bands: 95% "
                  "t-intervals over them. The first tenth is cut off above"
                  + (", and so are arms far above the others." if high > top else "."))


def lr_plot(summary):
    figure, axis = plt.subplots(figsize=(8.5, 4.8))
    heights, drawn, failed = {}, {}, {}  # heights: arm -> all of its losses; drawn: rate -> [(x, y, arm)]
    for place, arm in enumerate(summary.arms):
        points = []
        for lr, seeds in arm.losses().items():
            x = lr * 1.02 ** (place - (len(summary.arms) - 1) / 2)  # beside each other, not on top
            values = {s: v for s, v in seeds.items() if math.isfinite(v)}
            if len(values) < len(seeds):
                failed.setdefault(lr, []).append(f"{arm.name} {len(seeds) - len(values)}/{len(seeds)}")
            if not values:
                points.append((x, math.nan))  # the line is broken here
                continue
            chooser = seeds.get(summary.selection_seed, np.mean(list(values.values())))
            points.append((x, chooser if math.isfinite(chooser) else math.nan))
            heights.setdefault(place, []).extend(values.values())
            drawn.setdefault(lr, []).append((*points[-1], place))
            if arm.choice and lr == arm.choice.lr:
                axis.plot(*points[-1], "o", markersize=12, markerfacecolor="none", color=style(place)["color"])
                half = None if arm.estimate.low is None else arm.estimate.mean - arm.estimate.low
                if half is not None or arm.choice.selection_seed is not None:
                    axis.errorbar(x, arm.estimate.mean, half, elinewidth=1, capsize=3, markersize=6,
                                  markerfacecolor="white", marker=style(place)["marker"], color=style(place)["color"])
        if points:
            axis.plot(*zip(*points), label=arm.name, markersize=5, linewidth=1.3, **style(place))
    if not heights:
        plt.close(figure)
        return None
    low, top = min(map(min, heights.values())), top_of([*map(min, heights.values())], [*map(max, heights.values())])
    margin = 0.08 * (top - low or 0.1)
    top += 3 * margin if failed else margin
    axis.set(xscale="log", xlabel="learning rate", ylabel=f"{summary.measure.name} ({summary.measure.unit})",
             ylim=(low - margin, top))
    above = [found for found in ([point for point in points if point[1] > top] for points in drawn.values()) if found]
    for found in above:
        at = np.exp(spread([math.log(x) for x, _, _ in found], 0.018 * np.ptp(np.log(axis.get_xlim()))))
        for x, (_, y, place) in zip(at, found):
            axis.text(x, 1.01, f"\u2191 {y:.{min(2, summary.measure.digits)}f}", transform=axis.get_xaxis_transform(),
                      ha="center", va="bottom", rotation=90, fontsize=7, color=style(place)["color"])
    rates = sorted({lr for arm in summary.arms for lr in arm.losses()})
    axis.set_xticks(rates, [f"{lr:g}" for lr in rates])
    axis.minorticks_off()
    for lr, names in failed.items():
        axis.text(lr, 0.99, "\n".join([f"{summary.measure.failed}:", *names]), transform=axis.get_xaxis_transform(), ha="center",
                  va="top", fontsize=7, bbox=dict(facecolor="white", edgecolor="0.6", pad=2))
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return finish(figure, "lr", "Sensitivity to the learning rate",
                  ("Lines: " + ("mean over the seeds that finished" if summary.selection_seed is None else
                                f"seed {summary.selection_seed}, which chooses (the mean of others where it did not run)")
                   + "; rings: each arm's best rate; hollow, with 95% t-intervals: the seeds that measure it (cut off at the frame "
                   "where they are wider than the losses lie; none for one seed or equal values). Points are moved sideways a "
                   "little." + (" Above the frame, with arrows: losses far above the other arms'." if above else "")))


def differences_plot(summary):
    roles = [role for role in REFERENCES if any(role in a.against and a.against[role][0].seeds for a in summary.arms)]
    if not roles:
        return None
    arms = [(place, a) for place, a in enumerate(summary.arms) if any(role in a.against for role in roles)]
    figure, axes = plt.subplots(1, len(roles), figsize=(5.8 * len(roles), 1.8 + 0.45 * len(arms)), sharey=True,
                                squeeze=False)
    for axis, role in zip(axes[0], roles):
        axis.axvline(0, color="0.3", linewidth=1, linestyle="--")
        for row, (place, arm) in enumerate(arms):
            difference, p = arm.against.get(role, (None, None))
            if difference is None or not difference.seeds:
                why = "the reference" if arm is summary.reference(role) else "no pairs" if role in arm.against else ""
                axis.text(1.02, row, why, fontsize=8, va="center", transform=axis.get_yaxis_transform(), color="0.4")
                continue
            e, colour, marker = difference.estimate, style(place)["color"], style(place)["marker"]
            axis.plot(difference.differences, np.full(e.n, row + 0.22), "|", color="0.5", markersize=6)
            if e.low is not None:
                axis.plot([e.low, e.high], [row, row], color=colour, linewidth=2)
            axis.plot(e.mean, row, marker, color=colour, markersize=7,
                      markerfacecolor="white" if e.low is None else colour)
            star = "*" if summary.selection_seed in difference.seeds else ""
            axis.text(1.02, row, f"{e.mean:+.{summary.measure.digits}f}, n = {e.n}{star}" + (f"\np = {p:.2g}" if p is not None else ""),
                      fontsize=8, transform=axis.get_yaxis_transform(), va="center")
        axis.set(xlabel=f"{summary.measure.name} minus that of the {REFERENCES[role]} ({summary.measure.unit}); left is better",
                 ylim=(len(arms) - 0.4, -0.7))
        axis.margins(x=0.12)
    axes[0][0].set_yticks(range(len(arms)), [a.name for _, a in arms])
    return finish(figure, "differences", "Differences at each arm's own best learning rate",
                  "Paired over seeds (grey ticks); bars: 95% intervals of the mean difference; p: paired t-test after "
                  "Holm, the bars not corrected. Hollow: no interval (one seed, or all differ by the same). *: with the seed "
                  "that chose the rates, which is too low.")


def curvature_of(records):
    """{block: {head or None: [(tokens, c)]}} and {block: [(tokens, least, most)]} of a run's evaluations."""
    lines, bands = {}, {}
    for r in records:
        for key, value in r.items():
            found = re.fullmatch(r"geometry/block(\d+)/curvature(?:_head(\d+))?", key)
            if found and math.isfinite(value):
                block, head = int(found[1]), int(found[2]) if found[2] else None
                lines.setdefault(block, {}).setdefault(head, []).append((r["tokens"], value))
                name = f"geometry/block{block}/curvature_"
                if head is None and name + "min" in r:
                    bands.setdefault(block, []).append((r["tokens"], r[name + "min"], r[name + "max"]))
    return lines, bands


def curvature_plot(summary):
    panels = []
    for arm in summary.arms:
        for seed in sorted(arm.curves)[:1]:
            lines, bands = curvature_of(arm.curves[seed].evaluations)
            every = {c for by_head in (*lines.values(), bands) for points in by_head.values() for _, *values in points for c in values}
            if every and max(every) - min(every) > 1e-5 * max(map(abs, every)):  # a fixed c, rounded, is no plot
                panels.append((arm.name, seed, lines, bands))
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns + 0.6, 3.6 * rows), squeeze=False)
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    for axis, (name, seed, lines, bands) in zip(axes.flat, panels):
        for block, by_head in lines.items():
            colour, dash = STYLES[block % len(STYLES)]
            heads = [points for head, points in by_head.items() if head is not None]
            for points in heads:
                axis.plot(*zip(*points), color=colour, linestyle=dash, linewidth=0.8, alpha=0.7)
            if None in by_head:
                axis.plot(*zip(*by_head[None]), color=colour, linestyle=dash, linewidth=2)
            if block in bands and not heads:
                x, low, high = zip(*bands[block])
                axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ends = {block: next(iter(by_head.values()))[-1] for block, by_head in lines.items()}
        low, high = axis.get_ylim()
        at = spread([y for _, y in ends.values()], 0.055 * (high - low))
        for (block, (x, _)), y in zip(ends.items(), at):
            axis.annotate(f"block {block}", (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8,
                          color=STYLES[block % len(STYLES)][0], annotation_clip=False)
        axis.xaxis.set_major_formatter(EngFormatter())
        axis.set(title=f"{name}, seed {seed}", xlabel="tokens", ylabel="c (minus the sectional curvature)")
    return finish(figure, "curvature", "Curvature during training, by block and head",
                  "One seed at the best learning rate, arms whose c is not fixed. Thick: mean of the block; thin: its heads, or a band from the "
                  "least to the largest c where heads are not logged. c > 0 is hyperbolic, c < 0 spherical.")


def stability_plot(summary):
    def edge(r):
        shares = [v for k, v in r.items() if re.fullmatch(r"geometry/block\d+/edge_share", k)]
        return np.mean(shares) if shares else math.nan
    gradients, edges = [], []
    for place, arm in enumerate(summary.arms):
        steps = {s: [r for r in c.steps if r.get("grad_norm", 0) > 0] for s, c in arm.curves.items()}
        line = over_seeds(steps, "tokens", lambda r: math.log(r["grad_norm"]))
        if line:
            gradients.append((place, arm.name, (line[0], np.exp(line[1]), None, None)))
        line = over_seeds({s: c.evaluations for s, c in arm.curves.items()}, "tokens", edge)
        if line:  # a share: no interval of it is beyond 0 and 1
            edges.append((place, arm.name, (*line[:2], *(b if b is None else b.clip(0, 1) for b in line[2:]))))
    panels = [panel for panel in ((gradients, "gradient norm before clipping", "log"),
                                  (edges, "share of rows at the ball's edge", "linear")) if panel[0]]
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.2), squeeze=False)
    for axis, (lines, label, scale) in zip(axes[0], panels):
        for place, name, line in lines:
            draw_line(axis, line, place, name, alpha=0.85)
        axis.xaxis.set_major_formatter(EngFormatter())
        axis.set(xlabel="tokens", ylabel=label, yscale=scale)
        if scale == "log":
            number_ticks(axis)
    axes[0][-1].legend(*axes[0][0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.01, 0.5))
    return finish(figure, "stability", "Gradient norm, and rows at the ball's edge",
                  "Best learning rate. Left: geometric mean over seeds at the logged steps. Right, curved models "
                  "only (c < 0: the cap before the antipode): mean over blocks and seeds with 95% intervals over seeds.")


def draw(summary):
    """[Figure] of what there is to draw."""
    with plt.rc_context(SETTINGS):
        made = [plot(summary) for plot in (loss_plot, lr_plot, differences_plot, curvature_plot, stability_plot)]
    return [figure for figure in made if figure]
