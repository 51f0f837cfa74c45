"""
What a sweep's runs read: their data sets, a teacher (distill_from), a graph (laplacian_file). A configuration names a place, and
something else may be there later: prepare.py may have had another text to read, or another tokenizer. So sweep.json keeps of each place
what was there (`inputs`), and a sweep that has runs goes on only with the same.
"""
import hashlib
import json
import os

from common.errors import UserError
from experiments.runs import resolve, short
from training import checkpoint
from training.config import REPOSITORY
from training.dataloader import load_meta, tokenizer_of


def of_data(meta):
    tokenizer = json.dumps(tokenizer_of(meta), sort_keys=True)
    return {"corpus": meta["corpus"], "sha256": meta.get("sha256"), "tokenizer": hashlib.sha256(tokenizer.encode()).hexdigest()}


def of_file(path):
    try:
        with open(os.path.join(REPOSITORY, path), "rb") as f:
            return {"sha256": hashlib.file_digest(f, "sha256").hexdigest()}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def weights_in(folder):
    """Those that a pupil of that run learns from (training/distill.py)."""
    folder = os.path.join(REPOSITORY, folder)
    return os.path.join(checkpoint.folder(folder, checkpoint.best_or_last(folder)), checkpoint.WEIGHTS)


def places_of(run):
    """[(place, a function that says what is there)] of a run, the data first."""
    main, model = resolve(run.config, run.overrides, f"arm {run.arm!r}")
    data = os.path.join(main.data_dir, main.dataset)
    found = [(main.dataset, lambda: of_data(load_meta(data)))]
    if main.distill_from is not None:
        found.append((main.distill_from, lambda: of_file(weights_in(main.distill_from))))
    if getattr(model, "laplacian_file", None):
        found.append((model.laplacian_file, lambda: of_file(model.laplacian_file)))
    return found


def check(runs, known, ended):
    """What is there now, for sweep.json: {place: ...}. known: what sweep.json has, or None; ended: rows by hash. Raises UserError where a
    run was trained on something else than is there now, or nothing is there."""
    known, now, used = known if isinstance(known, dict) else {}, {}, set()
    for run in runs:
        data, *files = places_of(run)
        begun = os.path.exists(os.path.join(run.folder, "config.json"))
        if begun or run.hash in ended:
            used.update(place for place, _ in (data, *files))
        for place, look in (data, *(files if run.hash not in ended else ())):
            if place not in now:
                now[place] = look()
        if begun:  # of a sweep, perhaps, that kept nothing of what it read
            before, there = checkpoint.load_config(run.folder), now[data[0]]
            if before.get("corpus_sha256", there["sha256"]) != there["sha256"]:
                raise UserError(f"{short(run.folder)} was trained on another text ({before['corpus']}) than {data[0]} is now "
                                f"({there['corpus']}); prepare it as it was, or give another --out")
    for place in used & now.keys() & known.keys():
        if known[place] != now[place]:
            raise UserError(f"{place}: runs of this sweep had {difference(known[place], now[place])}; make it as it was, or give another "
                            "--out")
    return {**known, **now}


def difference(before, there):
    if "corpus" not in there or not isinstance(before, dict):
        return "another file there"
    if before.get("sha256") != there["sha256"]:
        return f"another text ({before.get('corpus')}), now it is {there['corpus']}"
    return "other tokens"
