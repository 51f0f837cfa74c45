"""
The page of a card, from its JSON file: verdicts on the goals, prediction beside measurement, every part's rows. Needs no GPU.
"""

import re

import roofline

from gpu_parts import PARTS

NOMINAL_TFLOP_S = {name.split()[0]: numbers[0] for name, numbers in roofline.GPUS.items()}  # dense bf16, SXM
MIXED = "mixed, c per head"
GOAL_WIDTHS = (384, 4096)


def rows_of(content, part, what):
    return [row for row in content["parts"].get(part, {}).get("rows", []) if row.get("what") == what]


def card_of(content):
    found = [row for row in content["parts"].get("ceilings", {}).get("rows", []) if "card" in row]
    return found[0] if found else {}


def nominal(content):
    """(the datasheet's name of the card, its dense bf16 TFLOP/s), or (None, None)"""
    words = re.findall(r"\w+", card_of(content).get("card", "").upper())
    if {"PCIE", "NVL"} & {*words}:  # other cards under the same name
        return None, None
    return next(((known, peak) for known, peak in NOMINAL_TFLOP_S.items() if known.upper() in words), (None, None))


def ceilings(content):
    """(GB/s of the copy, TFLOP/s of the matrix product), the best measured; None where there is none"""
    copies = [row["GB_s"] for row in rows_of(content, "ceilings", "copy")]
    products = [row["TFLOP_s"] for row in rows_of(content, "ceilings", "matrix product")]
    return max(copies, default=None), max(products, default=None)


def steps_of(content, shape):
    return [row for part in ("gpt2", "shapes") for row in rows_of(content, part, "step") if row["shape"] == shape]


def fastest(content, shape, *arms):
    """The fastest measured form of these arms, or None"""
    return min((row for row in steps_of(content, shape) if row["arm"] in arms), key=lambda row: row["ms"], default=None)


def ratio(content, shape, arm, mode):
    found = [
        row["ratio"]
        for part in ("gpt2", "shapes")
        for row in rows_of(content, part, "ratio")
        if (row["shape"], row["arm"], row["mode"]) == (shape, arm, mode)
    ]
    return found[0] if found else None


# ----------------------------------------------------------------------------------------------------------------------


def goals(content):
    """(goal, what was measured as text, reached? None: not measured)"""

    def at_most(value, most):
        return (None, None) if value is None else (f"{value:.3f}", value <= most)

    def at_least(value, least, form="{:.2f}"):
        return (None, None) if value is None else (form.format(value), value >= least)

    def worst(values, form):
        values = list(values)
        return (min(values, key=lambda v: v[0])[0], len(values), min(values, key=lambda v: v[0])[1]) if values else None

    speeds = [
        row
        for row in rows_of(content, "kernels", "speed")
        if row.get("passes")
        and row["provider"] == "triton"
        and row["dtype"] == "bfloat16"
        and GOAL_WIDTHS[0] <= row["D"] <= GOAL_WIDTHS[1]
    ]

    def of_copy(passes, least):
        found = worst([(row["share_of_copy"], f"{row['op']}, D = {row['D']}") for row in speeds if row["passes"] == passes], "")
        if not found:
            return None, None
        good = sum(row["share_of_copy"] >= least for row in speeds if row["passes"] == passes)
        return f"{found[0]:.0%} at worst ({found[2]}); {good} of {found[1]} reach it", found[0] >= least

    def faster():
        found = worst(
            [
                (row["over_inductor"], f"{row['op']}, D = {row['D']}, {row['passes']}")
                for row in rows_of(content, "kernels", "faster")
                if "over_inductor" in row and row["dtype"] == "bfloat16" and GOAL_WIDTHS[0] <= row["D"] <= GOAL_WIDTHS[1]
            ],
            "",
        )
        return (None, None) if not found else (f"{found[0]:.2f} at worst ({found[2]}), of {found[1]} measured", found[0] >= 1.2)

    def all_of(rows, noun):
        rows = [row for row in rows if row.get("ok") is not None]
        bad = [row for row in rows if not row["ok"]]
        return (None, None) if not rows else (f"{len(rows) - len(bad)} of {len(rows)} {noun}", not bad)

    def kernels_right():
        found = rows_of(content, "correctness", "all kernels")
        if not found or not found[0]["compared"]:
            return None, None
        row = found[0]
        return (
            f"{row['compared']:,} comparisons, {row['wrong']} rows of the table wrong, {row['not_run']} jobs not run",
            row["ok"],
        )

    baseline = fastest(content, "124M", "baseline")
    mixed = fastest(content, "124M", MIXED, f"{MIXED}, triton")
    return [
        ("every kernel agrees with float64", *kernels_right()),
        (
            "124M: mixed / baseline step on the kernels, compiled, at most 1.05",
            *at_most(ratio(content, "124M", f"{MIXED}, triton", "compiled"), 1.05),
        ),
        ("124M: mixed / baseline step, compiled, at most 1.15", *at_most(ratio(content, "124M", MIXED, "compiled"), 1.15)),
        ("124M: baseline, at least 400,000 tokens/s", *at_least(baseline and baseline["tokens_s"], 400_000, "{:,.0f}")),
        (
            "124M: mixed, at least 95% of the baseline's tokens/s",
            *at_least(baseline and mixed and mixed["tokens_s"] / baseline["tokens_s"], 0.95, "{:.1%}"),
        ),
        ("kernels, bf16, D = 384 to 4096: forward at least 90% of the copy", *of_copy("forward", 0.9)),
        ("kernels, bf16, D = 384 to 4096: backward at least 80% of the copy", *of_copy("backward", 0.8)),
        ("kernels at least 1.2 times as fast as autotuned Inductor, bf16, D = 384 to 4096", *faster()),
        (
            "train.py gives the same losses eager, compiled, on the kernels, and resumed",
            *all_of(rows_of(content, "equality", "equality"), "runs agree"),
        ),
        (
            "no host synchronisation in a step of train.py that is not logged",
            *all_of(rows_of(content, "equality", "watch"), "watched runs have none"),
        ),
    ]


def predictions(content):
    """(what, predicted, measured or None) for the card that roofline.py knows"""
    name, _ = nominal(content)
    gpu = next((gpu for gpu in roofline.GPUS if name and gpu.startswith(name)), None)
    if gpu is None:
        return []
    found = []
    for shape in roofline.SHAPES:
        tokens = next((row["tokens"] for row in steps_of(content, shape)), roofline.TOKENS)
        expected = roofline.ratios(shape, gpu, tokens)
        for form, arm, mode in (
            ("fused", f"{MIXED}, triton", "compiled"),
            ("compiled", MIXED, "compiled"),
            ("eager", MIXED, "eager"),
        ):
            measured = ratio(content, shape, arm, mode)
            if measured is None and mode == "eager" and shape != "124M":
                continue
            found.append((f"{shape}, mixed / baseline, {form}, {tokens:,} tokens a step", expected[form], measured))
    return found


# ----------------------------------------------------------------------------------------------------------------------


def table(header, lines):
    """Lines of a markdown table"""
    return [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(map(str, line))} |" for line in lines), ""]


def number(value, form="{:.3g}"):
    return "-" if value is None else form.format(value)


def verdicts(content):
    words = {True: "reached", False: "missed", None: "not measured"}
    return table(
        ("goal", "measured", "verdict"), [(goal, measured or "-", words[reached]) for goal, measured, reached in goals(content)]
    )


def markdown(content):
    card = card_of(content)
    title = card.get("name", "unknown card")
    lines = [f"# Measured on {title}", ""]
    if content["quick"]:
        lines += ["**Toy sizes (--quick=True): this shows that the script runs. The numbers mean nothing.**", ""]
    lines += [
        f"By `python bench/gpu.py`; torch {card.get('torch')}, Triton {card.get('triton')}, CUDA {card.get('cuda')}, driver "
        f"{card.get('driver_version', '-')}, Python {card.get('python')}; commit {card.get('git_commit') or 'unknown'}"
        f"{' with changes' if card.get('git_dirty') else ''}. How to read this: docs/gpu.md.",
        "",
        "Goals were set for an H100, in bf16.",
        "",
        *verdicts(content),
        "## Parts",
        "",
    ]
    parts = content["parts"]
    lines += table(
        ("part", "what", "state", "seconds", "started"),
        [
            (
                name,
                PARTS[name][2],
                *(
                    (parts[name]["status"], number(parts[name]["seconds"], "{:.0f}"), parts[name]["started"])
                    if name in parts
                    else ("not run", "-", "-")
                ),
            )
            for name in PARTS
        ],
    )
    failed = [(name, row["job"], row["error"]) for name, part in parts.items() for row in part["rows"] if row.get("error")]
    if failed:
        lines += [
            "What failed, or was not measured:",
            "",
            *table(("part", "job", "error"), [(p, j, str(e).replace("|", "/")) for p, j, e in failed]),
        ]
    lines += correctness_lines(content)
    expected = predictions(content)
    if expected:
        lines += [
            "## Prediction and measurement",
            "",
            "Predicted by bench/roofline.py before anything was measured.",
            "",
            *table(("what", "predicted", "measured"), [(what, f"{p:.2f}", number(m, "{:.2f}")) for what, p, m in expected]),
        ]
    for section in (ceiling_lines, step_lines, kernel_lines, equality_lines, stack_lines, target_lines):
        lines += section(content)
    return "\n".join(lines).rstrip() + "\n"


def ceiling_lines(content):
    found = [
        (f"copy of {row['bytes'] / 2 ** 20:,.2f} MiB, read and written", f"{row['GB_s']:,.1f} GB/s", row.get("clocks.sm", "-"))
        for row in rows_of(content, "ceilings", "copy")
    ]
    found += [
        (f"bf16 matrix product, {row['shape']}", f"{row['TFLOP_s']:,.2f} TFLOP/s", row.get("clocks.sm", "-"))
        for row in rows_of(content, "ceilings", "matrix product")
    ]
    found += [
        ("one small kernel", f"{row['host_us']:.1f} us of the host, {row['stream_us']:.1f} us in a stream", "-")
        for row in rows_of(content, "ceilings", "launch")
    ]
    return ["## Ceilings", "", *table(("what", "measured", "SM clock after, MHz"), found)] if found else []


def step_lines(content):
    rows = [row for part in ("gpt2", "shapes") for row in rows_of(content, part, "step")]
    if not rows:
        return []
    _, product = ceilings(content)
    name, peak = nominal(content)
    lines = []
    for row in rows:
        flops = row["TFLOP_s"]
        lines.append(
            (
                row["shape"],
                row["arm"],
                row["mode"],
                f"{row['ms']:.2f}",
                f"{row['ms_20']:.2f} to {row['ms_80']:.2f}",
                number(ratio(content, row["shape"], row["arm"], row["mode"])),
                f"{row['tokens_s']:,.0f}",
                f"{flops:.1f}",
                number(product and flops / product, "{:.0%}"),
                number(peak and flops / peak, "{:.0%}"),
                number(row["peak_MiB"], "{:,.0f}"),
                f"{row['first_3_steps_s']:.0f}",
            )
        )
    noise = [
        f"{row['shape']} {row['mode']}: {row['ratio'] - 1:.1%}"
        for part in ("gpt2", "shapes")
        for row in rows_of(content, part, "noise")
    ]
    apart = [
        (row["shape"], row["arm"], "; ".join(row["forms"]), number(row["apart"], "{:.1e}"), "yes" if row["ok"] else "NO")
        for part in ("gpt2", "shapes")
        for row in rows_of(content, part, "agreement")
    ]
    return [
        "## Training steps",
        "",
        f"MFU: of the measured matrix product, and of the datasheet's peak ({name or 'unknown card'}: "
        f"{number(peak)} TFLOP/s). Memory: the peak of what PyTorch allocated.",
        "",
        *table(
            (
                "shape",
                "arm",
                "mode",
                "ms",
                "20% to 80%",
                "x baseline",
                "tokens/s",
                "TFLOP/s",
                "MFU, measured",
                "MFU, datasheet",
                "MiB",
                "first 3 steps, s",
            ),
            lines,
        ),
        *([f"The baseline measured twice differs by: {', '.join(noise)}. Smaller differences are noise.", ""] if noise else []),
        *(
            [
                "Forms of an arm that should compute the same: how far their third losses are apart, relatively.",
                "",
                *table(("shape", "arm", "forms", "apart", "the same"), apart),
            ]
            if apart
            else []
        ),
    ]


def kernel_lines(content):
    rows = [row for row in rows_of(content, "kernels", "speed") if "ms" in row]
    if not rows:
        return []
    faster = {(row["op"], row["dtype"], row["D"], row["passes"]): row for row in rows_of(content, "kernels", "faster")}
    lines = []
    for row in rows:
        over = faster.get((row["op"], row["dtype"], row["D"], row["passes"]), {}) if row["provider"] == "triton" else {}
        lines.append(
            (
                row["op"],
                row["dtype"],
                row["D"],
                row["passes"],
                row["provider"],
                f"{row['ms']:.3f}",
                f"{row['GB_s']:,.1f}",
                f"{row['share_of_copy']:.0%}",
                number(over.get("over_inductor"), "{:.2f}"),
                number(over.get("over_eager"), "{:.1f}"),
            )
        )
    return [
        "## Kernels against the copy",
        "",
        f"{rows[0]['rows'] * rows[0]['D']:,} numbers a tensor; GB/s of the necessary bytes; the copy moves as "
        "many, measured in the same way.",
        "",
        *table(("op", "dtype", "D", "pass", "provider", "ms", "GB/s", "of the copy", "x Inductor", "x eager"), lines),
    ]


def correctness_lines(content):
    rows = rows_of(content, "correctness", "correctness")
    groups = {}
    for row in rows:
        groups.setdefault((row["op"], row["dtype"], row["rows"]), []).append(row)
    lines = []
    for (op, dtype, kind), members in groups.items():
        bad = [row for row in members if not row["ok"]]
        worst = max(members, key=lambda row: row["share_of_bound"] if row["share_of_bound"] is not None else float("inf"))
        lines.append(
            (
                op,
                dtype,
                kind,
                ", ".join(str(row["D"]) for row in members),
                sum(row["compared"] for row in members),
                f"{number(worst['relative_error'], '{:.1e}')} of {worst['bound']:.1e} (D = {worst['D']}, {worst['worst']})",
                "all" if not bad else "WRONG at D = " + ", ".join(str(row["D"]) for row in bad),
            )
        )
    return (
        [
            "## Kernels against float64",
            "",
            *table(("op", "dtype", "rows", "D", "comparisons", "nearest to its bound", "right"), lines),
        ]
        if lines
        else []
    )


def equality_lines(content):
    lines = [
        (
            row["kind"],
            row["arm"],
            row["mode"],
            row["dtype"],
            row["against"],
            row["steps"],
            number(row["largest_difference"], "{:.1e}"),
            row["allowed"],
            "yes" if row["ok"] else "NO",
        )
        for row in rows_of(content, "equality", "equality")
    ]
    waits = [
        (
            row["arm"],
            row["mode"],
            row["dtype"],
            row["watched_steps"],
            row["waits"] if row["applicable"] else "not applicable",
            "; ".join(row["where"]) or "-",
        )
        for row in rows_of(content, "equality", "watch")
    ]
    return [
        *(
            [
                "## Training runs",
                "",
                "Training losses of train.py, the largest difference in nats.",
                "",
                *table(("what", "arm", "mode", "dtype", "against", "steps", "difference", "allowed", "the same"), lines),
            ]
            if lines
            else []
        ),
        *(
            [
                "Host synchronisations in steps that are not logged (CUDA graphs are not used).",
                "",
                *table(("arm", "mode", "dtype", "steps watched", "waits", "where"), waits),
            ]
            if waits
            else []
        ),
    ]


def stack_lines(content):
    """Of one run by itself, measured several times, the fastest."""
    rows = rows_of(content, "stacks", "stack")
    alone = {}
    for row in rows:
        if row["N"] == "alone":
            alone[row["arm"]] = min(row["ms"], alone.get(row["arm"], row["ms"]))
    lines = [(arm, "alone", "-", f"{ms:.2f}", f"{3.6e6 / ms / 1500:,.0f}", "1.0", "-") for arm, ms in alone.items()]
    for row in rows:
        if row["N"] != "alone":
            gain = row["N"] * alone[row["arm"]] / row["ms"] if row["arm"] in alone else None
            lines.append(
                (
                    row["arm"],
                    row["N"],
                    "yes" if row["graph"] else "no",
                    f"{row['ms']:.2f}",
                    f"{row['runs_hour']:,.0f}",
                    number(gain, "{:.1f}"),
                    number(row["peak_MiB"], "{:,.0f}"),
                )
            )
    return (
        [
            "## Runs as one program",
            "",
            "Runs of 1,500 steps, without evaluations, data and saving. 400 of them in 8 minutes are 3,000 an hour.",
            "",
            *table(("arm", "N", "CUDA graph", "ms a step", "runs an hour", "x alone", "peak MiB"), lines),
        ]
        if lines
        else []
    )


def target_lines(content):
    lines = [
        (
            row["arm"],
            row["target"],
            "yes" if row["reached"] else "no",
            number(row["steps"], "{}"),
            number(row["tokens"], "{:,}"),
            number(row["seconds"], "{:.1f}"),
            number(row["best_val_loss"], "{:.4f}"),
            row["last_step"],
            number(row["tokens_s"], "{:,.0f}"),
        )
        for row in rows_of(content, "target", "target")
    ]
    return (
        [
            "## Training to a validation loss",
            "",
            "One seed: this is about speed, not about which arm is better.",
            "",
            *table(("arm", "target", "reached", "steps", "tokens", "seconds", "best loss", "steps run", "tokens/s"), lines),
        ]
        if lines
        else []
    )
