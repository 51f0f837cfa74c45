"""
A trained model as a folder that transformers loads, with its tokenizer, generation config and a model card.

    python export.py out/demo_baseline --out out/gpt
    python -c "from transformers import pipeline as p; print(p('text-generation', 'out/gpt')('ROMEO:', max_new_tokens=50))"

    python export.py out/demo_mixed --out out/curved
    python -c "from transformers import pipeline as p
    print(p('text-generation', 'out/curved', trust_remote_code=True)('ROMEO:', max_new_tokens=50))"

The plain GPT block becomes a GPT-2 of transformers' own: model = 'baseline' with token_shift = 'none', value_residual = 'none', position =
'learned', no QK norm, no head gate, no bounded rows. Without biases (bias = False) they are zeros there. Every other model of models.py
takes its code along: the source files that it is made of, copied from here with their imports changed (hub/source_files.py), and what
generate(), pipeline() and Trainer need around them (hub/modeling_curved_gpt.py). Such a folder needs torch and transformers, not this
repository, and is loaded with trust_remote_code=True, for it holds code; look at it before you trust one from somebody else. Nothing here
runs code of a folder or a checkpoint.

The logits are those of the run's checkpoint (tested, to 1e-6). Rows of a padded vocabulary, which no text has, are left out. generate()
keeps a cache, and beyond block_size reads the last window anew for each token, as sample.py does. Padding on the left is refused. A
graph of a corpus (laplacian = 'corpus') is among the weights. ops = 'triton' is computed in PyTorch. With kv_bins generation is as
approximate as here. A tau that is a statistic (tau = 'median', 'mean') stays as it is when the model is trained on.

The card is filled from config.json and summary.json and, of a run of a sweep (SWEEP/runs/NAME), from the sweep's table. To share the
folder: the command that is printed at the end. transformers is needed to load the folder, not to write it: pip install transformers.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import json
import os
import shutil
import sys

from safetensors import SafetensorError
from safetensors.torch import save_file

import models
from common import paths
from common.errors import UserError, exit_cleanly
from configurator import Parser
from data.tokenizer import as_hugging_face, load_tokenizer
from hub import curved, gpt2, model_card
from training import checkpoint


@exit_cleanly
def main(argv):
    parser = Parser("export.py", __doc__)
    parser.add_argument("run", type=paths.expand, help="folder of a run")
    parser.add_argument("--out", type=paths.expand, required=True, help="the new folder")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which of the run's (best)")
    options = parser.parse_args(argv)
    config = checkpoint.load_config(options.run)
    if not isinstance(config.get("tokenizer"), dict):
        raise UserError(f"{options.run}/config.json does not say how its tokens are made")
    paths.folder_to_write(options.out, f"--out {options.out}")
    if os.path.isdir(options.out) and os.listdir(options.out):
        raise UserError(f"--out {options.out} is not empty: give a new folder")
    model, config = checkpoint.load_model(options.run, options.checkpoint)
    made = as_gpt2(options, model, config) if gpt2.is_gpt2(config) else as_curved(options, model, config)
    write(options.out, *made, config)
    what = "a GPT-2 for transformers" if gpt2.is_gpt2(config) else "for transformers, with trust_remote_code=True"
    print(f"{options.out}: {what}. To share it: hf upload USER/NAME {options.out}")
    return 0


def as_gpt2(options, model, config):
    """(weights, transformers' config, {file: text} of its own)"""
    tokenizer = load_tokenizer(config["tokenizer"])
    about = gpt2.gpt2_config(config, tokenizer.vocab_size, getattr(tokenizer, "end_of_text", None))
    return gpt2.gpt2_weights(model, tokenizer.vocab_size), about, {"README.md": card(options, model, config, tokenizer, "A GPT-2")}


def as_curved(options, model, config):
    """As as_gpt2()."""
    tokenizer, name = load_tokenizer(config["tokenizer"]), config["model"]
    prompt = "ROMEO:" if all(map(tokenizer.has, "ROMEO:")) else tokenizer.decode([0])
    use = model_card.CURVED.format(model=f"{models.MODELS[name][1].__module__}.py", block_size=config["block_size"],
                                   prompt=prompt.encode("unicode_escape").decode())
    about = curved.curved_config(name, model, tokenizer.vocab_size, getattr(tokenizer, "end_of_text", None))
    readme = card(options, model, config, tokenizer, f"A GPT of the kind '{name}'", use)
    return curved.curved_weights(model, tokenizer.vocab_size), about, {"README.md": readme, **curved.code(name)}


def card(options, model, config, tokenizer, what, use=""):
    sweep, why_not = model_card.sweep_section(options.run)
    if why_not:
        print(f"the card is without the sweep's table: {why_not}", file=sys.stderr)
    summary = model_card.read_summary(options.run, model.num_params())
    return model_card.model_card(options.run, config, summary, tokenizer.vocab_size, what, use, sweep, options.checkpoint)


def write(out, weights, about, texts, config):
    """The folder, whole or not at all."""
    end = about["eos_token_id"]
    texts = {
        "config.json": json.dumps(about, indent=1),
        "generation_config.json": json.dumps({"do_sample": True, "bos_token_id": end, "eos_token_id": end}, indent=1),
        "tokenizer.json": as_hugging_face(config["tokenizer"]).to_str(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["block_size"],
                                             "clean_up_tokenization_spaces": False}, indent=1), **texts}
    new = f"{os.path.abspath(out)}.{os.getpid()}.new"  # renamed when it is whole
    try:
        os.makedirs(new)
        for name, text in texts.items():
            with open(os.path.join(new, name), "w", encoding="utf-8") as f:
                f.write(text)
        save_file(weights, os.path.join(new, "model.safetensors"), {"format": "pt"})
        if os.path.isdir(out):
            os.rmdir(out)
        os.rename(new, out)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--out {out}: cannot be written: {checkpoint.reason(error)}") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
