"""
Shakespeare as GPT-2 BPE tokens -> train.bin, val.bin, meta.json (50,257 tokens; a few seconds).

    python data/shakespeare/prepare.py [--input=FILE] [--out_dir=FOLDER] [--newlines=lf]

Tiny Shakespeare (1,115,394 bytes) gives 301,966 train and 36,059 val tokens. Where it comes from, and what happens
where that cannot be reached: data/shakespeare_text.py. The format of the files: data/sources.py.
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
    prepare("gpt2", argv, FOLDER, __doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
