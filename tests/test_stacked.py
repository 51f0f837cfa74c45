"""N runs as one model: what it computes is what N models compute, and one update is N updates of torch's optimizers."""
import contextlib
import copy

import pytest
import torch
from conftest import TINY
from torch.optim._muon import _zeropower_via_newtonschulz

import models
from common.errors import UserError
from training import stacked
from training.config import TrainConfig
from training.optimizer import make_optimizers, set_lr, set_momentum
from training.qk_clip import QKClip
from training.schedule import lr_at, seed_micro_batch
from training.stacked_modules import stack_modules
from training.stacked_optimizer import orthogonal
from training.stacked_step import Captured, stacked_step

N, B = 3, 2
CASES = [
    ("baseline", {}),
    ("baseline", dict(bias=True, head_gate="read", token_shift="smear", activation="gelu_tanh")),
    ("baseline", dict(token_shift="difference", head_gate="attention", value_residual="learned")),
    ("baseline", dict(token_shift="likeness", bounded_rows=True)),
    ("baseline", dict(position="rope", qk_norm=True, value_residual="fixed")),
    ("mixed", {}),
    ("mixed", dict(curvature_mode="random")),
    ("mixed", dict(curvature_mode="fixed", curvature=0.1, use_embedding_curvature=True)),
    ("mixed", dict(curvature_mode="parametric", curvature=-0.3, per_head_curvature=False, reference="origin")),
    ("mixed", dict(curvature_mode="tied", use_embedding_curvature=True, residual="transport")),
    ("mixed", dict(curvature_mode="random", dynamic_curvature=True)),
    ("mixed", dict(dynamic_curvature=True, per_head_curvature=False, reference="window", residual="transport")),
    ("mixed", dict(reference="mean", residual="origin")),
    ("mixed", dict(reference="ema", residual="reference", per_head_curvature=False)),
    ("mixed", dict(curvature_mode="random", curvature_heads=[1.0, -0.5], curvature_form="softplus", curvature_unit="coordinate",
                   max_distance=1.5, max_update=1.0, update_scale="conformal", project_gradient="straight",
                   embedding_gradient="riemannian")),
    *[("stereographic", options) for options in (
        dict(layers="mobius", curvature_mode="random"), dict(layers="mobius", per_head_curvature=False, curvature_mode="parametric"),
        dict(layers="mobius", attention="distance"), dict(attention="distance", curvature_mode="random", dynamic_curvature=True),
        dict(attention="distance", per_head_curvature=False, curvature_mode="tied", curvature=-0.2), dict(norm="stereographic"),
        dict(head="stereographic", head_curvature_mode="parametric", head_offset=True, head_scale_mode="learned"),
        dict(head="lorentz", head_tied=False), dict(head="lorentz_product", head_scale=2.0), dict(head_offset=True))],
    ("controls", dict(control="bound+gate+norm")),
    ("controls", dict(control="norm")),
    ("terms", dict(write="constant")),
    ("terms", dict(read="log", write="mobius")),
    ("mhc", {}),
    ("mhc", dict(hc="hc", hc_maps="dynamic")),
    ("mhc", dict(hc_maps="dynamic", hc_freeze="res", token_shift="difference")),
    ("mhc", dict(hc="altup", hc_collapse="mean", hc_expand="first")),
    ("mhc_mixed", {}),
    ("mhc_mixed", dict(hc_space="midpoint", per_head_curvature=False)),
    ("tau", {}),
    ("tau", dict(laplacian="learned", laplacian_per_head=True, n_kv_head=1, qk_norm=True, position="rope")),
    ("tau", dict(laplacian="none", position="alibi", temperature="fixed")),
    ("tau", dict(tau="median")),
]


def build(name, more, seed=0, moved=0.05, **shape):
    """A model with all its parameters moved from where they start."""
    torch.manual_seed(seed)
    model = models.build(name, models.CONFIGS[name](**{**TINY, **shape}, **more)).train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(moved * torch.randn_like(p))
    return model


def batch(seed, sequences=B):
    return torch.randint(TINY["vocab_size"], (2, sequences, TINY["block_size"]), generator=torch.Generator().manual_seed(seed))


def together(members):
    """The stack of these models: (model, Runs), with their weights."""
    model = copy.deepcopy(members[0])
    runs = stack_modules(model, len(members), "test")
    own = [dict(member.named_parameters()) for member in members]
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.stack([each[name] for each in own]))
    return model, runs


@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=["float32", "float64"])
@pytest.mark.parametrize("name, more", CASES, ids=lambda v: v if isinstance(v, str) else " ".join(map(str, v.values())))
def test_losses_and_gradients_are_those_of_each_model(name, more, dtype, within):
    members = [build(name, more, seed).to(dtype) for seed in range(N)]
    data = [batch(seed) for seed in range(N)]
    model, _ = together(members)
    losses = model(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))[1]
    losses.sum().backward()
    model.end_of_step(lambda tensor: tensor)
    found = dict(model.named_parameters())
    for n, (member, (x, y)) in enumerate(zip(members, data)):
        loss = member(x, y)[1]
        loss.backward()
        member.end_of_step(lambda tensor: tensor)
        torch.testing.assert_close(losses[n], loss, rtol=0, atol=within)
        for key, p in member.named_parameters():
            torch.testing.assert_close(found[key].grad[n], p.grad, rtol=within, atol=within, msg=lambda m, key=key: f"{key}: {m}")
        for key, buffer in member.named_buffers():  # statistics of the batches
            whole = dict(model.named_buffers())[key]
            if whole.shape != buffer.shape:
                torch.testing.assert_close(whole[n], buffer)


def test_a_run_whose_numbers_are_nan_does_not_reach_the_others():
    members = [build("mixed", dict(curvature_mode="random"), seed) for seed in range(N)]
    x, y = torch.cat([batch(seed)[0] for seed in range(N)]), torch.cat([batch(seed)[1] for seed in range(N)])
    gradients = []
    for bad in (False, True):
        if bad:
            with torch.no_grad():
                members[1].transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")
        model, _ = together(members)
        losses = model(x, y)[1]
        losses.sum().backward()
        assert torch.isfinite(losses).tolist() == [True, not bad, True]
        gradients.append({name: p.grad[[0, 2]] for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_dropout_draws_what_each_run_draws_alone():
    """Of embeddings, attention weights, both layers; two micro-batches with numbers of their own."""
    members = [build("baseline", dict(dropout=0.3), seed) for seed in range(N)]
    model, runs = together(members)
    for k in (0, 5):
        data = [batch(10 * k + seed) for seed in range(N)]
        runs.seed(list(range(N)), k, own=True)
        losses = model(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))[1]
        for n, (member, (x, y)) in enumerate(zip(members, data)):
            seed_micro_batch(n, k)
            torch.testing.assert_close(losses[n], member(x, y)[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("ignored", [0, 5])
def test_targets_that_are_left_out_count_for_their_run_alone(ignored):
    members, data = [build("baseline", {}, seed) for seed in range(N)], [batch(seed) for seed in range(N)]
    data[1][1][0, :ignored] = -1
    model, _ = together(members)
    losses = model(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))[1]
    for n, (member, (x, y)) in enumerate(zip(members, data)):
        torch.testing.assert_close(losses[n], member(x, y)[1], rtol=0, atol=1e-6)


def test_a_parameter_that_nobody_knows_is_one_line():
    model = build("baseline", {})
    model.transformer.h[0].mlp.strange = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(UserError, match=r"cannot be stacked: how model_baseline.MLP reads its parameter 'strange' is not in PLACES"):
        stack_modules(model, 2, "baseline")
    assert type(model.transformer.h[0].mlp.c_fc) is torch.nn.Linear  # nothing was swapped


# ----------------------------------------------------------------------------------------------------------------------
# the update

def configs(**more):
    rates = (1e-3, 3e-2, 1e-2)
    return [TrainConfig(learning_rate=lr, muon_lr=2 * lr, warmup_iters=2, max_iters=8, seed=n, **more) for n, lr in enumerate(rates)]


def stack_of(members, settings):
    optimizers = [make_optimizers(member, config, "cpu") for member, config in zip(members, settings)]
    return stacked_step("test", copy.deepcopy(members[0]), members, optimizers, settings, "cpu", contextlib.nullcontext), optimizers


@pytest.mark.parametrize("name, options, within", [
    ("baseline", {}, 1e-6), ("mixed", dict(curvature_lr_mult=0.3, grad_clip=0.05), 1e-6), ("mixed", dict(optimizer="muon"), 2e-3),
    ("mixed", dict(optimizer="muon", muon_adjust_lr="match_rms_adamw", muon_momentum_warmup=3), 2e-3)])
def test_an_update_is_that_of_torchs_optimizers(name, options, within):
    """Of five steps with gradients of the test's own: weights, moments and gradient norms, for three learning rates."""
    settings = configs(**options)
    members, alone = ([build(name, dict(bias=True), seed) for seed in range(N)] for _ in range(2))
    step, optimizers = stack_of(members, settings)
    others = [make_optimizers(member, config, "cpu") for member, config in zip(alone, settings)]
    draw = torch.Generator().manual_seed(1)
    for number in range(5):
        for n, (member, mine, config) in enumerate(zip(alone, others, settings)):
            for key, p in member.named_parameters():
                p.grad = torch.randn(p.shape, generator=draw)
                dict(step.model.named_parameters())[key].grad[n] = p.grad
            norm = torch.nn.utils.clip_grad_norm_(member.parameters(), config.grad_clip)
            set_lr(mine, lr_at(number, config))
            set_momentum(mine, config, number)
            for optimizer in mine:
                optimizer.step()
            if n == 0:
                first = norm
        step.finish(number)
        torch.testing.assert_close(step.norms[0], first)
    for n, member in enumerate(alone):
        for (key, p), q in zip(member.named_parameters(), members[n].parameters()):
            torch.testing.assert_close(q, p, rtol=within, atol=within, msg=lambda m, key=key: f"{key}: {m}")
        for mine, own in zip(others[n], optimizers[n]):  # what goes to a checkpoint
            of_mine, of_own = ([o.state[p] for group in o.param_groups for p in group["params"]] for o in (mine, own))
            for a, b in zip(of_mine, of_own, strict=True):
                assert a.keys() == b.keys()
                for key in a:
                    torch.testing.assert_close(b[key], a[key], rtol=1e-5, atol=1e-6)
    assert not step.weights.gradients.any()


# 200 steps of float32 agree with a fixed c; where it is learned, or scores are distances, rounding grows, and float64 shows that it is that
LONG = [("baseline", {}, torch.float32), ("controls", dict(control="gate+norm"), torch.float32),
        ("terms", dict(write="constant"), torch.float32), ("mixed", dict(curvature_mode="fixed", curvature=0.1), torch.float32),
        ("mixed", dict(curvature_mode="random"), torch.float64), ("tau", {}, torch.float64), *(
            pytest.param(*case, marks=pytest.mark.exhaustive) for case in (
                ("mhc", {}, torch.float32),
                ("stereographic", dict(layers="mobius", attention="distance", head="lorentz"), torch.float64)))]


@pytest.mark.parametrize("name, more, dtype", LONG, ids=lambda v: v if isinstance(v, str) else str(v).removeprefix("torch."))
@pytest.mark.parametrize("steps, rates", [(80, (1e-3, 1e-2)), pytest.param(200, (1e-3, 5e-3), marks=pytest.mark.exhaustive)])
def test_losses_of_many_steps_are_those_of_each_run(name, more, dtype, steps, rates):
    """Eight batches over and over, with clipping: the loss falls by a nat."""
    settings = [TrainConfig(learning_rate=lr, warmup_iters=10, max_iters=steps, grad_clip=1.0) for lr in rates]
    members, alone = ([build(name, more, seed, moved=0.0, n_layer=1).to(dtype) for seed in range(2)] for _ in range(2))
    step, _ = stack_of(members, settings)
    others = [make_optimizers(member, config, "cpu") for member, config in zip(alone, settings)]
    found, expected = [], []
    for number in range(steps):
        data = [batch(number % 8 + 8 * n) for n in range(2)]
        step.backward(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))
        step.finish(number)
        found.append(step.read()[0])
        expected.append([])
        for member, mine, config, (x, y) in zip(alone, others, settings, data):
            set_lr(mine, lr_at(number, config))
            loss = member(x, y)[1]
            loss.backward()
            member.end_of_step(lambda tensor: tensor)
            torch.nn.utils.clip_grad_norm_(member.parameters(), config.grad_clip)
            for optimizer in mine:
                optimizer.step()
                optimizer.zero_grad()
            expected[-1].append(loss.item())
    found, expected = torch.tensor(found), torch.tensor(expected)
    assert expected[0, 1] - expected[-8:, 1].mean() > 0.8
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-6)


def test_qk_clip_is_that_of_each_run():
    """Three steps; the logits of each run are beyond the limit in some heads. A run that stands still keeps its weights."""
    settings = configs(optimizer="muon", qk_clip=0.05)
    members, alone = ([build("baseline", dict(bias=True, dropout=0.2), seed) for seed in range(N)] for _ in range(2))
    step, _ = stack_of(members, settings)
    clips = [QKClip(member, 0.05) for member in alone]
    for number in range(3):
        data = [batch(10 * number + n) for n in range(N)]
        step.runs.seed(list(range(N)), number, own=True)
        with torch.no_grad():  # where the weights are; the update is another test's
            for key, p in step.model.named_parameters():
                p.copy_(torch.stack([dict(member.named_parameters())[key] for member in alone]))
        step.backward(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))
        step.weights.gradients.zero_()
        step.weights.update = lambda factors, going: None
        if number == 2:
            step.going[1] = False
        step.finish(number)
        for n, (member, clip, (x, y)) in enumerate(zip(alone, clips, data)):
            seed_micro_batch(n, number)
            member(x, y)
            clip.after_update(lambda tensor: tensor, torch.tensor(float(number == 2 and n == 1)))
            assert step.qk_clip.numbers(n) == pytest.approx(clip.numbers(), rel=1e-5)
            for key, p in member.named_parameters():
                torch.testing.assert_close(dict(step.model.named_parameters())[key][n], p, rtol=1e-6, atol=1e-7)
    assert all(clip.numbers()["qk_clip/clipped_heads"] > 0 for clip in clips)


def test_newton_schulz_of_many_is_that_of_each():
    for shape in ((8, 24), (24, 8), (16, 16)):
        given = torch.randn(4, *shape, generator=torch.Generator().manual_seed(3))
        found = orthogonal(given, (3.4445, -4.7750, 2.0315), 5, 1e-7)
        alone = torch.stack([_zeropower_via_newtonschulz(one.clone(), (3.4445, -4.7750, 2.0315), 5, 1e-7) for one in given])
        assert (found.float() - alone.float()).abs().max() < 0.03  # bf16, five times over
        size = torch.linalg.svdvals(found.float())
        assert size.min() > 0.5 and size.max() < 1.3


def test_a_run_stands_still_from_its_first_bad_step_on():
    """Its weights are those of before the step; the device notes it, whenever the host looks."""
    members = [build("baseline", {}, seed) for seed in range(N)]
    step, _ = stack_of(members, configs())
    for number in range(4):
        x, y = torch.cat([batch(9 * number + n)[0] for n in range(N)]), torch.cat([batch(9 * number + n)[1] for n in range(N)])
        step.backward(x, y)
        if number == 2:
            step.weights.gradients[1, 7] = float("inf")
            before = step.weights.weights.clone()
        step.finish(number)
    assert step.first_bad.tolist() == [-1, 2, -1] and step.going.tolist() == [True, False, True]
    now = step.weights.weights
    assert torch.equal(now[1], before[1]) and not torch.equal(now[0], before[0]) and torch.isfinite(now).all()


def test_a_graph_is_captured_after_some_steps_and_then_repeated_with_new_inputs(monkeypatch):
    """With a GPU that is pretended: what would be captured is not computed then."""
    said, capturing = [], []

    class Graph:
        def replay(self):
            said.append(("replayed", captured.given[0].item()))

    @contextlib.contextmanager
    def graph(of, capture_error_mode):
        capturing.append(of)
        yield
        capturing.pop()
    stream = type("Stream", (), {"wait_stream": lambda self, other: None})
    fakes = dict(Stream=stream, current_stream=stream, stream=lambda s: contextlib.nullcontext(), CUDAGraph=Graph, graph=graph)
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    captured = Captured(lambda x: said.append(("captured" if capturing else "computed", x.item())))
    for number in range(6):
        captured(torch.tensor(number))
    assert said == [("computed", 0), ("computed", 1), ("computed", 2), ("captured", 3), ("replayed", 3), ("replayed", 4), ("replayed", 5)]


# ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, said", [
    (dict(freeze=["*wte*"]), "freeze"), (dict(max_seconds=3.0), "max_seconds"), (dict(dtype="float16"), "float16"), (dict(), None),
    (dict(qk_clip=100.0), None)])
def test_what_cannot_be_stacked_is_a_line(options, said):
    found = stacked.why_not(TrainConfig(device="cpu", **options), models.CONFIGS["baseline"](**TINY))
    assert found is None if said is None else said in found and found.startswith("cannot be stacked: ")
