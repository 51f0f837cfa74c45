"""A plain GPT block as GPT-2: transformers' own classes load it, and no code comes along."""
import torch

from training import checkpoint
from training.start import ACTIVATIONS, TOKENIZER, TRANSPOSED

NEEDED = {"model": "baseline", "token_shift": "none", "value_residual": "none", "position": "learned", "qk_norm": False,
          "head_gate": "none", "bounded_rows": False}


def is_gpt2(config):
    """Is the model of this config.json one?"""
    return all(config.get(key, value) == value for key, value in NEEDED.items())


def gpt2_config(config, vocab_size, end_of_text):
    """transformers' config.json of a run's."""
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.get("activation", "gelu"))
    return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocab_size, "n_positions": config["block_size"],
            "n_embd": config["n_embd"], "n_layer": config["n_layer"], "n_head": config["n_head"], "n_inner": None,
            "activation_function": activation, "resid_pdrop": config["dropout"], "embd_pdrop": config["dropout"],
            "attn_pdrop": config["dropout"], "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "tie_word_embeddings": True,
            "bos_token_id": end_of_text, "eos_token_id": end_of_text, "dtype": "float32",
            TOKENIZER: config["tokenizer"]}  # for init_from, which takes GPT-2's if there is none


def gpt2_weights(model, vocab_size):
    """name -> tensor, as GPT2LMHeadModel names and lays them out; the head is the embedding."""
    found = {}
    for name, tensor in checkpoint.weights_of(model).items():
        tensor = tensor.detach().float().cpu()
        if name == "transformer.wte.weight":
            tensor = tensor[:vocab_size]
        found[name] = (tensor.t() if name.endswith(TRANSPOSED) else tensor).contiguous().clone()
        bias = name.removesuffix("weight") + "bias"
        if not model.config.bias and (name.endswith(TRANSPOSED) or ".ln_" in name):  # GPT-2 has them
            found[bias] = torch.zeros(found[name].shape[-1])
    found.pop("lm_head.weight", None)
    return found
