"""
What must hold for every model in every configuration: causality, controls, gradients, caches, compilation.

The mixed model has 480 combinations of its options. `make test` takes 60 of them, which have every combination of any three values;
`make test-all` takes all (the marker `exhaustive`).
"""
import itertools

import pytest
import torch
import torch._dynamo.testing
from conftest import TINY
from test_model_baseline import check_finite_differences, randomised

import geometry
import model
import model_baseline
import models
from common.errors import UserError
from geometry import maps
from model_baseline import Cache
from training import compiled
from training.compiled import PARTS, compile_parts

REFERENCES = ("previous", "origin", "mean", "window", "ema")
RESIDUALS = ("origin", "transport", "reference")
MODES = ("fixed", "parametric", "tied", "random")


def spread(cases, n):
    """n cases of the grid that between them contain every value of every option, many times (a fixed shuffle)."""
    order = torch.randperm(len(cases), generator=torch.Generator().manual_seed(0)).tolist()
    return [cases[i] for i in order[:n]]


def covering(cases, strength=3):
    """Those of the cases that between them have every combination of `strength` options' values that is in any case. Greedy: each one
    taken has the most that are still missing, the first of equals."""
    has = [set(itertools.combinations(options.items(), strength)) for _, options in cases]
    missing, taken = set().union(*has), []
    while missing:
        best = max(range(len(cases)), key=lambda i: len(has[i] & missing))
        missing -= has[best]
        taken.append(cases[best])
    return taken


BASELINES = [("baseline", dict(token_shift=t)) for t in ("none", "difference", "smear")]
BOUNDED = [("baseline", dict(token_shift="likeness", bounded_rows=True, head_gate="read")), ("baseline", dict(bounded_rows=True))]
GRID = [("mixed", dict(reference=r, residual=s, curvature_mode=m, per_head_curvature=h, dynamic_curvature=d,
                       use_embedding_curvature=e))
        for r, s, m, h, d, e in itertools.product(REFERENCES, RESIDUALS, MODES, *[(False, True)] * 3)]
COVERING = covering(GRID)
CONTROLS = [("controls", dict(control=c)) for c in ("difference", "bound", "norm", "gate", "gate+norm", "bound+gate+norm")]
TERMS = [("terms", o) for o in (dict(write="mobius"), dict(read="log", write="constant"), dict(read="length", write="norms"),
                                dict(read="direction", write="xv"), dict(write="alpha"), dict(read="likeness", write="v"),
                                dict(read="cosine", likeness=1.35), dict(read="row", write="limit", ball=False))]
TAU = [("tau", o) for o in (
    {}, dict(tau="fixed", temperature="fixed"), dict(tau="median", qk_norm=True), dict(tau="mean", position="rope"),
    dict(laplacian="learned", laplacian_per_head=True),
    dict(laplacian="learned", n_kv_head=1, manifold_dim=6, position="rope", qk_norm=True),
    dict(laplacian="none"), dict(laplacian="none", laplacian_per_head=True, n_kv_head=1, attention_form="plain"),
    dict(attention_form="divide", n_kv_head=1))]
ALIBI = [("tau", dict(position="alibi")), ("tau", dict(position="alibi", attention_form="divide", n_kv_head=1))]  # not in EVERY: no wpe
STREAMS = [("mhc", o) for o in (
    dict(hc="none"), dict(hc="altup", hc_expand="copy"), dict(hc="altup", token_shift="difference", hc_expand="first"), dict(hc="hc"),
    dict(hc="hc", hc_maps="dynamic", hc_collapse="mean"), {}, dict(hc_maps="dynamic"), dict(hc_res="permutations", hc_maps="dynamic"),
    dict(hc_res="orthostochastic", hc_num_streams=3, hc_post="softmax"), dict(hc_res="identity", hc_num_streams=2, hc_collapse="sum"),
    dict(hc_pre="sigmoid", token_shift="difference", value_residual="learned"), dict(hc_freeze="res", hc_maps="dynamic"),
    dict(hc_freeze="pre+post", hc_num_streams=5))]
CURVED_STREAMS = [("mhc_mixed", o) for o in (
    dict(curvature_mode="random"), dict(hc="none"), dict(hc="hc", hc_maps="dynamic", per_head_curvature=False),
    dict(hc_space="midpoint", hc_maps="dynamic", hc_res="permutations"),
    dict(hc_space="midpoint", per_head_curvature=False, reference="origin"), dict(residual="transport", curvature_mode="tied"),
    dict(residual="reference", reference="ema", curvature_mode="fixed"), dict(use_embedding_curvature=True, hc_collapse="mean"))]
LEARNED = "mixed", dict(curvature_mode="random")  # c
VALUES = [(n, {**o, "value_residual": v}) for v in ("fixed", "learned")
          for n, o in (BASELINES[1], CONTROLS[-1], LEARNED, ("tau", {}))]
STREAMS += CURVED_STREAMS
GATED = [("baseline", dict(head_gate="read", token_shift="difference")), ("baseline", dict(head_gate="attention"))]
MODERN = GATED + [(n, {**o, "position": "rope", "qk_norm": True}) for n, o in (BASELINES[0], CONTROLS[-1], LEARNED, ("mhc", {}))]
MODERN += [("mixed", dict(curvature_mode="random", curvature_heads=[1.0, -0.5], curvature_form="softplus", curvature_unit="coordinate",
                          max_distance=2.0, max_update=1.0, update_scale="conformal", project_gradient="straight",
                          embedding_gradient="riemannian"))]
STEREOGRAPHIC = [("stereographic", o) for o in (
    dict(layers="mobius", curvature_mode="fixed"), dict(attention="distance", curvature_mode="random", dynamic_curvature=True),
    dict(norm="stereographic"),
    dict(head="stereographic", head_curvature_mode="parametric", head_offset=True), dict(head="lorentz", head_tied=False),
    dict(head="lorentz_product", head_scale_mode="learned"),
    dict(layers="mobius", attention="distance", head="stereographic", per_head_curvature=False, reference="mean", qk_norm=True,
         position="rope"))]
EVERY = BASELINES + BOUNDED + CONTROLS + TERMS + TAU + GRID + STREAMS + VALUES + MODERN + STEREOGRAPHIC
BIASED = [(n, {**o, "bias": True}) for n, o in BASELINES[1:] + CONTROLS[-1:] + spread(GRID, 30)]
BY_REFERENCE = {"baseline": BASELINES + BOUNDED, "controls": CONTROLS + TERMS, "tau": TAU + ALIBI, "bias": BIASED, "streams": STREAMS,
                "values": VALUES, "modern": MODERN, "stereographic": STEREOGRAPHIC,
                **{f"{r}{every}": [(n, o) for n, o in cases if o["reference"] == r]
                   for every, cases in (("", COVERING), (", every", GRID)) for r in REFERENCES}}
# in parts, so that processes share the work
in_parts = pytest.mark.parametrize(
    "part", [pytest.param(part, marks=pytest.mark.exhaustive) if "every" in part else part for part in BY_REFERENCE])


def build(name, options, seed=1, **shape):
    torch.manual_seed(seed)
    return models.build(name, models.CONFIGS[name](**{**TINY, **shape}, **options))


def test_the_covering_configurations_have_every_three_values():
    keys = list(GRID[0][1])
    values = {key: {options[key] for _, options in GRID} for key in keys}
    for three in itertools.combinations(keys, 3):
        assert {tuple(o[key] for key in three) for _, o in COVERING} == set(itertools.product(*(values[key] for key in three))), three
    assert len(COVERING) == 5 * 3 * 4 and all(case in GRID for case in COVERING)


@in_parts
@torch.no_grad()
def test_every_configuration_is_causal_exactly(part, tokens):
    """Other tokens after t: the logits at and before t are the same bits."""
    idx, targets = tokens
    T, cuts = idx.size(1), (0, 1, 5, 10)
    spherical = [(name, {**options, "curvature": -0.5}) for name, options in BY_REFERENCE[part] if options.get("curvature_mode") == "fixed"]
    for name, options in BY_REFERENCE[part] + spherical:
        net = randomised(build(name, options)).eval()
        others = [torch.where(torch.arange(T) > t, (idx + 1 + torch.arange(T)) % TINY["vocab_size"], idx) for t in cuts]
        # all cuts at once, before and after in tensors of one shape: sums have one order
        before, after = (net(torch.cat(text), targets.repeat(len(cuts), 1))[0].chunk(len(cuts))
                         for text in ([idx] * len(cuts), others))
        for t, a, b in zip(cuts, before, after):
            assert torch.equal(a[:, :t + 1], b[:, :t + 1]), (name, options, t)
            assert (a[:, t + 1:] != b[:, t + 1:]).any(-1).all(), (name, options, t)


@in_parts
def test_gradients_reach_every_parameter_in_every_configuration(part, tokens):
    for name, options in BY_REFERENCE[part]:
        net = randomised(build(name, options), scale=0.5 if name == "controls" else 0.2)  # rows longer than `bound` allows
        net(*tokens)[1].backward()
        for key, p in net.named_parameters():
            assert p.grad is not None and torch.isfinite(p.grad).all(), (key, options)
            assert p.grad.abs().max() > 0, (key, options)


def same_function(a, b, tokens, a_gets=lambda weights: weights):
    """The same weights give the same logits, loss and gradients, to rounding in float64."""
    a, b = a.double(), b.double()
    b.load_state_dict(dict(a.state_dict()), strict=False)
    (la, loss_a), (lb, loss_b) = a(*tokens), b(*tokens)
    torch.testing.assert_close(la, lb, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-12, atol=1e-12)
    loss_a.backward()
    loss_b.backward()
    grads = dict(b.named_parameters())
    for key, p in a.named_parameters():
        torch.testing.assert_close(p.grad, grads[key].grad, rtol=1e-8, atol=1e-12, msg=key)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_at_c_0_with_reference_and_residual_at_the_origin_it_is_the_baseline(mode, per_head, tokens):
    for dynamic, embedding, bias in itertools.product(*[(False, True)] * 3):
        options = dict(reference="origin", residual="origin", curvature_mode=mode, curvature=0.0, bias=bias,
                       per_head_curvature=per_head, dynamic_curvature=dynamic, use_embedding_curvature=embedding)
        same_function(randomised(build("baseline", dict(bias=bias))), build("mixed", options), tokens)


@pytest.mark.parametrize("residual", ["origin", "transport"])
@pytest.mark.parametrize("mode", MODES)
def test_at_c_0_with_the_previous_token_as_reference_it_is_the_flat_control(mode, residual, tokens):
    for per_head, dynamic, embedding, bias in itertools.product(*[(False, True)] * 4):
        options = dict(reference="previous", residual=residual, curvature_mode=mode, curvature=0.0, bias=bias,
                       per_head_curvature=per_head, dynamic_curvature=dynamic, use_embedding_curvature=embedding)
        same_function(randomised(build("baseline", dict(token_shift="difference", bias=bias))), build("mixed", options), tokens)


def test_at_c_0_residual_reference_adds_the_reference(tokens):
    """x + r + F(LN(x - r)), DESIGN.md's third flat control, for one block."""
    net = randomised(build("mixed", dict(residual="reference", curvature_mode="fixed", curvature=0.0), n_layer=1))
    idx, targets = tokens
    block = net.transformer.h[0]
    x = net.transformer.wte(idx) + net.transformer.wpe(torch.arange(idx.size(1)))
    for norm, layer in ((block.ln_1, block.attn), (block.ln_2, block.mlp)):
        r = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
        x = x + r + layer(norm(x - r))
    torch.testing.assert_close(net(idx, targets)[0], net.lm_head(net.transformer.ln_f(x)), rtol=1e-5, atol=1e-6)


def test_models_of_one_seed_share_their_weights():
    plain, own_shapes = build("baseline", {}).state_dict(), {"position", "n_kv_head", "manifold_dim"}
    for name, options in spread([case for case in EVERY if not own_shapes.intersection(case[1])], 60):
        other = build(name, options).state_dict()
        for key in plain:
            assert torch.equal(plain[key], other[key]), (key, options)


DEFAULT = dict(reference="previous", residual="origin", curvature_mode="parametric", curvature=0.7,
               per_head_curvature=False, dynamic_curvature=False, use_embedding_curvature=False)
CHANGES = [dict(reference="origin"), dict(reference="mean"), dict(reference="window"), dict(reference="ema"),
           dict(reference="window", reference_window=2), dict(reference="ema", reference_decay=0.9),
           dict(residual="transport"), dict(residual="reference"), dict(curvature=0.3), dict(curvature=-0.7),
           dict(curvature_mode="random"), dict(curvature_initialization=[0.7, 0.1]), dict(per_head_curvature=True),
           dict(use_embedding_curvature=True)]


def test_every_option_changes_the_output(tokens):
    outputs = [build("mixed", {**DEFAULT, **change}, n_embd=32)(*tokens)[0] for change in [{}] + CHANGES]
    for i, j in itertools.combinations(range(len(outputs)), 2):
        assert not torch.allclose(outputs[i], outputs[j], rtol=1e-6, atol=0), (([{}] + CHANGES)[i], ([{}] + CHANGES)[j])


@pytest.mark.parametrize("mode", MODES)
def test_limits_made_for_all_blocks_at_once_are_each_blocks_own(mode):
    net = randomised(build("mixed", dict(curvature_mode=mode), n_layer=3))
    for block, (limit,) in zip(net.transformer.h, net.for_blocks(torch.float32)):
        assert torch.equal(limit, block.limit(block.curvature.c, torch.float32))


def test_dynamic_curvature_depends_on_the_token(tokens):
    net = randomised(build("mixed", {**DEFAULT, "dynamic_curvature": True}))
    plain = randomised(build("mixed", DEFAULT))
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if "gate" not in k})
    c = net.transformer.h[0].curvature_of(net.embed(tokens[0]))
    assert c.shape == (3, 12, 1) and c.std() > 0
    assert not torch.allclose(net(*tokens)[0], plain(*tokens)[0])


def test_a_window_of_one_and_an_ema_without_memory_are_the_previous_token(tokens):
    for options in (dict(reference="window", reference_window=1), dict(reference="ema", reference_decay=0.0)):
        a = randomised(build("mixed", {**DEFAULT, **options}), scale=0.05).double()
        b = randomised(build("mixed", DEFAULT), scale=0.05).double()
        torch.testing.assert_close(a(*tokens)[0], b(*tokens)[0], rtol=1e-9, atol=1e-11)


def test_midpoint_references_at_c_0_are_means_of_earlier_tokens():
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    for options, expected in [
            (dict(reference="mean"), lambda t: x[:, :t].mean(1)),
            (dict(reference="window", reference_window=3), lambda t: x[:, max(0, t - 3):t].mean(1)),
            (dict(reference="ema", reference_decay=0.5),
             lambda t: sum(0.5 ** (t - 1 - s) * x[:, s] for s in range(t)) / sum(0.5 ** k for k in range(t)))]:
        block = build("mixed", {**DEFAULT, **options, "curvature_mode": "fixed", "curvature": 0.0}).double().transformer.h[0]
        r = block.reference(x, block.curvature.c, None, "attn")
        assert (r[:, 0] == 0).all()
        for t in range(1, 7):
            torch.testing.assert_close(r[:, t], expected(t))


CURVED = [o for _, o in GRID if o["curvature_mode"] != "fixed"]


def check_learned_curvature(name, options, tokens):
    """Every c has a gradient at every step, the first included, and moves. Without weight decay, which moves it by itself."""
    net = build(name, options)
    curvatures = {k: p for k, p in net.named_parameters() if "curvature" in k}
    start = {k: p.detach().clone() for k, p in curvatures.items()}
    assert any(k.endswith("curvature.c") for k in start)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        net(*tokens)[1].backward()
        for key, p in curvatures.items():
            assert (p.grad != 0).all(), (key, options)
        optimizer.step()
    for key, p in curvatures.items():
        assert (p != start[key]).all(), (key, options)


def test_learned_curvature_moves_in_training(tokens):
    for options in CURVED[::7]:
        check_learned_curvature("mixed", options, tokens)


def test_what_follows_from_a_fixed_curvature_is_computed_once(tokens, monkeypatch):
    net = build("mixed", {**DEFAULT, "curvature_mode": "fixed", "max_distance": None})
    monkeypatch.setattr(geometry, "max_norm", lambda *args: pytest.fail("computed again"))
    net(*tokens)
    for block in net.transformer.h:
        assert block.limit(block.curvature.c, torch.float32) == pytest.approx(0.7 ** -0.5, rel=1e-3)
    assert not [k for k in net.state_dict() if "limit" in k]


@torch.no_grad()
def test_points_between_the_maps_are_in_the_ball(tokens, monkeypatch):
    """Those that a midpoint is taken of, with a curvature for every token, and the one that residual 'reference' adds."""
    idx, _ = tokens
    seen = []

    def inside(x, c, margin=0.0):
        c = c if isinstance(c, torch.Tensor) else torch.tensor(float(c))
        seen.append(bool((c.double() * x.double().square().sum(-1, keepdim=True) < 1 - margin).all()))
    midpoint, add = geometry.gyromidpoint, maps.mobius_add
    monkeypatch.setattr(geometry, "gyromidpoint", lambda x, w, c: (inside(x, c), midpoint(x, w, c))[1])
    monkeypatch.setattr(maps, "mobius_add", lambda x, y, c, limit: (inside(y, c), add(x, y, c, limit))[1])
    for per_head in (False, True):
        for options in ({"reference": "mean", "dynamic_curvature": True}, {"residual": "reference"}):
            net = build("mixed", {**DEFAULT, **options, "curvature_mode": "parametric", "curvature": 1.0,
                                  "per_head_curvature": per_head})
            randomised(net, seed=3)
            for p in net.parameters():
                if p.dim() == 2:
                    p *= 30  # updates as long as they come
            net(idx)
    assert len(seen) > 8 and all(seen)


def test_geometry_is_measured_without_dropout(tokens):
    net = build("mixed", {**DEFAULT, "dropout": 0.5}).train()
    assert net.geometry_stats(tokens[0]) == net.geometry_stats(tokens[0]) and net.training


@pytest.mark.parametrize("cases", [COVERING, pytest.param(GRID, marks=pytest.mark.exhaustive)], ids=["some", "all"])
@torch.no_grad()
def test_points_stay_in_the_ball_in_every_configuration(cases, tokens):
    idx, _ = tokens
    for name, options in cases:
        net = randomised(build(name, {**options, "curvature": 2.0}), seed=3)  # rows of norm about 1: far outside at first
        x = net.start(idx)
        for block in net.transformer.h:
            c = block.curvature_of(x)
            x = block(x)
            rows = block.heads(x).double()
            room = 1 - c.double() * rows.square().sum(-1, keepdim=True)
            assert (room[c.expand_as(room) > 0] > 0).all(), options
            assert torch.isfinite(rows).all()


def test_gradients_agree_with_finite_differences(tokens):
    """Curvatures of both signs included."""
    for name, options in spread(EVERY, 40):
        check_finite_differences(randomised(build(name, options), scale=0.05), tokens, options)


@in_parts
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_in_every_configuration(part, tokens):
    """One token at a time and several at a time, from an empty cache. (Past block_size: the next test.)"""
    idx = tokens[0]
    for name, options in BY_REFERENCE[part]:
        net = randomised(build(name, options), scale=0.05).double().eval()
        full = net(idx, idx)[0]
        cache, start = Cache(TINY["n_layer"]), 0
        for n in (1, 1, 5, 1, 4):
            logits = net(idx[:, start:start + n], cache=cache)[0]
            start += n
            torch.testing.assert_close(logits[:, 0], full[:, start - 1], rtol=1e-9, atol=1e-11, msg=str(options))


def test_gradients_through_a_cache_are_those_without_one(tokens):
    """An exported model in eval() keeps a cache whether or not there will be gradients."""
    for name, options in STREAMS + BASELINES[1:2] + [LEARNED]:
        net = randomised(build(name, options), scale=0.05).double().eval()
        found = []
        for cache in (None, Cache(TINY["n_layer"])):
            net.zero_grad()
            net(*tokens, cache=cache)[1].backward()
            found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=str(options))


@pytest.mark.parametrize("n", [10, pytest.param(len(GRID), marks=pytest.mark.exhaustive)])
@torch.no_grad()
def test_generation_past_block_size_equals_reading_the_last_window_each_time(n):
    for name, options in BASELINES + CONTROLS + spread(GRID, n) + spread(STREAMS, 6) + VALUES[-1:]:
        net = randomised(build(name, options), scale=0.05).double().eval()
        idx, window, found = torch.tensor([[3, 1, 4, 1, 5]]), TINY["block_size"], []
        with net.register_forward_hook(lambda *call: found.append(call[-1][0][:, -1])):
            text = torch.cat([idx, *net.generate(idx, 20, generator=torch.Generator().manual_seed(3))], 1)
        # logits, not tokens: those of a wrong window are often the same. What follows 5 to 12 tokens, then what full windows do
        first = text[:, :window]
        expected = torch.cat((net(first, first)[0][0, idx.size(1) - 1:], net(text[0, 1:-1].unfold(0, window, 1))[0][:, -1]))
        torch.testing.assert_close(torch.cat(found), expected, rtol=1e-9, atol=1e-11, msg=str(options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_weights_of_16_bits(dtype, tokens):
    """As an exported model is read with dtype=: no autocast, no float32 but where a map needs it."""
    for name, options in (BASELINES + BOUNDED[:1] + CONTROLS[-1:] + TERMS + TAU[:2] + STREAMS[5:7] + CURVED_STREAMS[:1] + [LEARNED]
                          + STEREOGRAPHIC):
        net = randomised(build(name, options), scale=0.05).eval()
        expected = net(*tokens)[0]
        found = net.to(dtype)(*tokens)[0].float()
        assert (found - expected).norm() < 0.1 * expected.norm(), (name, options)


def test_generation_keeps_to_the_tokenizers_vocabulary():
    net = randomised(build("baseline", {})).eval()
    drawn = torch.cat(list(net.generate(torch.tensor([[1]]), 100, temperature=5.0, vocab_size=3)))
    assert set(drawn.flatten().tolist()) == {0, 1, 2}


def test_compiled_models_in_one_process_have_a_limit_each(tokens, monkeypatch):
    """Dynamo recompiles a function 8 times at most; bench_model.py compiles more models than that, twice each. (One part of each is
    compiled here.)"""
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "PARTS", ("head",))
    for width in (8, 16, 24, 32, 40):
        fast = compile_parts(build("baseline", {}, n_embd=width, n_head=2, n_layer=1), backend="eager")
        with torch.no_grad():
            fast(*tokens)
        fast(*tokens)


@pytest.mark.parametrize("options", [{}, dict(reference="ema", dynamic_curvature=True),
                                     pytest.param(dict(reference="mean"), marks=pytest.mark.exhaustive)])  # the same path as ema
def test_compiled_code_takes_gradients_outside_of_autocast_as_eager_mode_does(options, tokens):
    """By default it would not: products of midpoints in 16 bits, and a gradient of c that is wrong by a factor."""
    torch._dynamo.reset()
    net = randomised(build("mixed", options, n_layer=2))
    found, counter = [], torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    for f in (net, compile_parts(net, backend=counter)):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = f(*tokens)[1]
        loss.backward()
        found.append({key: p.grad.clone() for key, p in net.named_parameters()})
    for key in found[0]:
        assert torch.equal(found[0][key], found[1][key]), key
    assert counter.frame_count <= len(PARTS)


def same_gradients(net, other, rtol, atol, of_largest=0.0):
    for (key, p), q in zip(net.named_parameters(), other.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=rtol, atol=atol + of_largest * q.grad.abs().max().item(),
                                   msg=lambda found: f"{key}: {found}")


def check_one_graph(name, options, tokens, checkpointing=False, dtype=torch.float32, n_layer=2,
                    backend="aot_eager"):
    """Compiled and eager, from the same weights. Under compile sums have another order. Where rows are at the edge (the
    second weights) their last digit is amplified by 1 / (1 - c|x|^2): 1e5 in float32, where gradients are therefore
    compared coarsely; closely off the edge, and at the edge in float64."""
    torch._dynamo.reset()
    net, other = (build(name, options, n_layer=n_layer).to(dtype) for _ in range(2))
    start = [p.detach().clone() for p in net.parameters()]
    net.activation_checkpointing = checkpointing
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    fast = compile_parts(net, backend=counter)
    assert fast.transformer is net.transformer and not {*PARTS} & {*vars(net)} and {*PARTS} - {*net.eager_parts} <= {*vars(fast)}
    for scale in (0.05, 0.2):
        for each in (net, other):
            each.zero_grad()
            with torch.no_grad():
                for p, value in zip(each.parameters(), start):
                    p.copy_(value)
            randomised(each, scale=scale)
        loss, expected = fast(*tokens)[1], other(*tokens)[1]
        torch.testing.assert_close(loss, expected)
        loss.backward()
        expected.backward()
        at_edge_in_float32 = dtype == torch.float32 and scale > 0.05
        same_gradients(net, other, rtol=1e-3, atol=1e-6, of_largest=0.05 * at_edge_in_float32)
    if dtype == torch.float32:  # (a float64 c of no dimension is traced once a block, like a Python number)
        # one graph for all blocks, so that compiling does not take longer for more; AltUp has one for each stream that a block acts on
        assert counter.frame_count <= len(PARTS) + (options.get("hc") == "altup")


def test_every_kind_of_model_compiles_to_one_graph(tokens):
    """Traced forward and backward without a graph break, a graph for all blocks. (Generated code:
    test_generated_code_trains_the_same.)"""
    for name, options in BASELINES + CONTROLS[-1:]:
        check_one_graph(name, options, tokens)


@pytest.mark.parametrize("case", [STREAMS[1], STREAMS[4], STREAMS[5], CURVED_STREAMS[3]],
                         ids=lambda case: "-".join(map(str, (case[0], *case[1].values()))))
def test_models_with_streams_compile_to_one_graph(case, tokens):
    # (AOT autograd, which takes half of the time: in the other cases, and of the curved block below)
    check_one_graph(*case, tokens, backend="eager" if case[0] == "mhc_mixed" else "aot_eager")


@pytest.mark.parametrize("options", [
    # (the same path as ema, whose graphs are counted above)
    pytest.param(dict(reference="mean", per_head_curvature=True, curvature_mode="fixed"), marks=pytest.mark.exhaustive),
    dict(residual="transport", dynamic_curvature=True),
    dict(residual="reference", use_embedding_curvature=True, per_head_curvature=True, curvature_mode="tied", checkpointing=True),
    pytest.param(dict(per_head_curvature=False), marks=pytest.mark.exhaustive)])
def test_mixed_models_compile_to_one_graph(options, tokens):
    options = {**DEFAULT, **options}
    check_one_graph("mixed", {k: v for k, v in options.items() if k != "checkpointing"}, tokens, options.get("checkpointing", False))


def test_compiled_gradients_agree_closely_at_the_edge(tokens):
    """Of every combination, this one's gradients are among those that a last digit moves most: 0.7 % in float32."""
    check_one_graph("mixed", {**DEFAULT, "reference": "mean", "residual": "transport", "curvature_mode": "fixed"}, tokens,
                    dtype=torch.float64, n_layer=1)


def test_generated_code_trains_the_same(tokens, monkeypatch):
    """The default mixed model through Inductor, as train.py compiles it: 3 steps give the eager parameters to rounding. (The head:
    test_onednn.py.)"""
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "PARTS", ("start", "for_blocks", "run_block"))
    results = []
    for wrap in (lambda m: m, compile_parts):
        net = build("mixed", {}, n_layer=2)
        step_net, optimizer = wrap(net), torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = step_net(*tokens)[1]
            loss.backward()
            optimizer.step()
        results.append((loss.detach(), [p.detach() for p in net.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    for a, b in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype, part, steps", [("float32", slice(0, None, 2), 80), ("bfloat16", slice(1, None, 2), 80), *(
    pytest.param(dtype, slice(None), 200, marks=pytest.mark.exhaustive) for dtype in ("float32", "bfloat16"))])
def test_many_steps_stay_finite_and_learn(dtype, part, steps, tokens):
    """At a high learning rate, large curvatures of both signs, on data that can be memorised: after 80 steps it is. (Cases take turns
    with the dtypes.)"""
    cases = [("mixed", {**DEFAULT, **c}) for c in (
        dict(curvature=5.0, residual="reference"), dict(curvature=-5.0, per_head_curvature=True),
        dict(curvature_mode="random", per_head_curvature=True, dynamic_curvature=True, residual="transport"),
        dict(reference="mean", use_embedding_curvature=True))] + BASELINES[1:2] + CONTROLS[-1:] + STREAMS[4:6] + CURVED_STREAMS[3:4]
    for name, options in cases[part]:
        net = build(name, options, n_layer=1)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
        first = None
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = net(*tokens)[1]
            loss.backward()
            assert torch.isfinite(loss), options
            assert torch.isfinite(torch.stack(torch._foreach_norm([p.grad for p in net.parameters()], torch.inf))).all(), options
            optimizer.step()
            first = loss.item() if first is None else first
        assert loss.item() < 0.7 * first, options


def test_telemetry_reports_curvature_edge_and_distance(tokens):
    net = build("mixed", {**DEFAULT, "curvature": 4.0, "max_distance": None}, n_layer=2)
    with torch.no_grad():
        net.transformer.wte.weight.mul_(1000)  # all embeddings far outside: everything is at the edge
    stats = net.geometry_stats(tokens[0])
    assert set(stats) == {"block0", "block1"}
    for values in stats.values():
        assert values["curvature"] == pytest.approx(4.0)
        assert values["edge_share"] > 0.9
        assert "curvature_head0" not in values
    heads = build("mixed", {**DEFAULT, "per_head_curvature": True, "curvature_mode": "random"})
    values = heads.geometry_stats(tokens[0])["block1"]
    assert [values[f"curvature_head{h}"] for h in (0, 1)] == heads.transformer.h[1].curvature.c.flatten().tolist()
    inside = build("mixed", {**DEFAULT, "curvature": 1e-6}).geometry_stats(tokens[0])
    x = build("mixed", {**DEFAULT, "curvature": 1e-6}).trunk(tokens[0])
    assert inside["block1"]["edge_share"] == 0
    assert inside["block1"]["geodesic_norm"] == pytest.approx(2 * x.norm(dim=-1).mean().item(), rel=1e-3)
    assert build("baseline", {}).geometry_stats(tokens[0]) == {}


@pytest.mark.parametrize("options, message", [
    (dict(curvature_mode="tied", curvature_initialization=[1.0, 1.0]), "for curvature_mode = 'parametric'"),
    (dict(curvature_mode="parametric", curvature_initialization=[1.0]), "n_layer = 2 are needed"),
    (dict(reference="mean", reference_window=3), "reference_window is for reference = 'window'"),
    (dict(reference="window", reference_window=0), "at least 1"),
    (dict(reference="ema", reference_decay=1.0), r"in \[0, 1\)"),
])
def test_combinations_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        model.MixedConfig(**TINY, **options)


def test_a_fixed_curvature_is_no_parameter_and_a_tied_one_is_one():
    names = lambda **o: [k for k, _ in build("mixed", {**DEFAULT, **o}).named_parameters() if "curvature" in k]
    assert names(curvature_mode="fixed") == []
    assert len(names(curvature_mode="tied", use_embedding_curvature=True)) == 1
    assert len(names(use_embedding_curvature=True)) == 3
    assert isinstance(build("mixed", {}), model_baseline.GPT)
    assert geometry.max_norm(torch.tensor(4.0), torch.float32) < 0.5


def test_compiled_maps_have_gradients():
    """A sum whose result was made in place got gradients of 0 from torch 2.11's compiler; it took no part of a series by pop()."""
    torch._dynamo.reset()
    rng = torch.Generator().manual_seed(0)
    x, v, g = (0.1 * torch.randn(2, 5, 8, generator=rng, dtype=torch.float64) for _ in range(3))
    for name in ("add_exp_0", "mobius_add", "expmap"):
        for dtype in (torch.float32, torch.float64):
            found = []
            for f in (getattr(geometry, name), torch.compile(getattr(geometry, name), fullgraph=True, dynamic=False, backend="eager")):
                leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, v)]
                f(*leaves, torch.tensor(0.7, dtype=dtype)).backward(g.to(dtype))
                found.append([leaf.grad for leaf in leaves])
            for ours, eager in zip(*found):
                assert eager.any()
                torch.testing.assert_close(ours, eager)
