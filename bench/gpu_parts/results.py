"""The JSON file of a card: every row of every part, written again, whole, as rows come."""

import json
import os
import re
import threading
import time

from common.errors import UserError
from common.whole_files import write_file, write_json
from gpu_parts import PARTS
from gpu_parts.report import markdown
from gpu_parts.workers import one_line

MADE_BY = "bench/gpu.py"


def read(path):
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not whole JSON ({error}); remove it, or choose another --out") from None
    if not isinstance(content, dict) or content.get("made_by") != MADE_BY:
        raise UserError(f"{path} was not written by {MADE_BY}; choose another --out")
    return content


def page(content):
    """The markdown page. Rows that it cannot take may not end a run: then it says so, and the JSON file has them."""
    try:
        return markdown(content)
    except Exception as error:
        return (
            f"# The page could not be made: {one_line(error)}\n\nAll rows are in the JSON file beside it. Mend "
            "bench/gpu_parts/report.py, then: python bench/gpu.py --replot=DIR\n"
        )


class Results:
    """What is known so far. Parts of an earlier run of the same card that are not run again are kept."""

    def __init__(self, folder, quick):
        self.folder, self.quick, self.name, self.parts = folder, quick, None, {}
        self._lock = threading.Lock()  # toy parts run two at a time

    def begin(self, part):
        self.parts[part] = {"status": "running", "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": None, "rows": []}

    def add(self, part, row):
        self.parts[part]["rows"].append(row)
        if self.name is None and "card" in row:
            self.name = re.sub(r"[^a-z0-9.]+", "-", row["card"].lower()).strip("-") + ("-quick" if self.quick else "")
            if os.path.isfile(self.path("json")):
                self.parts = {**read(self.path("json"))["parts"], **self.parts}

    def end(self, part, seconds, stopped):
        rows = self.parts[part]["rows"]
        failed = [row for row in rows if row.get("error")]
        self.parts[part].update(
            seconds=round(seconds, 1),
            status="stopped" if stopped else "failed" if len(failed) == len(rows) else "in part" if failed else "done",
        )

    def path(self, extension):
        return os.path.join(self.folder, f"{self.name or 'unknown-card'}.{extension}")

    def content(self):
        return {
            "made_by": MADE_BY,
            "quick": self.quick,
            "parts": {name: self.parts[name] for name in PARTS if name in self.parts},
        }

    def write(self):
        with self._lock:
            os.makedirs(self.folder, exist_ok=True)
            write_json(self.path("json"), self.content())
            write_file(self.path("md"), page(self.content()).encode())
