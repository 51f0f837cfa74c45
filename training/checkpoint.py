"""
Checkpoints: out_dir/ckpt/{last,best}/ with

    model.safetensors   weights (a tied one once) and their checksum, no code in it
    state.pt            optimizers, scaler, step, place in the data: tensors and plain values, read with weights_only=True

and the run's config.json two folders up. A checkpoint is written to a temporary folder, synced and renamed; the one it
replaces is removed only when the new one is in place, so there is a whole one at any moment. Of one step, `last` is written
before `best`: whoever has a `best` has had a `last`. Loading a checkpoint from somebody else runs no code of theirs.

Nothing in it depends on the number of processes: tensors are whole, random numbers are a function of seed and micro-batch
(train.py), and so is the data's order.
"""
import contextlib
import json
import os
import shutil
import sys
import zipfile
import zlib

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import models
from common import paths
from common.errors import UserError
from training.muon import DistributedMuon, Muon
from training.shards import full, named_parameters, placed_like

WEIGHTS, STATE = "model.safetensors", "state.pt"


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def gather_weights(model):
    """Yields (name, whole tensor), each storage once: named_parameters leaves out the second name of a tied weight. Where the
    model is in shards every process has to go through all of it; one weight at a time is whole, unless it is kept."""
    named = named_parameters(model)
    named.update((k, b) for k, b in model.named_buffers() if k in model.state_dict())
    for name, tensor in named.items():
        yield name, full(tensor.detach()).contiguous()


def weights_of(model):
    """name -> whole tensor, all of them: gather_weights()."""
    return dict(gather_weights(model))


def optimizer_state(model, optimizers, keep=True):
    """parameter name -> what its optimizer keeps of it, as whole tensors on the CPU. By name, so that it fits any number of
    processes, sharded or not. Every process has to call this, those that do not need it with keep=False. Learning rates and the
    like come from the configuration."""
    owner, found = _owners(optimizers), {}
    for name, p in named_parameters(model).items():
        if p not in owner:  # frozen
            continue
        shared_out = isinstance(owner[p], DistributedMuon)
        for key, value in (owner[p].whole_state(p) if shared_out else owner[p].state.get(p, {})).items():
            whole = full(value)
            if keep:
                # of a stack (stacked_optimizer.py): torch.save would write all runs with a view, and one 'step' for all parameters
                is_view = whole.untyped_storage().nbytes() > whole.nbytes or whole.dim() == 0
                found.setdefault(name, {})[key] = whole.detach().clone().cpu() if is_view else whole.cpu()
    return found


def load_optimizer_state(model, optimizers, saved):
    """The other way round. Raises UserError where it is another model's or another optimizer's."""
    owner = _owners(optimizers)
    parameters = named_parameters(model)
    for optimizer in optimizers:  # all of its parameters or, before its first step, none
        own = {name for name, p in parameters.items() if owner.get(p) is optimizer}
        if own & set(saved) not in (own, set()):
            raise UserError("the checkpoint's optimizer state is not that of this model's parameters")
    if not set(saved) <= {name for name, p in parameters.items() if p in owner}:
        raise UserError("the checkpoint's optimizer state is another model's")
    for name, values in saved.items():
        p = parameters[name]
        _check_moments(name, values, p, KEPT[type(owner[p])])
        if isinstance(owner[p], DistributedMuon):
            owner[p].take_state(p, values)
        else:
            owner[p].state[p] = {key: placed_like(value, p) for key, value in values.items()}


def _owners(optimizers):
    return {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


# what each optimizer keeps of a parameter
KEPT = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
        **dict.fromkeys((Muon, DistributedMuon), {"momentum_buffer"})}


def _check_moments(name, values, parameter, keys):
    """The optimizers' own code trusts these: a wrong shape would be read out of bounds."""
    if not isinstance(values, dict) or values.keys() != keys:
        raise UserError(f"the checkpoint's optimizer state of {name} is damaged or another optimizer's")
    for key, value in values.items():
        if not isinstance(value, torch.Tensor) or value.shape != (() if key == "step" else parameter.shape):
            raise UserError(f"the checkpoint's optimizer state of {name} is damaged or another model's: {key} does not have the "
                            "parameter's shape")
        if not torch.isfinite(value).all():
            raise UserError(f"the checkpoint's optimizer state is damaged: {key} of {name} has a NaN or an Inf")


def checksum(weights):
    """CRC-32 of all names and numbers, in hexadecimal."""
    crc = 0
    for name in sorted(weights):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(weights[name].cpu().reshape(-1).view(torch.uint8).numpy(), crc)
    return f"{crc:08x}"


def save(out_dir, name, weights, state):
    """Write out_dir/ckpt/<name> whole or not at all. weights: name -> tensor. state: a dict of tensors and plain values."""
    target = os.path.join(out_dir, "ckpt", name)
    new, old = target + ".new", target + ".old"
    shutil.rmtree(new, ignore_errors=True)
    try:
        os.makedirs(new)
        save_file(weights, os.path.join(new, WEIGHTS), metadata={"format": "pt", "crc32": checksum(weights)})
        torch.save(state, os.path.join(new, STATE))
        for file in (WEIGHTS, STATE):
            _sync(os.path.join(new, file))
        _sync(new)
        if os.path.isdir(target):
            shutil.rmtree(old, ignore_errors=True)
            os.rename(target, old)
        os.rename(new, target)
        _sync(os.path.dirname(target))
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:  # the two writers wrap a full disk in errors of their own
        shutil.rmtree(new, ignore_errors=True)
        before = "; the one before it is untouched" if exists(out_dir, name) else ""
        raise UserError(f"could not write the checkpoint {target}: {reason(error)}{before}") from None


def reason(error):
    """In words, of what a writer raised."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if getattr(error, "errno", None) == 28 or "No space left" in text or "unexpected pos" in text:
        return "the disk is full"
    return text


def _find(out_dir, name):
    """The checkpoint's folder, or None; what is in it is not looked at. A crash between the two renames of save() leaves the
    last whole one as .old."""
    target = os.path.join(out_dir, "ckpt", name)
    for path in (target, target + ".old"):
        with contextlib.suppress(FileNotFoundError):  # and nothing else: without permission it is not missing
            os.lstat(path)
            return path
    return None


def _check_opens(file):
    """The libraries that read checkpoints call a file damaged that is not there, that is a folder or that nobody may read."""
    try:
        open(file, "rb").close()
    except FileNotFoundError:
        raise UserError(f"{file} is missing: the checkpoint is damaged") from None


def folder(out_dir, name):
    """The checkpoint's folder."""
    path = _find(out_dir, name)
    if path:
        _check_opens(os.path.join(path, WEIGHTS))
        return path
    other = "last" if name == "best" else "best"
    hint = f"; there is {other!r}" if exists(out_dir, other) else ""
    raise UserError(f"no checkpoint {name!r} in {out_dir} (looked for {os.path.join(out_dir, 'ckpt', name, WEIGHTS)}){hint}")


def exists(out_dir, name):
    """Was it ever written whole? It may be damaged since."""
    return _find(out_dir, name) is not None


def best_or_last(out_dir):
    """The name of the checkpoint that others begin with or learn from."""
    return "best" if exists(out_dir, "best") else "last"


def can_resume(out_dir):
    """Is there a `last` to go on from? False only where none was ever written whole: a run that was killed before that begins
    again. Raises UserError where there was one."""
    if exists(out_dir, "last"):
        return True
    ckpt = os.path.join(out_dir, "ckpt")
    if os.path.islink(ckpt) and not os.path.exists(ckpt):
        raise UserError(f"cannot resume {out_dir}: {ckpt} is a link to {os.readlink(ckpt)}, which is not there")
    if exists(out_dir, "best"):  # written after a `last`
        last, best = os.path.join(ckpt, "last"), _find(out_dir, "best")
        raise UserError(f"cannot resume {out_dir}: {last} is gone; restore it, or copy {best} there to go on from that one "
                        "(--overwrite=True starts over)")
    return False


def best_is_last(out_dir):
    """Do `best` and `last` hold the same weights?"""
    def crc(name):
        with safe_open(os.path.join(folder(out_dir, name), WEIGHTS), framework="pt") as f:
            return f.metadata()["crc32"]
    try:
        return crc("best") == crc("last")
    except (UserError, SafetensorError, TypeError, KeyError):  # there is none, or none that can be read
        return False


def remove_all(out_dir):
    """Whatever checkpoints are in out_dir, whole or not; ckpt itself may be a link to another disk."""
    for name in ("last", "best"):
        for ending in ("", ".old", ".new"):
            path = os.path.join(out_dir, "ckpt", name + ending)
            if os.path.lexists(path):
                try:
                    shutil.rmtree(path)
                except OSError as error:
                    error.filename = path  # rmtree's is relative to a folder that it has open
                    raise


def load_config(out_dir):
    """config.json of a run: every key of train.py and of the model, resolved."""
    path = os.path.join(out_dir, "config.json")
    if not os.path.lexists(out_dir):
        raise UserError(f"{out_dir}: no such run")
    paths.folder_to_read(out_dir, out_dir, "the folder of a run")
    if not os.path.isfile(path):
        found = paths.what_is(path)
        raise UserError(f"{out_dir} is not a run: " + (f"its config.json {found}" if found else "it has no config.json"))
    try:
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: not JSON") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: not a configuration")
    if not isinstance(config.get("model", ""), str):
        raise UserError(f"{path} is damaged: its model is no name")
    return config


def read_weights(file):
    """name -> tensor of a safetensors file. Raises UserError where it is damaged."""
    try:
        with safe_open(file, framework="pt") as f:
            weights, about = {key: f.get_tensor(key) for key in f.keys()}, f.metadata() or {}  # noqa: SIM118  (f is no dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {reason(error)}") from None
    if about.get("crc32", (found := checksum(weights))) != found:  # checkpoints from before there was one have none
        raise UserError(f"{file} is damaged: its checksum is {found}, not {about['crc32']}")
    return weights


def load_weights(path, model):
    """Fill a model from a checkpoint folder. A checkpoint of another model is refused by the first weight that differs."""
    file = os.path.join(path, WEIGHTS)
    weights, own = read_weights(file), weights_of(model)
    for name in own:
        if name not in weights:
            raise UserError(f"{file} is from another model: it has no {name}")
        if weights[name].shape != own[name].shape:
            raise UserError(f"{file} is from another model: {name} is {tuple(weights[name].shape)}, "
                            f"not {tuple(own[name].shape)}")
        if not torch.isfinite(weights[name]).all():  # save() writes none
            raise UserError(f"{file} is damaged: {name} has a NaN or an Inf")
    extra = sorted(set(weights) - set(own))
    if extra:
        raise UserError(f"{file} is from another model: it has {extra[0]}")
    fill(model, weights)


@torch.no_grad()
def fill(model, weights):
    """Set a model's weights (not in shards) to those of a dict that weights_of made."""
    for name, tensor in weights_of(model).items():
        tensor.copy_(weights[name])


def load_state(path):
    """The rest of the training state. weights_only: a file that holds code is refused, not run."""
    file = os.path.join(path, STATE)
    _check_opens(file)
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums that torch.save has written
        state = None if damaged else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen kinds for a damaged or hostile file
        raise UserError(f"{file} is damaged or not safe to load ({type(error).__name__})") from None
    if damaged:
        raise UserError(f"{file} is damaged: {damaged} in it does not have its checksum")
    for key in ("optimizers", "scaler", "step", "next_sequence", "best", "best_step", "seconds"):
        if not isinstance(state, dict) or key not in state:
            raise UserError(f"{file} is damaged or from another version: it has no {key!r}")
    kinds = dict(optimizers=dict, scaler=dict, step=int, next_sequence=int, best=float, best_step=(int, type(None)),
                 seconds=(int, float))
    for key, kind in kinds.items():
        value = state[key]
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, (int, float)) and not value >= 0
                                                                     and key != "best"):
            raise UserError(f"{file} is damaged: {key} = {value!r}")
    return state


def load_model(out_dir, name="best", device="cpu"):
    """(model in eval mode, config dict) of a run, for sampling and analysis: in PyTorch, whatever it was trained with."""
    config = load_config(out_dir)
    if config.get("ops") == "triton":
        print(f"{out_dir} was trained with ops = 'triton'; it is computed with ops = 'torch' here", file=sys.stderr)
    config["ops"] = "torch"
    if not isinstance(config.get("tokenizer", {}), dict):
        raise UserError(f"{os.path.join(out_dir, 'config.json')} is damaged: tokenizer = {config['tokenizer']!r}")
    model = models.build(config.get("model"), models.config_from_dict(config.get("model"), config))
    load_weights(folder(out_dir, name), model)
    return model.to(device).eval(), config
