"""
One pass over the text with a model, and the numbers that follow: what is drawn once (Plan), what is kept of each layer (Space, Reading),
and the measures of a layer with their intervals.
"""
from typing import NamedTuple

import numpy as np

from analysis import hidden_states, hyperbolicity, isotropy
from analysis.group_bootstrap import GroupMeans, draw_weights, group_of, interval, sequences_of
from common.errors import UserError

KEPT_TOKENS = 4096  # for what needs the vectors themselves: pairs, partition function, delta, the picture
MIN_SEQUENCES = 16  # fewer give no interval worth the name
MAX_GROUPS, MIN_GROUPS, MOMENT_BYTES = 64, 16, 2 ** 31
TYPES = 64  # most frequent token types, for the self-similarity


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
        found[name] = {"coordinates": coordinates, **{k: interval(plan.sample_weights @ v, len(plan.samples)) for k, v in sets.items()}}
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
        result["isotropy"][coordinates] = {name: interval(v, plan.groups) for name, v in values.items()}
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
