"""Files that appear whole or not at all, whatever happens while they are written: a kill, a full disk, a power cut."""
import contextlib
import json
import os
import re


@contextlib.contextmanager
def naming(path):
    """An OSError of a write says no path (only that of an open does): it gets this one."""
    try:
        yield
    except OSError as error:
        error.filename = path if error.filename is None else error.filename
        raise


def write_file(path, data):
    """Bytes to a file that appears whole or not at all. Raises OSError, after removing what it had begun."""
    temporary = write_temporary(path, data)
    try:
        os.replace(temporary, path)
    except BaseException:
        remove([temporary])
        raise


def write_temporary(path, data):
    """Bytes to a new file beside path, on the disk when this returns. Returns its name."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        with naming(path), open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        remove([temporary])
        raise
    return temporary


def is_temporary(name):
    """Is this file one that write_temporary() had begun when it was killed?"""
    return re.fullmatch(r"\..+\.\d+\.tmp", name) is not None


def remove(paths):
    for path in paths:
        if os.path.lexists(path):
            os.remove(path)


def write_json(path, content):
    """JSON, indented, as write_file() writes it."""
    write_file(path, (json.dumps(content, indent=1) + "\n").encode("ascii"))
