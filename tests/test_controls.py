"""What each mechanism control is. (What it shares with every model: test_models.py.)"""
import pytest
import torch
from test_model_baseline import randomised
from test_models import CONTROLS, build, same_function

import geometry
from training.optimizer import parameter_groups


def parameters(name, **options):
    return sum(p.numel() for p in build(name, options).parameters())


def test_difference_is_the_flat_control(tokens):
    same_function(randomised(build("baseline", dict(token_shift="difference"))), build("controls", dict(control="difference")),
                  tokens)


def test_the_baselines_gate_is_that_of_the_control(tokens):
    gate = randomised(build("controls", dict(control="gate")))
    other = build("baseline", dict(head_gate="read", token_shift="difference"))
    weights = {name.replace("control_", "gate.control_"): tensor for name, tensor in gate.state_dict().items()}
    other.load_state_dict(weights)
    torch.testing.assert_close(other(*tokens)[0], gate(*tokens)[0], rtol=0, atol=0)
    plain = build("baseline", {})
    for place in ("read", "attention"):  # at the start
        torch.testing.assert_close(build("baseline", dict(head_gate=place))(*tokens)[0], plain(*tokens)[0], rtol=1e-6, atol=1e-7)
    assert {n for n, _ in parameter_groups(other)["curvature"]} == {n for n in weights if "control_" in n}


def test_a_gate_of_attention_scales_what_a_head_gives(tokens):
    net = randomised(build("baseline", dict(head_gate="attention"))).double()
    attention, x = net.transformer.h[0].attn, torch.randn(2, 7, 16, dtype=torch.float64)
    factor, gate = attention.gate(x), attention.gate
    q, k, v = (t.view(2, 7, 2, 8).transpose(1, 2) for t in attention.c_attn(x).split(16, -1))
    heads = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = [heads[:, h] * factor[:, :, h] for h in range(2)]
    torch.testing.assert_close(attention(x), attention.c_proj(torch.cat(expected, -1)))
    torch.testing.assert_close(factor[..., 0], gate.control_scale * 2 * torch.sigmoid(gate.control_gate(x)))


def test_a_new_gate_leaves_the_flat_control_as_it_is(tokens):
    flat, gate = build("baseline", dict(token_shift="difference")), build("controls", dict(control="gate"))
    torch.testing.assert_close(gate(*tokens)[0], flat(*tokens)[0], rtol=1e-6, atol=1e-7)


def test_parameters_are_those_of_the_arm_that_each_is_compared_with():
    per_head = parameters("mixed", curvature_mode="random", per_head_curvature=True)
    dynamic = parameters("mixed", curvature_mode="random", per_head_curvature=True, dynamic_curvature=True)
    assert parameters("controls", control="difference") == parameters("baseline")
    for control in ("bound", "norm"):
        assert parameters("controls", control=control) == per_head
    for control in ("gate", "gate+norm"):
        assert parameters("controls", control=control) == dynamic


def test_bound_keeps_heads_in_their_balls_as_project_does(tokens):
    net = build("controls", dict(control="bound"))
    block = net.transformer.h[0]
    x = 3 * torch.randn(4, 5, 16, dtype=torch.float64)
    rows = block.double().bound(x).unflatten(-1, (2, -1))
    radius = block.control_radius.detach()
    norm = rows.norm(dim=-1)
    assert (norm <= radius * (1 + 1e-12)).all()
    c = radius.pow(-2).unsqueeze(-1)
    torch.testing.assert_close(rows, geometry.project(x.unflatten(-1, (2, -1)), c), rtol=1e-6, atol=1e-6)
    assert torch.equal(block.bound(torch.zeros_like(x)), torch.zeros_like(x))
    out = net.float().trunk(tokens[0]).unflatten(-1, (2, -1)).norm(dim=-1)
    assert (out <= net.transformer.h[-1].control_radius * (1 + 1e-5)).all()


def test_bound_starts_where_curvature_does():
    """rho = c^{-1/2} of a c in (0, 1), another one for each head and block."""
    net = build("controls", dict(control="bound"), n_layer=8)
    radii = torch.cat([block.control_radius for block in net.transformer.h])
    assert (radii > 1).all() and len(radii.unique()) == 16 and (radii.pow(-2) < 0.5).any() and (radii.pow(-2) > 0.5).any()


def test_norm_makes_heads_equally_long(tokens):
    net = build("controls", dict(control="norm"))
    block, seen = net.transformer.h[0], []
    x = net.embed(tokens[0]) * torch.linspace(1, 50, 16)  # heads of very different size
    block.read(x, block.factor(x), lambda u: seen.append(u) or u, None, "attn")
    rms = seen[0].unflatten(-1, (2, -1)).square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("control", [o["control"] for _, o in CONTROLS])
def test_the_optimizer_treats_a_controls_numbers_as_curvatures(control):
    groups = parameter_groups(build("controls", dict(control=control)))
    own = {n for n, _ in groups["curvature"]}
    assert bool(own) == (control != "difference") and all("control_" in n for n in own)
    assert not any("control_" in n for kind in ("matrices", "embeddings", "vectors") for n, _ in groups[kind])
