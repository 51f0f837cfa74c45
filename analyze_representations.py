"""
Is the geometry visible in the hidden states? Isotropy, hyperbolicity and use of the geometry, layer by layer, from
checkpoints.

    python analyze_representations.py out/demo_baseline out/demo_mixed --out analysis_out/demo
    python analyze_representations.py out/demo_mixed --out analysis_out/mixed --checkpoint=last --tokens=100000

Every run is read on validation text, and beside it an untrained copy: the same model with the weights that its seed
gives, on the same tokens. What is measured, in analysis/: isotropy.py; hyperbolicity.py (Gromov's delta beside null
sets); hidden_states.py (layers, coordinates, use of the geometry); the intervals: group_bootstrap.py.

The text is read once and nothing of it is kept but sums per group of sequences and a fixed number of tokens, so memory
does not grow with --tokens. It does with the model: a layer's second moments take 8 n_embd^2 bytes a group, for which
the number of groups is chosen (16 to 64).

In the folder --out: report.md (tables and plots), metrics.json (every number with its interval), plots as PNG and SVG.
A folder that holds an earlier analysis is replaced; one that holds anything else is refused.
"""
from common import startup  # noqa: F401  first: Ctrl-C while the others are imported is one line

# isort: split

import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

# numpy's matrices here are many and small: two threads on two busy cores took 20 times as long as one
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read when numpy is imported

import numpy as np
import scipy
import torch

import configurator
import models
from analysis import hidden_states, hyperbolicity, report
from analysis.reading import TYPES, Reading, disc_of, make_plan, measure
from common import locks, paths
from common.errors import UserError, exit_cleanly
from configurator import Path
from training import checkpoint
from training.dataloader import Loader, load_meta, tokenizer_of
from training.machine import pick_device
from training.run_directory import environment


@dataclass
class AnalysisConfig:
    out: Path = "analysis_out"  # folder of the report; it may hold an earlier one, nothing else
    checkpoint: Literal["best", "last"] = "best"  # which checkpoint of each run
    tokens: int = 32768  # validation tokens to read, in whole sequences of the run's block_size, spread over the split
    pairs: int = 20000  # random pairs of tokens for the mean cosine
    delta_samples: int = 12  # samples of 60 tokens for Gromov's delta
    bootstrap: int = 200  # replicates behind each interval
    seed: int = 1337  # of what is drawn: tokens kept, pairs, samples, replicates, null sets
    device: str = "auto"  # 'auto' | 'cpu' | 'cuda' | 'mps': where the models run
    data_dir: Path | None = None  # where the data sets are (None: where each run had them)
    batch_size: int = 16  # sequences read at a time

    def __post_init__(self):
        for key, least in dict(tokens=1, pairs=100, delta_samples=2, bootstrap=20, seed=0, batch_size=1).items():
            if getattr(self, key) < least:
                raise UserError(f"{key} = {getattr(self, key)}: must be at least {least}")


def split_arguments(argv):
    """(run folders, options as --key=value). '--key value' is accepted, too; every option has a value."""
    folders, options = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument.startswith("--") and "=" not in argument and argument != "--help":
            value = next(arguments, "--")
            if value.startswith("--"):
                raise UserError(f"{argument} needs a value: {argument} VALUE or {argument}=VALUE")
            options.append(f"{argument}={value}")
        elif argument.startswith("-"):
            options.append(argument)
        else:
            folders.append(paths.expand(argument))
    return folders, options


class Text(NamedTuple):
    """The validation text of a run."""
    loader: Loader
    batch_size: int
    folder: str
    meta: dict
    run: dict  # the run's config.json
    note: str | None  # what a reader has to know of it


def open_text(folder, config, device):
    """The Text of a run, and every check of the run that needs no weights. Raises UserError."""
    run = checkpoint.load_config(folder)
    lacking = [k for k in ("model", "dataset", "data_dir", "seed") if not isinstance(run, dict) or k not in run]
    if lacking:
        raise UserError(f"{folder}/config.json is not that of a run of train.py: it has no {lacking[0]!r}")
    for key in ("dataset", "data_dir"):
        if not isinstance(run[key], str):
            raise UserError(f"{folder}/config.json is not that of a run of train.py: its {key!r} is no text")
    model_config = models.config_from_dict(run["model"], run)
    checkpoint.folder(folder, config.checkpoint)
    if model_config.n_embd < 2:
        raise UserError(f"{folder}: n_embd = {model_config.n_embd}: isotropy needs at least 2 dimensions")
    data = os.path.join(config.data_dir or run["data_dir"], run["dataset"])
    meta = load_meta(data)
    tokenizer = run.get("tokenizer") or {}
    if not isinstance(tokenizer, dict):
        raise UserError(f"{folder}/config.json is not that of a run of train.py: its 'tokenizer' is no table")
    if tokenizer != tokenizer_of(meta):
        raise UserError(f"{folder} was trained on other tokens than those of {data}; prepare that data again, or name "
                        "its folder with --data_dir")
    note = None
    if run.get("corpus_sha256") != meta.get("sha256"):
        note = f"{data} holds another text ({meta['corpus']}) than the run was trained on ({run.get('corpus')})"
    T = model_config.block_size
    batch_size = max(1, min(config.batch_size, config.tokens // T))
    return Text(Loader(data, "val", meta, batch_size, T, run["seed"], device), batch_size, data, meta, run, note)


def names_of(folders):
    """A short name for each run: the folder's, or the whole path where two are called the same."""
    full = [os.path.normpath(f) for f in folders]
    for path in full:
        if full.count(path) > 1:
            raise UserError(f"{path} is given twice")
    short = [os.path.basename(os.path.abspath(p)) for p in full]
    return [p if short.count(s) > 1 else s for p, s in zip(full, short)]


def facts_of(run):
    """What of a run's config.json a reader of the numbers wants to know: the model, and in short how it was trained."""
    keys = ("model", *models.CONFIGS[run["model"]].__dataclass_fields__, "dataset", "corpus", "corpus_sha256", "seed",
            "max_iters", "optimizer", "learning_rate", "resolved_dtype")
    return {k: run[k] for k in keys if k in run}


def untrained_copy(run, device):
    """The model as train.py makes it before the first step: weights are a function of the seed."""
    torch.manual_seed(run["seed"])
    return models.build(run["model"], models.config_from_dict(run["model"], run)).to(device).eval()


@exit_cleanly
def main(argv):
    folders, options = split_arguments(argv)
    config, _ = configurator.resolve(options, AnalysisConfig, script_doc=__doc__)
    if not folders:
        raise UserError("name at least one run: python analyze_representations.py out/demo_mixed --out analysis_out/x")
    device = pick_device(config.device)
    names = names_of(folders)
    paths.folder_to_write(config.out, f"--out={config.out}")
    with locks.held(os.path.dirname(os.path.abspath(config.out)), f"--out={config.out}: another process is writing an analysis there; "
                    "wait for it, or name another folder", f".{os.path.basename(os.path.abspath(config.out))}.lock"):
        return analyze(folders, names, config, device, argv)


def analyze(folders, names, config, device, argv):
    report.check_folder(config.out)
    texts = [open_text(folder, config, device) for folder in folders]  # all of them, before minutes of work

    results, discs = [], {}
    for folder, name, text in zip(folders, names, texts):
        began = time.perf_counter()
        trained, run = checkpoint.load_model(folder, config.checkpoint, device)
        curved = any(map(hidden_states.is_curved, trained.transformer.h))
        plan = make_plan(text, config, len(hidden_states.layer_names(trained)) * (2 if curved else 1))
        for weights, model in (("trained", trained), ("untrained", untrained_copy(run, device))):
            reading = Reading(plan).read(model, text.loader)
            results.append({
                "run": name, "folder": folder, "weights": weights, "curved": curved,
                "checkpoint": config.checkpoint if weights == "trained" else None,
                "config": facts_of(run), "note": text.note,
                "tokens": plan.sequences * plan.length, "sequences": plan.sequences, "groups": plan.groups,
                "kept_tokens": len(plan.kept), "token_types": int((plan.counts > 0).sum()),
                "dynamic": any(reading.per_token.values()), "stream_dtype": reading.stream_dtype,
                "layers": measure(reading, config.seed)})
            if weights == "trained":
                discs[name] = disc_of(reading, model)
        print(f"{name}: {plan.sequences * plan.length:,} tokens in {plan.sequences:,} sequences and {plan.groups} "
              f"groups, trained ({config.checkpoint}) and untrained, {time.perf_counter() - began:.1f} s", flush=True)
        if text.note:
            print(f"note: {text.note}")

    settings = {**asdict(config), "device": device, "types": TYPES, "delta_points": hyperbolicity.POINTS,
                "command": " ".join(["python analyze_representations.py", *argv])}
    env = {**environment(settings["command"], device, torch.get_num_threads(), 1), "numpy": np.__version__,
           "scipy": scipy.__version__}
    print(report.terminal_tables(results))
    report.write(config.out, results, discs, settings, env)
    print(f"report: {os.path.join(config.out, 'report.md')}; numbers: {os.path.join(config.out, 'metrics.json')}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
