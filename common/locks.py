"""One folder, one process: a lock that the kernel lets go of when its holder dies, however it dies."""
import contextlib
import errno
import fcntl
import os
import sys

from common.errors import UserError
from common.whole_files import naming

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that has none
INHERITED = "RUN_LOCK"  # environment: numbers of open files, each of which holds a run's lock for the process that gets them


def try_lock(path):
    """Take the lock of the file `path`, made if need be. -> the open file that holds it, or None: another process has it."""
    while True:
        with naming(path):
            file = open(path, "a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                file.close()
                raise
            print(f"note: the file system of {path} has no locks; take care that nothing else works in that folder",
                  file=sys.stderr)
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # its last holder has removed it since we opened it


def is_held(path):
    """Does a process hold the lock of this file? (It is shared for a moment, to see, which needs no more than reading.)"""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return False


def is_inherited(path):
    """Does the process that started this one hold the lock for it? (sweep.py does.)"""
    for number in os.environ.get(INHERITED, "").split():
        with contextlib.suppress(ValueError, OSError):
            if os.path.samestat(os.fstat(int(number)), os.stat(path)):
                return True
    return False


@contextlib.contextmanager
def held(folder, refusal, name=".lock"):
    """The folder, made if need be, is this process's alone. Raises UserError(refusal) at once where another one is at work in
    it. At the end the lock's file goes, and so do folders that were made for it and are still empty."""
    path = os.path.join(folder, name)
    if is_inherited(path):
        yield
        return
    made = _make(folder)
    try:
        file = try_lock(path)
        if file is None:
            raise UserError(refusal)
        with file:
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # before it is let go: whoever takes it next makes a new one
                    os.remove(path)
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # it is in use
                os.rmdir(folder)


def _make(folder):
    """Make a folder and what it is in. -> those that were not there, the outermost first."""
    missing, above = [], os.path.abspath(folder)
    while not os.path.lexists(above):
        missing.insert(0, above)
        above = os.path.dirname(above)
    os.makedirs(folder, exist_ok=True)
    return missing
