"""
Paths as users give them: `~` is their home folder, and what is at the place that they name is said in their own words.

A path that is wrong is said with the option that it was given with (--out_dir=x) or, for an argument without a name, as it is.
"""
import os

from common.errors import UserError


def expand(text):
    """A leading ~ or ~name, which the shell leaves alone behind `--key=`, as a home folder. Raises UserError for a user who does
    not exist."""
    if "\0" in text:
        raise UserError(f"{text!r}: a name of a file or folder cannot have a null byte")
    found = os.path.expanduser(text)
    if found.startswith("~"):
        user = text.partition("/")[0]
        raise UserError(f"{text}: there is no user {user[1:]!r}; for a file or folder of the name {user} write ./{text}")
    return found


def short(path):
    """A path in a message: relative to where the user is, if it is below that."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def what_is(path):
    """What is at a path, in words that go on after its name; None where there is nothing."""
    if os.path.islink(path) and not os.path.exists(path):
        return f"is a link to {os.readlink(path)}, which does not exist"
    if not os.path.exists(path):
        return None
    return "is a folder" if os.path.isdir(path) else "is a file" if os.path.isfile(path) else "is neither a file nor a folder"


def file_to_read(path, given, needed="a file"):
    """The path of a file that is there. given: how the user wrote it. Raises UserError."""
    if not os.path.isfile(path) and not _is_stream(path):
        found = what_is(path)
        raise UserError(f"{given}: no such file" + missing_above(path) if found is None else f"{given} {found}; {needed} is needed")
    return path


def folder_to_read(path, given, needed="a folder"):
    """The path of a folder that is there. Raises UserError."""
    if not os.path.isdir(path):
        found = what_is(path)
        raise UserError(f"{given}: no such folder" + missing_above(path) if found is None else f"{given} {found}; {needed} is needed")
    return path


def folder_to_write(path, given):
    """The path of a folder that is there or can be made. Raises UserError where something else is in its place."""
    if not path:
        raise UserError(f"{given.rstrip(' =')} is empty; a folder is needed")
    found = what_is(path)
    if found is not None and not os.path.isdir(path):
        raise UserError(f"{given} {found}; a folder is needed")
    _check_above(path, given)
    return path


def file_to_write(path, given):
    """The path of a file that is there or can be made. Raises UserError where something else is in its place."""
    found = what_is(path)
    if found is not None and not os.path.isfile(path) and not _is_stream(path):
        raise UserError(f"{given} {found}; a file is needed")
    _check_above(path, given)
    return path


def make_folder_of(path):
    """Before a file is written that file_to_write() has seen."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)


def _is_stream(path):
    """/dev/stdin, a pipe, <(command): to be read, but no regular file."""
    return os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path)


def _first_above(path):
    """The nearest folder above a path that has anything in its place."""
    above = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    return above


def _check_above(path, given):
    above = _first_above(path)
    if not os.path.isdir(above):
        raise UserError(f"{given}: {os.path.relpath(above)} {what_is(above)}; a folder is needed there")


def missing_above(path):
    """' (there is no folder x)' where a path fails before its last part."""
    above = os.path.dirname(path)
    if not above or os.path.isdir(above):
        return ""
    found = what_is(above)
    return f" ({above} {found})" if found else f" (there is no folder {above})"
