"""Signals that ask a script to end, for scripts that save first."""
import signal


class Stopped(Exception):
    """A signal asked for an end, and what was done so far is kept."""


class Stop:
    """SIGINT, SIGTERM and SIGUSR1 (Slurm's warning) are noted in .signal, so that the work in hand ends and is saved. A second
    SIGINT (Ctrl-C) does not wait."""

    def __init__(self):
        self.signal = None
        self._before = signal.getsignal(signal.SIGINT)
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._note)

    def _note(self, number, frame):
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self._before)
