"""
Text from a random hierarchy -> train.bin, val.bin, meta.json: a task in which curvature should help, with a dial (some seconds).

    python data/tree/prepare.py [--structure=1.0] [--branching=3] [--depth=5] [--tokens=1_000_000] [--out_dir=data/tree_0] ...

Walks, siblings and chains of ancestors in a tree; --structure=0 has random links in its place, as many of each node. What the text is,
and its floor, the best possible loss: data/tree_text.py. The floor is printed, and in meta.json.
"""
import dataclasses
import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(FOLDER)))  # the repository, for a script that is run by its path
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import numpy as np

import configurator
from common.errors import UserError, exit_cleanly
from configurator import Path
from data import tree_text
from data.sources import preparing, sha256_of, write_dataset

MOST_NODES = 60_000  # words are uint16


@dataclasses.dataclass
class Options:
    structure: float = 1.0  # 1: a tree; 0: random links, as many of each node; between: a share 1 - structure of them
    branching: int = 3  # children of a node that has some
    depth: int = 5  # levels below the root
    length: int = 12  # nodes of a walk
    tokens: int = 1_000_000  # of the train part; the val part has a tenth
    seed: int = 1337
    out_dir: Path | None = None  # folder for train.bin, val.bin and meta.json; without it the script's own

    def __post_init__(self):
        if not 0 <= self.structure <= 1:
            raise UserError(f"structure = {self.structure}: must be from 0 to 1")
        for key, least in (("branching", 2), ("depth", 1), ("length", 2), ("tokens", 10_000), ("seed", 0)):
            if getattr(self, key) < least:
                raise UserError(f"{key} = {getattr(self, key)}: must be at least {least}")
        nodes = (self.branching ** (min(self.depth, 64) + 1) - 1) // (self.branching - 1)
        if nodes > MOST_NODES:
            raise UserError(f"branching = {self.branching} and depth = {self.depth} give {nodes:,} nodes; there may be {MOST_NODES:,}")


@exit_cleanly
def main(argv):
    options, _ = configurator.resolve(argv, Options, script_doc=__doc__)
    folder = FOLDER if options.out_dir is None else options.out_dir
    if not folder:
        raise UserError("--out_dir is empty; give a folder, or leave the option out")
    with preparing(folder):
        write(options, folder)
    return 0


def write(options, folder):
    rng = np.random.default_rng(options.seed)
    tree = tree_text.hierarchy(options.branching, options.depth, options.structure, rng)
    words, word = tree_text.words_of(len(tree.parent), rng)
    parts, floors = [], {}
    for split, tokens in (("train", options.tokens), ("val", options.tokens // 10)):
        ids, nats = tree_text.documents(tree, word, options.length, tokens, rng)
        parts.append(ids)
        floors[f"{split}_floor"] = nats / len(ids)
    made = {k: v for k, v in dataclasses.asdict(options).items() if k != "out_dir"}
    raw = b"".join(ids.astype("<u2").tobytes() for ids in parts)
    meta = write_dataset(folder, *parts, {
        "corpus": f"hierarchy of {len(tree.parent):,} nodes, structure {options.structure:g}", "source": "data/tree/prepare.py",
        "made": made, "sha256": sha256_of(raw), "bytes": len(raw), "tokenizer": "words", "vocab_size": len(words),
        "words": " ".join(words), **floors})
    print(f"corpus      {meta['corpus']}")
    print(f"vocabulary  {meta['vocab_size']:,} words")
    print(f"tokens      {meta['train_tokens']:,} train, {meta['val_tokens']:,} val")
    print(f"floor       {floors['val_floor']:.4f} nats a token on the val part: no model can be lower for long")
    print(f"files       train.bin, val.bin, meta.json in {folder}")


if __name__ == "__main__":
    main(sys.argv[1:])
