"""
Is the curvature of a trained model doing anything? Its validation loss when c is changed after training.

    python ablate_curvature.py out/demo_mixed
    python ablate_curvature.py out/demo_mixed --checkpoint=last --batches=10

    c = 0                   everywhere: the flat model with these weights
    c moved among blocks    each block gets the c of the block s further on, for every s: does it matter which has which
    c moved among heads     the same among the heads of each block (one c per head)
    c as it started         the values of before training, with dynamic_curvature its gate too: did learning c matter
    c negated               hyperbolic for spherical and the other way round
    gate off                dynamic_curvature only: every token gets its block's c

and the gradient of the loss by c. All on the run's own evaluation batches, paired batch by batch, in float32: the 95%
intervals are over batches of text for this one model, not over seeds.

The other weights were trained with the curvature they had, so a change that hurts says that this model relies on its
c, not that a model trained without it would be worse. That takes other arms: the flat control, and curvature_lr_mult =
0, which trains with c frozen at exactly this start.
"""
from common import startup  # first: Ctrl-C while the others are imported is one line

import argparse
import math
import os
import sys
from dataclasses import dataclass

import numpy as np
import torch

from training import checkpoint
import models
from common import paths
from configurator import Parser
from training.dataloader import Loader, load_meta
from common.errors import UserError, exit_cleanly
from experiments.statistics import Estimate, mean_interval
from training.machine import pick_device


@dataclass(frozen=True)
class Effect:
    """One change: difference = loss after it minus loss as trained, over batches; least, most: over its settings."""
    change: str
    settings: int  # how many ways there are to do it (shifts); the difference is their mean
    difference: Estimate
    least: float
    most: float


@dataclass(frozen=True)
class Slope:
    """d loss / d c of one place, over batches. head: None where the whole row has one c."""
    place: str
    head: int | None
    c: float
    c_start: float
    gradient: Estimate


@dataclass(frozen=True)
class Ablation:
    run: str
    checkpoint: str
    batches: int
    tokens: int
    loss: Estimate  # as trained, nats a token
    effects: list
    slopes: list
    left_out: list  # sentences: changes that this model does not have


# ----------------------------------------------------------------------------------------------------------------------
# reading and changing c

def curvature_tensors(model):
    """name -> tensor of every c (blocks, embedding) and of the gates that predict it, each once; learned or fixed."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {n: t for n, t in named.items() if n.endswith("curvature.c") or ".curvature_gate." in n}


def forget_limits(model):
    """Blocks with a fixed c keep what follows from it; where c changes, or a derivative by c is
    taken, that is stale."""
    for block in model.transformer.h:
        block.forget_precomputed()


def precompute_limits(model):
    for block in model.transformer.h:
        block.precompute()


def set_curvature(model, values):
    """values: as curvature_tensors(model)."""
    with torch.no_grad():
        for name, tensor in curvature_tensors(model).items():
            tensor.copy_(values[name])
    forget_limits(model)
    precompute_limits(model)


def values_of(model):
    return {name: tensor.detach().clone() for name, tensor in curvature_tensors(model).items()}


def starting_values(config, device):
    """The values before the first step: the model made again as train.py makes it."""
    rng = torch.get_rng_state()
    torch.manual_seed(config["seed"])
    fresh = models.build(config["model"], models.config_from_dict(config["model"], config))
    torch.set_rng_state(rng)
    return {name: value.to(device) for name, value in values_of(fresh).items()}


def changes(trained, start):
    """(change -> list of settings, each the values to set; sentences on what this model does not have)."""
    every = [n for n in trained if n.endswith("curvature.c")]
    gates = [n for n in trained if n not in every]
    blocks = [n for n in every if n.startswith("transformer.h.")]
    per_head = trained[blocks[0]].dim() > 0  # (n_head, 1), else ()

    found, left_out = {}, []
    found["c = 0"] = [{**trained, **{n: torch.zeros_like(trained[n]) for n in every}}]
    if len(blocks) > 1:
        found["c moved among blocks"] = [
            {**trained, **{n: trained[blocks[(i + s) % len(blocks)]] for i, n in enumerate(blocks)}}
            for s in range(1, len(blocks))]
    else:
        left_out.append("c is not moved among blocks: there is one for all")
    if per_head and len(trained[blocks[0]]) > 1:
        found["c moved among heads"] = [{**trained, **{n: trained[n].roll(-s, 0) for n in blocks}}
                                        for s in range(1, len(trained[blocks[0]]))]
    else:
        left_out.append("c is not moved among heads: there is one for the whole row")
    found["c as it started"] = [start]
    found["c negated"] = [{**trained, **{n: -trained[n] for n in every}}]
    if gates:
        found["gate off"] = [{**trained, **{n: torch.zeros_like(trained[n]) for n in gates}}]  # 2 sigmoid(0) = 1
    return found, left_out


# ----------------------------------------------------------------------------------------------------------------------
# measuring

@torch.no_grad()
def batch_losses(model, batches):
    """Mean loss of each batch, (n,) float64."""
    return np.array([model(x, y)[1].double().item() for x, y in batches])


def gradients(model, batches):
    """d loss / d c of each batch: name -> (n, n_head or 1) float64. c may be a buffer; with a gate it is
    the block's c."""
    tensors = {n: t for n, t in curvature_tensors(model).items() if n.endswith("curvature.c")}
    learned = {n: t.requires_grad for n, t in tensors.items()}
    forget_limits(model)
    for t in tensors.values():
        t.requires_grad_()
    rows = [torch.autograd.grad(model(x, y)[1], list(tensors.values())) for x, y in batches]
    for n, t in tensors.items():
        t.requires_grad_(learned[n])
    precompute_limits(model)
    return {n: np.stack([row[i].double().flatten().cpu().numpy() for row in rows]) for i, n in enumerate(tensors)}


def place_name(name, tied):
    if name.startswith("embedding"):
        return "embedding"
    return "all blocks" if tied else f"block {name.split('.')[2]}"


def ablate(out_dir, name="best", batches=None, device="auto"):
    """The Ablation of a run. name: its checkpoint. batches: how many evaluation batches (None: the run's eval_iters).
    Raises UserError, one line, for a run without curvature, checkpoint or data."""
    config = checkpoint.load_config(out_dir)
    if "curvature_mode" not in config:
        raise UserError(f"{out_dir}: model = {config.get('model')!r} has no curvature")
    device = pick_device(device)
    model, config = checkpoint.load_model(out_dir, name, device)
    folder = os.path.join(config["data_dir"], config["dataset"])
    meta = load_meta(folder)
    if meta.get("sha256") != config.get("corpus_sha256"):
        raise UserError(f"{folder} holds another text than the one {out_dir} was trained on; prepare that one again")
    loader = Loader(folder, "val", meta, config["batch_size"], config["block_size"], config["seed"], device)
    data = list(loader.eval_batches(config["eval_iters"] if batches is None else batches))

    trained, start = values_of(model), starting_values(config, device)
    as_trained = batch_losses(model, data)
    slopes = []
    for place, by_batch in gradients(model, data).items():
        for head, column in enumerate(by_batch.T):
            slopes.append(Slope(place_name(place, config["curvature_mode"] == "tied"),
                                head if trained[place].dim() else None, trained[place].flatten()[head].item(),
                                start[place].flatten()[head].item(), mean_interval(column)))
    found, left_out = changes(trained, start)
    effects = []
    for change, settings in found.items():
        by_setting = []
        for values in settings:
            same = all(torch.equal(values[n], trained[n]) for n in trained)
            if not same:
                set_curvature(model, values)
            by_setting.append(np.zeros_like(as_trained) if same else batch_losses(model, data) - as_trained)
        means = [float(d.mean()) for d in by_setting]
        mean = mean_interval(np.mean(by_setting, axis=0))
        effects.append(Effect(change, len(settings), mean, min(means), max(means)))
    tokens = sum(y.numel() for _, y in data)
    return Ablation(out_dir, name, len(data), tokens, mean_interval(as_trained), effects, slopes, left_out)


# ----------------------------------------------------------------------------------------------------------------------

def interval_text(estimate, digits=4, sign=True):
    """'+0.0123 [+0.0100, +0.0146]'; of one value the mean alone, of equal ones '+0.0123 [no interval]'."""
    if estimate.mean is None:
        return "-"
    form = f"{'+' if sign else ''}.{digits}f"
    text = f"{estimate.mean:{form}}"
    if estimate.low is None:
        return text if estimate.n == 1 or not math.isfinite(estimate.mean) else f"{text} [no interval]"
    return f"{text} [{estimate.low:{form}}, {estimate.high:{form}}]"


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


def whole_number(least):
    """An argparse type."""
    def convert(text):
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return number
    return convert


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
