"""
Any model of this repository as a folder that transformers loads with trust_remote_code=True: its source files (source_files.py), and
modeling_curved_gpt.py around them.
"""
import dataclasses
import functools
import os

import models
from hub.source_files import flat, flat_files, source_of
from training.shards import full

MODELLING = "modeling_curved_gpt"
REPLACED = "from .model import GPT, Cache, Keys  # what export.py replaces\n"
IMPORTS = """from .{model} import GPT
from .{config} import {keys} as Keys
from .model_baseline import Cache

# transformers takes along the files that such lines of this file name, and no others
{files}
"""


@functools.cache
def code(name):
    """{file name: text} of the model of that name."""
    keys, gpt = models.MODELS[name]
    files = flat_files([keys, gpt, models.model_baseline.Cache])
    lines = "\n".join(f"from .{file.removesuffix('.py')} import __name__ as _" for file in files)
    imports = IMPORTS.format(model=flat(gpt.__module__), config=flat(keys.__module__), keys=keys.__name__, files=lines)
    return {f"{MODELLING}.py": source_of(f"hub.{MODELLING}").replace(REPLACED, imports), **files}


def curved_config(name, model, vocab_size, end_of_text):
    """transformers' config.json."""
    keys = dataclasses.asdict(model.config)
    keys.pop("vocab_size")
    if keys.get("laplacian_file"):  # L is among the weights
        keys["laplacian_file"] = os.path.basename(keys["laplacian_file"])
        keys["laplacian_heads"] = len(model.transformer.h[0].attn.matrix)
    classes = {"AutoConfig": f"{MODELLING}.CurvedGPTConfig", "AutoModelForCausalLM": f"{MODELLING}.CurvedGPTForCausalLM"}
    tied = model.lm_head.weight is model.transformer.wte.weight
    return {"architectures": ["CurvedGPTForCausalLM"], "model_type": "mixed_curvature_gpt", "auto_map": classes, "model": name,
            "keys": keys, "vocab_size": vocab_size, "tie_word_embeddings": tied, "bos_token_id": end_of_text, "eos_token_id": end_of_text,
            "dtype": "float32"}


def curved_weights(model, vocab_size):
    """name -> tensor: parameters, and all buffers but those that the model computes again (forget_precomputed())."""
    for module in model.modules():
        if hasattr(module, "forget_precomputed"):
            module.forget_precomputed()
    found = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        tensor = full(tensor.detach()).float().cpu()
        by_token = name == "transformer.wte.weight" or name.startswith("lm_head.") and tensor.shape[:1] == (model.config.vocab_size,)
        found[f"gpt.{name}"] = (tensor[:vocab_size] if by_token else tensor).contiguous().clone()
    return found
