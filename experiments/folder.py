"""What is checked about a sweep's folder before anything starts."""
import os

from common import paths
from common.errors import UserError
from experiments.runs import resolve, short
from training import checkpoint
from training.dataloader import load_meta


def check_folder(folder, given):
    """A new folder, an empty one or that of a sweep. Raises UserError."""
    paths.folder_to_write(folder, f"--out {given}")
    found = os.listdir(folder) if os.path.isdir(folder) else []
    if found and not {"sweep.json", "runs", "runs.csv"}.intersection(found):
        raise UserError(f"--out {given} is not empty and holds no sweep (there is {min(found)}): choose another folder")


def check_corpus(runs):
    """The data are there, and are what runs of this sweep were trained on before: a configuration names the data set,
    but its prepare.py may have had another text to read."""
    for run in runs:
        main, _ = resolve(run.config, run.overrides, f"arm {run.arm!r}")
        meta = load_meta(os.path.join(main.data_dir, main.dataset))
        if not os.path.exists(os.path.join(run.folder, "config.json")):
            continue
        before = checkpoint.load_config(run.folder)
        if before.get("corpus_sha256", meta.get("sha256")) != meta.get("sha256"):
            raise UserError(f"{short(run.folder)} was trained on another text ({before['corpus']}) than {main.dataset} "
                            f"is now ({meta['corpus']}); prepare it as it was, or give another --out")
