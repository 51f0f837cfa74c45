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
from analysis import hidden_states, hyperbolicity, isotropy, report
from analysis.group_bootstrap import GroupMeans, draw_weights, group_of, interval, sequences_of
from common import locks, paths
from common.errors import UserError, exit_cleanly
from configurator import Path
from training import checkpoint
from training.dataloader import Loader, load_meta
from training.machine import pick_device
from training.run_directory import environment

KEPT_TOKENS = 4096  # for what needs the vectors themselves: pairs, partition function, delta, the picture
MIN_SEQUENCES = 16  # fewer give no interval worth the name
MAX_GROUPS, MIN_GROUPS, MOMENT_BYTES = 64, 16, 2 ** 31
TYPES = 64  # most frequent token types, for the self-similarity


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


# ----------------------------------------------------------------------------------------------------------------------
# what is drawn once, so that all layers of a model and its untrained copy are measured on the same tokens

class Plan(NamedTuple):
    batches: int  # of eval_batches
    sequences: int
    length: int  # T
    groups: int
    counts: np.ndarray  # (V,) how often each token type occurs in the text read
    types: np.ndarray  # (K,) the most frequent ones
    kept: np.ndarray  # (n,) which tokens are kept: sequence * T + place, ascending
    kept_group: np.ndarray  # (n,)
    pairs: np.ndarray  # (2, P) of kept tokens, each from two sequences
    samples: np.ndarray  # (S, 60) of kept tokens; no two samples share a group
    weights: np.ndarray  # (R, groups) bootstrap weights, group_bootstrap.py
    pair_weights: np.ndarray  # (R, P), each row with sum 1
    sample_weights: np.ndarray  # (R, S), each row with sum 1


def number_of_groups(sequences, spaces, width):
    """As many as MOMENT_BYTES allow for the second moments of all spaces (layers x coordinates)."""
    fit = MOMENT_BYTES // (8 * spaces * width ** 2)
    return int(min(sequences, max(MIN_GROUPS, min(MAX_GROUPS, fit))))


def make_plan(text, config, spaces):
    """spaces: how many (layer, coordinates). Raises UserError where the text is too short."""
    T, width, loader = text.run["block_size"], text.run["n_embd"], text.loader
    batches = config.tokens // T // text.batch_size
    sequences, counts = 0, np.zeros(text.meta["vocab_size"], dtype=np.int64)
    for x, _ in loader.eval_batches(batches) if batches else ():
        sequences += len(x)
        counts += np.bincount(x.cpu().numpy().ravel(), minlength=len(counts))
    few = (f"too few tokens: --tokens={config.tokens} of {text.folder}, which has {text.meta['val_tokens']:,} "
           f"validation tokens, are {sequences} sequences of {T}; ")
    if sequences < MIN_SEQUENCES:
        raise UserError(f"{few}at least {MIN_SEQUENCES} are needed ({MIN_SEQUENCES * T} tokens)")
    if sequences * T <= width:
        raise UserError(f"{few}a covariance in {width} dimensions needs more than {width} tokens")
    groups = number_of_groups(sequences, spaces, width)
    if config.delta_samples > groups:
        raise UserError(f"delta_samples = {config.delta_samples}: each needs a group of sequences of its own, there "
                        f"are {groups}; lower --delta_samples")

    rng = np.random.default_rng([config.seed, 0])
    kept, kept_group = [], []
    for group in range(groups):
        first, end = sequences_of(group, sequences, groups)
        tokens = (end - first) * T
        kept.append(first * T + np.sort(rng.choice(tokens, min(KEPT_TOKENS // groups, tokens), replace=False)))
        kept_group.append(np.full(len(kept[-1]), group))
    kept, kept_group = np.concatenate(kept), np.concatenate(kept_group)
    by_sample = [np.flatnonzero(kept_group % config.delta_samples == s) for s in range(config.delta_samples)]
    if min(map(len, by_sample)) < hyperbolicity.POINTS:
        raise UserError(f"{few}{config.delta_samples} samples of {hyperbolicity.POINTS} tokens from sequences of their "
                        "own need more; raise --tokens or lower --delta_samples")
    samples = np.stack([rng.choice(rows, hyperbolicity.POINTS, replace=False) for rows in by_sample])
    pairs = np.zeros((2, 0), dtype=np.int64)
    while pairs.shape[1] < config.pairs:
        drawn = rng.integers(len(kept), size=(2, config.pairs))
        pairs = np.concatenate((pairs, drawn[:, kept[drawn[0]] // T != kept[drawn[1]] // T]), axis=1)[:, :config.pairs]

    weights = draw_weights(groups, config.bootstrap, rng)
    pair_weights = weights[:, kept_group[pairs[0]]] * weights[:, kept_group[pairs[1]]]
    sample_weights = draw_weights(config.delta_samples, config.bootstrap, rng)
    types = np.argsort(-counts, kind="stable")[:TYPES]
    return Plan(batches, sequences, T, groups, counts, types[counts[types] > 0], kept, kept_group, pairs, samples,
                weights, pair_weights / pair_weights.sum(1, keepdims=True), sample_weights / config.delta_samples)


# ----------------------------------------------------------------------------------------------------------------------
# one pass over the text

class Space:
    """What is kept of one layer in one kind of coordinates."""

    def __init__(self, plan, width):
        self.moments = isotropy.Moments(plan.groups, width)
        self.types = isotropy.TypeSums(plan.groups, width, plan.types)
        self.rows = np.zeros((len(plan.kept), width), dtype=np.float32)

    def add(self, rows, tokens, group, chosen, places):
        """rows: (B, T, C) float64; chosen: which of the batch's tokens are kept; places: where."""
        self.moments.add(rows, group)
        self.types.add(rows, tokens, group)
        self.rows[places] = rows.reshape(-1, rows.shape[-1])[chosen]


class Reading:
    """Everything that one pass over the text leaves of a model."""

    def __init__(self, plan):
        self.plan = plan
        self.spaces = {}  # (layer, coordinates) -> Space
        self.use = {}  # layer -> quantity -> GroupMeans
        self.kept_scalars = {}  # (layer, quantity) -> (n, H), for quantiles and for the kept tokens' curvature
        self.per_token = {}  # layer -> has every token a c of its own?
        self.kept_tokens = np.zeros(len(plan.kept), dtype=np.int64)  # their ids
        self.stream_dtype = None

    def read(self, model, loader):
        first = 0
        for x, _ in loader.eval_batches(self.plan.batches):
            self._read_batch(model, x, first)
            first += len(x)
        return self

    def _read_batch(self, model, x, first):
        plan, T = self.plan, self.plan.length
        group = group_of(first + np.arange(len(x)), plan.sequences, plan.groups)
        begin, end = np.searchsorted(plan.kept, (first * T, (first + len(x)) * T))
        places, chosen = slice(begin, end), plan.kept[begin:end] - first * T
        tokens = x.cpu().numpy()
        self.kept_tokens[places] = tokens.ravel()[chosen]

        def record(layer, quantity, values):
            values = values.detach().cpu().double().numpy()  # (B, T, H)
            self.use.setdefault(layer, {}).setdefault(quantity, GroupMeans(plan.groups)).add(values, group)
            if quantity == "curvature" or quantity.startswith("round_trip"):
                kept = self.kept_scalars.setdefault((layer, quantity), np.zeros((len(plan.kept), values.shape[-1])))
                kept[places] = values.reshape(-1, values.shape[-1])[chosen]

        def add(layer, coordinates, rows):
            if (layer, coordinates) not in self.spaces:
                self.spaces[layer, coordinates] = Space(plan, rows.shape[-1])
            self.spaces[layer, coordinates].add(rows.cpu().double().numpy(), tokens, group, chosen, places)

        with hidden_states.watching(model, record):
            states = hidden_states.hidden_states(model, x)
        charts = hidden_states.charts(model, states)
        for layer, rows in states.items():
            add(layer, "ambient", rows)
            if layer in charts:
                chart = charts[layer]
                add(layer, "tangent", hidden_states.tangent_coordinates(chart, rows))
                self.per_token[layer] = chart.per_token
                for quantity, values in hidden_states.position(chart, rows, layer == "embedding").items():
                    record(layer, quantity, values)
        self.stream_dtype = str(states["embedding"].dtype).removeprefix("torch.")


# ----------------------------------------------------------------------------------------------------------------------
# from sums to numbers

def _hyperbolicity(reading, layer, rng):
    """Distance -> null set -> estimate, for the distances that the layer has."""
    plan = reading.plan
    distances = {"euclidean_ambient": ("ambient", hyperbolicity.euclidean_distances)}
    if layer in reading.per_token:
        distances["euclidean_tangent"] = ("tangent", hyperbolicity.euclidean_distances)
        if not reading.per_token[layer]:
            c = reading.kept_scalars[layer, "curvature"][0]  # (H,), that of every token
            distances["geodesic"] = ("tangent", lambda vectors: hyperbolicity.geodesic_distances(
                hyperbolicity.points_from_tangent(vectors, c), c))
    found = {}
    for name, (coordinates, distances_of) in distances.items():
        space = reading.spaces[layer, coordinates]
        sets = hyperbolicity.compare(space.rows[plan.samples].astype(float), space.moments.mean(),
                                     space.moments.covariance(), distances_of, rng)
        found[name] = {"coordinates": coordinates, **{k: interval(plan.sample_weights @ v) for k, v in sets.items()}}
    return found


def _geometry(reading, layer):
    """Quantity -> estimate, or None for a layer in flat space. The round trip has quantiles, too."""
    plan, found = reading.plan, {}
    for quantity, means in reading.use.get(layer, {}).items():
        found[quantity] = means.result(plan.weights)
        if quantity.startswith("round_trip"):
            errors = reading.kept_scalars[layer, quantity]
            found[quantity].update(median=float(np.median(errors)), p99=float(np.quantile(errors, 0.99)))
    return found or None


def measure(reading, seed):
    """layer -> {'isotropy': coordinates -> measure -> estimate, 'spectrum': coordinates -> shares,
    'hyperbolicity': distance -> set -> estimate, 'geometry': quantity -> estimate, or None}."""
    plan, layers = reading.plan, {}
    rng = np.random.default_rng([seed, 1])
    for (layer, coordinates), space in reading.spaces.items():
        result = layers.setdefault(layer, {"isotropy": {}, "spectrum": {}})
        values, spectrum = isotropy.measures(space.moments, space.types, space.rows.astype(float), plan.kept_group,
                                             plan.pairs, plan.pair_weights, plan.weights)
        result["isotropy"][coordinates] = {name: interval(v) for name, v in values.items()}
        result["spectrum"][coordinates] = spectrum.tolist()
    for layer, result in layers.items():
        result["hyperbolicity"] = _hyperbolicity(reading, layer, rng)
        result["geometry"] = _geometry(reading, layer)
    return layers


def disc_of(reading, model):
    """What the picture of the last block needs, or None where the model has no chart there."""
    layer = hidden_states.layer_names(model)[-2]
    if layer not in reading.per_token:
        return None
    plan = reading.plan
    return {"layer": layer, "vectors": reading.spaces[layer, "tangent"].rows, "per_token": reading.per_token[layer],
            "curvature": reading.kept_scalars[layer, "curvature"],
            "frequency": plan.counts[reading.kept_tokens] / plan.counts.sum()}


# ----------------------------------------------------------------------------------------------------------------------
# runs

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
    model_config = models.config_from_dict(run["model"], run)
    checkpoint.folder(folder, config.checkpoint)
    if model_config.n_embd < 2:
        raise UserError(f"{folder}: n_embd = {model_config.n_embd}: isotropy needs at least 2 dimensions")
    data = os.path.join(config.data_dir or run["data_dir"], run["dataset"])
    meta = load_meta(data)
    same = all(run.get("tokenizer", {}).get(k) == meta.get(k) for k in ("tokenizer", "vocab_size", "characters"))
    if not same:
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
