"""
What summarize_sweep.py says of its Summary: tables, the document as Markdown and as HTML, the files for other programs, and what
a person reads on the terminal.
"""
import csv
import dataclasses
import html
import io
import json
import math
import os
import shutil
import textwrap
from base64 import b64encode

import numpy as np

from common.columns import in_columns
from common.intervals import Estimate, interval_text, mean_interval
from experiments import conclusions
from experiments.conclusions import DIGITS
from experiments.curves import BUDGETS
from experiments.plots import REFERENCES
from experiments.question import from_told
from experiments.statistics import censored_median, equivalence_test

WIDTH = 120  # columns of the terminal, at most


# ----------------------------------------------------------------------------------------------------------------------
# tables: lists of rows of text, the first one the heading

def p_text(p):
    return "-" if p is None else "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def count_text(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def share_text(share):
    return "-" if share is None else f"{share:.0%}"


def star(seeds, summary):
    """Marks what the seed that chose the rates is in: that is too low."""
    return "*" if summary.selection_seed in seeds else ""


def difference_cell(difference, summary):
    if difference is None or not difference.seeds:
        return "-"
    return (f"{interval_text(difference.estimate, summary.measure.digits)}, n = {difference.estimate.n}"
            f"{star(difference.seeds, summary)}")


def margin_of(summary):
    """The equivalence margin in nats that the sweep's question states, or None."""
    return summary.question["margin"] if summary.question and summary.metric != "target" else None


def p_equivalent(difference, summary):
    """TOST against that margin; None without one."""
    margin = margin_of(summary)
    return equivalence_test(difference.differences, margin) if difference and margin else None


def results_table(summary):
    roles, margin = [role for role in REFERENCES if any(role in a.against for a in summary.arms)], margin_of(summary)
    tests = ["p (Holm)", *([f"p TOST, {margin:g}"] if margin else []), "p sign flips"]
    rows = [["arm", "role", "best lr", "lr chosen with", "seeds", f"{summary.measure.name} [95%]"]
            + [text for role in roles for text in (f"minus {REFERENCES[role]} [95%]", *tests)]]
    places = {"lowest": " (lowest tried)", "highest": " (highest tried)", "only": " (only one tried)", "": ""}
    for arm in summary.arms:
        if arm.choice is None:
            rows.append([arm.name, arm.role] + ["-"] * (len(rows[0]) - 2))
            continue
        seed = arm.choice.selection_seed
        row = [arm.name, arm.role, f"{arm.choice.lr:g}{places[arm.edge]}",
               "the same seeds" if seed is None else f"seed {seed}", str(arm.estimate.n),
               interval_text(arm.estimate, summary.measure.digits, sign=False) + star(arm.choice.losses, summary)]
        for role in roles:
            difference, p = arm.against.get(role, (None, None))
            row += [difference_cell(difference, summary), p_text(p), *([p_text(p_equivalent(difference, summary))] if margin else []),
                    p_text(difference.p_sign_flip if difference else None)]
        rows.append(row)
    return rows


def budgets_table(summary):
    rows = [["arm"] + [f"loss at {count_text(summary.budgets[key], DIGITS[key])} {name}" if key in summary.budgets
                       else f"loss at equal {name}" for key, name in BUDGETS.items()]
            + ["parameters", "FLOPs a token"] + [f"{name} to target" for name in BUDGETS.values()] + ["reached"]]
    for arm in summary.arms:
        at = [arm.at_budget.get(key, {}) for key in BUDGETS]
        rows.append([arm.name] + [f"{mean_interval(by_seed.values()).mean:.4f}{star(by_seed, summary)}" if by_seed else "-"
                                  for by_seed in at]
                    + [count_text(arm.constant("parameters")), count_text(arm.constant("flops_per_token"))]
                    + [text + star(arm.curves, summary) if text != "-" else text for text in (
                        *(count_text(censored_median(arm.to_target.get(key, [])), DIGITS[key]) for key in BUDGETS),
                        share_text(arm.reached_share()))])
    return rows


def runs_table(summary):
    rows = [["arm", "planned", "finished", "diverged", "crashed", "missing", "diverged share"]]
    for arm in summary.arms:
        rows.append([arm.name, str(len(arm.planned)), *(str(arm.count(s)) for s in ("finished", "diverged", "crashed")),
                     str(len(arm.missing())), share_text(arm.diverged_share())])
    return rows


def wins_table(summary, role):
    """None where no arm shares a run with the reference."""
    arms = [a for a in summary.arms if a.wins.get(role)]
    lrs = sorted({lr for a in arms for lr in a.wins[role]})
    if not arms:
        return None
    rows = [["arm"] + [f"lr {lr:g}" for lr in lrs] + ["all runs", "rates with a lower mean"]]
    for arm in arms:
        found, row = arm.wins[role], [arm.name]
        for lr in lrs:
            won, of, _, estimate = found.get(lr, (0, 0, False, Estimate(0)))
            mean = f" ({estimate.mean:+.{summary.measure.digits}f})" if estimate.n else ""
            row.append(f"{won}/{of}{mean}" if of else "-")
        won, of, lower, _ = zip(*found.values())
        rows.append(row + [f"{sum(won)}/{sum(of)}", f"{sum(lower)}/{len(lower)}"])
    return rows


def effects_of(arm):
    """{change: (effect of each seed's run on its loss)}."""
    out = {}
    for ablation in arm.ablations.values():
        for e in ablation.effects:
            out.setdefault(e.change, []).append(e.difference.mean)
    return out


def effects_table(arm):
    rows = [["after training", "change of the loss [95% over seeds]", "runs"]]
    for change, means in effects_of(arm).items():
        rows.append([change, interval_text(mean_interval(means)), str(len(means))])
    return rows


def slopes_of(arm):
    """{place: (heads, 3) array: c at the start, c after training, d loss / d c; means over the runs}"""
    places = {}
    for ablation in arm.ablations.values():
        for s in ablation.slopes:
            places.setdefault(s.place, {}).setdefault(s.head, []).append((s.c_start, s.c, s.gradient.mean))
    return {place: np.array([np.mean(values, axis=0) for values in heads.values()]) for place, heads in places.items()}


def slopes_table(arm):
    """A row for each place, with its heads side by side."""
    rows = [["c of", "at the start", "after training", "d loss / d c"]]
    for place, means in slopes_of(arm).items():
        rows.append([place] + [" ".join(f"{v:{form}}" for v in column)
                               for column, form in zip(means.T, (".3f", ".3f", "+.4f"))])
    return rows


# ----------------------------------------------------------------------------------------------------------------------
# the document: a list of ("heading" | "text" | "list" | "table" | "figure", content), as Markdown and as HTML

def method(summary):
    target = "" if summary.target is None else (
        f"The target is a validation loss of {summary.target:.4f}; a run reaches it at the first evaluation at or "
        "below it, so these times come in steps of eval_interval. Medians over seeds, where a run that did not reach it counts "
        "as later than any; '-': half of the runs or more did not.")
    return [
        ("Losses are validation losses in nats a token" + {
            "final": ", at the end of each run", "best": ", the lowest of each run", "target": "; arms are compared by the "
            "steps to the target, which is where their runs stop"}[summary.metric])
        + ". Intervals are 95% t-intervals over seeds (n - 1 degrees of freedom); one seed has none, and equal values have none.",
        f"Best learning rate: where a seed is named, the lowest {summary.measure.name} of that seed alone, which is then "
        "left out of what is measured, but for numbers with *, where an arm has no other seed: these are too low, and "
        "differences optimistic for the arm that had more rates. 'the same seeds': the lowest mean over the seeds that all its "
        f"rates have, or the one seed that there is, which is optimistic. A rate at which a seed {summary.measure.failed} "
        "cannot be the best. 'lowest' or 'highest tried': the optimum may lie outside the grid.",
        "Differences are paired: the same seed has the same batches and the same shared initial weights. p: two-sided "
        "paired t-test, corrected by Holm's method over the arms with two pairs or more, for each reference on its own. Sign "
        "flips: paired permutation test, not corrected, from 5 seeds on (there its smallest value is 0.062); exact up to 16, beyond "
        "that by 65,536 random flips (smallest value 3e-5).",
        *([f"p TOST: two one-sided paired t-tests that the difference is less than {margin_of(summary):g} in size, the margin of the "
           f"sweep's question; below {from_told(summary.question).alpha:g} the two are alike within it. Not corrected, and, as the t-test, "
           "for one look."] if margin_of(summary) else []),
        *(["The anytime-valid interval of the answer holds at all looks together, for independent, normal differences. Skewed ones or "
           "rare bad runs break it (docs/sweeps.md has by how much)."] if (summary.question or {}).get("stop") == "anytime" else []),
        "Several comparisons: only the tables' p (Holm) are corrected for their number. No interval is, here or in the plots, "
        "nor is the p of the headline, which is of one comparison: it differs from the table's of the same two arms for that "
        "reason. An interval without 0 can therefore stand beside a p (Holm) above 0.05.",
        "Equal budgets: the largest step and token count that all compared runs have, and the training seconds of the "
        "shortest of them"
        + (f" ({summary.shortest})" if summary.shortest else "") + ". Between two evaluations losses are linear "
        "(in seconds, not their logarithm, which is slightly too high on a falling curve). The learning-rate schedule "
        "of a slower arm has not ended at that time, so this column is hard on slow arms (a budget of seconds too, unless "
        "each arm has a max_iters of its own that it reaches). Means over the seeds of each arm, which can be others. "
        "Seconds are comparable only where nothing else ran on the machine. FLOPs a token: 6 N + 12 L C T, the matrix "
        "products; the geometry's own are not in it.",
        *([target] if target else []),
        "Wins: runs at the same learning rate and seed, all seeds; a diverged run loses against a finished one, and a mean "
        "with one in it against any other. In brackets the mean difference of the pairs where both finished.",
    ]


def document(summary, figures):
    parts = [("heading", f"Sweep {summary.name}")]
    planned, missing = sum(len(a.planned) for a in summary.arms), sum(len(a.missing()) for a in summary.arms)
    if missing:
        parts.append(("text", f"The sweep is not complete: {missing} of {planned} runs are missing."))
    parts += [("text", text) for text in (summary.answered, summary.headline) if text] + [("table", results_table(summary))]

    def figure(name):
        parts.extend(("figure", f) for f in figures if f.name == name)
    figure("differences")
    figure("loss")
    parts += [("heading", "Equal budgets, cost, and time to the target"), ("text", conclusions.of_budgets(summary)),
              ("table", budgets_table(summary)), ("heading", "Learning rates")]
    figure("lr")
    for role, name in REFERENCES.items():
        table = wins_table(summary, role)
        if table:
            parts += [("text", f"{conclusions.of_wins(summary, role)} Wins against the {name}, with the mean difference:"),
                      ("table", table)]
    parts += [("heading", "Runs"), ("text", conclusions.of_runs(summary)), ("table", runs_table(summary))]
    figure("stability")
    mixed = [a for a in summary.of_role("mixed") if a.ablations]
    if mixed:
        parts += [("heading", "Is the curvature doing anything?"), ("text",
                  "The trained models with c changed afterwards, each on its own evaluation batches, at the best "
                  "learning rate. A change that hurts says that a model relies on its c, not that one trained "
                  "without it would be worse; that is the comparison with the controls above, and curvature_lr_mult = 0 "
                  "trains with c frozen at its start. c = 0 takes away the ball, too, and what keeps rows inside of it. "
                  "Gradients by block, head by head; intervals over batches are in summary.json.")]
    for arm in mixed:
        parts += [("text", f"{arm.name}: {conclusions.of_effects(effects_of(arm))}"), ("table", effects_table(arm))]
        if places := slopes_of(arm):
            parts += [("text", conclusions.of_slopes(places)), ("table", slopes_table(arm))]
        left_out = sorted({s for a in arm.ablations.values() for s in a.left_out})
        parts += [("list", left_out)] if left_out else []
    figure("curvature")
    parts += [("heading", "Notes"), ("list", summary.notes)] if summary.notes else []
    return parts + [("heading", "How to read this"), ("list", method(summary))]


def as_markdown(parts):
    out = []
    for place, (kind, content) in enumerate(parts):
        if kind == "heading":
            out.append(("## " if place else "# ") + content)
        elif kind == "text":
            out.append(content)
        elif kind == "list":
            out.append("\n".join(f"- {text}" for text in content))
        elif kind == "figure":
            out.append(f"![{content.title}]({content.name}.png)\n\n{content.caption}")
        elif kind == "table":
            widths = [max(map(len, column)) for column in zip(*content)]
            lines = [[row[0].ljust(widths[0])] + [v.rjust(w) for v, w in zip(row[1:], widths[1:])] for row in content]
            lines.insert(1, ["-" * widths[0]] + ["-" * (w - 1) + ":" for w in widths[1:]])
            out.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(out) + "\n"


STYLE = """body { font: 15px/1.5 sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #444 } th:first-child, td:first-child { text-align: left }
figure { margin: 1.5em 0 } figure img { max-width: 100% } figcaption { color: #555 }"""


def as_html(parts, title):
    """One file: the plots are in it as SVG."""
    out = [f"<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{html.escape(title)}</title>\n"
           f"<style>\n{STYLE}\n</style></head><body>"]
    for place, (kind, content) in enumerate(parts):
        if kind == "heading":
            level = 2 if place else 1
            out.append(f"<h{level}>{html.escape(content)}</h{level}>")
        elif kind == "text":
            out.append(f"<p>{html.escape(content)}</p>")
        elif kind == "list":
            out.append("<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in content) + "</ul>")
        elif kind == "figure":
            image = b64encode(content.files["svg"]).decode()
            out.append(f"<figure><img alt=\"{html.escape(content.title)}\" src=\"data:image/svg+xml;base64,{image}\">"
                       f"<figcaption>{html.escape(content.caption)}</figcaption></figure>")
        elif kind == "table":
            lines = ["".join(f"<{cell}>{html.escape(v)}</{cell}>" for v in row)
                     for cell, row in zip(["th"] + ["td"] * len(content), content)]
            out.append("<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>")
    return "\n".join(out) + "\n</body></html>\n"


# ----------------------------------------------------------------------------------------------------------------------
# files for other programs

def as_dict(summary):
    """Everything but the curves, for summary.json."""
    arms = []
    for arm in summary.arms:
        arms.append({
            "name": arm.name, "role": arm.role, "choice": dataclasses.asdict(arm.choice) if arm.choice else None,
            "place_in_grid": arm.edge, "estimate": dataclasses.asdict(arm.estimate),
            "parameters": arm.constant("parameters"), "flops_per_token": arm.constant("flops_per_token"),
            "diverged_share": arm.diverged_share(), "missing": [{"lr": lr, "seed": seed} for lr, seed in arm.missing()],
            "runs": [{"lr": lr, "seed": seed, "status": r.status, "dir": r.folder, "loss": r.loss}
                     for (lr, seed), r in sorted(arm.runs.items())],
            "against": {role: {**dataclasses.asdict(d), "p_holm": p, "p_equivalent": p_equivalent(d, summary)}
                        for role, (d, p) in arm.against.items()},
            "wins": {role: [{"lr": lr, "won": won, "of": of, "lower_mean": lower, "difference": dataclasses.asdict(e)}
                            for lr, (won, of, lower, e) in found.items()] for role, found in arm.wins.items()},
            "at_budget": {key: {"by_seed": by_seed, **dataclasses.asdict(mean_interval(by_seed.values()))}
                          for key, by_seed in arm.at_budget.items()},
            "to_target": {**{key: censored_median(values) for key, values in arm.to_target.items()},
                          "reached_share": arm.reached_share()},
            "curvature": {seed: dataclasses.asdict(a) for seed, a in arm.ablations.items()},
        })
    plain = {f.name: getattr(summary, f.name) for f in dataclasses.fields(summary) if f.name not in ("arms", "answer")}
    plain["answer"] = summary.answer and dataclasses.asdict(summary.answer)
    best = summary.reference("best_control")
    return {**plain, "best_control": best.name if best else None, "arms": arms}


def finite(value):
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(summary):
    return json.dumps(finite(as_dict(summary)), indent=1, allow_nan=False) + "\n"


def as_csv(summary):
    """A line an arm, plain numbers, empty where there is none."""
    rows = []
    for arm in summary.arms:
        value = summary.measure.column
        asked = summary.question if summary.question and arm.name in (summary.question["arm"], summary.question["against"]) else None
        row = {"arm": arm.name, "role": arm.role, "question_sha256": asked and asked["sha256"],
               "best_lr": arm.choice.lr if arm.choice else None,
               "lr_place_in_grid": arm.edge, "selection_seed": arm.choice.selection_seed if arm.choice else None,
               "seeds": arm.estimate.n,
               f"{value}_on_selection_seed": bool(star(arm.choice.losses, summary)) if arm.choice else None,
               value: arm.estimate.mean, f"{value}_low": arm.estimate.low, f"{value}_high": arm.estimate.high}
        for role in REFERENCES:
            d, p = arm.against.get(role, (None, None))
            e = d.estimate if d else Estimate(0)
            row.update({f"minus_{role}": e.mean, f"minus_{role}_low": e.low, f"minus_{role}_high": e.high,
                        f"minus_{role}_seeds": e.n, f"minus_{role}_p": d.p if d else None, f"minus_{role}_p_holm": p,
                        f"minus_{role}_p_equivalent": p_equivalent(d, summary), f"minus_{role}_p_sign_flip": d.p_sign_flip if d else None,
                        f"minus_{role}_on_selection_seed": bool(star(d.seeds, summary)) if d else None})
            found = arm.wins.get(role, {})
            row.update({f"wins_{role}": sum(won for won, *_ in found.values()),
                        f"pairs_{role}": sum(of for _, of, *_ in found.values())})
        for key in BUDGETS:
            row[f"loss_at_equal_{key}"] = mean_interval(arm.at_budget.get(key, {}).values()).mean
        row.update(parameters=arm.constant("parameters"), flops_per_token=arm.constant("flops_per_token"))
        for key in BUDGETS:
            row[f"{key}_to_target"] = censored_median(arm.to_target.get(key, []))
        row.update(target_reached_share=arm.reached_share(), planned=len(arm.planned), finished=arm.count("finished"),
                   diverged=arm.count("diverged"), crashed=arm.count("crashed"), missing=len(arm.missing()),
                   diverged_share=arm.diverged_share())
        rows.append(row)
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


# ----------------------------------------------------------------------------------------------------------------------
# the terminal: what a person reads first

def shortened(name, width):
    """The name within width, an ellipsis in its middle: names of a sweep often differ at either end."""
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[:width - 1 - tail]}\u2026{name[len(name) - tail:]}"


def main_table(summary, width):
    """Lines of at most width columns: losses, the difference to the baseline, and that to the reference that matters most, with
    its interval: the best control, if there is one, else the flat control, else the baseline."""
    there = [role for role in REFERENCES if any(role in a.against for a in summary.arms)]
    last = there[-1] if there else None
    before = "baseline" if "baseline" in there[:-1] else None
    measure = summary.measure
    rows = [["arm", "role", "best lr", "seeds", f"{measure.name} [95%]", *(["minus baseline"] if before else []),
             *([f"minus {REFERENCES[last]} [95%]", "p (Holm)"] if last else [])]]
    for arm in summary.arms:
        if arm.choice is None:
            rows.append([arm.name, arm.role, *["-"] * (len(rows[0]) - 2)])
            continue
        row = [arm.name, arm.role, f"{arm.choice.lr:g}", str(arm.estimate.n),
               interval_text(arm.estimate, measure.digits, sign=False) + star(arm.choice.losses, summary)]
        for role in filter(None, (before, last)):
            difference, p = arm.against.get(role, (None, None))
            e = difference.estimate if difference else Estimate(0)
            text = interval_text(Estimate(e.n, e.mean) if role == before else e, measure.digits)
            if role == before and text.endswith("[no interval]"):
                text = text.split()[0]
            row.append(text + (star(difference.seeds, summary) if e.n else ""))
            row += [p_text(p)] if role == last else []
        rows.append(row)
    others = sum(max(map(len, column)) + 2 for column in list(zip(*rows))[1:])
    for row in rows:
        row[0] = shortened(row[0], max(12, width - others))
    rows.insert(1, ["-" * max(map(len, column)) for column in zip(*rows)])
    return in_columns(rows, left=2)


def listed(texts, most=8):
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def in_short(summary):
    """What a reader has to know of the runs, a sentence each."""
    def short(arm):
        return shortened(arm.name, 40)

    def counted(count):
        found = [(short(arm), n) for arm in summary.arms if (n := count(arm))]
        return sum(n for _, n in found), listed([f"{name} {n}" for name, n in found])
    missing, of_missing = counted(lambda arm: len(arm.missing()))
    crashed, of_crashed = counted(lambda arm: arm.count("crashed"))
    diverged, of_diverged = counted(lambda arm: arm.count("diverged"))
    lost, of_lost = counted(lambda arm: sum(run.status == "finished" and run.loss is None for run in arm.runs.values()))
    out, planned = list(summary.advice), sum(len(arm.planned) for arm in summary.arms)
    if missing:
        out.append(f"Not complete, {missing} of {planned} runs are missing: {of_missing}.")
    if crashed:
        out.append(f"Crashed and left out: {of_crashed}.")
    if diverged:
        out.append(f"Diverged: {of_diverged}. A rate at which a seed diverged cannot be an arm's best.")
    if lost:
        out.append(f"No checkpoint, so no {summary.measure.name}; left out: {of_lost}.")
    untuned = [short(arm) for arm in summary.arms if arm.choice is None]
    if untuned:
        out.append(f"Not tuned, for no rate has a run that finished and none that {summary.measure.failed}: {listed(untuned)}.")
    ends = [f"{short(arm)} ({arm.edge})" for arm in summary.arms if arm.edge in ("lowest", "highest")]
    if ends:
        out.append(f"The best rate is the last one tried, so a better one may lie beyond: {listed(ends)}.")
    tuned = [arm for arm in summary.arms if arm.choice]
    if any(star(seeds, summary) for arm in tuned for seeds in (arm.choice.losses, *(d.seeds for d, _ in arm.against.values()))):
        out.append("*: with the seed that chose the rates; too low.")
    return out


def on_terminal(summary, out):
    """The headline, the main table, what is missing, and where the rest is; at most WIDTH columns, and the terminal's."""
    width = max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))

    def wrapped(text, **more):
        return textwrap.fill(text, width, break_on_hyphens=False, **more)
    parts = [f"Sweep {shortened(summary.name, width - 6)}", wrapped(summary.answered), wrapped(summary.headline),
             "\n".join(main_table(summary, width)),
             "\n".join(wrapped(text, initial_indent="- ", subsequent_indent="  ") for text in in_short(summary)),
             wrapped(f"{os.path.join(out, 'report.html')}: all tables, plots, notes and how to read them; beside it summary.md, "
                     "summary.csv, summary.json and the plots.", break_long_words=False)]
    return "\n\n".join(filter(None, parts))
