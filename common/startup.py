"""
Ctrl-C while a script's imports are under way, which take a second or more: one line and status 130, as later.

Every script imports this first. It acts only in a process that runs one of this project's scripts, and until main() begins
(errors.exit_cleanly); then KeyboardInterrupt is as usual, so that a script can save what it has.
"""
import os
import signal
import sys

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _leave(number, frame):
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(2, b"interrupted\n")
    os._exit(130)


def _is_script():
    """Is the program that runs one of this repository's?"""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return main is not None and os.path.abspath(main).startswith(REPOSITORY + os.sep) and os.sep + ".venv" + os.sep not in main


def leave_at_once():
    """Ctrl-C ends the process with its one line; where SIGINT was ignored (nohup, a background job) it stays so."""
    if _is_script() and signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _leave):
        signal.signal(signal.SIGINT, _leave)


def raise_as_usual():
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


leave_at_once()
