"""
A trained baseline as a folder that transformers loads: a plain GPT-2, with its tokenizer and a model card.

    python export.py out/demo_baseline --out out/gpt
    python -c "from transformers import pipeline as p; print(p('text-generation', 'out/gpt')('ROMEO:', max_new_tokens=50))"

Written are config.json, model.safetensors, generation_config.json, tokenizer.json, tokenizer_config.json and README.md. The logits are
those of the run's checkpoint (tested, to 1e-6). Only the plain GPT block is a GPT-2: model = 'baseline' with token_shift = 'none',
value_residual = 'none', position = 'learned', no QK norm, no head gate. Rows of a padded vocabulary, which no text has, are left out.
Without biases (bias = False) they are zeros there. To share it: the command that is printed at the end. transformers is needed to load the
folder, not to write it: pip install transformers.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file

from common import paths
from common.errors import UserError, exit_cleanly
from configurator import Parser
from data.tokenizer import as_hugging_face, load_tokenizer
from training import checkpoint
from training.config import OWN_STARTS
from training.start import ACTIVATIONS, TRANSPOSED

NEEDED = {"model": "baseline", "token_shift": "none", "value_residual": "none", "position": "learned", "qk_norm": False,
          "head_gate": "none"}


def gpt2_config(config, vocab_size, end_of_text):
    """transformers' config.json of a run's."""
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config["activation"])
    return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocab_size, "n_positions": config["block_size"],
            "n_embd": config["n_embd"], "n_layer": config["n_layer"], "n_head": config["n_head"], "n_inner": None,
            "activation_function": activation, "resid_pdrop": config["dropout"], "embd_pdrop": config["dropout"],
            "attn_pdrop": config["dropout"], "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "tie_word_embeddings": True,
            "bos_token_id": end_of_text, "eos_token_id": end_of_text, "dtype": "float32"}


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


def model_card(run, config, summary, tokenizer):
    start = "a random start" if config.get("init_from", "scratch") in OWN_STARTS else config["init_from"]
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---", "",
             f"# {os.path.basename(os.path.abspath(run))}", "",
             f"A GPT-2 of {summary['parameters']:,} parameters (without positions), trained from {start} with the repository "
             "mixed-curvature-gpt, `model = 'baseline'`.", "", "| | |", "|---|---|",
             f"| text | {config['corpus']} |", f"| tokens | {tokenizer}, {config['vocab_size']:,} |",
             f"| blocks, width, heads, context | {', '.join(str(config[k]) for k in ('n_layer', 'n_embd', 'n_head', 'block_size'))} |"]
    for key, text in (("val_loss", "validation loss at the end, nats a token"), ("best_val_loss", "lowest validation loss"),
                      ("step", "steps"), ("tokens", "tokens of training"), ("train_seconds", "seconds of training")):
        if summary.get(key) is not None:
            value = summary[key]
            lines.append(f"| {text} | {f'{value:,.4f}' if isinstance(value, float) else f'{value:,}'} |")
    lines += ["", "Every key of the run:", "", "```json", json.dumps(config, indent=1), "```", ""]
    return "\n".join(lines)


@exit_cleanly
def main(argv):
    parser = Parser("export.py", __doc__)
    parser.add_argument("run", type=paths.expand, help="folder of a run")
    parser.add_argument("--out", type=paths.expand, required=True, help="the new folder")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which of the run's (best)")
    options = parser.parse_args(argv)
    config = checkpoint.load_config(options.run)
    other = [key for key, value in NEEDED.items() if config.get(key, value) != value]
    if other:
        raise UserError(f"{options.run}: {other[0]} = {config[other[0]]!r}: only {other[0]} = {NEEDED[other[0]]!r} is a GPT-2")
    if not isinstance(config.get("tokenizer"), dict):
        raise UserError(f"{options.run}/config.json does not say how its tokens are made")
    paths.folder_to_write(options.out, f"--out {options.out}")
    if os.path.isdir(options.out) and os.listdir(options.out):
        raise UserError(f"--out {options.out} is not empty: give a new folder")
    model, config = checkpoint.load_model(options.run, options.checkpoint)
    write(options.run, options.out, model, config)
    print(f"{options.out}: a GPT-2 for transformers. To share it: hf upload USER/NAME {options.out}")
    return 0


def write(run, out, model, config):
    tokenizer = load_tokenizer(config["tokenizer"])
    end = getattr(tokenizer, "end_of_text", None)
    config = {"activation": "gelu", **config}
    summary, path = {"parameters": model.num_params()}, os.path.join(run, "summary.json")
    if os.path.isfile(path):  # a run that has not ended has none
        try:
            with open(path, encoding="utf-8") as f:
                summary.update(json.load(f))
        except ValueError:
            raise UserError(f"{path} is damaged: not JSON") from None
    texts = {
        "config.json": json.dumps(gpt2_config(config, tokenizer.vocab_size, end), indent=1),
        "generation_config.json": json.dumps({"do_sample": True, "bos_token_id": end, "eos_token_id": end}, indent=1),
        "tokenizer.json": as_hugging_face(config["tokenizer"]).to_str(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["block_size"],
                                             "clean_up_tokenization_spaces": False}, indent=1),
        "README.md": model_card(run, config, summary, config["tokenizer"]["tokenizer"])}
    new = f"{os.path.abspath(out)}.{os.getpid()}.new"  # renamed when it is whole
    try:
        os.makedirs(new)
        for name, text in texts.items():
            with open(os.path.join(new, name), "w", encoding="utf-8") as f:
                f.write(text)
        save_file(gpt2_weights(model, tokenizer.vocab_size), os.path.join(new, "model.safetensors"), {"format": "pt"})
        if os.path.isdir(out):
            os.rmdir(out)
        os.rename(new, out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
