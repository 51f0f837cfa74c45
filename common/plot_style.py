"""
What the plots of runs and of sweeps share: colours, the frame of a plot of losses, and marks for what lies above it.

A frame must show what is compared, and nothing may flatten it: not the cliff at the start of every run, not one run that is far
off, not the interval of two seeds. So the frame follows the curves after the first tenth, and a curve is cut off only if it
would squeeze those below it into less than a third of the height, or if it never comes near them. What is left out is marked
with an arrow and its value.
"""
import io
import textwrap

import matplotlib

matplotlib.use("Agg")  # needs no display
import numpy as np
from matplotlib.ticker import EngFormatter

# Okabe and Ito's colours, which the colour-blind tell apart, with line styles for print
STYLES = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#E69F00", "-"), ("#56B4E9", "--")]
COLOURS = [colour for colour, _ in STYLES] + ["#000000", "#999999"]
MARKERS = "osD^vPX*p"  # one more than colours: together they begin again after 72 lines
DASHES = ("-", "--", ":", "-.")
# same input, same bytes; names are text and not formulas
SETTINGS = {"svg.hashsalt": "sweep", "text.parse_math": False, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3,
            "axes.spines.top": False, "axes.spines.right": False}
START = 0.1  # the first tenth of the longest curve, by x, is the start
SQUEEZE = 3  # what is this many times as far from the best as everything below it is far off
OUTSIDE = 1.5  # a curve whose lowest point is this many times as far from the best as the top of the others is far off
LEAST = 0.1  # of the lowest loss: losses closer to it than this are never far off
MOST_MARKS = 8  # above one place


def style(place):
    """Of the line at this place, the same in all plots. The dashes change where the colours begin again."""
    return dict(color=COLOURS[place % len(COLOURS)], linestyle=DASHES[place // len(COLOURS) % len(DASHES)],
                marker=MARKERS[place % len(MARKERS)])


def label(name, width=46):
    """A name for a legend: broken into lines, nothing is lost."""
    lines = textwrap.fill(name, width) or name
    return f" {lines}" if lines.startswith("_") else lines  # matplotlib leaves out names that begin with it


# ----------------------------------------------------------------------------------------------------------------------
# the frame

def reach(values, base, kept, least):
    """The largest of the values that is not far off. From the kept-th smallest on, the next larger one belongs to the others
    unless it is more than SQUEEZE times as far from base as they are. least: smaller distances are taken as this one."""
    values = sorted(values)
    top = values[kept - 1]
    for value in values[kept:]:
        if value - base > SQUEEZE * max(top - base, least):
            break
        top = value
    return top


def after_start(curves):
    """Of each curve (x, y) the places after the start, which is the first tenth of the longest; at least the last place. Where
    that would leave no curve with three places, all of all curves."""
    first, longest = min(x[0] for x, _ in curves), max(x[-1] for x, _ in curves)
    places = [np.union1d(np.flatnonzero(x >= first + START * (longest - first)), [len(x) - 1]) for x, _ in curves]
    return places if max(map(len, places)) >= 3 else [np.arange(len(x)) for x, _ in curves]


def loss_frame(curves):
    """(lowest, highest) of the y axis for curves of losses, a list of (x, y), arrays without NaN, lower is better.

    Above the frame may be: the start of the curves; of a curve, a tenth of its points, if they are far off (a spike); and the
    curves that are far off, at most half of all. Where that makes little difference, nothing is left out.
    """
    late = [y[places] for (_, y), places in zip(curves, after_start(curves))]
    best = min(map(min, late))
    heights = [reach(y, best, len(y) if len(y) < 5 else int(0.9 * len(y)), LEAST * abs(best)) for y in late]
    by_height = sorted(zip(heights, map(min, late)))
    kept = -(-len(by_height) // 2)
    top = by_height[kept - 1][0]
    for height, lowest in by_height[kept:]:
        room = max(top - best, LEAST * abs(best))
        if height - best > SQUEEZE * room or lowest - best > OUTSIDE * room:
            break
        top = height
    highest = max(max(y) for _, y in curves)
    if highest - best <= 1.5 * (top - best):
        top = highest
    margin = 0.05 * (top - best or 0.1 * abs(best) or 1.0)
    return best - margin, top + margin


def peaks_above(curves, top):
    """Of each curve the place of its highest value after the start, if that is above the frame; else None."""
    highest = [places[y[places].argmax()] for (_, y), places in zip(curves, after_start(curves))]
    return [place if y[place] > top else None for (_, y), place in zip(curves, highest)]


def said_of_frame(curves, top):
    """The sentence of a caption on what is above the frame; '' if nothing is."""
    starts = any(np.delete(y, places).max(initial=-np.inf) > top for (_, y), places in zip(curves, after_start(curves)))
    far = any(place is not None for place in peaks_above(curves, top))
    what = ["the start of the curves"] * starts
    what += ["what is far above the rest (arrows: the highest loss of a curve after its start)"] * far
    return f"Above the frame: {', and '.join(what)}." if what else ""


def token_ticks(axis):
    """Ticks of an x axis of tokens: 2 M; one where there is one place."""
    axis.xaxis.set_major_formatter(EngFormatter())
    found = {x for line in axis.lines for x in line.get_xdata()}
    if len(found) == 1:
        axis.set_xticks(list(found))


def spread(heights, gap):
    """The heights moved apart, in their order, until neighbours are at least `gap` apart: for labels."""
    order = np.argsort(heights, kind="stable")
    moved = np.array(heights, dtype=float)
    for below, above in zip(order, order[1:]):
        moved[above] = max(moved[above], moved[below] + gap)
    return moved - (moved - heights).mean()


def mark_above(axis, marks):
    """Short texts that stand on the upper edge of the axis, side by side. marks: [(x, text, colour)]. The axis must have its
    limits. To be called before tight_layout(), which makes room, and after it, when the axis has its width: the second call
    moves them."""
    for text in [text for text in axis.texts if text.get_gid() == "mark"]:
        text.remove()
    if not marks:
        return
    change = axis.transData.transform
    inside = axis.transAxes.inverted().transform
    at = [inside(change((x, axis.get_ylim()[1])))[0] for x, _, _ in marks]
    gap = 11 / (axis.get_window_extent().width / axis.figure.dpi * 72)  # of a line of text, in widths of the axis
    at = spread(at, gap)
    at -= max(0.0, at.max() - 1.0)
    for x, (_, text, colour) in zip(at, marks):
        axis.text(x, 1.015, text, transform=axis.transAxes, ha="center", va="bottom", rotation=90, fontsize=7, color=colour,
                  gid="mark")


def legend(axis, handles=None):
    """Beside the axis, where it covers nothing. To be added after tight_layout(), which would shrink the axes for it;
    image() makes room."""
    handles, names = handles or axis.get_legend_handles_labels()
    axis.legend(handles, names, loc="center left", bbox_to_anchor=(1.02, 0.5), ncols=1 + (len(names) - 1) // 20,
                handlelength=3, columnspacing=1.2)


def image(figure, kind):
    """The figure as bytes: with everything that is drawn, legends beside the axes too."""
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=150, bbox_inches="tight", pad_inches=0.12,
                   metadata={"png": None, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind])
    return data.getvalue()
