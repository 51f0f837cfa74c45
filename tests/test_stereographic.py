"""Stereographic layers, attention, norm and heads. (What they share with every model: test_models.py.)"""
import math

import geoopt
import mpmath as mp
import oracle as O
import pytest
import torch
from conftest import TINY
from spaces import radius, relative, unit
from test_model_baseline import check_finite_differences, randomised
from test_models import STEREOGRAPHIC, build, same_function
from torch.nn import functional as F

import geometry
import model_stereographic
import stereographic
from common.errors import UserError
from model_baseline import CausalSelfAttention
from stereographic import attention, hyperplanes
from stereographic.head import logits
from stereographic.hyperplanes import arsinc, arsinc_slope, cosh_root, inverse_root, sinhc
from training.optimizer import parameter_groups

CURVATURES = (-0.5, 0.0, 1e-3, 1.0)
CURVED_HEADS = [head for head in stereographic.HEADS if head != "euclidean"]
HEAD_CASES = [(head, c) for head in CURVED_HEADS for c in CURVATURES if c >= 0 or head == "stereographic"]
FLAT = dict(curvature_mode="fixed", curvature=0.0)
PLAIN = dict(**FLAT, reference="origin")  # the baseline
EVERYTHING = dict(layers="mobius", attention="distance", head="stereographic", head_curvature_mode="parametric", head_scale_mode="learned",
                  head_offset=True)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def rows_and_tokens(scale=0.5):
    """h (4, 5), w (6, 5), offsets (6,)."""
    return normal(4, 5, seed=1, scale=scale), normal(6, 5, seed=2), normal(6, seed=3, scale=0.2)


# ----------------------------------------------------------------------------------------------------------------------
# functions of one number

@pytest.mark.parametrize("dtype, digits", [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_analytic_functions_against_60_digits(dtype, digits):
    z = torch.tensor([s * 10.0 ** e for s in (1, -1) for e in (-12, -6, -3, -1.4, -1.3, -1.2, -0.5, -0.01)] + [0.0, 1.0, 50.0, 400.0],
                     dtype=dtype)
    far = torch.cat((z, torch.tensor([1e6, 1e18], dtype=dtype)))

    def exact(f, z):
        return torch.tensor([float(mp.re(f(mp.mpf(v) if v else mp.mpf(10) ** -30))) for v in z.double().tolist()], dtype=torch.float64)
    f, p = arsinc(far), inverse_root(far)
    slope = arsinc_slope(far, f, p)
    series = lambda z: mp.asinh(mp.sqrt(z)) / mp.sqrt(z)  # of complex numbers for z < 0
    for got, expected, bound in ((f, exact(series, far), digits), (p, exact(lambda z: 1 / mp.sqrt(1 + z), far), digits),
                                 (slope, exact(lambda z: mp.diff(series, z, h=mp.mpf(10) ** -20 * (1 + abs(z))), far), 100 * digits),
                                 (sinhc(z), exact(lambda z: mp.sinh(mp.sqrt(z)) / mp.sqrt(z), z), 10 * digits),
                                 (cosh_root(z), exact(lambda z: mp.cosh(mp.sqrt(z)), z), 10 * digits)):
        assert ((got.double() - expected).abs() <= bound * expected.abs()).all()
    assert torch.autograd.gradcheck(lambda z: sinhc(z) * cosh_root(z), z.double().requires_grad_())


# ----------------------------------------------------------------------------------------------------------------------
# heads

@pytest.mark.parametrize("c", [-0.5, -1e-3, 1e-3, 0.3, 1.0])
@pytest.mark.parametrize("with_offset", [False, True])
def test_stereographic_logits_are_geoopts_distances_to_planes(c, with_offset):
    h, w, r = rows_and_tokens(0.3)  # on the sphere none beyond the antipode
    r = r if with_offset else 0 * r
    space = geoopt.Stereographic(k=torch.tensor(-c, dtype=torch.float64), learnable=False)
    x = space.expmap0(h)[:, None]
    p = space.expmap0(r[:, None] * w / w.norm(dim=-1, keepdim=True))
    expected = w.norm(dim=-1) / 2 * space.dist2plane(x, p, w.expand(4, 6, 5), signed=True)
    ours = logits("stereographic", h, w, torch.tensor(c, dtype=torch.float64), r if with_offset else None)
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)


def lorentz_product(a, b):
    return a[1:] @ b[1:] - a[0] * b[0]


@pytest.mark.parametrize("c", [1e-3, 0.3, 5.0])
def test_lorentz_logits_are_made_of_lorentz_products(c):
    h, w, r = rows_and_tokens(3.0)
    k, root = torch.tensor(c, dtype=torch.float64), math.sqrt(c)

    def lifted(y):
        return torch.cat(((1 / c + y @ y).sqrt().view(1), y))
    origin = torch.tensor([1 / root, 0, 0, 0, 0, 0], dtype=torch.float64)
    for i, j in ((0, 0), (1, 3), (3, 5)):
        direction = w[j] / w[j].norm()
        normal_vector = torch.cat((torch.sinh(root * r[j]).view(1), torch.cosh(root * r[j]) * direction))
        point = torch.cat((torch.cosh(root * r[j]).view(1), torch.sinh(root * r[j]) * direction)) / root
        assert abs(lorentz_product(normal_vector, point)) < 1e-12  # the hyperplane goes through r w/|w|
        expected = w[j].norm() / root * torch.asinh(root * lorentz_product(lifted(h[i]), normal_vector))
        torch.testing.assert_close(logits("lorentz", h, w, k, r)[i, j], expected, rtol=1e-10, atol=1e-12)
        expected = lorentz_product(lifted(h[i]) - origin, lifted(w[j]) - origin)
        torch.testing.assert_close(logits("lorentz_product", h, w, k)[i, j], expected, rtol=1e-9, atol=1e-9)


def test_the_two_models_of_hyperbolic_space_have_the_same_hyperplanes():
    """'lorentz' of the space-like part of exp_O(2 h) is twice 'stereographic' of h."""
    h, w, r = rows_and_tokens()
    c = torch.tensor(0.7, dtype=torch.float64)
    s = 2 * c.sqrt() * h.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(logits("lorentz", 2 * torch.sinh(s) / s * h, w, c, 2 * r), 2 * logits("stereographic", h, w, c, r))


@pytest.mark.parametrize("head, c", HEAD_CASES)
def test_gradients_of_logits(head, c):
    h, w, r = (t.requires_grad_() for t in rows_and_tokens())
    kink = c == 0 and head != "stereographic"  # a function of |c|: the derivative there is that of c > 0
    c = torch.tensor(c, dtype=torch.float64, requires_grad=not kink)
    assert torch.autograd.gradcheck(lambda h, w, c: logits(head, h, w, c), (h, w, c))
    assert torch.autograd.gradcheck(lambda h, w, c, r: logits(head, h, w, c, r), (h, w, c, r))
    if kink:
        at, after = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.0, 1e-7))
        slope, = torch.autograd.grad(logits(head, h, w, at, r).sum(), at)
        assert slope.item() == pytest.approx((logits(head, h, w, after, r) - logits(head, h, w, at, r)).sum().item() / 1e-7, rel=1e-4)


@pytest.mark.parametrize("head, c", [(head, c) for head in CURVED_HEADS for c in (-1.0, -1e-12, 0.0, 1e-12, 1.0, 1e6)
                                     if c >= 0 or head == "stereographic"])
@pytest.mark.parametrize("offset", [False, True])
def test_logits_are_finite_for_extreme_rows_and_tokens(head, c, offset):
    scales = torch.tensor([0.0, 1e-30, 1e-10, 1e-3, 1.0, 30.0, 1e4, 1e12])
    h, w = (torch.randn(len(scales), 7, generator=rng(seed)) * scales.unsqueeze(-1) for seed in (0, 1))
    w = torch.cat((w, h[3:6]))  # rows along their tokens
    r = torch.randn(len(w), generator=rng(2)) * 10 if offset else None
    inputs = [t.requires_grad_() for t in (h, w, torch.tensor(c), *([r] if offset else []))]
    out = logits(head, *inputs)
    assert out.isfinite().all()
    for grad in torch.autograd.grad(out.sum(), inputs):
        assert grad.isfinite().all()


def test_float32_logits_are_near_float64_ones():
    h, w, _ = rows_and_tokens(2.0)
    for head, c in [(head, c) for head, c in HEAD_CASES if c > -0.1] + [("stereographic", -0.01)]:
        c = torch.tensor(c)
        ours = logits(head, h.float(), w.float(), c)
        assert relative(ours, logits(head, h.float().double(), w.float().double(), c.double())) < 1e-6


def test_a_head_keeps_no_more_than_one_number_for_each_row_and_token():
    """Beside what a matrix product keeps. (It never makes rows x tokens x width.)"""
    kept = []
    h, w, _ = (t.float().requires_grad_() for t in rows_and_tokens())
    for head in CURVED_HEADS:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            logits(head, h, w, torch.tensor(0.1))
        assert max(kept) <= 30 and sum(n == 24 for n in kept) <= 1, head


@pytest.mark.parametrize("head", CURVED_HEADS)
@pytest.mark.parametrize("offset", [False, True])
def test_at_c_0_every_head_is_the_euclidean_one(head, offset, tokens):
    flat = randomised(build("stereographic", dict(**PLAIN, head_offset=offset)))
    options = dict(**PLAIN, head=head, head_curvature=0.0, head_offset=offset)
    if not offset:
        plain = randomised(build("baseline", {}))
        same_function(plain, build("stereographic", options), tokens)
        assert torch.equal(build("stereographic", options)(*tokens)[0], build("baseline", {})(*tokens)[0])
    same_function(flat, build("stereographic", options), tokens)


def test_what_a_scale_and_an_offset_are(tokens):
    plain = randomised(build("stereographic", PLAIN))
    scaled, learned = (randomised(build("stereographic", dict(**PLAIN, head_scale=4.0, head_scale_mode=m))) for m in ("fixed", "learned"))
    for net in (scaled, learned):
        net.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        learned.lm_head.log_scale.fill_(math.log(4.0))
        learned.transformer.wte.weight.copy_(plain.transformer.wte.weight)
    for net in (scaled, learned):
        torch.testing.assert_close(net(*tokens)[0], 4 * plain(*tokens)[0])
    biased = build("stereographic", dict(**PLAIN, head_offset=True))
    biased.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        biased.lm_head.offset.normal_()
    w = plain.lm_head.weight
    torch.testing.assert_close(biased(*tokens)[0], plain(*tokens)[0] - biased.lm_head.offset * w.norm(dim=-1))


def test_how_heads_start():
    """Tied, and as published: untied, at zero where Euclidean. The rest of the model starts as ever."""
    start = build("baseline", {}).state_dict()
    for head in stereographic.HEADS:
        for init in ("tied", "matched", "published", "zero"):
            net = build("stereographic", dict(head=head, head_tied=init == "tied", head_init="matched" if init == "tied" else init))
            zero = init == "zero" or init == "published" and head == "euclidean"
            w, wte = net.lm_head.weight, net.transformer.wte.weight
            assert (w is wte) == (init == "tied") and (zero or w.std().item() == pytest.approx(0.02, rel=0.1)) and zero == (w == 0).all()
            assert all(torch.equal(net.state_dict()[key], value) for key, value in start.items() if key != "lm_head.weight")


@pytest.mark.parametrize("head", stereographic.HEADS)
def test_a_head_that_starts_at_zero_learns(head, tokens):
    net = build("stereographic", dict(**PLAIN, head=head, head_tied=False, head_init="zero", head_curvature=0.05))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(net(*tokens)[1])
        losses[-1].backward()
        optimizer.step()
    assert losses[0].item() == pytest.approx(math.log(TINY["vocab_size"])) and losses[-1] < losses[0] - 0.3


# ----------------------------------------------------------------------------------------------------------------------
# attention

def curved_points(c, *shape, seed=0, longest=0.9):
    """Points up to 0.9 radii from the origin, on the sphere within its nearer half."""
    g = rng(seed)
    return unit(g, *shape) * torch.rand(*shape[:-1], 1, dtype=torch.float64, generator=g) * longest * radius(c)


@pytest.mark.parametrize("c", [-1.0, -1e-3, 0.0, 1e-3, 1.0])
def test_distances_against_60_digits(c):
    x, y = curved_points(c, 5, 4, seed=1), curved_points(c, 3, 4, seed=2)
    found = stereographic.half_distance2(x, y, torch.tensor(c, dtype=torch.float64))
    for i in range(5):
        for j in range(3):
            expected = (O.dist(O.row(x[i]), O.row(y[j]), mp.mpf(c)) / 2) ** 2
            assert found[i, j].item() == pytest.approx(float(expected), rel=1e-12)


def test_float32_distances_of_neighbours_at_the_edge():
    """Where |x|^2 + |y|^2 - 2<x,y> has no digit left."""
    for fraction, gap in ((0.9, 1e-3), (0.99, 1e-4), (0.999, 1e-4)):
        x = (unit(rng(), 1, 32) * fraction).float()
        y = (x.double() + unit(rng(1), 1, 32) * gap).float()
        expected = (O.dist(O.row(x[0]), O.row(y[0]), mp.mpf(1)) / 2) ** 2
        assert stereographic.half_distance2(x, y, torch.tensor(1.0)).item() == pytest.approx(float(expected), rel=5e-6)
        gram = (x.square().sum() + y.square().sum() - 2 * x[0] @ y[0]).item() / ((1 - x.square().sum()) * (1 - y.square().sum())).item()
        assert abs(gram / float(mp.sinh(mp.sqrt(expected)) ** 2) - 1) > 1e-2


@pytest.mark.parametrize("c", CURVATURES)
def test_gradients_of_attention(c):
    q, k, v = (normal(1, 2, 4, 3, seed=seed, scale=0.4).requires_grad_() for seed in range(3))
    c, beta = (torch.full(shape, value, dtype=torch.float64).requires_grad_() for shape, value in (((2, 1), c), ((2,), 0.7)))
    assert torch.autograd.gradcheck(stereographic.attend, (q[:, :, 2:], k, v, c, beta))
    single = c.detach()[0, 0].requires_grad_()  # one c a block
    assert torch.autograd.gradcheck(lambda q, k, v, c: stereographic.attend(q, k, v, c, beta.detach()), (q, k, v, single))


@pytest.mark.parametrize("c", [-0.5, 1.0])
def test_attention_against_60_digits(c):
    q, k, v = (normal(1, 1, 4, 3, seed=seed, scale=0.4) for seed in range(3))
    beta = 0.7
    found = stereographic.attend(q, k, v, torch.tensor([[c]], dtype=torch.float64), torch.tensor([beta], dtype=torch.float64))
    qs, ks, vs = ([O.exp_0(O.row(row), mp.mpf(c)) for row in t[0, 0]] for t in (q, k, v))
    for i in range(4):
        weights = [mp.exp(-beta * (O.dist(qs[i], ks[j], mp.mpf(c)) / 2) ** 2) for j in range(i + 1)]
        expected = O.log_0(O.gyromidpoint(vs[:i + 1], weights, mp.mpf(c)), mp.mpf(c))
        assert O.relative_error(found[0, 0, i], expected) < 1e-12


class TwinAttention(CausalSelfAttention):
    """-beta |q - k|^2, the mean of values."""

    def __init__(self, config, index=0):
        super().__init__(config, index)
        self.log_beta = torch.nn.Parameter(torch.zeros(config.n_head))

    def attend(self, q, k, v):
        scores = -self.log_beta.exp().view(-1, 1, 1) * (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return torch.softmax(scores.masked_fill(later, -float("inf")), -1) @ v


@pytest.mark.parametrize("options", [{}, dict(qk_norm=True, position="rope", per_head_curvature=False, layers="mobius", bias=True)])
def test_at_c_0_attention_by_distance_is_that_of_flat_space(options, tokens):
    ours = randomised(build("stereographic", dict(**FLAT, attention="distance", **options)))
    other = build("mixed", {**FLAT, **{k: v for k, v in options.items() if k != "layers"}})
    for i, block in enumerate(other.transformer.h):
        block.attn = TwinAttention(other.config, i)
    same_function(ours, other, tokens)


def test_the_scale_of_distances_starts_as_that_of_products():
    """-beta|q - k|^2 = q.k/sqrt(hs) less terms of q and of k alone."""
    layer = build("stereographic", dict(attention="distance")).transformer.h[0].attn
    assert layer.log_beta.exp().tolist() == pytest.approx([1 / (2 * math.sqrt(8))] * 2)


@pytest.mark.parametrize("c", [-1.0, -1e-12, 0.0, 1e-12, 1.0, 1e6])
def test_attention_is_finite_for_extreme_rows(c):
    scales = torch.tensor([0.0, 1e-30, 1e-8, 1e-3, 1.0, 1e3, 1e12, 1e38, 1.0, 3e38])
    q, k, v = (torch.randn(1, 2, len(scales), 8, generator=rng(seed)).clamp(-1, 1) * scales.unsqueeze(-1) for seed in range(3))
    k[:, :, 4] = -q[:, :, 4]  # antipodes, on the sphere
    k[:, :, 3] = q[:, :, 3]
    inputs = [t.requires_grad_() for t in (q, k, v, torch.full((2, 1), c), torch.tensor([0.1, 10.0]))]
    y = stereographic.attend(*inputs)
    assert y.isfinite().all()
    for grad in torch.autograd.grad(y.clamp(-1e10, 1e10).sum(), inputs):
        assert grad.isfinite().all()


def test_the_work_in_parts_is_that_in_one(monkeypatch):
    """As eager code does it with many rows and tokens, or pairs."""
    h, w, r = rows_and_tokens()
    q, k, v = (normal(2, 3, 4, 3, seed=seed, scale=0.4) for seed in range(3))
    found = []
    for part in (100, 1, 3):
        slices = lambda rows, width, device: [slice(first, first + part) for first in range(0, rows, part)]
        monkeypatch.setattr(hyperplanes, "chunks", slices)
        monkeypatch.setattr(attention, "chunks", slices)
        leaves = [t.clone().requires_grad_() for t in (h, w, torch.tensor(0.3, dtype=torch.float64), r)]
        others = [t.clone().requires_grad_() for t in (q, k, v, torch.full((3, 1), 0.3, dtype=torch.float64), torch.ones(3).double())]
        out = logits("stereographic", *leaves).square().sum() + stereographic.attend(*others).square().sum()
        found.append((out, *torch.autograd.grad(out, leaves + others)))
    for whole, *parts in zip(*found):
        for each in parts:
            torch.testing.assert_close(each, whole)


# ----------------------------------------------------------------------------------------------------------------------
# layers and norm

@pytest.mark.parametrize("c", CURVATURES)
def test_a_translation_is_the_mobius_sum(c):
    u, b = normal(4, 3, seed=1, scale=0.5), normal(3, seed=2, scale=0.5)
    curvature = torch.tensor(c, dtype=torch.float64)
    for row, found in zip(u, stereographic.translate(u, b, curvature)):
        exact = mp.mpf(c)
        expected = O.log_0(O.mobius_add(O.exp_0(O.row(row), exact), O.exp_0(O.row(b), exact), exact), exact)
        assert O.relative_error(found, expected) < 1e-12
    per_head = curvature.expand(2, 1).clone().requires_grad_()
    rows, biases = normal(2, 3, 2, 3, seed=3, scale=0.5).requires_grad_(), normal(2, 3, seed=4, scale=0.5).requires_grad_()
    assert torch.autograd.gradcheck(stereographic.translate, (rows, biases, per_head))


def test_a_long_row_is_bounded_by_the_ball():
    """The one thing beside biases in which a Mobius layer differs: 5.2 / sqrt(c), as stereographic/layers.py says."""
    c, u = torch.tensor(0.25), torch.tensor([[3.0, 4.0], [30.0, 40.0]])
    bounded = stereographic.translate(u, torch.zeros(2), c).norm(dim=-1)
    assert bounded.tolist() == pytest.approx([5.0, 5.2 / 0.5], rel=1e-2)


def literal_mlp(mlp, p, c, heads):
    """Ganea et al.'s, point by point: every map and its inverse."""
    def linear(layer, p):
        u = F.linear(geometry.log_0(p, c).flatten(-2), layer.weight).unflatten(-1, (heads, -1))
        return geometry.mobius_add(geometry.exp_0(u, c), geometry.exp_0(layer.bias.view(heads, -1), c), c)
    hidden = linear(mlp.c_fc, p)
    return linear(mlp.c_proj, geometry.exp_0(F.gelu(geometry.log_0(hidden, c)), c))


def test_a_mobius_mlp_is_that_of_points_and_without_biases_the_euclidean_one():
    net = randomised(build("stereographic", dict(layers="mobius")), scale=0.1).double()
    plain = build("mixed", {}).double()
    plain.load_state_dict(net.state_dict(), strict=False)
    block, mlp = net.transformer.h[0], net.transformer.h[0].mlp
    u, c = normal(2, 5, 16, seed=4, scale=0.3), block.curvature.c.detach()
    points = geometry.exp_0(block.heads(u), c)
    torch.testing.assert_close(geometry.exp_0(block.heads(mlp(u)), c), literal_mlp(mlp, points, c, 2), rtol=1e-9, atol=1e-11)
    euclidean = plain.transformer.h[0].mlp(u)
    assert relative(mlp(u), euclidean) > 1e-2
    with torch.no_grad():
        mlp.c_fc.bias.zero_()
        mlp.c_proj.bias.zero_()
    torch.testing.assert_close(mlp(u), euclidean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(literal_mlp(mlp, points, c, 2), geometry.exp_0(block.heads(euclidean), c), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [dict(layers="mobius", bias=True), dict(layers="mobius", bias=True, per_head_curvature=False),
                                     dict(norm="stereographic"), dict(norm="stereographic", dynamic_curvature=True)])
def test_at_c_0_layers_and_norm_are_the_mixed_models(options, tokens):
    plain = {k: v for k, v in options.items() if k not in ("layers", "norm")}
    same_function(randomised(build("mixed", {**FLAT, **plain})), build("stereographic", {**FLAT, **options}), tokens)


def test_mobius_layers_start_as_the_mixed_models(tokens):
    torch.testing.assert_close(build("stereographic", dict(layers="mobius"))(*tokens)[0], build("mixed", {})(*tokens)[0])


def test_a_layer_reads_a_point(tokens):
    net = randomised(build("stereographic", dict(norm="stereographic")))
    plain = build("mixed", {})
    plain.load_state_dict(net.state_dict())
    x = net.start(tokens[0])
    block, other = net.transformer.h[0], plain.transformer.h[0]
    c = block.curvature.c
    u = other.read(x, None, c, other.ln_1)
    torch.testing.assert_close(block.heads(block.read(x, None, c, block.ln_1)), geometry.project(geometry.exp_0(block.heads(u), c), c))
    geometry.check(block.heads(block.read(x, None, c, block.ln_1)), c)
    mobius = build("stereographic", dict(layers="mobius", norm="stereographic"))
    assert torch.equal(mobius(*tokens)[0], build("stereographic", dict(layers="mobius"))(*tokens)[0])
    assert "norm" in mobius.config.without_effect()


# ----------------------------------------------------------------------------------------------------------------------
# the model

def test_by_default_it_is_the_mixed_model(tokens):
    same_function(randomised(build("mixed", {})), build("stereographic", {}), tokens)


@pytest.mark.parametrize("curvature", [-0.5, 0.7])
def test_gradients_agree_with_finite_differences(curvature, tokens):
    for name, options in STEREOGRAPHIC:
        options = {**options, "curvature_mode": "parametric", "curvature": curvature}
        check_finite_differences(randomised(build(name, options), scale=0.05), tokens, options)


def test_the_pieces_compile_to_one_graph():
    """Forward and backward, as eager mode computes them. (Whole models, which take half a minute: test_every_configuration.py.)"""
    torch._dynamo.reset()
    c, small = torch.full((2, 1), 0.3), lambda *shape, seed: normal(*shape, seed=seed, scale=0.4).float()
    q, k, v = (small(1, 2, 4, 3, seed=seed) for seed in range(3))
    h, w, r = (t.float() for t in rows_and_tokens())
    for f, inputs in ((lambda *all: stereographic.attend(*all), (q, k, v, c, torch.ones(2))),
                      (lambda *all: stereographic.translate(*all), (small(4, 2, 3, seed=0), small(2, 3, seed=1), c)),
                      (lambda *all: logits("stereographic", *all), (h, w, c[0, 0], r))):
        found = []
        for run in (f, torch.compile(f, fullgraph=True, dynamic=False, backend="eager")):
            leaves = [t.clone().requires_grad_() for t in inputs]
            out = run(*leaves)
            found.append((out.detach(), *torch.autograd.grad(out.square().sum(), leaves)))
        for eager, traced in zip(*found):
            torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-6)


def test_what_is_learned_moves_and_a_heads_curvature_crosses_zero(tokens):
    net = build("stereographic", dict(EVERYTHING, head_curvature=0.0))
    own = [name for name, _ in net.named_parameters() if name.startswith("lm_head.") or "log_beta" in name or name.endswith("c_fc.bias")]
    assert len(own) == 3 + 2 + 2
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(3):
        optimizer.zero_grad()
        net(*tokens)[1].backward()
        optimizer.step()
    for name in own:
        assert (net.get_parameter(name) != before[name]).all(), name
    for head in CURVED_HEADS:
        for c in (0.0, -0.01, 0.01):  # a hyperboloid's learned c counts by its size
            h, w, _ = rows_and_tokens()
            k = torch.tensor(c, dtype=torch.float64, requires_grad=True)
            slope, = torch.autograd.grad(logits(head, h, w, k).square().sum(), k)
            assert slope.abs() > 1e-6
            if head != "stereographic":
                torch.testing.assert_close(logits(head, h, w, k), logits(head, h, w, -k))


def test_parameters_and_their_groups():
    plain = {name: p.shape for name, p in build("mixed", {}).named_parameters()}
    for options in (dict(norm="stereographic"), *[dict(head=head) for head in CURVED_HEADS]):
        assert {name: p.shape for name, p in build("stereographic", options).named_parameters()} == plain
    groups = parameter_groups(build("stereographic", dict(EVERYTHING, head_tied=False)))
    assert "lm_head.curvature" in [name for name, _ in groups["curvature"]]
    assert "lm_head.weight" in [name for name, _ in groups["embeddings"]]
    assert {"lm_head.offset", "lm_head.log_scale", "transformer.h.0.attn.log_beta", "transformer.h.0.mlp.c_fc.bias"} <= {
        name for name, _ in groups["vectors"]}


def test_telemetry(tokens):
    net = build("stereographic", dict(EVERYTHING, head_scale=2.0, head_curvature=0.25, curvature_mode="fixed", curvature=0.5,
                                      dropout=0.5))
    found = net.train().telemetry(tokens[0])
    assert net.training and found == net.telemetry(tokens[0]) and all(math.isfinite(value) for value in found.values())
    assert found["geometry/head/curvature"] == 0.25 and found["geometry/head/scale"] == pytest.approx(2.0)
    assert found["geometry/head/row"] == pytest.approx(0.5 * 4, rel=2e-2) and found["geometry/head/offset"] == 0  # LayerNorm: sqrt(16)
    for i in range(2):
        of = {name: found[f"geometry/block{i}/{name}"] for name in ("beta", "score", "value_norm", "midpoint_norm", "edge_share")}
        assert of["beta"] == pytest.approx(1 / (2 * math.sqrt(8))) and of["score"] > 0 and 0 < of["midpoint_norm"] < of["value_norm"] < 1
        assert found[f"geometry/block{i}/hidden_edge_share"] == 0
    assert all(not {"attend", "_forward_hooks"} & {k for k, v in vars(block.attn).items() if v} for block in net.transformer.h)
    assert not any("head/" in name for name in build("stereographic", {}).telemetry(tokens[0]))
    with torch.no_grad():
        net.transformer.h[1].mlp.c_fc.weight.mul_(1e4)
    stats = net.geometry_stats(tokens[0])
    assert stats["block1"]["hidden_edge_share"] > 0.9 and stats["block0"]["hidden_edge_share"] == 0


@pytest.mark.parametrize("options, message", [
    (dict(head="lorentz", head_curvature=-0.1), "is in hyperbolic space"),
    (dict(head="lorentz_product", head_curvature=-0.1), "at least 0"),
    (dict(head_scale=0.0), "head_scale = 0"), (dict(head_init="zero"), "needs head_tied = False"),
    (dict(head_curvature=1e31), "at most 1e\\+20"), (dict(ops="triton"), "is for the model 'mixed'")])
def test_combinations_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        model_stereographic.StereographicConfig(**TINY, **options)


def test_keys_without_effect():
    off = lambda **o: set(model_stereographic.StereographicConfig(**TINY, **o).without_effect())
    assert {"head_curvature", "head_curvature_mode"} <= off()
    assert "curvature_lr_mult" in off(**FLAT, head="lorentz")
    assert "curvature_lr_mult" not in off(**FLAT, head="lorentz", head_curvature_mode="parametric")
    assert "head_curvature" not in off(head="stereographic")


def test_how_far_out_the_points_are_that_layers_read(tokens):
    """norm = 'stereographic': exp_0 of rows of length sqrt(hs), that is tanh(sqrt(8)) at c = 1 in one ball; nothing else is changed."""
    net = build("stereographic", dict(norm="stereographic", curvature=1.0, per_head_curvature=False), n_head=1)
    plain = build("stereographic", dict(curvature=1.0, per_head_curvature=False), n_head=1).geometry_stats(tokens[0])
    stats = net.geometry_stats(tokens[0])
    for block in ("block0", "block1"):
        for layer in ("attn", "mlp"):
            assert stats[block][f"read_norm_{layer}"] == pytest.approx(math.tanh(math.sqrt(TINY["n_embd"])), abs=2e-3)
        assert stats[block].keys() - plain[block].keys() == {"read_norm_attn", "read_norm_mlp"}
    assert not any("read" in vars(block) for block in net.transformer.h)


def test_layers_have_two_names():
    config = model_stereographic.StereographicConfig
    assert config(**TINY, layers="stereographic") == config(**TINY, layers="mobius")
