"""runs.csv: one row for each ended run, written by all processes of a sweep."""
import contextlib
import csv
import fcntl
import io
import os
import sys

from common.errors import UserError
from common.locks import NO_LOCKS
from common.whole_files import write_file

COLUMNS = ("hash", "arm", "lr", "seed", "status", "dir", "step", "tokens", "train_seconds", "val_loss", "best_val_loss",
           "best_step", "parameters", "flops_per_token", "target_step", "target_tokens", "target_seconds", "attempts",
           "host", "finished_at", "overrides")


class Rows:
    """The rows of ended runs, by hash. Every change is the whole file, written under a lock and renamed."""

    def __init__(self, folder):
        self.folder, self.told = folder, False

    def _read(self, name):
        path = os.path.join(self.folder, name)
        if not os.path.exists(path):
            return {}
        with open(path, newline="", encoding="utf-8") as f:
            table = csv.DictReader(f)
            try:
                rows = list(table)
                whole = tuple(table.fieldnames or ()) == COLUMNS and not any(
                    None in row or None in row.values() for row in rows)  # too many or too few fields
            except (csv.Error, UnicodeDecodeError):
                whole = False
        if not whole:
            raise UserError(f"{path} is not a table of sweep.py; mend it, or move it away and have its runs done again")
        return {row["hash"]: row for row in rows}

    def _write(self, name, rows):
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, COLUMNS)
        table.writeheader()
        table.writerows(rows.values())
        write_file(os.path.join(self.folder, name), text.getvalue().encode("utf-8"))

    @contextlib.contextmanager
    def _locked(self):
        with open(os.path.join(self.folder, "runs.csv.lock"), "a") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                if not self.told:  # one process is safe without; two may lose a row
                    print(f"note: the file system of {self.folder} has no locks: start this sweep in one process alone", file=sys.stderr)
                self.told = True
            yield

    def read(self):
        return self._read("runs.csv")

    def known(self):
        """These and the rows that waited for the sweep to have their runs again."""
        return {**self._read("runs_before.csv"), **self.read()}

    def write(self, rows):
        """All of them, hash -> row, in the place of what is there: of a folder in which no sweep runs."""
        self._write("runs.csv", rows)

    def put(self, row):
        with self._locked():
            self._write("runs.csv", {**self.read(), row["hash"]: row})

    def sort_out(self, runs, retry_crashed):
        """runs.csv gets the rows of these runs alone, under the arms' names of today; others go to runs_before.csv and
        come back when the sweep has them again. Crashed ones that are to be tried again go altogether."""
        arms = {run.hash: run.arm for run in runs}
        with self._locked():
            rows = self.known()
            if retry_crashed:
                rows = {h: r for h, r in rows.items() if r["status"] != "crashed" or h not in arms}
            # a row that changes sides is in both for a moment, never in neither
            known = self._read("runs_before.csv")
            self._write("runs_before.csv", {**known, **{h: r for h, r in rows.items() if h not in arms}})
            self._write("runs.csv", {h: {**r, "arm": arms[h]} for h, r in rows.items() if h in arms})
            self._write("runs_before.csv", {h: r for h, r in rows.items() if h not in arms})
