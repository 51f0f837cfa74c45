"""
Ctrl-C while a script's imports are under way, which take a second or more: one line and status 130, as later. (SIGTERM then: one line
and 143.)

Also while they are: a package that is not installed is one line, which names the file that lists it, and status 2.

Every script imports this first. It acts only in a process that runs one of this project's scripts, and until main() begins
(errors.exit_cleanly); then KeyboardInterrupt is as usual, so that a script can save what it has.
"""
import os
import signal
import sys

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REQUIREMENTS = ("requirements.txt", "requirements-eval.txt", "requirements-dev.txt")
LINES = {signal.SIGINT: (b"interrupted\n", signal.default_int_handler), signal.SIGTERM: (b"terminated\n", signal.SIG_DFL)}


def _leave(number, frame):
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, LINES[number][0])
    os._exit(128 + number)


def _is_script():
    """Is the program that runs one of this repository's?"""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return main is not None and os.path.abspath(main).startswith(REPOSITORY + os.sep) and os.sep + ".venv" + os.sep not in main


def leave_at_once():
    """These signals end the process with their one line; where they are ignored (nohup, a background job) they stay so."""
    for number, (_, usual) in LINES.items():
        if _is_script() and signal.getsignal(number) == usual:
            signal.signal(number, _leave)


def _package_is_missing(kind, error, trace):
    """In the place of sys.excepthook."""
    name = (getattr(error, "name", None) or "").partition(".")[0] if issubclass(kind, ModuleNotFoundError) else ""
    for file in REQUIREMENTS if name else ():
        with open(os.path.join(REPOSITORY, file), encoding="utf-8") as f:
            if any(line.partition("==")[0].replace("-", "_").lower() == name.lower() for line in f):
                os.write(2, f"error: {name} is not installed: pip install -r {file}\n".encode())
                os._exit(2)
    sys.__excepthook__(kind, error, trace)


def name_missing_packages():
    if _is_script() and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _package_is_missing


def raise_as_usual():
    if sys.excepthook is _package_is_missing:
        sys.excepthook = sys.__excepthook__
    for number, (_, usual) in LINES.items():
        if signal.getsignal(number) is _leave:
            signal.signal(number, usual)


leave_at_once()
name_missing_packages()
