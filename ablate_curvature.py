"""
Is the curvature of a trained model doing anything? Its validation loss when c is changed after training.

    python ablate_curvature.py out/demo_mixed
    python ablate_curvature.py out/demo_mixed --checkpoint=last --batches=10

    c = 0                   of blocks and embedding: the flat model with these weights (a curved head keeps its c)
    c moved among blocks    each block gets the c of the block s further on, for every s: does it matter which has which
    c moved among heads     the same among the heads of each block (one c per head)
    c as it started         the values of before training, with dynamic_curvature its gate too: did learning c matter
    c negated               hyperbolic for spherical and the other way round
    head: c = 0             and as it started: of a curved head (model_stereographic.py)
    gate off                dynamic_curvature only: every token gets its block's c
    writes ..., reads ...   x (+) exp_0(v), or log_r(x), replaced by a closed form that keeps one dependence (analysis/surrogates.py)
    gate and norm, ...      both replaced: by a gate of |v| and the ball, which is a norm of rows; and the like

and the gradient of the loss by c. All on the run's own evaluation batches, paired batch by batch, in float32: the 95%
intervals are over batches of text for this one model, not over seeds.

The other weights were trained with the curvature they had, so a change that hurts says that this model relies on its
c, not that a model trained without it would be worse. That takes other arms: the flat control, and curvature_lr_mult =
0, which trains with c frozen at exactly this start.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import sys

from analysis.ablation import ablate
from common import paths
from common.errors import exit_cleanly
from common.intervals import interval_text
from configurator import Parser, whole_number


def report(result):
    lines = [f"{result.run}, checkpoint {result.checkpoint}: validation loss "
             f"{interval_text(result.loss, sign=False)} over {result.batches} batches, {result.tokens:,} tokens", ""]
    lines.append(f"{'after training':24}{'change of the loss, nats a token, 95% over batches':54}least and most")
    for e in result.effects:
        span = f"{e.least:+.4f} to {e.most:+.4f} of {e.settings} shifts" if e.settings > 1 else ""
        lines.append(f"{e.change:24}{interval_text(e.difference):54}{span}".rstrip())
    lines += ["", *result.left_out] if result.left_out else []
    lines += ["", f"{'c of':24}{'start':>10}{'now':>10}    d loss / d c, 95% over batches"]
    for s in result.slopes:
        place = s.place if s.head is None else f"{s.place}, head {s.head}"
        lines.append(f"{place:24}{s.c_start:10.4f}{s.c:10.4f}    {interval_text(s.gradient, 5)}")
    if result.batches == 1:
        lines += ["", "one batch: no intervals"]
    return "\n".join(lines)


@exit_cleanly
def main(argv):
    parser = Parser("ablate_curvature.py", __doc__)
    parser.add_argument("run", type=paths.expand, help="directory of a run of train.py")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which of its checkpoints")
    parser.add_argument("--batches", type=whole_number(1), help="evaluation batches (default: the run's eval_iters)")
    options = parser.parse_args(argv)
    print(report(ablate(options.run, options.checkpoint, options.batches)))
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
