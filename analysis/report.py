"""
The report of analyze_representations.py: tables for the terminal and for Markdown, plots, and the folder that holds
them.

The folder appears whole or not at all: it is written under a temporary name beside its place, synced and renamed. It is
recognised by the list of files in its metrics.json: what is not on the list is somebody else's, and such a folder is
refused.
"""
import io
import json
import math
import os
import shutil
import tempfile

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

import geometry
from analysis.hyperbolicity import POINTS
from analysis.isotropy import MIN_CONTEXTS
from common import paths
from common.errors import UserError
from common.plot_style import STYLES
from common.whole_files import write_file

WRITTEN_BY = "analyze_representations.py"
COLOURS, MARKERS = [colour for colour, _ in STYLES], "osD^v*X"

# (heading, title of the plot, key), in the order of the columns
ISOTROPY = [("mean cos", "mean cosine of random pairs", "mean_cosine"),
            ("standardised", "mean cosine, standardised", "mean_cosine_standardised"),
            ("IsoScore", "IsoScore", "isoscore"),
            ("partition", "partition-function isotropy", "partition_isotropy"),
            ("part. scaled", "partition-function isotropy, scaled", "partition_isotropy_scaled"),
            ("eff. rank", "effective rank", "effective_rank"),
            ("entropy", "singular-value entropy / log C", "singular_value_entropy"),
            ("particip.", "participation ratio", "participation_ratio"),
            ("top 1", "variance in the first direction", "top1_variance"),
            ("top 3", "variance in the first 3 directions", "top3_variance"),
            ("top 10", "variance in the first 10 directions", "top10_variance"),
            ("rogue share", "largest share of a coordinate in the mean cosine", "rogue_share"),
            ("rogue dims", "rogue dimensions", "rogue_dimensions"),
            ("self-sim.", "self-similarity of a token's contexts", "self_similarity"),
            ("adjusted", "self-similarity minus mean cosine", "self_similarity_adjusted"),
            ("RMS length", "root mean square length", "rms_length")]
DISTANCES = [("Euclidean, ambient", "euclidean_ambient"), ("Euclidean, tangent", "euclidean_tangent"),
             ("geodesic", "geodesic")]
SETS = [("tokens", "tokens"), ("Gaussian", "gaussian"), ("shuffled", "shuffled"), ("equidistant", "equidistant"),
        ("diameter", "diameter")]
GEOMETRY = [("curvature", "curvature c by head", "curvature"),
            ("geod. norm", "geodesic norm", "geodesic_norm"),
            ("margin", "distance to the boundary, 1 - sqrt(c)|x|", "boundary_margin"),
            ("at edge", "share of rows at the edge", "edge_share"),
            ("at bound", "share of rows at max_distance", "max_distance_share"),
            ("proj. entry", "share of rows projected on entry", "projected_entry"),
            ("proj. attn", "share of rows projected after attention", "projected_attn"),
            ("proj. mlp", "share of rows projected after the MLP", "projected_mlp"),
            ("|u| attn", "norm of the tangent vector that attention reads", "tangent_norm_attn"),
            ("|u| mlp", "norm of the tangent vector that the MLP reads", "tangent_norm_mlp"),
            ("length attn", "its length at the reference (attention)", "tangent_length_attn"),
            ("length mlp", "its length at the reference (MLP)", "tangent_length_mlp"),
            ("|v| attn", "norm of attention's update", "update_norm_attn"),
            ("|v| mlp", "norm of the MLP's update", "update_norm_mlp"),
            ("round trip attn", "exp-log round trip (attention)", "round_trip_attn"),
            ("round trip mlp", "exp-log round trip (MLP)", "round_trip_mlp")]


# ----------------------------------------------------------------------------------------------------------------------
# tables: rows of (run, weights, layer, ...) and cells that are estimates, or None where a quantity does not exist

def number(value):
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def short_cell(estimate):
    """0.123±0.004, half the width of the interval."""
    if estimate is None or estimate["value"] is None:
        return "-"
    return f"{number(estimate['value'])}±{(estimate['high'] - estimate['low']) / 2:.1g}"


def long_cell(estimate):
    """0.123 [0.119, 0.127]; with the quantiles where there are any."""
    if estimate is None or estimate["value"] is None:
        return "-"
    text = f"{number(estimate['value'])} [{number(estimate['low'])}, {number(estimate['high'])}]"
    if "p99" in estimate:
        text += f"; median {number(estimate['median'])}, 99% {number(estimate['p99'])}, max {number(estimate['max'])}"
    return text


def _layers(results):
    for result in results:
        for layer, found in result["layers"].items():
            yield (result["run"], result["weights"], layer), found


def isotropy_rows(results, coordinates, columns):
    return [(label, [found["isotropy"][coordinates][key] for _, _, key in columns])
            for label, found in _layers(results) if coordinates in found["isotropy"]]


def hyperbolicity_rows(results, sets):
    """One row a layer; the columns of a distance that the layer does not have are empty."""
    return [(label, [found["hyperbolicity"].get(distance, {}).get(key) for _, distance in DISTANCES for _, key in sets])
            for label, found in _layers(results)]


def geometry_rows(results, columns):
    return [(label, [(found["geometry"] or {}).get(key) for _, _, key in columns]) for label, found in _layers(results)]


def curvature_by_head_rows(results):
    """One row a layer that has a chart: c and geodesic norm of each head, as text."""
    def heads(estimate):
        return ", ".join(number(head["value"]) for head in estimate.get("by_head", [estimate]))

    return [(label, [heads(found["geometry"][key]) for key in ("curvature", "geodesic_norm_of_heads")])
            for label, found in _layers(results) if found["geometry"]]


LABEL = ("run", "weights", "layer")


def terminal_table(title, headings, rows):
    lines = [(*LABEL, *headings)] + [(*label, *map(short_cell, cells)) for label, cells in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join([title] + ["  ".join(v.ljust(w) if i < len(LABEL) else v.rjust(w)
                                          for i, (v, w) in enumerate(zip(line, widths))).rstrip() for line in lines])


def markdown_table(headings, rows, cell=long_cell):
    lines = [(*LABEL, *headings), ["---"] * (len(LABEL) + len(headings))]
    lines += [(*label, *map(cell, cells)) for label, cells in rows]
    return "\n".join("| " + " | ".join(v.replace("|", "\\|") for v in line) + " |" for line in lines)


def terminal_tables(results):
    """What is most telling, with half-widths of the 95% intervals; everything is in report.md."""
    brief = [c for c in ISOTROPY if c[2] in ("mean_cosine", "isoscore", "partition_isotropy_scaled", "effective_rank",
                                             "participation_ratio", "top1_variance", "rogue_share",
                                             "self_similarity_adjusted")]
    tables = [terminal_table("isotropy, ambient coordinates", [h for h, _, _ in brief],
                             isotropy_rows(results, "ambient", brief))]
    tangent = isotropy_rows(results, "tangent", brief)
    if tangent:
        tables.append(terminal_table("isotropy, tangent coordinates at the origin (log_0)", [h for h, _, _ in brief],
                                     tangent))
    tables.append(terminal_table(
        "relative Gromov delta by distance (E.: Euclidean): tokens, Gaussian and shuffled null set (equidistant: 0); "
        "-: no such distance",
        [name if key != "tokens" else distance.replace("Euclidean, ", "E. ") for distance, _ in DISTANCES
         for name, key in SETS[:3]],
        hyperbolicity_rows(results, SETS[:3])))
    if any(r["curved"] for r in results):
        brief = [c for c in GEOMETRY if not c[2].startswith(("tangent_norm", "update", "round_trip_mlp"))]
        tables.append(terminal_table("use of the geometry; -: does not exist there", [h for h, _, _ in brief],
                                     geometry_rows(results, brief)))
    return "\n\n".join(tables)


# ----------------------------------------------------------------------------------------------------------------------
# plots

def _style(results):
    """run -> (colour, marker)."""
    names = list(dict.fromkeys(r["run"] for r in results))
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def _positions(results):
    """layer -> place on the x axis; ln_f is behind the deepest model's last block."""
    deepest = max((list(r["layers"]) for r in results), key=len)
    return {layer: i for i, layer in enumerate(deepest)}


def _curve(axis, result, estimates, places, style, label=None, line=None):
    """Estimates by layer with their band: solid for trained, dashed for untrained weights."""
    colour, marker = style[result["run"]]
    line = line or ("-" if result["weights"] == "trained" else "--")
    points = [(places[layer], *((math.nan if e is None or e[k] is None else e[k]) for k in ("value", "low", "high")))
              for layer, e in estimates.items()]
    x, value, low, high = np.array(points).T
    axis.plot(x, value, line, color=colour, marker=marker if line in ("-", "--") else None, markersize=3.5,
              linewidth=1.2, label=label)
    axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _finish(figure, axes, places, title):
    for axis in axes:
        names = [name.replace("block", "").replace("embedding", "emb") for name in places]
        axis.set_xticks(list(places.values()), names)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=10, y=1 - 0.12 / figure.get_figheight(), va="top")
    _legend(figure, axes[0])
    return figure


LEGEND_COLUMNS = 4


def _panels(count, columns, entries, width=3.1, height=2.4):
    """A figure of `count` axes, with room for a title above and a legend of `entries` below; sizes in inches. Laid out
    by hand: matplotlib's layout engines draw everything twice more, which takes seconds."""
    rows = math.ceil(count / columns)
    foot = 0.5 + 0.2 * math.ceil(entries / LEGEND_COLUMNS)
    w, h = width * columns, height * rows + foot + 0.5
    figure, axes = plt.subplots(rows, columns, figsize=(w, h), squeeze=False)
    figure.subplots_adjust(left=0.55 / w, right=1 - 0.15 / w, bottom=foot / h, top=1 - 0.65 / h,
                           wspace=0.55 / (width - 0.55), hspace=0.55 / (height - 0.55))
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def _legend(figure, axis):
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="lower center", ncols=min(LEGEND_COLUMNS, len(labels)), fontsize=8)


def plot_isotropy(results, coordinates):
    style = _style(results)
    results = [r for r in results if any(coordinates in found["isotropy"] for found in r["layers"].values())]
    places = _positions(results)
    figure, axes = _panels(len(ISOTROPY), 4, len(results))
    for axis, (_, title, key) in zip(axes, ISOTROPY):
        for result in results:
            estimates = {layer: found["isotropy"][coordinates][key] for layer, found in result["layers"].items()
                         if coordinates in found["isotropy"]}
            _curve(axis, result, estimates, places, style, f"{result['run']}, {result['weights']}")
        axis.set_title(title, fontsize=8)
    return _finish(figure, axes, places, f"isotropy by layer, {coordinates} coordinates, 95% bands")


def plot_hyperbolicity(results):
    style, places = _style(results), _positions(results)
    present = [d for d in DISTANCES if any(d[1] in found["hyperbolicity"] for _, found in _layers(results))]
    figure, axes = _panels(len(present), len(present), 2 * len(results), width=4.2, height=3.4)
    for axis, (title, distance) in zip(axes, present):
        for result in results:
            layers = {layer: found["hyperbolicity"][distance] for layer, found in result["layers"].items()
                      if distance in found["hyperbolicity"]}
            if not layers:
                continue
            nulls = [("gaussian", ":"), ("shuffled", "-.")] if result["weights"] == "trained" else []
            for key, line in [("tokens", None), *nulls]:
                label = f"{result['run']}, {result['weights']}" + ("" if line is None else f": {key} null")
                estimates = {layer: found[key] for layer, found in layers.items()}
                _curve(axis, result, estimates, places, style, label, line)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=9)
    axes[0].set_ylabel("2 delta / diameter")
    return _finish(figure, axes, places,
                   "relative Gromov delta by layer (0: a tree, and equidistant points), 95% bands")


def plot_geometry(results):
    """Of the models that have a geometry."""
    style = _style(results)
    results = [r for r in results if r["curved"]]
    columns = [c for c in GEOMETRY if any((f["geometry"] or {}).get(c[2]) for _, f in _layers(results))]
    places = _positions(results)
    figure, axes = _panels(len(columns), 4, len(results))
    for axis, (_, title, key) in zip(axes, columns):
        for result in results:
            estimates = {layer: found["geometry"][key] for layer, found in result["layers"].items()
                         if found["geometry"] and key in found["geometry"]}
            if key.startswith("round_trip"):  # what may go wrong is in the tail
                estimates = {layer: {"value": e["p99"], "low": e["median"], "high": e["max"]}
                             for layer, e in estimates.items()}
                axis.set_yscale("log")
            _curve(axis, result, estimates, places, style, f"{result['run']}, {result['weights']}")
            if key == "curvature":
                for layer, e in estimates.items():
                    heads = [h["value"] for h in e.get("by_head", ())]
                    axis.plot([places[layer]] * len(heads), heads, "_" if result["weights"] == "trained" else ".",
                              color=style[result["run"]][0], alpha=0.7)
        axis.set_title(title + (": 99%, band median to max" if key.startswith("round_trip") else ""), fontsize=7)
    return _finish(figure, axes, places, "use of the geometry by layer, 95% bands")


def plot_spectra(results, coordinates):
    style = _style(results)
    results = [r for r in results if any(coordinates in found["spectrum"] for found in r["layers"].values())]
    layers = [layer for layer in _positions(results)
              if any(coordinates in r["layers"].get(layer, {}).get("spectrum", {}) for r in results)]
    figure, axes = _panels(len(layers), min(4, len(layers)), len(results))
    for axis, layer in zip(axes, layers):
        for result in results:
            spectrum = result["layers"].get(layer, {}).get("spectrum", {}).get(coordinates)
            if spectrum is not None:
                axis.plot(np.arange(1, len(spectrum) + 1), spectrum, "-" if result["weights"] == "trained" else "--",
                          color=style[result["run"]][0], linewidth=1.2, label=f"{result['run']}, {result['weights']}")
        axis.set(yscale="log", xscale="log")
        axis.set_ylim(bottom=max(axis.get_ylim()[0], 1e-5))  # below: directions that are empty but for rounding
        axis.set_title(layer, fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    figure.suptitle(f"singular values by rank, as shares of their sum; {coordinates} coordinates, centred", fontsize=10,
                    y=1 - 0.12 / figure.get_figheight(), va="top")
    _legend(figure, axes[0])
    return figure


def disc_points(vectors, c):
    """Tangent vectors at the origin of one ball -> ((n, 2) points of the unit disc, share of the squared length that
    the plane keeps).

    The plane is spanned by the two first principal directions of the vectors, not centred, so that the origin stays the
    centre of the disc; the vectors projected on it go to the ball by exp_0 and are divided by its radius. vectors: (n,
    D), D >= 2; c: (n,) > 0.
    """
    vectors = np.asarray(vectors, dtype=float)
    plane = np.linalg.eigh(vectors.T @ vectors)[1][:, :-3:-1]  # (D, 2)
    flat = vectors @ plane
    c = torch.as_tensor(np.asarray(c, dtype=float))[:, None]
    in_ball = geometry.exp_0(torch.as_tensor(flat), c) * c.sqrt()
    total = np.square(vectors).sum()
    return in_ball.numpy(), np.square(flat).sum() / total if total > 0 else math.nan


def plot_disc(name, disc):
    """(figure, caption) of the first two heads that are hyperbolic, or (None, why there is none)."""
    if disc is None:
        return None, f"{name}: no picture: the model is Euclidean."
    heads = [h for h in range(disc["curvature"].shape[1]) if (disc["curvature"][:, h] > 0).all()][:2]
    vectors = disc["vectors"].reshape(len(disc["vectors"]), disc["curvature"].shape[1], -1)
    if not heads:
        return None, f"{name}: no picture: no head of {disc['layer']} is hyperbolic (c > 0)."
    if vectors.shape[-1] < 2:
        return None, f"{name}: no picture: the heads of {disc['layer']} have one dimension."
    figure, axes = plt.subplots(1, len(heads), figsize=(4.6 * len(heads), 4.4), squeeze=False, layout="constrained")
    parts = []
    for axis, head in zip(axes.flat, heads):
        c = disc["curvature"][:, head]
        places, kept = disc_points(vectors[:, head], c)
        dots = axis.scatter(*places.T, c=np.log10(disc["frequency"]), s=4, cmap="viridis", linewidths=0,
                            rasterized=True)
        axis.add_patch(plt.Circle((0, 0), 1, fill=False, color="black", linewidth=1))
        axis.set(xlim=(-1.03, 1.03), ylim=(-1.03, 1.03), aspect="equal")
        axis.axis("off")
        which = f"head {head}" if vectors.shape[1] > 1 else "whole row"
        size = f"c = {c.mean():.3g}" + (" on average" if disc["per_token"] else "")
        axis.set_title(f"{name}, {disc['layer']}, {which}, {size}", fontsize=8)
        parts.append(f"{which} ({size}): {kept:.0%} of the squared length is in the plane")
    figure.colorbar(dots, ax=axes, shrink=0.7, label="log10 of the token's frequency")
    caption = (f"{name}, {disc['layer']}, {len(vectors):,} tokens: tangent vectors at the origin (log_0) projected on "
               "the plane of their two first principal directions (not centred), put back in the ball by exp_0, divided "
               f"by its radius; {'; '.join(parts)}."
               + (" Every token is in its own ball (dynamic curvature)." if disc["per_token"] else ""))
    return figure, caption


def image_bytes(figure):
    """{'.png': bytes, '.svg': bytes}"""
    images = {}
    with plt.rc_context({"svg.hashsalt": WRITTEN_BY}):  # the same numbers give the same file
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            images["." + kind] = buffer.getvalue()
    plt.close(figure)
    return images


# ----------------------------------------------------------------------------------------------------------------------
# report.md

EXPLANATION = """\
- **Tokens** are hidden states of validation tokens: `embedding` is what enters the first block, `block<i>` the residual
  stream after block i, `ln_f` what the output head reads. The forward pass is in float32 without autocast; the residual
  stream of every run is float32, also where `dtype` was bfloat16 (that of matrix products), so that is the dtype of the
  exp-log round trip.
- **Untrained** rows are the same model with the weights that its seed gives, on the same tokens.
- **Ambient** coordinates are the rows as they are in the model; **tangent** coordinates are log_0 of the rows, per head
  with its own c (the embedding after the first block's projection on entry). A Euclidean model has ambient coordinates
  only, and `ln_f` is in no ball.
- **Intervals** are 95% bootstrap intervals. What is drawn again is a group of neighbouring sequences, not a token:
  tokens of one text depend on each other. They say how much the numbers depend on the text read; **not** how much on
  the training seed.
- **Gromov's delta** is the exact maximum over all quadruples of {points} tokens (so over all base points; none is
  chosen), half the difference of the two largest sums of opposite distances, relative to the diameter: 2 delta /
  diameter in [0, 1]. It is the mean over {samples} samples from different sequences. The null sets have the same size:
  `Gaussian` has the tokens' mean and covariance, `shuffled` has every coordinate permuted over the sample,
  `equidistant` has all distances 1. Points in many dimensions are nearly equidistant, and so a small delta shows a tree
  only where it is **below its null sets**. For geodesic distances the null sets are made in tangent coordinates and put
  in the ball by exp_0.
- **Geodesic** distances are those of the product of the heads' spaces, sqrt(sum of squares). With dynamic curvature
  every token has its own space: there is no geodesic distance between tokens and its columns are empty (geodesic norms
  use each token's own c).
- **Projected** counts the rows (per head) that the projection changed: the block's own map with and without its limit.
  **At edge** counts rows longer than 0.999 of that limit, with `max_distance` of the ball's radius; **at bound**, with
  `max_distance`, rows longer than 0.999 of what it allows. Both as `geometry_stats` does. **Margin** is 1 - sqrt(c)|x|, the
  distance to the boundary in radii (heads with c > 0). `|u|` is the norm of what LayerNorm reads, `length` its length
  in the metric at the reference point, `|v|` the norm of the update.
- **Self-similarity** is of the {types} most frequent token types, those that occur in at least {contexts} sequences,
  over pairs of different sequences; `adjusted` has the mean cosine of random pairs taken off. **Rogue dims** are
  coordinates with a root mean square more than 3 standard deviations above the mean over coordinates.
"""


def _run_table(results):
    rows = []
    for r in results:
        if r["weights"] == "trained":
            facts = ", ".join(f"{k} = {v}" for k, v in r["config"].items() if k != "corpus_sha256")
            text = f"{r['tokens']:,} in {r['sequences']:,} sequences, {r['groups']} groups"
            rows.append(f"| {r['run']} | `{r['folder']}` | {r['checkpoint']} | {text} | {facts} |")
    return "\n".join(["| run | folder | checkpoint | validation tokens | configuration |", "|" + " --- |" * 5, *rows])


def _differences(results):
    """What makes the runs' numbers hard to compare, in words."""
    trained = [r for r in results if r["weights"] == "trained"]
    notes = [r["note"] for r in trained if r["note"]]
    for what, key in (("data sets", "dataset"), ("context lengths", "block_size"), ("widths", "n_embd")):
        if len({r["config"][key] for r in trained}) > 1:
            values = ", ".join(str(r["config"][key]) for r in trained)
            notes.append(f"The runs have different {what} ({values}): their numbers are not of the same thing.")
    return notes


def markdown(results, settings, plots, captions):
    """plots: names of figures in the folder, without ending."""
    def figure(name):
        return f"![{name}]({name}.png)\n\n([SVG]({name}.svg))\n" if name in plots else ""

    parts = ["# Hidden states", f"`{settings['command']}`", _run_table(results)]
    parts += [f"**Note.** {note}" for note in _differences(results)]
    parts += ["## How to read this", EXPLANATION.format(points=POINTS, samples=settings["delta_samples"],
                                                        types=settings["types"], contexts=MIN_CONTEXTS)]
    for coordinates, what in (("ambient", "ambient coordinates"), ("tangent", "tangent coordinates at the origin")):
        rows = isotropy_rows(results, coordinates, ISOTROPY)
        parts.append(f"## Isotropy, {what}")
        if rows:
            parts += [figure(f"isotropy_{coordinates}"), markdown_table([h for h, _, _ in ISOTROPY], rows),
                      figure(f"spectra_{coordinates}")]
        else:
            parts.append("No run has a geometry: there are no tangent coordinates.")
    parts += ["## Hyperbolicity: relative Gromov delta", figure("hyperbolicity"),
              markdown_table([f"{d}: {s}" for d, _ in DISTANCES for s, _ in SETS], hyperbolicity_rows(results, SETS)),
              "## Use of the geometry"]
    if any(r["curved"] for r in results):
        parts += [figure("geometry"), markdown_table([h for h, _, _ in GEOMETRY], geometry_rows(results, GEOMETRY)),
                  "By head:", markdown_table(["curvature c", "geodesic norm"], curvature_by_head_rows(results), str)]
    else:
        parts.append("No run has a geometry.")
    parts.append("## Tokens in the Poincare disc")
    for name, caption in captions.items():
        parts += [figure(name), caption]
    return "\n\n".join(p.strip() for p in parts if p) + "\n"


# ----------------------------------------------------------------------------------------------------------------------
# the folder

def check_folder(out):
    """Raise UserError unless `out` is new, empty or an earlier report."""
    paths.folder_to_write(out, f"--out={out}")
    found = sorted(os.listdir(out)) if os.path.isdir(out) else []
    own = set()
    if "metrics.json" in found:
        try:
            with open(os.path.join(out, "metrics.json"), encoding="utf-8") as f:
                before = json.load(f)
            if before["written_by"] == WRITTEN_BY:
                own = set(before["files"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not one of ours: its files are foreign
    foreign = [name for name in found if name not in own]
    if foreign:
        more = ", ..." if len(foreign) > 1 else ""
        raise UserError(f"--out={out} holds files of another origin ({foreign[0]}{more}); name another folder")


def write(out, results, discs, settings, env):
    """The whole report, in place of an earlier one."""
    figures = {"hyperbolicity": plot_hyperbolicity(results)}
    curved = any(r["curved"] for r in results)
    for coordinates in ("ambient", "tangent") if curved else ("ambient",):
        figures[f"isotropy_{coordinates}"] = plot_isotropy(results, coordinates)
        figures[f"spectra_{coordinates}"] = plot_spectra(results, coordinates)
    if curved:
        figures["geometry"] = plot_geometry(results)
    captions = {}
    for i, (run, disc) in enumerate(discs.items()):
        figure, captions[f"disc_{i}"] = plot_disc(run, disc)
        if figure:
            figures[f"disc_{i}"] = figure
    files = {name + kind: data for name, figure in figures.items() for kind, data in image_bytes(figure).items()}
    files["report.md"] = markdown(results, settings, figures, captions).encode()
    content = {"written_by": WRITTEN_BY, "files": sorted([*files, "metrics.json"]), "settings": settings,
               "environment": env, "pictures": captions, "models": results}
    files["metrics.json"] = (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()

    out = os.path.abspath(out)
    parent = os.path.dirname(out)
    os.makedirs(parent, exist_ok=True)
    new = tempfile.mkdtemp(prefix=f".{os.path.basename(out)}.", dir=parent)
    try:
        os.chmod(new, 0o777 & ~_umask())  # mkdtemp's is for the user alone
        for name, data in files.items():
            write_file(os.path.join(new, name), data)
        check_folder(out)  # minutes have passed
        if os.path.isdir(out):
            old = new + ".old"
            os.rename(out, old)
            os.rename(new, out)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(new, out)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
