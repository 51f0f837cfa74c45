"""
The plots of a sweep, from summarize_sweep.py's Summary. Each is a Figure: SVG and PNG as bytes; the caller writes them.

Colours, dashes and frames are common/plot_style.py's: 32 arms look different, for the colour-blind and in print too. What has no finite
number is left out; a plot with nothing in it is not drawn, nor one of learning rates where no arm has two. Intervals over seeds
are drawn from LEAST_FOR_BAND seeds on: that of two is 12.7 standard errors wide to either side and would hide everything. No
interval sets a frame.
"""
import dataclasses
import math
import re
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from common.intervals import mean_interval
from common.plot_style import (
    LEAST,
    MOST_MARKS,
    SETTINGS,
    SQUEEZE,
    STYLES,
    image,
    label,
    legend,
    loss_frame,
    mark_above,
    peaks_above,
    reach,
    said_of_frame,
    spread,
    style,
    token_ticks,
)

# what arms are compared with: the arms of two roles, and (for mixed arms) the best of those without curvature
REFERENCES = {"baseline": "baseline", "flat": "flat control", "best_control": "best control"}
LEAST_FOR_BAND = 3  # seeds


@dataclass(frozen=True)
class Figure:
    name: str  # of its files, without extension
    title: str
    caption: str
    files: dict  # {"svg" | "png": bytes}


@dataclass(frozen=True)
class Line:
    """A curve over seeds, at the x where all of them are. low, high: None with fewer than LEAST_FOR_BAND seeds."""
    x: np.ndarray
    mean: np.ndarray
    seeds: list  # y of each
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def finish(figure, name, title, caption, legend_of=None, marks=()):
    """legend_of: the arguments of legend(). marks: [(axis, the marks of mark_above())]."""
    figure.suptitle(title, y=1 - 0.08 / figure.get_figheight())  # 0.08 inches below the top, however high the figure is
    for fit in (figure.tight_layout, lambda: None):
        for axis, above in marks:
            mark_above(axis, above)
        fit()
    if legend_of:
        legend(*legend_of)
    files = {kind: image(figure, kind) for kind in ("svg", "png")}
    plt.close(figure)
    return Figure(name, title, caption, files)


def number_ticks(axis):
    """Ticks of a logarithmic y axis as plain numbers, three or more: decades, else 1 2 5, else as on a linear axis."""
    low, high = axis.get_ylim()
    for locator in (LogLocator(), LogLocator(subs=(1, 2, 5)), MaxNLocator(5)):
        if sum(low <= v <= high for v in locator.tick_values(low, high)) >= 3:
            break
    axis.yaxis.set_major_locator(locator)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}")  # matplotlib's own writes formulas


def over_seeds(curves, x_key, y_of, most=400):
    """Line of the curves of several seeds, linear between points, with 95% t-intervals over seeds (NaN where all are equal).
    curves: {seed: list of records}; y_of: record -> number. None if no curve has a finite point."""
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
    seeds = [np.interp(x, p[:, 0], p[:, 1]) for p in lines]
    found = [mean_interval(column) for column in zip(*seeds)]
    mean = np.array([e.mean for e in found])
    if len(seeds) < LEAST_FOR_BAND:
        return Line(x, mean, seeds)
    return Line(x, mean, seeds, *(np.array([getattr(e, end) for e in found], dtype=float) for end in ("low", "high")))


def draw_line(axis, line, place, name):
    """The mean; with it the interval, or where two seeds have none, their own curves."""
    look = style(place)
    axis.plot(line.x, line.mean, label=label(name), markevery=max(1, len(line.x) // 8), markersize=4, linewidth=1.4, **look)
    if line.low is not None:
        axis.fill_between(line.x, line.low, line.high, color=look["color"], alpha=0.13, linewidth=0)
    elif len(line.seeds) > 1:
        for y in line.seeds:
            axis.plot(line.x, y, color=look["color"], linestyle=look["linestyle"], linewidth=0.5, alpha=0.6)


def sentences(*texts):
    return " ".join(filter(None, texts))


def about_seeds(lines):
    """The sentences of a caption on what is drawn beside the means."""
    bands, pairs = any(line.low is not None for line in lines), any(len(line.seeds) == 2 for line in lines)
    return sentences("Bands: 95% t-intervals over them, from three seeds on." if bands else "",
                     "Thin: the curves of two seeds." if pairs else "")


# ----------------------------------------------------------------------------------------------------------------------

def loss_plot(summary):
    found = []  # (place, name, line by tokens, line by seconds)
    for place, arm in enumerate(summary.arms):
        records = {s: c.evaluations for s, c in arm.curves.items()}
        line, *when = (over_seeds(records, "step", lambda r, k=k: r[k]) for k in ("val_loss", "tokens", "train_seconds"))
        if line:  # both at equal steps: seconds differ from run to run, and the slowest is not to cut the others off
            found.append((place, arm.name, *(dataclasses.replace(line, x=x.mean) for x in when)))
    if not found:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4), sharey=True)
    for place, name, *lines in found:
        for axis, line in zip(axes, lines):
            draw_line(axis, line, place, name)
    curves = [(line.x, line.mean) for _, _, line, _ in found]
    low, top = loss_frame(curves)
    token_ticks(axes[0])
    axes[0].set(xlabel="tokens", ylabel="validation loss (nats a token)", ylim=(low, top))
    axes[1].set(xlabel="seconds of training")
    marks = [[(lines[side].x[at], f"\u2191 {lines[side].mean[at]:.2f}", style(place)["color"])
              for (place, _, *lines), at in zip(found, peaks_above(curves, top)) if at is not None] for side in (0, 1)]
    return finish(figure, "loss", "Validation loss, each arm at its own best learning rate",
                  sentences("Mean over the seeds that measure, at equal steps (right: at the mean of their seconds there).",
                            about_seeds([line for _, _, line, _ in found]), said_of_frame(curves, top)),
                  (axes[1],), list(zip(axes, marks)))


def lr_panels(summary):
    """[(what arms, [(place, arm)])]: many arms are drawn in two panels."""
    arms = list(enumerate(summary.arms))
    mixed = [(place, arm) for place, arm in arms if arm.role == "mixed"]
    others = [pair for pair in arms if pair not in mixed]
    return [("", arms)] if len(arms) <= 8 or not mixed or not others else [
        (" (arms that are not mixed)", others), (" (mixed arms)", mixed)]


def draw_rates(axis, summary, arms):
    """The curves of these arms on one axis. Returns [(lr, x, y, place, seeds that failed, seeds)], a tuple a point, with 0 seeds
    for the hollow ones; y: NaN where the arm has no value there."""
    drawn = []
    step = min(math.log(1.02), math.log(1.25) / max(1, len(arms) - 1))  # beside each other, not on top
    for shift, (place, arm) in enumerate(arms):
        points, look = [], style(place)
        for lr, seeds in arm.losses().items():
            x = lr * math.exp(step * (shift - (len(arms) - 1) / 2))
            values = [v for v in seeds.values() if math.isfinite(v)]
            chooser = seeds.get(summary.selection_seed, np.mean(values) if values else math.nan)
            y = chooser if math.isfinite(chooser) else math.nan  # the line is broken there
            points.append((x, y))
            drawn.append((lr, x, y, place, len(seeds) - len(values), len(seeds)))
            if arm.choice and lr == arm.choice.lr:
                axis.plot(x, y, "o", markersize=12, markerfacecolor="none", color=look["color"])
                e = arm.estimate
                half = e.mean - e.low if e.n >= LEAST_FOR_BAND and e.low is not None else None
                if arm.choice.selection_seed is not None or half is not None:
                    axis.errorbar(x, e.mean, half, elinewidth=1, capsize=3, markersize=6, markerfacecolor="white",
                                  marker=look["marker"], color=look["color"], zorder=3)
                    drawn.append((lr, x, e.mean, place, 0, 0))
        if points:
            axis.plot(*zip(*points), label=label(arm.name), markersize=5, linewidth=1.3, **look)
    return drawn


def marks_of_rates(drawn, top, digits):
    """For mark_above(): at each rate, what is above the frame and how many seeds failed."""
    marks = []
    for lr in sorted({d[0] for d in drawn}):
        here = [d for d in drawn if d[0] == lr and (d[2] > top or d[4]) and d[5]]
        fit = len(here) if len(here) <= MOST_MARKS else MOST_MARKS - 1
        for _, x, y, place, failed, of in here[:fit]:
            text = ([f"\u2191 {y:.{digits}f}"] if y > top else []) + ([f"\u00d7 {failed} of {of}"] if failed else [])
            marks.append((x, ", ".join(text), style(place)["color"]))
        if fit < len(here):
            marks.append((here[fit][1], f"and {len(here) - fit} more", "0.3"))
    return marks


def lr_plot(summary):
    """None where no arm has two learning rates."""
    if all(len(arm.losses()) < 2 for arm in summary.arms):
        return None
    panels = lr_panels(summary)
    figure, axes = plt.subplots(1, len(panels), figsize=(8 if len(panels) == 1 else 10.5, 5), sharex=True,
                                sharey=True, squeeze=False)
    drawn = [draw_rates(axis, summary, arms) for axis, (_, arms) in zip(axes[0], panels)]
    heights = [d[2] for found in drawn for d in found if math.isfinite(d[2])]
    if not heights:
        plt.close(figure)
        return None
    low = min(heights)
    top = reach(heights, low, -(-len(heights) // 2), LEAST * abs(low))
    margin = 0.06 * (top - low or 0.1 * abs(low) or 1.0)
    low, top = low - margin, top + margin
    rates = sorted({d[0] for found in drawn for d in found})
    crowded = len(rates) > 1 and min(np.diff(np.log(rates))) * len(panels) < 0.09 * math.log(rates[-1] / rates[0])
    for axis, (title, _) in zip(axes[0], panels):
        axis.set(xscale="log", xlabel=f"learning rate{title}", ylim=(low, top))
        axis.set_xticks(rates, [f"{lr:g}" for lr in rates], rotation=45 if crowded else 0)
        axis.minorticks_off()
    axes[0][0].set_ylabel(f"{summary.measure.name} ({summary.measure.unit})")
    marks = [marks_of_rates(found, top, min(2, summary.measure.digits)) for found in drawn]
    handles = [axis.get_legend_handles_labels() for axis in axes[0]]
    order = np.argsort([place for _, arms in panels for place, arm in arms if arm.losses()], kind="stable")
    handles = [[sum(part, [])[i] for i in order] for part in zip(*handles)]
    return finish(figure, "lr", "Sensitivity to the learning rate",
                  ("Lines: " + ("mean over the seeds that finished" if summary.selection_seed is None else
                                f"seed {summary.selection_seed}, which chooses (the mean of others where it did not run)")
                   + "; rings: each arm's best rate; hollow: the mean of the seeds that measure it, with its 95% t-interval from "
                   "three seeds on (cut off at the frame where it is wider). Points are moved sideways a little."
                   + (" Arrows above the frame: losses far above the others." if max(heights) > top else "")
                   + (f" Crosses above the frame: how many of an arm's seeds {summary.measure.failed} at that rate."
                      if any(d[4] for found in drawn for d in found) else "")), (axes[0][-1], handles), list(zip(axes[0], marks)))


def differences_frame(differences, level):
    """(lowest, highest) of the x axis: 0, the seeds' differences and the intervals of three seeds or more, but for rows that are
    far off, at most half of them. The intervals of two seeds may widen it by half to either side, no further. level: the
    reference's loss; differences of less than a twentieth of it are never far off."""
    def around(d, least):
        e = d.estimate
        values = (*d.differences, e.low, e.high) if e.n >= least and e.low is not None else d.differences
        return min(values), max(values)
    spans = [around(d, LEAST_FOR_BAND) for d in differences]
    sizes = [size for size in (max(abs(low), abs(high)) for low, high in spans) if size] or [0.0]
    limit = reach(sizes, 0.0, -(-len(sizes) // 2), abs(level) / 20 / SQUEEZE)
    inside = [d for d, (low, high) in zip(differences, spans) if max(abs(low), abs(high)) <= limit]
    (low, high), (lowest, highest) = ((min(0.0, *lows), max(0.0, *highs)) for lows, highs in (
        zip(*(around(d, least) for d in inside)) for least in (LEAST_FOR_BAND, 2)))
    room = 0.5 * (high - low)
    low, high = max(lowest, low - room), min(highest, high + room)
    margin = 0.08 * (high - low or 1.0)
    return low - margin, high + margin


def differences_plot(summary):
    roles = [role for role in REFERENCES if any(role in a.against and a.against[role][0].seeds for a in summary.arms)]
    if not roles:
        return None
    arms = [(place, a) for place, a in enumerate(summary.arms) if any(role in a.against for role in roles)]
    figure, axes = plt.subplots(1, len(roles), figsize=(1.2 + 4.6 * len(roles), 1.8 + 0.42 * len(arms)), sharey=True,
                                squeeze=False)
    cut = []  # the numbers of seeds of what goes on beyond the frame
    for axis, role in zip(axes[0], roles):
        axis.axvline(0, color="0.3", linewidth=1, linestyle="--")
        left, right = differences_frame([a.against[role][0] for _, a in arms if role in a.against and a.against[role][0].seeds],
                                        summary.reference(role).estimate.mean)
        for row, (place, arm) in enumerate(arms):
            difference, p = arm.against.get(role, (None, None))
            if difference is None or not difference.seeds:
                why = "the reference" if arm is summary.reference(role) else "no pairs" if role in arm.against else ""
                axis.text(1.035, row, why, fontsize=8, va="center", transform=axis.get_yaxis_transform(), color="0.4")
                continue
            e, colour, marker = difference.estimate, style(place)["color"], style(place)["marker"]
            axis.plot(difference.differences, np.full(e.n, row + 0.25), "|", color="0.5", markersize=6)
            if e.low is not None:
                axis.plot([e.low, e.high], [row, row], color=colour, linewidth=2)
            axis.plot(e.mean, row, marker, color=colour, markersize=7,
                      markerfacecolor="white" if e.low is None else colour)
            low, high = (e.mean, e.mean) if e.low is None else (e.low, e.high)
            for beyond, edge, arrow in ((low < left, left, "<"), (high > right, right, ">")):
                if beyond:
                    cut.append(e.n)
                    axis.plot(edge, row, arrow, color=colour, markersize=7, clip_on=False, zorder=4)
            star = "*" if summary.selection_seed in difference.seeds else ""
            text = f"{e.mean:+.{summary.measure.digits}f}, n = {e.n}{star}"
            axis.text(1.035, row, text if p is None else f"{text}\np = {p:.2g}",
                      fontsize=8, transform=axis.get_yaxis_transform(), va="center")
        axis.set(xlabel=f"{summary.measure.name} minus that of the {REFERENCES[role]}\n({summary.measure.unit}; left is better)",
                 xlim=(left, right), ylim=(len(arms) - 0.4, -0.7))
        axis.xaxis.set_major_locator(MaxNLocator(5))
    axes[0][0].set_yticks(range(len(arms)), [label(a.name) for _, a in arms])
    return finish(figure, "differences", "Differences at each arm's own best learning rate",
                  "Paired over seeds (grey ticks); bars: 95% intervals of the mean difference; p: paired t-test after "
                  "Holm, the bars not corrected. Hollow: no interval (one seed, or all differ by the same). *: with the seed "
                  "that chose the rates, which is too low."
                  + (" Arrowheads: goes on beyond the frame" if cut else "")
                  + ("; an interval of two seeds is 12.7 standard errors to either side." if 2 in cut else "." if cut else ""))


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
            every = {c for by_head in (*lines.values(), bands) for points in by_head.values()
                     for _, *values in points for c in values}
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
        token_ticks(axis)
        axis.set(title=f"{name}, seed {seed}", xlabel="tokens", ylabel="c (minus the sectional curvature)")
    return finish(figure, "curvature", "Curvature during training, by block and head",
                  "One seed at the best learning rate, arms whose c is not fixed. Thick: mean of the block; thin: its heads, or "
                  "a band from the least to the largest c where heads are not logged. c > 0 is hyperbolic, c < 0 spherical.")


def stability_plot(summary):
    def edge(r):
        shares = [v for k, v in r.items() if re.fullmatch(r"geometry/block\d+/edge_share", k)]
        return np.mean(shares) if shares else math.nan
    gradients, edges = [], []
    for place, arm in enumerate(summary.arms):
        steps = {s: [r for r in c.steps if r.get("grad_norm", 0) > 0] for s, c in arm.curves.items()}
        line = over_seeds(steps, "tokens", lambda r: math.log(r["grad_norm"]))
        if line:
            gradients.append((place, arm.name, Line(line.x, np.exp(line.mean), [])))
        line = over_seeds({s: c.evaluations for s, c in arm.curves.items()}, "tokens", edge)
        if line:  # a share: no interval of it is beyond 0 and 1
            ends = [] if line.low is None else [line.low.clip(0, 1), line.high.clip(0, 1)]
            edges.append((place, arm.name, Line(line.x, line.mean, line.seeds, *ends)))
    panels = [panel for panel in ((gradients, "gradient norm before clipping", "log"),
                                  (edges, "share of rows at the ball's edge", "linear")) if panel[0]]
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4.2), squeeze=False)
    for axis, (lines, shown, scale) in zip(axes[0], panels):
        for place, name, line in lines:
            draw_line(axis, line, place, name)
        token_ticks(axis)
        axis.set(xlabel="tokens", ylabel=shown, yscale=scale)
        if scale == "log":
            number_ticks(axis)
        else:
            axis.set_ylim(0, 1)
            for drawn in (*axis.lines, *axis.collections):
                drawn.set_clip_on(False)  # a line along 0 or 1 is seen whole
    title = " and ".join(shown for _, shown, _ in panels)
    return finish(figure, "stability", title[0].upper() + title[1:], sentences(
                      "At the best learning rate.",
                      "Gradient norm: geometric mean over seeds at the logged steps." if gradients else "",
                      "Rows at the edge, curved models only (c < 0: the cap before the antipode): mean over blocks and seeds."
                      if edges else "", about_seeds([line for _, _, line in edges])),
                  (axes[0][-1], axes[0][0].get_legend_handles_labels()))


def draw(summary):
    """[Figure] of what there is to draw."""
    with plt.rc_context(SETTINGS):
        made = [plot(summary) for plot in (loss_plot, lr_plot, differences_plot, curvature_plot, stability_plot)]
    return [figure for figure in made if figure]
