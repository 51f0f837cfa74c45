"""What analyze_representations.py reads from a model: hidden states and the use of the geometry against the model's own numbers."""
import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import TINY

import analyze_representations as analyze
import geometry
import models
from analysis import hidden_states, hyperbolicity
from analysis import reading as one_pass


def tiny(name, **options):
    torch.manual_seed(3)
    model = models.build(name, models.CONFIGS[name](**TINY, **options)).eval()
    if options.get("dynamic_curvature"):
        for block in model.transformer.h:
            torch.nn.init.normal_(block.curvature_gate.weight)  # from 0, where all tokens have the same c
    return model


def enlarge(model, factor=30.0):
    """Larger weights, so that rows are far from the origin and reach the edge."""
    with torch.no_grad():
        model.transformer.wte.weight.mul_(factor)
        for block in model.transformer.h:
            for p in (block.attn.c_proj.weight, block.mlp.c_proj.weight):
                p.mul_(factor)
    return model


class Batches:
    """A text in the place of a Loader."""

    def __init__(self, idx, batch_size=4):
        self.idx, self.batch_size = idx, batch_size

    def eval_batches(self, count):
        for i in range(count):
            x = self.idx[i * self.batch_size:(i + 1) * self.batch_size]
            yield x, x


def read(model, sequences=32, seed=0, **options):
    """(Reading, text, Plan) of a model on random tokens."""
    rng = np.random.default_rng(seed)
    idx = torch.from_numpy(rng.integers(TINY["vocab_size"], size=(sequences, TINY["block_size"])))
    config = analyze.AnalysisConfig(tokens=idx.numel(), delta_samples=2, bootstrap=20, pairs=200, **options)
    meta = {"vocab_size": TINY["vocab_size"], "val_tokens": idx.numel()}
    text = analyze.Text(Batches(idx), 4, "nowhere", meta, dict(TINY), None)
    plan = one_pass.make_plan(text, config, 2 * (TINY["n_layer"] + 2))
    return one_pass.Reading(plan).read(model, text.loader), idx, plan


MIXED = [dict(),
         dict(reference="origin", residual="transport", per_head_curvature=False, curvature_mode="fixed",
              curvature=0.7),
         dict(reference="mean", residual="reference", curvature_mode="parametric", curvature=0.4),
         dict(reference="ema", dynamic_curvature=True, use_embedding_curvature=True),
         dict(reference="previous", dynamic_curvature=True, per_head_curvature=False, residual="reference"),
         dict(curvature_mode="fixed", curvature=-0.2), dict(curvature_mode="tied", curvature=0.0),
         dict(curvature_mode="fixed", curvature=1.0, max_distance=None)]


# ----------------------------------------------------------------------------------------------------------------------
# hidden states

@pytest.mark.parametrize("name, options", [("baseline", dict(token_shift=s)) for s in ("none", "difference", "likeness", "smear")]
                         + [("mixed", o) for o in MIXED])
def test_hidden_states_are_those_of_the_model_and_watching_changes_nothing(name, options, tokens):
    model, idx = tiny(name, **options), tokens[0]
    with torch.no_grad():
        logits = model(idx, idx)[0]
    seen = []
    with hidden_states.watching(model, lambda *what: seen.append(what[:2])):
        states = hidden_states.hidden_states(model, idx)
    again = hidden_states.hidden_states(model, idx)
    assert list(states) == hidden_states.layer_names(model) == ["embedding", "block0", "block1", "ln_f"]
    assert torch.equal(states["embedding"], model.embed(idx)) and torch.equal(states["block1"], model.trunk(idx))
    assert torch.equal(model.lm_head(states["ln_f"]), logits)
    assert all(torch.equal(states[k], again[k]) for k in states)
    assert bool(seen) == (name == "mixed") and all("tangent" not in vars(block) for block in model.transformer.h)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.transformer.h)


def test_watching_ends_where_the_model_fails(tokens):
    model = tiny("mixed")
    with pytest.raises(IndexError), hidden_states.watching(model, lambda *what: None):
        hidden_states.hidden_states(model, tokens[0] + 1000)
    assert not any({"tangent", "residual"} & set(vars(block)) for block in model.transformer.h)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.transformer.h)


@pytest.mark.parametrize("options", MIXED)
def test_positions_are_the_models_own_geometry_stats(options):
    model = enlarge(tiny("mixed", **options), 8)
    reading, idx, plan = read(model)
    stats = model.geometry_stats(idx)
    for layer, own in stats.items():
        found = {k: v.result(plan.weights) for k, v in reading.use[layer].items()}
        assert found["curvature"]["value"] == pytest.approx(own["curvature"], rel=1e-5, abs=1e-7)
        assert found["curvature"]["min"] == pytest.approx(own["curvature_min"], rel=1e-5, abs=1e-7)
        assert found["curvature"]["max"] == pytest.approx(own["curvature_max"], rel=1e-5, abs=1e-7)
        assert found["edge_share"]["value"] == pytest.approx(own["edge_share"], abs=1e-5)
        assert ("max_distance_share" in found) == ("max_distance_share" in own)
        if "max_distance_share" in own:
            assert found["max_distance_share"]["value"] == pytest.approx(own["max_distance_share"], abs=1e-5)
        assert found["geodesic_norm_of_heads"]["value"] == pytest.approx(own["geodesic_norm"], rel=1e-5)
    assert reading.per_token["block0"] == options.get("dynamic_curvature", False)


@pytest.mark.parametrize("options", MIXED)
def test_tangent_coordinates_go_back_to_the_points_and_have_their_geodesic_norm(options):
    model = enlarge(tiny("mixed", **options), 8)
    reading, idx, plan = read(model)
    states = hidden_states.hidden_states(model, idx)
    charts = hidden_states.charts(model, states)
    assert list(charts) == ["embedding", "block0", "block1"]
    for layer, chart in charts.items():
        x, c = hidden_states.points(chart, states[layer])
        u = hidden_states.tangent_coordinates(chart, states[layer]).reshape(x.shape)
        assert u.dtype == torch.float64
        assert torch.allclose(geometry.exp_0(u, c.double()).float(), x, rtol=1e-5, atol=1e-6)
        # lambda at the origin is 2
        norms = 2 * u.norm(dim=-1)  # per head
        found = reading.use[layer]["geodesic_norm"].result(plan.weights)["value"]
        assert found == pytest.approx(norms.norm(dim=-1).mean().item(), rel=1e-5)
        if layer != "embedding":  # nothing that a block leaves needs projecting
            assert torch.equal(x.flatten(2), states[layer])
        kept = reading.spaces[layer, "tangent"].rows
        assert np.allclose(kept, u.flatten(2).reshape(-1, 16)[plan.kept].numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [dict(reference=r, **o) for r in ("previous", "origin", "window") for o in (
    {}, dict(per_head_curvature=False), dict(dynamic_curvature=True), dict(residual="transport"))])
def test_tangent_lengths_are_geodesic_distances_to_the_reference(options):
    """lambda_r |log_r(x)| = dist(r, x), for what the first block's attention reads; r made here by its definition."""
    model = tiny("mixed", **options)
    enlarge(model, 5)
    reading, idx, plan = read(model)
    block = model.transformer.h[0]
    with torch.no_grad():
        x = model.embed(idx)
        c = block.curvature_of(x)
        x = geometry.project(block.heads(x), c)
        if options["reference"] == "origin":
            r = torch.zeros_like(x)
        elif options["reference"] == "previous":
            r = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
        else:
            r = block.reference(x.reshape(*idx.shape, -1), c, None, "attn")
        r = geometry.project(r, c)
        dist = geometry.dist(r, x, c)
    dist = dist.squeeze(-1) if dist.dim() == 4 else dist
    found = reading.use["block0"]["tangent_length_attn"].result(plan.weights)
    assert found["value"] == pytest.approx(dist.norm(dim=-1).mean().item(), rel=1e-4)
    assert set(reading.use["block0"]) >= {"tangent_norm_mlp", "update_norm_attn", "update_norm_mlp", "projected_mlp",
                                          "round_trip_attn", "round_trip_mlp"}


def test_the_share_of_projected_rows_is_that_of_sums_that_leave_the_ball():
    """And on entry: of plain embeddings outside the ball."""
    limit = 1 - 2.0 ** -14  # of float32 rows at c = 1
    shares = []
    for embedding, update in ((1, 1), (18, 1), (1, 400), (1e4, 1e7)):
        model = tiny("mixed", curvature_mode="fixed", curvature=1.0, max_distance=None)
        with torch.no_grad():
            model.transformer.wte.weight.mul_(embedding)
            model.transformer.h[0].attn.c_proj.weight.zero_()  # so that attention leaves the row where it is
            model.transformer.h[0].mlp.c_proj.weight.mul_(update)
        reading, idx, plan = read(model)
        found = {k: v.result(plan.weights)["value"] for k, v in reading.use["block0"].items()}
        embedded = model.embed(idx).unflatten(-1, (2, -1)).norm(dim=-1)  # before it enters the first block
        assert found["projected_entry"] == pytest.approx((embedded > limit).float().mean().item())
        assert found["projected_attn"] == 0
        block = model.transformer.h[0]
        with torch.no_grad():
            x = geometry.project(model.embed(idx).unflatten(-1, (2, -1)), 1.0)
            r = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
            v = block.mlp(block.ln_2(geometry.logmap(r, x, 1.0).flatten(2))).reshape(x.shape)
        # the sum in float64, without a limit; rows a rounding error beyond the limit count as inside (geometry.project)
        free = geometry.mobius_add(x.double(), geometry.exp_0(v.double(), 1.0), 1.0).norm(dim=-1)
        beyond = (free > limit * (1 + geometry.ROUNDING[torch.float32])).double().mean().item()
        assert found["projected_mlp"] == pytest.approx(beyond, abs=3e-3)
        shares.append((found["projected_entry"], found["projected_mlp"]))
        assert "projected_entry" not in reading.use["block1"]  # it does not project again
    assert shares[0] == (0, 0) and shares[3][0] == 1
    assert 0.05 < shares[1][0] < 0.95 and 0.05 < shares[2][1] < 0.95, shares


def test_the_round_trip_is_measured_in_the_dtype_of_the_residual_stream():
    errors = {}
    for dtype in (torch.float32, torch.float64):
        model = enlarge(tiny("mixed"), 5).to(dtype)
        reading, _, plan = read(model)
        errors[dtype] = one_pass._geometry(reading, "block1")["round_trip_attn"]
        assert reading.stream_dtype == str(dtype).removeprefix("torch.")
    assert 1e-9 < errors[torch.float32]["median"] < 1e-6 and errors[torch.float64]["p99"] < 1e-12
    assert errors[torch.float32]["median"] < errors[torch.float32]["p99"] <= errors[torch.float32]["max"]


def test_margins_are_those_of_hyperbolic_heads_only():
    model = tiny("mixed", curvature_mode="parametric", curvature=1.0)
    with torch.no_grad():
        model.transformer.h[0].curvature.c[0] = -1.0  # a sphere and a ball
    reading, idx, plan = read(model)
    found = reading.use["block0"]["boundary_margin"].result(plan.weights)
    norm = hidden_states.hidden_states(model, idx)["block0"].unflatten(-1, (2, -1)).norm(dim=-1)[..., 1]
    assert found["value"] == pytest.approx((1 - norm).mean().item(), rel=1e-6)
    assert found["min"] == pytest.approx((1 - norm).min().item(), rel=1e-5)
    assert found["by_head"][0]["value"] is None


def test_a_later_model_needs_nothing_but_its_blocks(monkeypatch):
    """A model that is not in this repository: other blocks, one of them of a kind that only looks curved."""
    base = models.MODELS["baseline"][1]

    class Block(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = torch.nn.Linear(width, width)

        def heads(self, x):
            return x.unflatten(-1, (2, -1))

        def forward(self, x, state=None):
            return x + self.layer(x)

    model = tiny("baseline")
    assert isinstance(model, base)
    model.transformer.h = torch.nn.ModuleList([Block(TINY["n_embd"]) for _ in range(3)])
    reading, _, _ = read(model)
    layers = one_pass.measure(reading, 0)
    assert list(layers) == ["embedding", "block0", "block1", "block2", "ln_f"]
    assert all(found["geometry"] is None and list(found["isotropy"]) == ["ambient"] for found in layers.values())


# ----------------------------------------------------------------------------------------------------------------------
# plan and streaming

def test_what_is_drawn_keeps_sequences_apart():
    _, idx, plan = read(tiny("baseline"), sequences=64)
    T = TINY["block_size"]
    assert plan.sequences == 64 and plan.groups == 64 and (np.diff(plan.kept) > 0).all()
    assert np.array_equal(plan.kept_group, plan.kept // T * plan.groups // plan.sequences)
    assert (plan.kept[plan.pairs[0]] // T != plan.kept[plan.pairs[1]] // T).all()
    groups = [set(plan.kept_group[s]) for s in plan.samples]
    assert all(not a & b for a, b in itertools.combinations(groups, 2))
    assert all(len(set(s)) == hyperbolicity.POINTS for s in plan.samples)
    assert np.array_equal(plan.counts, np.bincount(idx.numpy().ravel(), minlength=TINY["vocab_size"]))
    assert np.allclose(plan.pair_weights.sum(1), 1) and np.allclose(plan.sample_weights.sum(1), 1)


def test_fewer_groups_for_wide_models():
    assert one_pass.number_of_groups(1000, 12, 128) == 64 and one_pass.number_of_groups(20, 12, 128) == 20
    groups = one_pass.number_of_groups(1000, 26, 768)
    assert 16 <= groups < 64 and 8 * groups * 26 * 768 ** 2 <= one_pass.MOMENT_BYTES
    assert one_pass.number_of_groups(1000, 100, 4096) == one_pass.MIN_GROUPS


def kept_bytes(what, seen):
    """Bytes of all arrays that an object holds on to."""
    if id(what) in seen:
        return 0
    seen.add(id(what))
    if isinstance(what, np.ndarray):
        return what.nbytes
    if isinstance(what, dict):
        return sum(kept_bytes(v, seen) for v in what.values())
    if isinstance(what, (list, tuple)):
        return sum(kept_bytes(v, seen) for v in what)
    return kept_bytes(vars(what), seen) if hasattr(what, "__dict__") else 0


def test_memory_does_not_grow_with_the_tokens(monkeypatch):
    """What is kept, and the peak of numpy's memory while reading (its sums and buffers are the analysis; torch has the
    model's pass over one batch)."""
    monkeypatch.setattr(one_pass, "KEPT_TOKENS", 256)
    monkeypatch.setattr(one_pass, "MAX_GROUPS", 16)
    monkeypatch.setattr(hyperbolicity, "POINTS", 40)
    model = tiny("mixed", dynamic_curvature=True)
    read(model, sequences=32)  # what is imported and cached by the first use
    kept, peak = [], []
    for sequences in (32, 192):
        tracemalloc.start()
        reading, _, plan = read(model, sequences=sequences)
        peak.append(tracemalloc.get_traced_memory()[1] - sequences * TINY["block_size"] * 8)  # the text itself
        tracemalloc.stop()
        kept.append(kept_bytes(reading, set()))
        assert plan.sequences == sequences and len(plan.kept) == 256
        assert reading.spaces["block0", "tangent"].moments.count.sum() == sequences * TINY["block_size"]
    assert kept[0] == kept[1] > 100_000
    assert peak[1] < 1.1 * peak[0]


def test_a_reading_is_that_of_all_tokens_at_once():
    """Batches, groups and kept tokens against the same sums in one piece."""
    model = tiny("mixed")
    reading, idx, plan = read(model)
    states = hidden_states.hidden_states(model, idx)
    for layer, rows in states.items():
        flat, space = rows.double().reshape(-1, 16).numpy(), reading.spaces[layer, "ambient"]
        assert np.allclose(space.moments.covariance(), np.cov(flat.T, bias=True), atol=1e-12)
        assert np.array_equal(space.rows, flat[plan.kept].astype(np.float32))
        assert space.types.count.sum() == idx.numel()  # no more types than TYPES here
    assert np.array_equal(reading.kept_tokens, idx.numpy().ravel()[plan.kept])


def test_a_covariance_needs_more_tokens_than_dimensions():
    idx = torch.zeros(16, TINY["block_size"], dtype=torch.int64)
    text = analyze.Text(Batches(idx), 4, "here", {"vocab_size": 37, "val_tokens": 192}, {**TINY, "n_embd": 192}, None)
    with pytest.raises(analyze.UserError, match="more than 192 tokens"):
        one_pass.make_plan(text, analyze.AnalysisConfig(tokens=192, delta_samples=2), 4)


def test_hidden_states_that_cannot_be_analysed_get_one_line(tokens):
    model = tiny("baseline")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[0, 0] = torch.nan
    with pytest.raises(analyze.UserError, match="block1 of this model has NaN or Inf"):
        hidden_states.hidden_states(model, tokens[0])

    class Streams(torch.nn.Module):
        def forward(self, x, state=None):
            return x.unsqueeze(2).expand(-1, -1, 4, -1).mean(2) if x.dim() == 4 else torch.stack((x, x), 2)

    model = tiny("baseline")
    model.transformer.h = torch.nn.ModuleList([Streams()])
    with pytest.raises(analyze.UserError, match="not one row a token"):
        hidden_states.hidden_states(model, tokens[0])
