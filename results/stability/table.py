"""
What came out of sweeps/stability.py or remedies.py: how often each model diverged, in the cells of optimizer and dtype.

    python results/stability/table.py out/sweeps/stability [--out=results/stability/cells.csv]

Of the rates of a cell: how many runs stopped at a NaN or an Inf, how many ended above their start, the best final loss with its rate, and
of that run the share of rows at the ball's edge at the end, and at max_distance, where there is one (means over blocks).
"""
import argparse
import csv
import json
import os


def read(folder):
    """A dict a run: arm, lr, status, start, end, edge (None where nothing is curved)."""
    with open(os.path.join(folder, "runs.csv"), newline="") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        with open(os.path.join(folder, row["dir"], "metrics.jsonl")) as f:
            measured = [record for record in map(json.loads, f) if "val_loss" in record]
        edge, bound = (mean([value for key, value in measured[-1].items() if key.endswith(f"/{name}")])
                       for name in ("edge_share", "max_distance_share"))
        yield {"arm": row["arm"], "lr": float(row["lr"]), "status": row["status"], "start": measured[0]["val_loss"],
               "end": measured[-1]["val_loss"], "edge": edge, "bound": bound}


def mean(values):
    return sum(values) / len(values) if values else None


def cells(runs):
    found = {}
    for run in runs:
        model, optimizer, bits = run["arm"].rsplit("-", 2)
        found.setdefault((model, optimizer, bits), []).append(run)
    for (model, optimizer, bits), members in found.items():
        finished = [run for run in members if run["status"] == "finished"]
        best = min(finished, key=lambda run: run["end"], default=None)
        yield {"model": model, "optimizer": optimizer, "bits": bits, "runs": len(members),
               "nan": sum(run["status"] == "diverged" for run in members),
               "above_start": sum(run["end"] > run["start"] for run in finished),
               "best_loss": f"{best['end']:.4f}" if best else "", "best_lr": f"{best['lr']:g}" if best else "",
               **{f"{name}_share": f"{best[name]:.3f}" if best and best[name] is not None else "" for name in ("edge", "bound")}}


def print_table(described, rows_of, sweep):
    """A command that prints what rows_of(folder) gives, dicts with the same keys, and writes them to the CSV file --out."""
    parser = argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of the sweep")
    parser.add_argument("--out", help="a CSV file")
    options = parser.parse_args()
    try:
        table = list(rows_of(options.folder))
    except FileNotFoundError as error:
        parser.exit(2, f"error: {error.filename} is missing: the table needs the folder of the sweep with all of its runs, "
                       f"out/sweeps/{sweep}\n")
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    if not table:
        parser.exit(2, f"error: {options.folder}: no run of the sweep has ended yet\n")
    rows = [list(table[0]), *([str(value) for value in row.values()] for row in table)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if options.out:
        with open(options.out, "w", newline="") as f:
            csv.writer(f).writerows(rows)


if __name__ == "__main__":
    print_table(__doc__, lambda folder: cells(read(folder)), "stability")
