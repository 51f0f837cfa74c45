"""
Text from a checkpoint of any model, streamed as it is drawn.

    python sample.py --out_dir=out/demo_mixed --start="ROMEO:" --num_samples=2 --max_new_tokens=300
    python sample.py --out_dir=out/demo_mixed --start=FILE:prompt.txt --temperature=0 --seed=1

Each token is read once (a key/value cache, and for the mixed model the rows that its reference points need) as long as
the text fits block_size; beyond that the last block_size tokens are read anew for each one, because positions are
absolute.
"""
import codecs
import sys
from dataclasses import dataclass
from typing import Literal

import torch

import checkpoint
import configurator
from errors import UserError, exit_cleanly
from tokenizer import load_tokenizer
from train import pick_device


@dataclass
class SampleConfig:
    out_dir: str = "out"  # the run
    checkpoint: Literal["best", "last"] = "best"  # which of its checkpoints
    start: str = "\n"  # the prompt: text, or FILE:path
    num_samples: int = 1  # how many texts
    max_new_tokens: int = 500  # tokens to draw for each
    temperature: float = 0.8  # 0: always the likeliest token; 1: the model's own distribution
    top_k: int | None = 200  # draw from the k likeliest tokens only (None: from all)
    seed: int = 1337  # of the draws
    device: str = "auto"  # 'auto' | 'cpu' | 'cuda' | 'mps'

    def __post_init__(self):
        for key, least in dict(num_samples=1, max_new_tokens=0, temperature=0, top_k=1, seed=0).items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"{key} = {value}: must be at least {least}")


def prompt_text(start):
    if not start.startswith("FILE:"):
        return start
    path = start[len("FILE:"):]
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None


@exit_cleanly
def main(argv):
    config, _ = configurator.resolve(argv, SampleConfig, script_doc=__doc__)
    device = pick_device(config.device)
    model, run = checkpoint.load_model(config.out_dir, config.checkpoint, device)
    if "tokenizer" not in run:
        raise UserError(f"{config.out_dir}/config.json does not say how its tokens are made")
    tokenizer = load_tokenizer(run["tokenizer"])
    text = prompt_text(config.start)
    ids = tokenizer.encode(text)
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
