"""What each term of curvature is. (What it shares with every model: test_models.py.)"""
import math

import pytest
import torch
from test_model_baseline import randomised
from test_models import TERMS, build, same_function

import geometry
import model_terms
from common.errors import UserError
from training.optimizer import parameter_groups

C = 0.25  # float32 has it exactly


def rows(n=200, D=8, longest=0.98):
    """x in the ball of C, v of all lengths, in float64; one x and one v are 0."""
    g = torch.Generator().manual_seed(0)
    x, v = (torch.randn(n, D, dtype=torch.float64, generator=g) for _ in range(2))
    length = torch.linspace(0, longest, n, dtype=torch.float64)[torch.randperm(n, generator=g)].unsqueeze(-1)
    x = x / x.norm(dim=-1, keepdim=True) * length * C ** -0.5
    v[0] = 0
    return x, v * torch.logspace(-3, 0.5, n, dtype=torch.float64).unsqueeze(-1)


@pytest.mark.parametrize("bias", [False, True])
def test_all_terms_together_are_the_mixed_model(bias, tokens):
    options = dict(curvature=C, bias=bias)
    terms = randomised(build("terms", dict(read="log", write="mobius", **options)))
    same_function(terms, build("mixed", dict(curvature_mode="fixed", max_distance=None, **options)), tokens)


@pytest.mark.parametrize("distance", [0.7, 1.5])
def test_all_terms_together_are_the_mixed_model_with_its_max_distance(distance, tokens):
    """Embeddings and rows that are longer than it, so that it is at work."""
    options = dict(curvature=C, max_distance=distance)
    terms = randomised(build("terms", dict(read="log", write="mobius", **options)), scale=0.5)
    same_function(terms, build("mixed", dict(curvature_mode="fixed", **options)), tokens)
    longest = terms.trunk(tokens[0]).unflatten(-1, (2, 8)).norm(dim=-1).max().item()
    assert longest == pytest.approx(math.tanh(distance / 2) / C ** 0.5, rel=1e-4)
    far, without = (build("terms", dict(read="log", write="mobius", curvature=C, max_distance=d)) for d in (100.0, None))
    far.load_state_dict(terms.float().state_dict())
    without.load_state_dict(terms.state_dict())
    assert torch.equal(far(*tokens)[0], without(*tokens)[0])  # beyond the edge it is the ball
    with pytest.raises(UserError, match="max_distance = -1: must be more than 0"):
        model_terms.TermsConfig(max_distance=-1)
    assert "max_distance" in model_terms.TermsConfig(ball=False, max_distance=1.5).without_effect()


def test_no_term_at_all_is_the_flat_control_in_a_ball(tokens):
    same_function(randomised(build("baseline", dict(token_shift="difference"))), build("terms", dict(curvature=1e-9)), tokens)
    bound = randomised(build("controls", dict(control="bound")), scale=0.5)
    for block in bound.transformer.h:
        block.control_radius = torch.nn.Parameter(geometry.max_norm(torch.tensor([C, C], dtype=torch.float64), torch.float64))
    other = build("terms", dict(curvature=C)).double()
    other.load_state_dict(dict(bound.state_dict()), strict=False)
    torch.testing.assert_close(other(*tokens)[0], bound.double()(*tokens)[0], rtol=1e-9, atol=1e-12)
    assert (other.trunk(tokens[0]).unflatten(-1, (2, 8)).norm(dim=-1) > 1.99).any()  # of 2


@pytest.mark.parametrize("read", ["log", "length", "direction"])
@pytest.mark.parametrize("write", ["mobius", *model_terms.PARTS])
def test_without_curvature_every_term_is_flat(read, write, tokens):
    flat, curved = build("baseline", dict(token_shift="difference")), build("terms", dict(read=read, write=write, curvature=1e-12))
    torch.testing.assert_close(curved(*tokens)[0], flat(*tokens)[0], rtol=1e-5, atol=1e-6)


def test_alpha_and_beta_are_those_of_the_sum():
    x, v = rows()
    alpha, beta = model_terms.coefficients(x, v, C, "mobius")
    torch.testing.assert_close(alpha * x + beta * v, geometry.add_exp_0(x, v, C), rtol=1e-9, atol=1e-12)
    one, only_beta = model_terms.coefficients(x, v, C, "beta")
    only_alpha, also_one = model_terms.coefficients(x, v, C, "alpha")
    assert one == also_one == 1 and torch.equal(only_alpha, alpha) and torch.equal(only_beta, beta)


def test_each_part_is_the_limit_in_which_the_others_vanish():
    x, v = rows()
    small = 1e-6
    across = v - (v * x).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True).clamp(min=1e-30) * x  # no angle
    for part, (a, b) in dict(x=(x, small * across), v=(small * x, across), norms=(x, across)).items():
        for mine, whole in zip(model_terms.coefficients(a, b, C, part), model_terms.coefficients(a, b, C, "mobius")):
            torch.testing.assert_close(torch.as_tensor(mine, dtype=torch.float64).expand_as(whole), whole, rtol=1e-9, atol=1e-9)
    # to first order in <x,v>: what the sum's beta has more than its limits in |x| and |v|
    x, v = 1e-3 * x, 1e-3 * v
    beta, x_part, v_part, angle = (model_terms.coefficients(x, v, C, part)[1] for part in ("mobius", "x", "v", "xv"))
    torch.testing.assert_close(beta - 1, (x_part - 1) + (v_part - 1) + (angle - 1), rtol=1e-4, atol=1e-14)
    assert (angle != 1).sum() >= 198
    x, v = rows(longest=0.999)
    assert (model_terms.coefficients(x, 1e3 * v, C, "xv")[1] >= 0).all()


def test_length_and_direction_are_the_two_halves_of_log():
    x, r = rows()
    r = geometry.project(0.3 * r, C)
    block = build("terms", dict(curvature=C)).transformer.h[0]
    made = {}
    for read in ("flat", "log", "length", "direction"):
        block.config.read = read
        made[read] = block.tangent(x, r, 0)
    norm = {read: u.norm(dim=-1) for read, u in made.items()}
    unit = {read: u / norm[read].unsqueeze(-1) for read, u in made.items()}
    for read, (length, direction) in dict(length=("log", "flat"), direction=("flat", "log")).items():
        torch.testing.assert_close(norm[read], norm[length])
        torch.testing.assert_close(unit[read], unit[direction])
    assert (unit["log"] * unit["flat"]).sum(-1).min() < 0.99 and (norm["log"] / norm["flat"]).std() > 0.1
    block.config.read = "length"
    same = x[:3].requires_grad_()
    block.tangent(same, same.detach(), 0).sum().backward()
    assert torch.isfinite(same.grad).all()


def test_parameters_are_the_baselines_but_for_the_constants():
    plain = sum(p.numel() for p in build("baseline", {}).parameters())
    for name, options in TERMS:
        net = build(name, options)
        own = {"control_write": 2 * 2 * 2} if options.get("write") == "constant" else {}  # heads, sub-layers, alpha and beta
        own |= {"control_read": 2 * 2} if options.get("read") in ("weighted", "likeness") else {}
        own |= {"control_likeness": 2 * 2} if options.get("read") == "likeness" else {}
        assert sum(p.numel() for p in net.parameters()) == plain + 2 * sum(own.values())
        assert {n for n, _ in parameter_groups(net)["curvature"]} == {f"transformer.h.{i}.{name}" for i in range(2) for name in own}


def test_a_weight_of_the_previous_token(tokens):
    """1 is the flat control, 0 a plain GPT, and among rows of one length a w for each token is log's direction."""
    for w, shift in ((1.0, "difference"), (0.0, "none")):
        weighted = build("terms", dict(read="weighted", ball=False))
        for block in weighted.transformer.h:
            assert (block.control_read == 1).all()
            torch.nn.init.constant_(block.control_read, w)
        same_function(randomised(build("baseline", dict(token_shift=shift))), weighted, tokens)
    x, r = (0.6 * C ** -0.5 * row / row.norm(dim=-1, keepdim=True) for row in torch.randn(2, 50, 8, dtype=torch.float64))
    w = (1 - 2 * C * (x * r).sum(-1, keepdim=True) + C * (r * r).sum(-1, keepdim=True)) / (1 - C * (r * r).sum(-1, keepdim=True))
    u, log = x - w * r, geometry.logmap(r, x, C)
    torch.testing.assert_close(u / u.norm(dim=-1, keepdim=True), log / log.norm(dim=-1, keepdim=True))
    assert (w > 1).all() and w.max() > 2
    block = build("terms", dict(read="likeness")).double().transformer.h[0]
    assert torch.equal(block.tangent(x.unsqueeze(1), r.unsqueeze(1), 0)[:, 0], x - r)  # as it starts
    with torch.no_grad():
        square = 0.36  # c |r|^2
        block.control_likeness.fill_(2 * square / (1 - square))
        torch.testing.assert_close(block.tangent(x.unsqueeze(1), r.unsqueeze(1), 1)[:, 0], u)
    for read in ("likeness", "cosine"):  # the same as a key: where it starts, or fixed
        block = build("terms", dict(read=read, likeness=2 * square / (1 - square))).double().transformer.h[0]
        torch.testing.assert_close(block.tangent(x.unsqueeze(1), r.unsqueeze(1), 0)[:, 0], u)
    assert math.cosh(2 * math.atanh(square ** 0.5)) - 1 == pytest.approx(2 * square / (1 - square))  # of a row at that distance
    assert "likeness" in model_terms.TermsConfig(read="weighted", likeness=1.0).without_effect()


def test_a_plain_gpt_and_its_limited_updates(tokens):
    """The baseline is an arm, too; 'limit' shortens updates to tanh(sqrt(c)|v|)/sqrt(c)."""
    same_function(randomised(build("baseline", {})), build("terms", dict(read="row", ball=False)), tokens)
    x, v = rows()
    written = build("terms", dict(write="limit", curvature=C, ball=False)).transformer.h[0].written(x, v, 0)
    torch.testing.assert_close((written - x).norm(dim=-1), torch.tanh(C ** 0.5 * v.norm(dim=-1)) / C ** 0.5)
    torch.testing.assert_close((written - x)[1:] / (written - x)[1:].norm(dim=-1, keepdim=True), v[1:] / v[1:].norm(dim=-1, keepdim=True))
    torch.testing.assert_close(model_terms.coefficients(x, v, C, "v")[1], model_terms.coefficients(x, v, C, "limit")[1])
    assert "curvature" in model_terms.TermsConfig(ball=False).without_effect()
    with pytest.raises(UserError, match="need rows in the ball"):
        model_terms.TermsConfig(ball=False, read="log")


def test_weighing_by_the_update_s_length_is_a_limit_of_half_as_much():
    """Of rows that are kept at one length alpha is idle, and beta / alpha v is v, limited: at most 1/2 long where `limit` lets it be 1."""
    x, v = rows()
    x, v, length = x[1:], v[1:], v[1:].norm(dim=-1, keepdim=True)
    alpha, beta = model_terms.coefficients(x, v, C, "v")
    limited = torch.tanh(2 * C ** 0.5 * length) / (2 * C ** 0.5) * v / length
    torch.testing.assert_close((alpha * x + beta * v) / alpha, x + limited)
    X = C * (x * x).sum(-1, keepdim=True)  # all of (+), where x and v are at right angles: less by 1 - X
    v = v - (v * x).sum(-1, keepdim=True) / (x * x).sum(-1, keepdim=True).clamp(min=1e-12) * x
    alpha, beta = model_terms.coefficients(x, v, C, "mobius")
    length = v.norm(dim=-1, keepdim=True)
    limited = (1 - X) * torch.tanh(2 * C ** 0.5 * length) / (2 * C ** 0.5) * v / length
    torch.testing.assert_close((alpha * x + beta * v) / alpha, x + limited)


def test_constants_start_as_flat_ones(tokens):
    torch.testing.assert_close(build("terms", dict(write="constant"))(*tokens)[0], build("terms", {})(*tokens)[0])


def test_telemetry(tokens):
    net = randomised(build("terms", dict(read="log", write="mobius", curvature=C)), scale=1.0)
    stats = net.geometry_stats(tokens[0])
    assert set(stats) == {"block0", "block1"}
    for values in stats.values():
        assert 0 <= values["edge_share"] <= 1 and 0 < values["radius"] <= 1 and values["update"] > 0 and abs(values["cosine"]) <= 1
        assert values["alpha"] > 0 and 0 < values["beta"] < 1 and values["beta_std"] > 0
    flat = randomised(build("terms", dict(curvature=1e-9))).geometry_stats(tokens[0])["block1"]
    assert flat["alpha"] == pytest.approx(1) and flat["beta"] == pytest.approx(1) and flat["edge_share"] == 0


@pytest.mark.parametrize("c", [0.0, -0.1, float("nan"), float("inf")])
def test_a_ball_needs_a_positive_curvature(c):
    with pytest.raises(UserError, match="a ball needs one of more than 0"):
        model_terms.TermsConfig(curvature=c)
