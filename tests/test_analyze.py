"""analyze_representations.py: hidden states and the use of the geometry against the models' own numbers, the whole
script on small runs, and what bad input gets."""
import itertools
import json
import os
import shutil
import signal
import tracemalloc
import xml.etree.ElementTree

import numpy as np
import pytest
import torch
from conftest import CHARACTERS, TINY, write_dataset

import analyze_representations as analyze
import geometry
import models
import train
from analysis import hidden_states, hyperbolicity, isotropy
from analysis import reading as one_pass
from analysis import report as analysis_report
from training import checkpoint
from training.dataloader import Loader, load_meta


def run(main, args, capsys):
    """(exit status, stdout, stderr) of a script's main."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def refused(args, capsys, *parts):
    status, _, err = run(analyze.main, args, capsys)
    lines = [line for line in err.splitlines() if line.strip()]
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), err
    for part in parts:
        assert part in lines[0], (part, lines[0])


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
         dict(curvature_mode="fixed", curvature=-0.2), dict(curvature_mode="tied", curvature=0.0)]


# ----------------------------------------------------------------------------------------------------------------------
# hidden states

@pytest.mark.parametrize("name, options", [("baseline", dict(token_shift=s)) for s in ("none", "difference", "smear")]
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
        model = tiny("mixed", curvature_mode="fixed", curvature=1.0)
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


# ----------------------------------------------------------------------------------------------------------------------
# the script on runs

ARMS = {"base": [], "curved": ["--model=mixed", "--curvature_mode=parametric", "--curvature=0.7"],
        "dynamic": ["--model=mixed", "--dynamic_curvature=True"]}
QUICK = ["--bootstrap=20", "--pairs=500", "--tokens=1984", "--delta_samples=2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of the trained runs and their data."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["the", "king", "shall", "go;", "my", "lord,", "to", "rome.\n"]
    text = " ".join(words[i] for i in np.random.default_rng(0).integers(0, len(words), 3000))
    ids = [CHARACTERS.index(c) for c in text]
    write_dataset(folder / "data" / "words", ids[:10000], ids[10000:12000])
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    for name, arm in ARMS.items():
        with pytest.raises(SystemExit) as stop:
            train.main([f"--data_dir={folder / 'data'}", "--dataset=words", f"--out_dir={folder / name}", "--n_layer=2",
                        "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4", "--max_iters=20",
                        "--eval_interval=20", "--eval_iters=8", "--warmup_iters=2", "--learning_rate=1e-2",
                        "--tensorboard_log=False", "--device=cpu", "--dtype=float32", "--compile=False", *arm])
        assert stop.value.code == 0
    for s, handler in handlers.items():
        signal.signal(s, handler)
    return folder


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    """The report of all runs: (folder, terminal output)."""
    out = tmp_path_factory.mktemp("out") / "deep" / "report"
    import contextlib
    import io
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stop:
        analyze.main([*(str(runs / name) for name in ARMS), "--out", str(out), *QUICK])
    assert stop.value.code == 0
    return out, printed.getvalue()


def strict(path):
    """JSON without NaN and Infinity, which are not JSON."""
    def no(name):
        raise AssertionError(name)
    return json.loads(path.read_text(), parse_constant=no)


def estimates(found):
    if isinstance(found, dict):
        if {"value", "low", "high"} <= set(found):
            yield found
        for value in found.values():
            yield from estimates(value)
    elif isinstance(found, list):
        for value in found:
            yield from estimates(value)


def test_the_report_is_whole(report):
    out, printed = report
    content = strict(out / "metrics.json")
    assert sorted(content["files"]) == sorted(os.listdir(out)) and content["written_by"] == "analyze_representations.py"
    assert [(m["run"], m["weights"]) for m in content["models"]] == [
        (r, w) for r in ARMS for w in ("trained", "untrained")]
    for name in content["files"]:
        if name.endswith(".png"):
            assert (out / name).read_bytes().startswith(b"\x89PNG") and name[:-4] + ".svg" in content["files"]
        if name.endswith(".svg"):
            assert xml.etree.ElementTree.parse(out / name).getroot().tag.endswith("svg")
    pictures = {n[:-4] for n in content["files"] if n.endswith(".png")}
    assert pictures == {"isotropy_ambient", "isotropy_tangent", "spectra_ambient", "spectra_tangent", "hyperbolicity",
                        "geometry", "disc_1", "disc_2"}
    text = (out / "report.md").read_text()
    for name in pictures:
        assert f"({name}.png)" in text
    assert "base: no picture: the model is Euclidean" in text and "Every token is in its own ball" in text
    assert content["settings"]["tokens"] == 1984 and content["environment"]["numpy"] == np.__version__
    for line in ("isotropy, ambient", "isotropy, tangent", "relative Gromov delta", "use of the geometry"):
        assert line in printed
    for row in (line for line in text.splitlines() if line.startswith("| base ")):
        assert "nan" not in row and "None" not in row


def test_every_number_has_an_interval_around_it(report):
    found = [e for m in strict(report[0] / "metrics.json")["models"] for e in estimates(m)]
    assert len(found) > 1000
    for e in found:
        assert e["value"] is None or e["low"] <= e["value"] + 1e-9 and e["value"] - 1e-9 <= e["high"], e
    assert sum(e["value"] is not None and e["low"] < e["high"] for e in found) > 0.7 * len(found)


def test_coordinates_are_stated_and_geodesics_are_where_they_exist(report):
    for m in strict(report[0] / "metrics.json")["models"]:
        curved, dynamic = m["run"] != "base", m["run"] == "dynamic"
        assert m["curved"] == curved and m["dynamic"] == dynamic and m["stream_dtype"] == "float32"
        for layer, found in m["layers"].items():
            in_a_ball = curved and layer != "ln_f"
            assert set(found["isotropy"]) == {"ambient"} | ({"tangent"} if in_a_ball else set())
            assert list(found["hyperbolicity"]) == ["euclidean_ambient", "euclidean_tangent", "geodesic"][
                :(3 if not dynamic else 2) if in_a_ball else 1]
            assert (found["geometry"] is not None) == in_a_ball
            for name, sets in found["hyperbolicity"].items():
                assert sets["coordinates"] == ("ambient" if name == "euclidean_ambient" else "tangent")
                assert sets["equidistant"]["value"] == 0
                assert all(0 < sets[k]["value"] <= 1 for k in ("tokens", "gaussian", "shuffled"))
    rows = [line.split("|")[1:-1] for line in (report[0] / "report.md").read_text().splitlines()
            if line.startswith("| base | trained | block0")]
    isotropy_row, hyperbolicity_row, geometry_row = rows
    assert all(cell.strip() == "-" for cell in hyperbolicity_row[8:] + geometry_row[3:])  # never silently Euclidean
    assert all(cell.strip() != "-" for cell in isotropy_row + hyperbolicity_row[:8])


def test_the_untrained_copy_is_the_model_before_its_first_step(runs):
    for name in ARMS:
        config = checkpoint.load_config(str(runs / name))
        model = analyze.untrained_copy(config, "cpu")
        data = str(runs / "data" / "words")
        loader = Loader(data, "val", load_meta(data), 4, 16, 0)
        with torch.no_grad():
            losses = [model(x, y)[1].item() for x, y in loader.eval_batches(8)]
        first = json.loads((runs / name / "metrics.jsonl").read_text().splitlines()[0])
        assert first["step"] == 0 and np.mean(losses) == pytest.approx(first["val_loss"], rel=1e-5)


def test_numbers_are_those_of_the_checkpoint_computed_by_other_means(runs, report):
    """Mean over all tokens of block1 of the trained curved run: effective rank by SVD, geodesic norm by its formula."""
    model, _ = checkpoint.load_model(str(runs / "curved"))
    data = str(runs / "data" / "words")
    loader = Loader(data, "val", load_meta(data), 16, 16, 0)
    rows = torch.cat([model.trunk(x) for x, _ in loader.eval_batches(7)]).detach().double()
    found = next(m for m in strict(report[0] / "metrics.json")["models"] if m["run"] == "curved")
    assert found["tokens"] == rows[..., 0].numel() == 1792
    singular = torch.linalg.svdvals((flat := rows.flatten(0, 1)) - flat.mean(0))
    p = singular / singular.sum()
    layer = found["layers"]["block1"]
    rank = torch.exp(-(p * p.log()).sum()).item()
    assert layer["isotropy"]["ambient"]["effective_rank"]["value"] == pytest.approx(rank)
    c = model.transformer.h[1].curvature.c.detach().double()[:, 0]
    norms = 2 / c.sqrt() * torch.atanh(c.sqrt() * rows.unflatten(-1, (2, -1)).norm(dim=-1))
    assert layer["geometry"]["geodesic_norm"]["value"] == pytest.approx(norms.norm(dim=-1).mean().item(), rel=1e-5)
    assert [h["value"] for h in layer["geometry"]["curvature"]["by_head"]] == pytest.approx(c.tolist())
    assert layer["geometry"]["boundary_margin"]["value"] == pytest.approx(
        (1 - c.sqrt() * rows.unflatten(-1, (2, -1)).norm(dim=-1)).mean().item(), rel=1e-5)


@pytest.fixture
def sketches(monkeypatch):
    """Quick: for tests of the folder. Plots of no content, small samples."""
    def image_bytes(figure):
        analysis_report.plt.close(figure)
        return {".png": b"a plot"}

    monkeypatch.setattr(analysis_report, "image_bytes", image_bytes)
    monkeypatch.setattr(hyperbolicity, "POINTS", 12)


def test_a_report_is_replaced_and_the_same_again(runs, tmp_path, capsys, sketches):
    out = tmp_path / "x"
    args = [runs / "base", runs / "curved", *QUICK, "--checkpoint=last"]
    assert run(analyze.main, [*args, "--out", out], capsys)[0] == 0
    first = strict(out / "metrics.json")
    assert "disc_1.png" in first["files"]
    assert run(analyze.main, [*args, f"--out={out}"], capsys)[0] == 0
    second = strict(out / "metrics.json")
    assert first["models"] == second["models"]
    assert run(analyze.main, [runs / "base", "--out", out, *QUICK], capsys)[0] == 0  # fewer files: the old ones go
    third = strict(out / "metrics.json")
    assert sorted(os.listdir(out)) == third["files"] and "disc_1.png" not in third["files"]
    assert "No run has a geometry" in (out / "report.md").read_text()
    assert os.listdir(tmp_path) == ["x"]  # nothing temporary


def test_another_text_than_that_of_the_run_is_said(runs, tmp_path, capsys, sketches):
    shutil.copytree(runs / "data" / "words", tmp_path / "data" / "words")
    meta = json.loads((tmp_path / "data" / "words" / "meta.json").read_text())
    (tmp_path / "data" / "words" / "meta.json").write_text(json.dumps({**meta, "sha256": "f00", "corpus": "a sequel"}))
    status, out, _ = run(analyze.main, [runs / "base", "--out", tmp_path / "x", "--data_dir", tmp_path / "data", *QUICK],
                         capsys)
    assert status == 0
    for text in (out, (tmp_path / "x" / "report.md").read_text()):
        assert "holds another text (a sequel) than the run was trained on (test text)" in text


def test_a_report_that_cannot_be_written_leaves_the_one_before(runs, tmp_path, capsys, monkeypatch, sketches):
    out = tmp_path / "x"
    assert run(analyze.main, [runs / "base", "--out", out, *QUICK], capsys)[0] == 0
    before = (out / "metrics.json").read_bytes()

    def full(path, data):
        raise OSError(28, "No space left on device", path)
    monkeypatch.setattr(analysis_report, "write_file", full)  # a real full disk needs a disk
    refused([runs / "base", "--out", out, *QUICK, "--seed=5"], capsys, "the disk is full")
    assert (out / "metrics.json").read_bytes() == before and os.listdir(tmp_path) == ["x"]


# ----------------------------------------------------------------------------------------------------------------------
# bad input

def test_bad_command_lines_get_one_line(runs, tmp_path, capsys):
    base = runs / "base"
    out = ["--out", tmp_path / "x"]
    refused(out, capsys, "name at least one run")
    refused([base, "--out"], capsys, "--out needs a value")
    refused([base, "--out", "--tokens=3"], capsys, "--out needs a value")
    refused([base, "--tokns", "5"], capsys, "tokns", "did you mean 'tokens'")
    refused([base, "--tokens=many"], capsys, "tokens", "whole number")
    refused([base, "--checkpoint", "first"], capsys, "checkpoint", "'best' | 'last'")
    refused([base, "--bootstrap=3"], capsys, "bootstrap = 3: must be at least 20")
    refused([base, base, *out], capsys, "given twice")
    refused([base, "--device=tpu", *out], capsys, "device = 'tpu'")
    assert not (tmp_path / "x").exists()


def test_missing_and_unknown_runs_get_one_line(runs, tmp_path, capsys):
    out = ["--out", tmp_path / "x", *QUICK]
    refused([tmp_path / "none", *out], capsys, "none: no such run")
    refused([runs / "base", runs / "data", *out], capsys, "data is not a run")
    copy = tmp_path / "copy"
    shutil.copytree(runs / "base", copy)
    config = json.loads((copy / "config.json").read_text())
    for change, parts in ((dict(model="octonions"), ("unknown model 'octonions'",)),
                          (dict(vocab_size=12, tokenizer={**config["tokenizer"], "vocab_size": 12}), ("other tokens",)),
                          (dict(dataset="prose"), ("no prepared data", "prose")),
                          (dict(n_embd=1, n_head=1), ("n_embd = 1",)),
                          (dict(n_embd=32), ("from another model",))):
        (copy / "config.json").write_text(json.dumps({**config, **change}))
        refused([copy, *out], capsys, *parts)
    (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "seed"}))
    refused([copy, *out], capsys, "not that of a run of train.py", "seed")
    (copy / "config.json").write_text("[1]")
    refused([copy, *out], capsys, "config.json is damaged")
    (copy / "config.json").write_text("{")
    refused([copy, *out], capsys, "damaged")
    (copy / "config.json").write_text(json.dumps(config))
    refused([copy, "--data_dir", tmp_path, *out], capsys, "no prepared data")
    weights = copy / "ckpt" / "best" / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    refused([copy, *out], capsys, "damaged")
    shutil.rmtree(copy / "ckpt")
    refused([copy, *out], capsys, "no checkpoint 'best'")
    assert not (tmp_path / "x").exists()


def test_too_few_tokens_get_one_line(runs, tmp_path, capsys):
    out = ["--out", tmp_path / "x", "--bootstrap=20", "--pairs=500"]
    refused([runs / "base", *out, "--tokens=100"], capsys, "too few tokens", "at least 16")
    refused([runs / "base", *out, "--tokens=3"], capsys, "too few tokens", "0 sequences")
    refused([runs / "base", *out, "--tokens=320"], capsys, "too few tokens", "12 samples of 60 tokens")
    refused([runs / "base", *out, "--delta_samples=100"], capsys, "delta_samples = 100", "lower --delta_samples")


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


def test_a_folder_with_other_files_is_refused_before_the_work(runs, report, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(analyze, "open_text", None)  # would fail with a traceback
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    refused([runs / "base", "--out", tmp_path / "mine"], capsys, "files of another origin (notes.txt)")
    mixed = tmp_path / "mixed"
    shutil.copytree(report[0], mixed)
    (mixed / "notes.txt").write_text("keep me")
    refused([runs / "base", "--out", mixed], capsys, "(notes.txt)")
    refused([runs / "base", "--out", runs / "base"], capsys, "files of another origin")
    refused([runs / "base", "--out", mixed / "notes.txt"], capsys, "is a file")
    (mixed / "notes.txt").unlink()
    (mixed / "metrics.json").write_text("{}")
    refused([runs / "base", "--out", mixed], capsys, "files of another origin")
    assert sorted(os.listdir(tmp_path / "mine")) == ["notes.txt"]


# ----------------------------------------------------------------------------------------------------------------------
# small things

def test_names_are_short_where_they_can_be():
    assert analyze.names_of(["out/a", "out/b/"]) == ["a", "b"]
    assert analyze.names_of(["x/run", "y/run", "z/c"]) == ["x/run", "y/run", "c"]
    with pytest.raises(analyze.UserError, match="twice"):
        analyze.names_of(["out/a", "out/a/"])


def test_options_are_written_with_a_space_or_an_equals_sign():
    assert analyze.split_arguments(["a", "--out", "x y", "b", "--seed=3"]) == (["a", "b"], ["--out=x y", "--seed=3"])
    assert analyze.split_arguments(["--help", "a"]) == (["a"], ["--help"])


def test_help_lists_every_option(capsys):
    status, out, _ = run(analyze.main, ["--help"], capsys)
    assert not status
    for option in ("--out", "--checkpoint", "--tokens", "--pairs", "--delta_samples", "--bootstrap", "--seed",
                   "--device", "--data_dir", "--batch_size"):
        assert f"{option}=" in out


def test_points_of_the_disc_have_the_radius_of_their_tangent_vector():
    rng = np.random.default_rng(0)
    c = 0.6
    plane = np.linalg.qr(rng.normal(size=(5, 2)))[0].T  # vectors in a plane of 5 dimensions: nothing is lost
    vectors = rng.normal(size=(50, 2)) @ plane
    places, kept = analysis_report.disc_points(vectors, np.full(50, c))
    assert kept == pytest.approx(1)
    assert np.linalg.norm(places, axis=1) == pytest.approx(np.tanh(np.sqrt(c) * np.linalg.norm(vectors, axis=1)))
    cosines = isotropy.unit(vectors) @ isotropy.unit(vectors).T
    assert np.allclose(isotropy.unit(places) @ isotropy.unit(places).T, cosines)  # angles are those of the vectors
    _, kept = analysis_report.disc_points(rng.normal(size=(4000, 5)), np.full(4000, c))
    assert 0.39 < kept < 0.47  # two of five directions


def test_a_sphere_has_no_disc():
    curvature = np.array([[-0.3, -1.0]] * 5)
    disc = {"layer": "block1", "vectors": np.ones((5, 4)), "curvature": curvature, "per_token": False}
    assert analysis_report.plot_disc("s", disc) == (None, "s: no picture: no head of block1 is hyperbolic (c > 0).")
    disc["vectors"], disc["curvature"] = np.ones((5, 2)), np.ones((5, 2))
    assert analysis_report.plot_disc("s", disc)[0] is None  # heads of one dimension


def test_numbers_are_printed_short():
    assert [analysis_report.number(v) for v in (0.12345, 12345.6, 3.2e-9, 0.0, None, float("nan"))] == [
        "0.123", "12,346", "3.2e-09", "0", "-", "-"]
    cell = {"value": 0.5, "low": 0.45, "high": 0.57}
    assert analysis_report.short_cell(cell) == "0.5±0.06" and analysis_report.long_cell(cell) == "0.5 [0.45, 0.57]"
    assert analysis_report.long_cell(None) == analysis_report.short_cell({**cell, "value": None}) == "-"
