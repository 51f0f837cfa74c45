"""
The validation loss of a trained model when its curvature is changed, and the loss' gradient by c: what ablate_curvature.py
prints and a sweep's summary has.
"""
from dataclasses import dataclass

import numpy as np
import torch

import models
from analysis import surrogates
from analysis.validation_text import loader_of
from common.errors import UserError
from common.intervals import Estimate, mean_interval
from model import Curvature, SoftplusCurvature
from training import checkpoint
from training import start as beginning
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

HEAD = "lm_head.curvature"  # of model_stereographic.py, in units of 1 / n_embd


def free_curvature(model):
    """Makes a c = +-softplus(theta) a parameter by itself, of any sign, in place."""
    for module in model.modules():
        if isinstance(module, SoftplusCurvature):
            c = module.c.detach().clone()
            del module.theta, module.sign
            module.__class__ = Curvature
            module.c = torch.nn.Parameter(c)


def curvature_tensors(model):
    """name -> tensor of every c (blocks, embedding, a curved head) and of the gates that predict it, each once; learned or fixed."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {n: t for n, t in named.items() if n.endswith("curvature.c") or ".curvature_gate." in n or n == HEAD}


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
    """The values before the first step: the model made again as train.py makes it, with the weights that it began with. None where
    these are not there any more."""
    rng = torch.get_rng_state()
    torch.manual_seed(config["seed"])
    fresh = models.build(config["model"], models.config_from_dict(config["model"], config))
    torch.set_rng_state(rng)
    began = config.get("began_from") or "scratch"
    if began != "scratch":
        try:
            beginning.take(beginning.find(began), fresh, config.get("tokenizer") or {})
        except UserError:
            return None
    free_curvature(fresh)
    return {name: value.to(device) for name, value in values_of(fresh).items()}


def changes(trained, start):
    """(change -> list of settings, each the values to set; sentences on what this model does not have)."""
    every = [n for n in trained if n.endswith("curvature.c")]
    gates = [n for n in trained if ".curvature_gate." in n]
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
    if start is None:
        left_out.append("c at the start is not known: the weights that the run began with are not there any more")
    else:
        found["c as it started"] = [{**start, **{n: trained[n] for n in (HEAD,) if n in trained}}]
    found["c negated"] = [{**trained, **{n: -trained[n] for n in every}}]
    if HEAD in trained:
        found["head: c = 0"] = [{**trained, HEAD: torch.zeros_like(trained[HEAD])}]
        if start is not None:
            found["head: c as it started"] = [{**trained, HEAD: start[HEAD]}]
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
    tensors = {n: t for n, t in curvature_tensors(model).items() if ".curvature_gate." not in n}
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
    if name == HEAD:
        return "head"
    if name.startswith("embedding"):
        return "embedding"
    return "all blocks" if tied else f"block {name.split('.')[2]}"


def ablate(out_dir, name="best", batches=None, device="auto"):
    """The Ablation of a run. name: its checkpoint. batches: how many evaluation batches (None: the run's eval_iters).
    Raises UserError, one line, for a run without curvature, checkpoint or data."""
    config = checkpoint.load_config(out_dir)
    if "curvature_mode" not in config:
        raise UserError(f"{out_dir}: model = {config.get('model')!r} has no curvature that can be changed; this is for mixed and the "
                        "models that are made from it")
    device = pick_device(device)
    model, config = checkpoint.load_model(out_dir, name, device)
    free_curvature(model)
    loader = loader_of(out_dir, config, device)
    data = list(loader.eval_batches(config["eval_iters"] if batches is None else batches))

    trained, start = values_of(model), starting_values(config, device)
    as_trained = batch_losses(model, data)
    slopes = []
    first = start or {place: torch.full_like(values, float("nan")) for place, values in trained.items()}
    for place, by_batch in gradients(model, data).items():
        unit = 1 / config["n_embd"] if place == HEAD else 1.0
        for head, column in enumerate(by_batch.T):
            slopes.append(Slope(place_name(place, config["curvature_mode"] == "tied"),
                                head if trained[place].dim() else None, unit * trained[place].flatten()[head].item(),
                                unit * first[place].flatten()[head].item(), mean_interval(column / unit)))
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
    set_curvature(model, trained)
    if surrogates.possible(model):
        for term in surrogates.TERMS:
            with surrogates.in_place(model, term):
                difference = batch_losses(model, data) - as_trained
            effects.append(Effect(term, 1, mean_interval(difference), float(difference.mean()), float(difference.mean())))
    else:
        left_out.append("terms of curvature are for reference = 'previous', residual = 'origin' and one residual stream")
    tokens = sum(y.numel() for _, y in data)
    return Ablation(out_dir, name, len(data), tokens, mean_interval(as_trained), effects, slopes, left_out)
