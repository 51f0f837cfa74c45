"""What bad input gets: one line on standard error that says what is wrong and what to do, and an exit status.

    0 done    2 bad input or environment    3 the run diverged    130 interrupted    143 terminated while it started

Code that finds something wrong raises UserError with that line; every script's main() runs under exit_cleanly. Of several
processes of one run (training/parallel.py), each finds the same mistakes in what the user typed: the first one speaks.
"""
import errno
import functools
import os
import signal
import sys
import unicodedata

import torch

from common import startup


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, and what to do."""

    status = 2


class Diverged(UserError):
    """The run met a NaN or an Inf."""

    status = 3


class AlreadySaid(Exception):
    """Another process of this run has said what is wrong; this one ends with the same status."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


def shown(value):
    """A value in a message as the user typed it: text without the backslashes that Python's repr puts into it."""
    if isinstance(value, str):
        return f"'{value}'" if value.isprintable() else repr(value)
    return repr(value)


def shown_character(c):
    """One character in a message: itself where it can be seen, and its code point and name for those who cannot see it (or whose
    terminal cannot show it)."""
    name = {"\n": "a newline", "\r": "a carriage return", "\t": "a tab"}.get(c) or unicodedata.name(c, "").lower()
    about = ", ".join(filter(None, [f"U+{ord(c):04X}", name]))
    return f"'{c}' ({about})" if c.isprintable() else about


_launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
_speaker = {"prefix": "", "silent": _launched and os.environ.get("LOCAL_RANK", "0") != "0"}


def speak_as(rank, world):
    """From here on (the training loop) an error may be this process's own: it says so, with its rank."""
    _speaker.update(prefix=f"rank {rank}: " if world > 1 and rank else "", silent=False)


def _say(line):
    if not _speaker["silent"]:
        print(f"error: {_speaker['prefix']}{line}", file=sys.stderr)


def _os_error_line(error):
    what = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "no permission", errno.EPERM: "no permission", errno.EROFS: "the file system is read-only",
            errno.EISDIR: "is a folder, a file is needed", errno.ENOTDIR: "is a file, a folder is needed",
            errno.ENOENT: "no such file or folder"}.get(error.errno, error.strerror or str(error))
    return f"{error.filename}: {what}" if error.filename else what


def exit_cleanly(main):
    """Decorator for a script's main(): turns an expected failure into its one line and exit status. Anything else is a
    bug in this project and keeps its traceback."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        if getattr(sys.stdout, "errors", None) == "strict" and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # characters that a terminal's encoding does not have
        startup.raise_as_usual()
        try:
            status = main(*args, **kwargs) or 0
        except UserError as error:
            _say(error)
            status = error.status
        except AlreadySaid as error:
            status = error.status
        except BrokenPipeError:  # the reader of our output (head, less) went away: what other programs end with then
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 128 + signal.SIGPIPE
        except OSError as error:
            _say(_os_error_line(error))
            status = 2
        except torch.OutOfMemoryError:
            _say("out of device memory; lower batch_size and raise gradient_accumulation_steps")
            status = 2
        except (MemoryError, RuntimeError) as error:
            beyond_memory = "can't allocate memory", "Storage size calculation overflowed"
            if isinstance(error, RuntimeError) and not any(part in str(error) for part in beyond_memory):
                raise
            _say("out of memory; lower the model's size, or batch_size and raise gradient_accumulation_steps")
            status = 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            status = 130
        startup.leave_at_once()  # what Python still does at its end is nothing to wait for
        sys.stdout.flush()
        sys.exit(status)

    return run
