"""
Training that starts from trained weights: init_from = a run of this project, GPT-2's name, or a folder in its Hugging Face layout.

What has the same name and shape is taken; what has not keeps its start and is listed. So a baseline becomes a mixed model (with c = 0
and reference 'origin' its function is unchanged, to rounding; a flat control with reference 'previous'), or a model with streams. Of
position embeddings, and of tokens where the vocabulary is padded, the rows that both have are taken. Nothing but numbers is
read: safetensors, no pickle, no code.

GPT-2 (Radford et al. 2019) has biases and the tanh form of GELU: --bias=True --activation=gelu_tanh. Its Linear weights are transposed.
"""
import dataclasses
import json
import os
from dataclasses import dataclass, field

import torch

import models
from common import paths
from common.errors import UserError
from training import checkpoint

GPT2 = {"gpt2": "openai-community/gpt2", "gpt2-medium": "openai-community/gpt2-medium", "gpt2-large": "openai-community/gpt2-large",
        "gpt2-xl": "openai-community/gpt2-xl"}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}  # Hugging Face's name -> ours
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # Conv1D's
TOKENIZER = "curved_gpt_tokenizer"  # in the config.json that export.py writes: how the model's tokens are made
POSITIONS, TOKENS = "transformer.wpe.weight", ("transformer.wte.weight", "lm_head.weight")


@dataclass(frozen=True)
class Source:
    """Trained weights under this project's names."""
    name: str
    weights: dict
    wanted: dict  # keys that a model has to have, as far as they are known
    tokenizer: dict  # what a data set's meta.json says of its own
    config: dict = field(default_factory=dict)  # of a run: all of its keys


def find(init_from):
    """The Source that init_from names. Raises UserError."""
    if init_from in GPT2:
        from training import hub_files  # here: it takes a while, and few runs need it
        return hugging_face(hub_files.download(GPT2[init_from], init_from), init_from)
    if not os.path.lexists(init_from):
        raise UserError(f"init_from = '{init_from}': no such folder, and none of scratch, resume, auto, {', '.join(GPT2)}")
    paths.folder_to_read(init_from, f"init_from = '{init_from}'", "a run or a model")
    config = checkpoint.load_config(init_from)
    if "model_type" in config:
        return hugging_face(init_from, init_from)
    if "model" not in config:
        raise UserError(f"init_from = '{init_from}': its config.json is neither a run's nor that of a Hugging Face model")
    which = checkpoint.best_or_last(init_from)
    weights = checkpoint.read_weights(os.path.join(checkpoint.folder(init_from, which), checkpoint.WEIGHTS))
    wanted = {key: config[key] for key in ("n_head", "activation") if key in config}  # what no shape shows
    return Source(f"{init_from} ({config['model']}, checkpoint '{which}')", weights, wanted, config.get("tokenizer") or {}, config)


def hugging_face(folder, name):
    """The Source of a GPT-2 in Hugging Face's layout: config.json, and model.safetensors or shards of it with their index."""
    config = checkpoint.load_config(folder)
    if config.get("model_type") != "gpt2":
        raise UserError(f"init_from = '{name}': model_type = {config.get('model_type')!r}; only 'gpt2' can be read")
    index = os.path.join(folder, "model.safetensors.index.json")
    files = ["model.safetensors"]
    if os.path.isfile(index):
        try:
            with open(index, encoding="utf-8") as f:
                files = sorted(set(json.load(f)["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index} is damaged") from None
    weights = {}
    for file in files:
        path = os.path.join(folder, os.path.basename(str(file)))
        if not os.path.isfile(path):
            raise UserError(f"init_from = '{name}': there is no {path} (of the formats of weights only safetensors is read)")
        weights.update(checkpoint.read_weights(path))
    found = {}
    for key, tensor in weights.items():
        key = key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}"  # of a GPT2Model without its head
        if not key.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask
            found[key] = tensor.t().contiguous() if key.endswith(TRANSPOSED) else tensor
    try:
        wanted = dict(n_layer=config["n_layer"], n_head=config["n_head"], n_embd=config["n_embd"], bias=True,
                      activation=ACTIVATIONS[config["activation_function"]])
    except KeyError as error:
        raise UserError(f"init_from = '{name}': its config.json has no {error.args[0]!r} that is known here") from None
    for key, value in (("layer_norm_epsilon", 1e-5), ("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False),
                       ("tie_word_embeddings", True)):
        if config.get(key, value) != value:
            raise UserError(f"init_from = '{name}': {key} = {config[key]!r}, and {value!r} is what can be computed here")
    tokenizer = config.get(TOKENIZER, {"tokenizer": "gpt2"})
    if not isinstance(tokenizer, dict):
        raise UserError(f"init_from = '{name}': its config.json is damaged: {TOKENIZER} = {tokenizer!r}")
    return Source(name, found, wanted, tokenizer)


def begin(run, meta):
    """Trained weights for a run's model where it begins with some: also where it was killed before its first checkpoint and goes on.
    -> lines that say what was taken."""
    began = run.full["began_from"]
    return take(find(began), run.model, meta) if run.state is None and began not in (None, "scratch") else []


@torch.no_grad()
def take(source, model, meta):
    """Fill a model (not in shards) with what it shares with the source. meta: of the data. Returns lines that say what was taken. Raises
    UserError where the source's sizes or tokens are others, or nothing fits."""
    config = model.config
    if any(meta.get(key) != value for key, value in source.tokenizer.items()):
        raise UserError(f"init_from = '{source.name}' was trained on other tokens than those of this data set ({meta.get('corpus')})")
    other = [f"--{key}={value}" for key, value in source.wanted.items() if getattr(config, key) != value]
    if other:
        raise UserError(f"init_from = '{source.name}' is another model than the one asked for; add {' '.join(other)}")
    own, taken, parts, shapes, new = checkpoint.weights_of(model), [], [], [], []
    given = dict(source.weights)
    kept = {f"{prefix}.{name}".lstrip(".") for prefix, module in model.named_modules() for name in getattr(module, "of_this_run", ())}
    for name in TOKENS:  # tied: a file has one of them, or both
        if name not in given and name in own and (other := next((t for t in TOKENS if t in given), None)):
            given[name] = given[other]
    for name, tensor in own.items():
        theirs = None if name in kept else given.get(name)
        if theirs is None:
            new.append(name)
        elif theirs.shape == tensor.shape:
            tensor.copy_(theirs)
            taken.append(name)
        elif theirs.shape[1:] == tensor.shape[1:] and (name == POSITIONS or name in TOKENS and source.tokenizer):
            rows = min(len(theirs), len(tensor))
            tensor[:rows] = theirs[:rows]
            if name in TOKENS:  # of no text, but in the softmax: as a token in the middle of all, not as one with logits near 0
                tensor[rows:] = theirs.mean(0)
            parts.append(f"{name} ({rows:,} rows of {len(tensor):,})")
        else:
            shapes.append(f"{name} ({tuple(theirs.shape)}, not {tuple(tensor.shape)})")
    if not taken:
        raise UserError(f"init_from = '{source.name}': nothing of it has a name and a shape of this model"
                        + (f"; {shapes[0]}: give the model that one's n_layer, n_head and n_embd" if shapes else ""))
    unused = [name for name in given if name not in own and name not in TOKENS]
    lines = [f"weights: {len(taken)} of {len(own)} tensors from {source.name}"]
    another = elsewhere(source.config, vars(config))
    lines += [f"  {what}: {listed(names)}" for what, names in (("in part", parts), ("another shape there, new here", shapes),
                                                             ("new here", new), ("there and not used", unused),
                                                             ("another function there", another)) if names]
    return lines


def elsewhere(theirs, own):
    """Keys of two models that differ, as 'key = VALUE (VALUE here)'. theirs: all keys of a run, {} for weights of another origin; those
    that this model does not have are listed where they are not what they are by default."""
    if theirs.get("model") not in models.CONFIGS:
        return []
    theirs = {**models.added_since(theirs["model"]), **theirs}  # what it did before there was such a key
    found = [f"{key} = {theirs[key]!r} ({value!r} here)" for key, value in own.items()
             if theirs.get(key, value) != value and key not in ("vocab_size", "dropout")]
    return found + [f"{f.name} = {theirs[f.name]!r} (not in this model)" for f in dataclasses.fields(models.CONFIGS[theirs["model"]])
                    if f.name not in own and theirs.get(f.name, f.default) != f.default]


def listed(names, most=6):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
