"""
Text from a checkpoint of any model, streamed as it is drawn.

    python sample.py --out_dir=out/demo_mixed --start="ROMEO:" --num_samples=2 --max_new_tokens=300
    python sample.py --out_dir=out/demo_mixed --start=FILE:prompt.txt --temperature=0 --seed=1

Each token is read once (a key/value cache, and for the mixed model the rows that its reference points need) as long as
the text fits block_size; beyond that the last block_size tokens are read anew for each one, because positions are
absolute.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import codecs
import dataclasses
import sys
from dataclasses import dataclass
from typing import Literal

import torch

import configurator
from common import paths
from common.errors import UserError, exit_cleanly
from configurator import Path
from data.tokenizer import load_tokenizer
from training import checkpoint
from training.machine import pick_device


@dataclass
class SampleConfig:
    out_dir: Path = "out"  # the run
    checkpoint: Literal["best", "last"] = "best"  # which of its checkpoints
    start: str | None = None  # the prompt: text, or FILE:path (None: a new line or, where the data have none, a character that
        # they have)
    num_samples: int = 1  # how many texts
    max_new_tokens: int = 500  # tokens to draw for each
    temperature: float = 0.8  # 0: always the likeliest token; 1: the model's own distribution
    top_k: int | None = 200  # draw from the k likeliest tokens only (None: from all)
    kv_bins: int | None = None  # model_tau.py: so many bins in place of the keys of earlier tokens, 0 for all keys (None: as the run says)
    seed: int = 1337  # of the draws
    device: str = "auto"  # 'auto' | 'cpu' | 'cuda' | 'mps'

    def __post_init__(self):
        for key, least in dict(num_samples=1, max_new_tokens=0, temperature=0, top_k=1, kv_bins=0, seed=0).items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"{key} = {value}: must be at least {least}")


def prompt_text(start, tokenizer):
    """The prompt that --start asks for. Raises UserError."""
    if start is None:
        return "\n" if tokenizer.has("\n") else " " if tokenizer.has(" ") else tokenizer.decode([0])
    if not start.startswith("FILE:"):
        return start
    given = start[len("FILE:"):]
    path = paths.file_to_read(paths.expand(given), f"--start=FILE:{given}")
    try:
        with open(path, encoding="utf-8-sig") as f:  # without a byte-order mark
            return f.read()
    except UnicodeDecodeError:
        raise UserError(f"--start=FILE:{given} is not UTF-8 text") from None


def encode(tokenizer, text, start):
    """Token ids of the prompt. Raises UserError where the data do not have its characters."""
    try:
        return tokenizer.encode(text)
    except UserError as error:
        meant_newline = start is not None and "\\n" in start and not tokenizer.has("\\")
        hint = "; a new line is given as --start=$'To be\\n' (in bash), or in a file, --start=FILE:prompt.txt" if meant_newline else ""
        raise UserError(f"--start: {error}{hint}") from None


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, SampleConfig, script_doc=__doc__)
    device = pick_device(config.device)
    model, run = checkpoint.load_model(config.out_dir, config.checkpoint, device)
    if config.kv_bins is not None:
        if not hasattr(model.config, "kv_bins"):
            raise UserError(f"kv_bins is for runs of model = 'tau'; this one is of {run['model']!r}")
        dataclasses.replace(model.config, kv_bins=config.kv_bins)  # refuses what does not go together
        model.config.kv_bins = config.kv_bins
    if getattr(model.config, "kv_bins", 0):
        print(f"kv_bins = {model.config.kv_bins}: after the prompt, attention is off by at most {model.bins_error():.2g} of its "
              "largest value vector", file=sys.stderr)
    if "tokenizer" not in run:
        raise UserError(f"{config.out_dir}/config.json does not say how its tokens are made")
    tokenizer = load_tokenizer(run["tokenizer"])
    text = prompt_text(config.start, tokenizer)
    ids = encode(tokenizer, text, config.start)
    if not ids:
        raise UserError("the prompt is empty; give --start at least one character")
    prompt = torch.tensor([ids], device=device)
    generator = torch.Generator(device).manual_seed(config.seed)
    for i in range(config.num_samples):
        if i:
            print("\n" + "-" * 40)
        sys.stdout.write(text)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a token may be part of a character
        for token in model.generate(prompt, config.max_new_tokens, config.temperature, config.top_k, generator,
                                    tokenizer.vocab_size):
            sys.stdout.write(decoder.decode(tokenizer.decode_bytes([token.item()])))
            sys.stdout.flush()
        sys.stdout.write(decoder.decode(b"", final=True) + "\n")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
