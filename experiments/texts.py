"""
The difference of two arms over seeds and texts together: would other seeds on other texts of this kind say the same?

    python -m experiments.texts out/sweeps/bounded_verdict --arm=c1-within --against=ball-v

A sweep's summary has intervals over seeds, on one validation text. Here each pair of trained runs reads that text again, all of it, cut
into pieces of neighbouring sequences, and the table of differences, seeds by pieces, gives an interval over both (experiments/crossed.py).
Pieces are pieces of this one text: what another author or language would say is a question for another data set.

Written to <sweep>/texts/ARM-AGAINST.csv (ARM-AGAINST-best-8.csv with another checkpoint or number of pieces): the difference of each seed
on each piece, nats a token. Needs the runs' checkpoints.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import csv
import io
import os
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from analysis.group_bootstrap import group_of
from analysis.validation_text import loader_of
from common import paths
from common.errors import UserError, exit_cleanly
from common.intervals import interval_text
from common.whole_files import write_file
from configurator import Parser, whole_number
from experiments.crossed import crossed
from experiments.results import read_sweep
from experiments.statistics import choose_lr, measuring_pair, selection_seed_of
from training import checkpoint
from training.machine import pick_device

LEAST_SEQUENCES = 2  # a piece
BATCH = 8  # sequences that are read together, the same for all runs: what is left over is not read


class Read(NamedTuple):
    """What of a text: both runs of a pair have to have read the same."""
    sha256: str | None
    sequences: int
    length: int


@torch.no_grad()
def losses_by_piece(out_dir, name, pieces, device):
    """Mean loss of a run's model on each piece of its validation text, (pieces,) float64, and what was read. Raises UserError."""
    model, config = checkpoint.load_model(out_dir, name, device)
    loader = loader_of(out_dir, config, device, BATCH)
    sums = []  # of each sequence
    for x, y in loader.eval_batches(loader.num_eval_batches(sys.maxsize)):
        logits = model(x, y)[0]
        sums += F.cross_entropy(logits.flatten(0, 1).float(), y.flatten(), reduction="none").double().view_as(y).mean(1).tolist()
    if len(sums) < LEAST_SEQUENCES * pieces:
        raise UserError(f"the validation text of {out_dir} has {len(sums)} sequences of {config['block_size']}: not enough for "
                        f"{pieces} pieces; give --pieces={max(2, len(sums) // LEAST_SEQUENCES)} or fewer")
    piece = group_of(np.arange(len(sums)), len(sums), pieces)
    return np.bincount(piece, sums) / np.bincount(piece), Read(config.get("corpus_sha256"), len(sums), config["block_size"])


def pairs_of(folder, arm, against):
    """[(seed, the arm's run folder, the other's)] of the seeds that measure both. Raises UserError."""
    summary = read_sweep(folder, None, planned=False)  # rates as in its summary; in a sweep with a target by the steps to it
    arms, chooses = {a.name: a for a in summary.arms}, selection_seed_of(summary.arms, summary.seeds)
    for name in (arm, against):
        if name not in arms:
            raise UserError(f"there is no run of an arm {name!r} in {folder}; there are {', '.join(arms)}")
    if arm == against:
        raise UserError(f"--arm and --against are both {arm!r}")
    choices = [choose_lr(arms[name].losses(), chooses) for name in (arm, against)]
    if None in choices:
        raise UserError(f"{arm} or {against} has no run that finished")
    seeds = sorted(set.intersection(*({s for s, loss in losses.items() if np.isfinite(loss)} for losses in measuring_pair(*choices))))
    found = [(seed, *(arms[name].runs[choice.lr, seed].folder for name, choice in zip((arm, against), choices))) for seed in seeds]
    if len(found) < 2:
        raise UserError(f"{len(found)} seeds have finished runs of both {arm} and {against}; two are needed, and five are better")
    for _, *folders in found:
        for run in folders:
            if not os.path.isdir(run):
                raise UserError(f"{run} is not there: the difference on each piece of text needs the runs, not their table alone")
    return found


def report(arm, against, seeds, tokens, pieces, found):
    p = "" if found.p is None else f", p = {found.p:.2g}"
    out = [f"{arm} minus {against}, nats a token, {len(seeds)} seeds, {tokens:,} tokens in {pieces} pieces",
           f"  over seeds, for this text              {interval_text(found.over_seeds)}",
           f"  over pieces of text, for these seeds   {interval_text(found.over_texts)}",
           f"  over both                              {interval_text(found.over_both)}{p}"]
    if found.p is not None:
        out.append("  of the variance: seeds {:.0%}, texts {:.0%}, both together {:.0%}".format(*found.shares))
    return "\n".join(out)


@exit_cleanly
def main(argv):
    parser = Parser("python -m experiments.texts", __doc__)
    parser.add_argument("sweep", type=paths.expand, help="folder of the sweep (out/sweeps/NAME)")
    parser.add_argument("--arm", required=True, help="the arm in question")
    parser.add_argument("--against", required=True, help="the arm that it is compared with")
    parser.add_argument("--pieces", type=whole_number(2), default=16, help="of the validation text (16)")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last", help="which of the runs' (last)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    options = parser.parse_args(argv)
    paths.folder_to_read(options.sweep, options.sweep, "the folder of a sweep")
    pairs, device = pairs_of(options.sweep, options.arm, options.against), pick_device(options.device)
    table = []
    for seed, *folders in pairs:
        (ours, read), (theirs, other) = (losses_by_piece(run, options.checkpoint, options.pieces, device) for run in folders)
        if read != other:
            raise UserError(f"{options.arm} and {options.against} did not read the same pieces of text: their data or block_size differ")
        table.append(ours - theirs)
        print(f"seed {seed}: {table[-1].mean():+.4f}", file=sys.stderr, flush=True)
    seeds = [seed for seed, *_ in pairs]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("seed", *(f"piece {i}" for i in range(1, options.pieces + 1))))
    writer.writerows((seed, *(f"{d:.6f}" for d in row)) for seed, row in zip(seeds, table))
    folder = os.path.join(options.sweep, "texts")
    os.makedirs(folder, exist_ok=True)
    which = "" if (options.checkpoint, options.pieces) == ("last", 16) else f"-{options.checkpoint}-{options.pieces}"
    write_file(os.path.join(folder, f"{options.arm}-{options.against}{which}.csv"), text.getvalue().encode())
    print(report(options.arm, options.against, seeds, read.sequences * read.length, options.pieces, crossed(table)))
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
