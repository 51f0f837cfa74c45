"""
Shakespeare as tokens of a small byte-level BPE -> train.bin, val.bin, meta.json (1,024 tokens; a few seconds).

    python data/shakespeare_bpe/prepare.py [--vocab_size=1024] [--input=FILE] [--out_dir=FOLDER] [--newlines=lf]

The vocabulary is learned from the train part alone, so that a model for a CPU need not carry GPT-2's 50,257 rows. It is kept in
meta.json and with every run. Where the text comes from, and what happens where that cannot be reached: data/shakespeare_text.py.
"""
import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(FOLDER)))  # the repository, for a script that is run by its path
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

from common.errors import exit_cleanly
from data.shakespeare_text import prepare


@exit_cleanly
def main(argv):
    prepare("bpe", argv, FOLDER, __doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
