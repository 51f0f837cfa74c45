"""Options of the mixed model that say how c is parametrised and how rows are kept from the ball's edge."""
import itertools
import math

import pytest
import torch
from conftest import TINY
from test_model_baseline import randomised

import geometry
import model
import models
from common.errors import UserError

NH, C = TINY["n_head"], TINY["n_embd"]
MIXED = [1.0, -0.5, *[2.0] * (NH - 2)][:NH]


def build(**options):
    torch.manual_seed(1)
    return models.build("mixed", models.CONFIGS["mixed"](**TINY, **options))


def gradients(net, tokens):
    net.zero_grad()
    net(*tokens)[1].backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("mode", ["fixed", "parametric", "tied", "random"])
def test_heads_of_both_signs(mode, tokens):
    net, plain = (build(curvature_mode=mode, curvature=0.6, curvature_heads=h) for h in (MIXED, None))
    for block, other in zip(net.transformer.h, plain.transformer.h):
        assert torch.allclose(block.curvature.c.flatten(), other.curvature.c.flatten() * torch.tensor(MIXED))
    assert net.transformer.h[0].curvature.c.min() < 0 < net.transformer.h[0].curvature.c.max()
    with torch.no_grad():
        net.transformer.wte.weight.mul_(50)  # balls' rows to the edge
    assert all(torch.isfinite(g).all() for g in gradients(net, tokens).values())
    x = net.trunk(tokens[0])
    rows = net.transformer.h[-1].heads(x)
    c = net.transformer.h[-1].curvature.c
    assert (c * rows.square().sum(-1, keepdim=True) < 1).all()


def test_c_by_coordinate_is_the_same_ball_for_each_coordinate():
    for per_head, rows in ((True, C // NH), (False, C)):
        net = build(curvature_mode="fixed", curvature=3.0, curvature_unit="coordinate", per_head_curvature=per_head)
        assert torch.allclose(net.transformer.h[0].curvature.c, torch.tensor(3.0 / rows))


@pytest.mark.parametrize("curvature", [0.3, -0.3])
def test_softplus_keeps_the_sign_and_is_the_same_model(curvature, tokens):
    net, plain = (build(curvature_mode="parametric", curvature=curvature, curvature_form=form) for form in ("softplus", "plain"))
    assert torch.allclose(net(*tokens)[0], plain(*tokens)[0], atol=1e-6)
    (theta,), (c,) = ([g for n, g in gradients(m, tokens).items() if "h.0.curvature" in n] for m in (net, plain))
    here = net.transformer.h[0].curvature
    assert torch.allclose(theta, c * torch.sigmoid(here.theta) * math.copysign(1, curvature), rtol=1e-3, atol=1e-9)
    with torch.no_grad():
        here.theta.sub_(1000)
    assert (here.c * curvature >= 0).all() and here.c.abs().max() < 1e-30 and torch.isfinite(net(*tokens)[1])
    again = build(curvature_mode="parametric", curvature=curvature, curvature_form="softplus")
    again.load_state_dict(net.state_dict())
    assert torch.equal(again.transformer.h[0].curvature.c, here.c)


@pytest.mark.parametrize("c", [2.0, 0.1, -0.1, -2.0])
def test_no_row_is_farther_from_the_origin_than_max_distance(c, tokens):
    net = build(curvature_mode="fixed", curvature=c, max_distance=1.5)
    with torch.no_grad():
        net.transformer.wte.weight.mul_(100)
    block = net.transformer.h[0]
    for x in (net.start(tokens[0]), net.trunk(tokens[0])):
        rows = block.heads(x)
        far = geometry.dist(torch.zeros_like(rows), rows, block.curvature.c) * abs(c) ** 0.5
        assert far.max() <= 1.5 * (1 + 1e-4)
    assert far.max() > 1.49  # some are at it
    stats = net.geometry_stats(tokens[0])["block0"]
    assert stats["edge_share"] == 0 and stats["max_distance_share"] > 0
    learned = build(curvature_mode="parametric", curvature=c, max_distance=1.5)
    assert torch.equal(learned(*tokens)[0], build(curvature_mode="fixed", curvature=c, max_distance=1.5)(*tokens)[0])
    far_off = build(curvature_mode="fixed", curvature=c, max_distance=100.0)
    far_off.transformer.wte.weight.data.mul_(100)
    plain = build(curvature_mode="fixed", curvature=c, max_distance=None)
    plain.transformer.wte.weight.data.mul_(100)
    assert c < 0 or torch.equal(far_off(*tokens)[0], plain(*tokens)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("c", [2.0, 0.1, -0.1, -2.0])
@pytest.mark.parametrize("residual", ["origin", "transport"])
def test_no_update_is_as_long_as_max_update(c, residual, dtype):
    """x moves by the geodesic length of exp_0(v), or of exp_x of the transported v: lambda_r |v|."""
    block = build(curvature_mode="fixed", curvature=c, residual=residual, max_distance=None, max_update=0.7).transformer.h[0]
    plain = build(curvature_mode="fixed", curvature=c, residual=residual, max_distance=None).transformer.h[0]
    torch.manual_seed(0)
    x, r, v = (torch.randn(5, NH, C // NH, dtype=torch.float64) * 0.3 / abs(c) ** 0.5 / (C // NH) ** 0.5 for _ in range(3))
    v = v * torch.tensor([1e-3, 0.1, 1, 30, 300]).view(5, 1, 1)  # squares of the last overflow float16
    c = torch.tensor(c, dtype=torch.float64)
    moved = [geometry.dist(x, b.residual(x, r, v.to(dtype).double() if b is plain else v.to(dtype), c, None), c) * abs(c) ** 0.5
             for b in (block, plain)]
    precise = torch.finfo(dtype).eps
    assert (moved[0] < 0.7 * (1 + 4 * precise)).all() and (moved[0][-1] > 0.69).all()
    length = 2 * abs(c) ** 0.5 * v.norm(dim=-1, keepdim=True)
    if residual == "transport":
        length = length * geometry.conformal_factor(r, c) / 2
    assert torch.allclose(moved[0], length / (1 + (length / 0.7) ** 2).sqrt(), rtol=max(1e-6, 4 * precise))
    assert torch.allclose(moved[0][0], moved[1][0], rtol=1e-4 + 4 * precise)  # a short one is as it was


def test_flat_space_has_no_max_distance(tokens):
    net = build(curvature_mode="parametric", curvature=0.0, max_distance=1.5, max_update=0.5)
    assert torch.equal(net(*tokens)[0], build(curvature_mode="parametric", curvature=0.0)(*tokens)[0])
    assert all(torch.isfinite(g).all() for g in gradients(net, tokens).values())


@pytest.mark.parametrize("residual", ["origin", "transport", "reference"])
def test_a_conformal_update_is_shorter_by_its_factor(residual, tokens):
    torch.manual_seed(0)
    block = build(curvature_mode="fixed", curvature=1.0, update_scale="conformal", residual=residual).transformer.h[0]
    plain = build(curvature_mode="fixed", curvature=1.0, residual=residual).transformer.h[0]
    x, r, v = (0.1 * torch.randn(2, 3, NH, C // NH) for _ in range(3))
    c, limit = block.curvature.c, block.limit(block.curvature.c, torch.float32)
    factor = 1 - c * x.square().sum(-1, keepdim=True)
    assert torch.allclose(block.residual(x, r, v, c, limit), plain.residual(x, r, factor * v, c, limit), atol=1e-6)
    on_sphere = model.inverse_conformal_factor(x, torch.tensor(-1.0))
    assert torch.equal(on_sphere, torch.ones_like(on_sphere))


def test_a_straight_projection_has_the_gradient_of_the_sum(tokens):
    block = build(curvature_mode="fixed", curvature=1.0, project_gradient="straight", per_head_curvature=False).transformer.h[0]
    torch.manual_seed(0)
    x = geometry.project(torch.randn(4, 1, C), torch.tensor(1.0)).requires_grad_()
    v, g = torch.randn(4, 1, C), torch.randn(4, 1, C)
    c, limit = block.curvature.c, torch.tensor(0.5)
    out = block.residual(x, None, v, c, limit)
    assert torch.allclose(out.norm(dim=-1), torch.full((4, 1), 0.5))
    got, = torch.autograd.grad(out, x, g)
    wanted, = torch.autograd.grad(geometry.add_exp_0(x, v, c), x, g)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("options", [{}, dict(dynamic_curvature=True), dict(per_head_curvature=False)])
def test_riemannian_gradients_of_embeddings_have_the_balls_metric(options, tokens):
    here, plain = (build(curvature=0.5, embedding_gradient=kind, **options) for kind in ("riemannian", "euclidean"))
    assert torch.equal(here(*tokens)[0], plain(*tokens)[0])
    x = plain.embed(tokens[0]).detach().requires_grad_()
    g = torch.randn_like(x)
    with_metric, = torch.autograd.grad(here.enter(x), x, g)
    without, = torch.autograd.grad(plain.enter(x), x, g)
    block = plain.transformer.h[0]
    rows = block.heads(plain.enter(x).detach())
    factor = model.inverse_conformal_factor(rows, block.curvature_of(plain.enter(x)).detach()).square()
    assert (factor < 1).all()
    assert torch.allclose(with_metric, (block.heads(without) * factor).reshape(x.shape), rtol=1e-5, atol=1e-9)


def test_all_together_train(tokens):
    net = randomised(build(curvature_mode="random", curvature_heads=MIXED, curvature_form="softplus", curvature_unit="coordinate",
                           max_distance=2.0, max_update=1.0, update_scale="conformal", project_gradient="straight",
                           embedding_gradient="riemannian"))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = net(*tokens)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("options,said", [
    (dict(curvature_heads=[1.0]), "n_head"), (dict(curvature_heads=MIXED, per_head_curvature=False), "per_head_curvature"),
    (dict(curvature_heads=[math.nan] * NH), "at most"), (dict(curvature_form="softplus", curvature_mode="fixed"), "learned"),
    (dict(curvature_form="softplus", curvature_mode="parametric", curvature=0.0), "sign"), (dict(max_distance=0.0), "more than 0"),
    (dict(max_distance=math.nan), "more than 0"), (dict(max_update=0.0), "at least 1e-06"), (dict(max_update=math.nan), "at least 1e-06")])
def test_what_cannot_be(options, said):
    with pytest.raises(UserError, match=said):
        models.CONFIGS["mixed"](**{**TINY, **options})


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("max_distance", [None, 1.5])
def test_learned_curvature_crosses_zero(per_head, max_distance, tokens):
    """c is a plain parameter of either sign. An optimizer takes it from 0.02 to -0.02 and back, over 0 itself: at every step the loss moves
    little, and as its gradient says, and every gradient is finite."""
    net = randomised(build(curvature_mode="parametric", per_head_curvature=per_head, max_distance=max_distance)).double()
    with torch.no_grad():
        for block in net.transformer.h:
            block.curvature.c.fill_(0.02)
    c = [block.curvature.c for block in net.transformer.h]
    optimizer, seen = torch.optim.SGD(c, lr=0.0025), []
    for push in [1.0] * 16 + [-1.0] * 16:  # exact steps of 0.0025: the eighth is at 0
        net.zero_grad()
        loss = net(*tokens)[1]
        loss.backward()
        assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
        slope = sum(p.grad.sum().item() for p in c)
        assert all((p.grad != 0).all() for p in c)
        seen.append((c[0].flatten()[0].item(), loss.item(), slope))
        for p in c:
            p.grad.fill_(push)
        optimizer.step()
    values = [value for value, *_ in seen]
    assert max(values) > 0.019 and min(values) < -0.0199 and min(map(abs, values)) < 1e-8
    for (c1, loss1, slope1), (c2, loss2, slope2) in zip(seen, seen[1:]):
        near = max(abs(c1), abs(c2)) < 0.008  # further out rows may reach the edge, where the slope jumps
        predicted = (c2 - c1) * (slope1 + slope2) / 2
        assert loss2 - loss1 == pytest.approx(predicted, **dict(rel=0.02, abs=1e-6) if near else dict(rel=0.05, abs=1e-3))


def test_in_flat_space_there_is_no_distance_to_keep():
    idle = {"max_distance", "max_update", "project_gradient", "curvature_unit", "dynamic_curvature", "use_embedding_curvature"}
    off = lambda **o: idle <= set(model.MixedConfig(**TINY, **o).without_effect())
    assert off(curvature=0.0) and off(curvature_heads=[0.0] * NH)
    assert not off() and not off(curvature=0.0, curvature_mode="parametric") and not off(curvature_heads=[0.0] * (NH - 1) + [1.0])


def test_at_the_origin_a_residual_is_said_to_have_no_effect_where_it_has_none(tokens):
    """residual = 'reference' shortens exp_0(v) to max_distance before it is added."""
    def logits(**options):
        torch.manual_seed(1)
        net = models.build("mixed", model.MixedConfig(**TINY, reference="origin", **options))
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
        return net.double()(*tokens)[0]
    for residual, options in itertools.product(("transport", "reference"), ({}, dict(max_distance=None, curvature=0.3))):
        said = "residual" in model.MixedConfig(**TINY, reference="origin", residual=residual, **options).without_effect()
        apart = (logits(residual=residual, **options) - logits(**options)).abs().max()
        assert said == bool(apart < 1e-6), (residual, options, apart)


def test_on_the_sphere_and_in_flat_space_updates_are_not_scaled():
    off = lambda **o: {"update_scale", "embedding_gradient"} <= set(model.MixedConfig(**TINY, **o).without_effect())
    assert off(curvature=-1.0) and off(curvature=0.0) and off(curvature=1.0, curvature_heads=[-1.0] * NH)
    assert not off() and not off(curvature=-1.0, curvature_heads=MIXED) and not off(curvature=-1.0, curvature_mode="parametric")


@pytest.mark.parametrize("options, advised", [
    (dict(curvature=-1.0), True), (dict(curvature_heads=[1.0, -1.0]), True), (dict(curvature_mode="random", curvature=-1.0), True),
    (dict(curvature_mode="parametric", curvature_initialization=[0.2, -0.7]), True),
    (dict(curvature=-1.0, max_update=0.5), False), (dict(), False), (dict(curvature=-0.1), False), (dict(curvature=0.0), False)])
def test_on_the_sphere_short_updates_are_advised(options, advised):
    lines = build(**options).config.advice()
    assert [("--max_update=0.5" in line) for line in lines] == [True] * advised
