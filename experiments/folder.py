"""A sweep's folder: may one be there, what does it say of itself, and where are its runs."""
import json
import os
from dataclasses import replace

from common import paths
from common.errors import UserError


def check_folder(folder, given):
    """A new folder, an empty one or that of a sweep. Raises UserError."""
    paths.folder_to_write(folder, f"--out {given}")
    found = os.listdir(folder) if os.path.isdir(folder) else []
    if found and not {"sweep.json", "runs", "runs.csv"}.intersection(found):
        raise UserError(f"--out {given} is not empty and holds no sweep (there is {min(found)}): choose another folder")


def told_in(folder):
    """sweep.json, {} for a new sweep or a damaged one, which is written anew."""
    try:
        with open(os.path.join(folder, "sweep.json"), encoding="utf-8") as f:
            plan = json.load(f)
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return plan if isinstance(plan, dict) else {}


def located(runs, folder):
    """Runs whose folder has the name of an arm that was renamed since: they keep that folder, which ends with their hash."""
    there = os.path.join(folder, "runs")
    names = {name.rpartition("-")[2]: name for name in (sorted(os.listdir(there)) if os.path.isdir(there) else ())}

    def found(run):
        name = names.get(run.hash[:8])
        folder = run.folder if name is None or os.path.isdir(run.folder) else os.path.join(there, name)
        return replace(run, folder=folder, start=run.start and found(run.start))
    return [found(run) for run in runs]
