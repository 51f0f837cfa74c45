"""The Euclidean GPT against an independent one, and what it shares with every other model."""
import math

import pytest
import torch
from conftest import TINY
from torch.nn import functional as F

import geometry
import model_terms
from common.errors import UserError
from geometry import flat
from model_baseline import GPT, LONGEST_ROW, BaselineConfig, bounded_sum, sample_token


def randomised(model, seed=0, scale=0.2):
    """Every parameter moved off its starting value, so that no gradient is zero by construction. At the default scale
    many rows of a model with c = 1 are at the ball's edge, at 0.05 few are."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=g))
    return model


def check_finite_differences(net, tokens, what):
    """The gradient of a model's loss in float64, along a random direction in all parameters at once. Spoils the model."""
    net = net.double()
    direction = [torch.randn_like(p) for p in net.parameters()]
    net(*tokens)[1].backward()
    slope = sum((p.grad * d).sum() for p, d in zip(net.parameters(), direction)).item()
    losses = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(net.parameters(), direction):
                p.add_(step * d)
        losses.append(net(*tokens)[1].item())
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(slope, rel=2e-5, abs=1e-6), what


@pytest.mark.parametrize("bias", [True, False])
def test_logits_loss_and_gradients_are_those_of_the_published_gpt2(bias, tokens):
    """transformers' GPT-2 with exact GELU is the function that nanoGPT loads its weights from."""
    from transformers import GPT2Config, GPT2LMHeadModel
    ours = randomised(GPT(BaselineConfig(**TINY, bias=bias)))
    theirs = GPT2LMHeadModel(GPT2Config(
        vocab_size=TINY["vocab_size"], n_positions=TINY["block_size"], n_embd=TINY["n_embd"], n_layer=TINY["n_layer"],
        n_head=TINY["n_head"], activation_function="gelu", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        layer_norm_epsilon=1e-5)).eval()
    weights = {}
    for name, tensor in theirs.state_dict().items():
        own = ours.state_dict().get(name)
        if own is None:
            assert not bias and name.endswith("bias")
            weights[name] = torch.zeros_like(tensor)
        else:  # GPT-2 keeps its Linear weights transposed (Conv1D)
            weights[name] = own.t() if own.dim() == 2 and own.shape == tensor.t().shape and "c_" in name else own
    theirs.load_state_dict(weights)
    idx, targets = tokens
    logits, loss = ours(idx, targets)
    expected = theirs(idx).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    expected_loss = F.cross_entropy(expected.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected_loss.backward()
    torch.testing.assert_close(ours.transformer.wte.weight.grad, theirs.transformer.wte.weight.grad, rtol=1e-4, atol=1e-6)


def test_rotated_and_normed_attention_is_that_of_qwen3(tokens):
    """With a cache, too: positions go on where it ends."""
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RotaryEmbedding
    ours = randomised(GPT(BaselineConfig(**TINY, position="rope", qk_norm=True))).transformer.h[1].attn
    C, nh = TINY["n_embd"], TINY["n_head"]
    config = Qwen3Config(hidden_size=C, num_attention_heads=nh, num_key_value_heads=nh, head_dim=C // nh, attention_bias=False,
                         rms_norm_eps=torch.finfo(torch.float32).eps, attn_implementation="eager")
    theirs = Qwen3Attention(config, layer_idx=0)
    q, k, v = ours.c_attn.weight.detach().chunk(3)
    theirs.load_state_dict({"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "o_proj.weight": ours.c_proj.weight.detach(),
                            "q_norm.weight": ours.queries_and_keys.q_gain.detach(), "k_norm.weight": ours.queries_and_keys.k_gain.detach()})
    x = torch.randn(3, 12, C, generator=torch.Generator().manual_seed(0))
    places = Qwen3RotaryEmbedding(config)(x, torch.arange(12)[None])
    later = torch.full((12, 12), -torch.inf).triu(1)[None, None]
    expected = theirs(x, places, later)[0]
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)
    state = {}
    parts = [ours(part, state) for part in x.split((5, 4, 1, 1, 1), 1)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-5)


def test_initial_weights_have_the_published_spread():
    torch.manual_seed(0)
    model = GPT(BaselineConfig(vocab_size=500, block_size=64, n_layer=4, n_head=2, n_embd=128, bias=True))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all()
        elif "ln_" in name:
            assert (p == 1).all()
        else:
            std = 0.02 / (2 * 4) ** 0.5 if name.endswith("c_proj.weight") else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.05), name


def test_the_output_head_is_the_token_embedding():
    model = GPT(BaselineConfig(**TINY))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert sum(p is model.lm_head.weight for p in model.parameters()) == 1


def test_difference_reads_the_step_from_the_previous_token(tokens):
    """Against the formula, written out for one block without cache."""
    model = randomised(GPT(BaselineConfig(**{**TINY, "n_layer": 1}, token_shift="difference")))
    idx, targets = tokens
    block = model.transformer.h[0]
    x = model.transformer.wte(idx) + model.transformer.wpe(torch.arange(idx.size(1)))
    for norm, layer in ((block.ln_1, block.attn), (block.ln_2, block.mlp)):
        before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)
        x = x + layer(norm(x - before))
    torch.testing.assert_close(model(idx, targets)[0], model.lm_head(model.transformer.ln_f(x)))


def test_likeness_reads_log_s_direction_of_rows_of_one_length():
    """At c = 1, 1.5 from the origin, against geometry's own map; the first token's reference is the origin, where both are the row."""
    torch.manual_seed(0)
    config = BaselineConfig(**TINY, token_shift="likeness", bounded_rows=True)
    block = GPT(config).transformer.h[0]
    x = flat.bound(1e3 * torch.randn(2, 9, TINY["n_head"], TINY["n_embd"] // TINY["n_head"], dtype=torch.float64), LONGEST_ROW)
    torch.testing.assert_close(geometry.dist(torch.zeros_like(x), x, 1.0).squeeze(-1), torch.full(x.shape[:-1], 1.5, dtype=x.dtype))
    u = block.layer_input(x.flatten(-2), None, "attn").unflatten(-1, x.shape[-2:])
    log = geometry.logmap(F.pad(x, (0, 0, 0, 0, 1, -1)), x, 1.0)
    torch.testing.assert_close(F.normalize(u, dim=-1), F.normalize(log, dim=-1))


@pytest.mark.parametrize("length, longest", [(1e-6, 0.5), (0.1, 0.5), (0.7, 0.3), (1e4, 0.5), (1e4, 0.3)])
def test_a_bounded_sum_is_the_sum_of_short_rows_and_has_a_largest_length(length, longest):
    """Against the formula, written out, and against update v of model_terms.py, whose direction it has where tanh is its argument."""
    torch.manual_seed(0)
    x, v = (F.normalize(torch.randn(7, 12, dtype=torch.float64).unflatten(-1, (2, -1)), dim=-1) for _ in range(2))
    x, v = 0.5 * x.flatten(-2), length * v.flatten(-2)
    got = bounded_sum(x, v, 2, LONGEST_ROW, longest).unflatten(-1, (2, -1))
    added = v.unflatten(-1, (2, -1)) / math.sqrt(1 + (length / longest) ** 2)
    assert (added.norm(dim=-1) < longest + 1e-12).all()
    long = (x.unflatten(-1, (2, -1)) + added)
    radius = math.tanh(0.75)
    torch.testing.assert_close(got, long * (radius / long.norm(dim=-1, keepdim=True)).clamp(max=1))
    if length < 0.01:
        torch.testing.assert_close(got.flatten(-2), x + v, rtol=0, atol=1e-12)
        alpha, beta = model_terms.coefficients(x, v, 1.0, "v")
        torch.testing.assert_close(alpha * x + beta * v, x + v, rtol=0, atol=1e-11)


def test_rows_of_a_bounded_residual_stay_within_their_length(tokens):
    model = randomised(GPT(BaselineConfig(**TINY, token_shift="likeness", bounded_rows=True)))
    assert all(0 <= of["bound_share"] < 1 for of in model.geometry_stats(tokens[0]).values())
    with torch.no_grad():
        model.transformer.wte.weight *= 100
    assert model.training and all(0.5 < of["bound_share"] <= 1 for of in model.geometry_stats(tokens[0]).values())
    for x in (model.start(tokens[0]), *model.after_blocks(model.start(tokens[0]))):
        assert x.unflatten(-1, (TINY["n_head"], -1)).norm(dim=-1).max() < math.tanh(0.75) * (1 + 1e-6)
    model(*tokens)[1].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("key, default, other", [("longest_update", 0.5, 0.3), ("longest_row", math.tanh(0.75), 0.3)])
def test_the_largest_lengths_of_a_bounded_model_are_what_the_keys_say(key, default, other, tokens):
    def logits(**more):
        torch.manual_seed(0)
        return randomised(GPT(BaselineConfig(**TINY, bounded_rows=True, **more)))(*tokens)[0]
    assert torch.equal(logits(), logits(**{key: default})) and not torch.allclose(logits(), logits(**{key: other}))
    with pytest.raises(UserError, match=f"{key} = 0: must be between"):
        BaselineConfig(**TINY, bounded_rows=True, **{key: 0.0})


def test_without_both_bounds_a_bounded_model_is_the_plain_gpt(tokens):
    """Each can be switched off by itself."""
    def logits(**options):
        torch.manual_seed(0)
        return randomised(GPT(BaselineConfig(**TINY, **options)))(*tokens)[0]
    off = dict(longest_row=1e6, longest_update=1e6)
    plain = logits()
    torch.testing.assert_close(logits(bounded_rows=True, **off), plain)
    for key in off:
        assert not torch.allclose(logits(bounded_rows=True, **{key: 1e6}), plain)


def test_at_right_angles_a_mobius_sum_of_rows_at_the_bound_adds_at_most_three_tenths():
    """longest_update = 0.3 is what x (+) exp_0(v) allows there: beside alpha x, brought back to the row's length."""
    row = torch.tensor([[math.tanh(0.75), 0.0]], dtype=torch.float64)
    alpha, beta = model_terms.coefficients(row, v := torch.tensor([[0.0, 1e3]], dtype=torch.float64), 1.0, "mobius")
    assert (beta / alpha * v.norm()).item() == pytest.approx(0.30, abs=0.003)


def test_smear_adds_a_gated_previous_embedding(tokens):
    model = randomised(GPT(BaselineConfig(**TINY, token_shift="smear")))
    idx, _ = tokens
    e = model.transformer.wte(idx) + model.transformer.wpe(torch.arange(idx.size(1)))
    got = model.embed(idx)
    gate = torch.sigmoid(e @ model.smear.smear_gate.weight.t())
    torch.testing.assert_close(got[:, 0], e[:, 0])
    torch.testing.assert_close(got[:, 1:], e[:, 1:] + model.smear.smear_lambda * gate[:, 1:] * e[:, :-1])


def test_masked_targets_do_not_count(tokens):
    model = randomised(GPT(BaselineConfig(**TINY)))
    idx, targets = tokens
    half = targets.clone()
    half[:, 6:] = -1
    logits, loss = model(idx, half)
    expected = F.cross_entropy(logits[:, :6].flatten(0, 1), targets[:, :6].flatten())
    torch.testing.assert_close(loss, expected)


def test_a_sequence_longer_than_block_size_is_refused():
    model = GPT(BaselineConfig(**TINY))
    with pytest.raises(ValueError, match="block_size"):
        model(torch.zeros(1, TINY["block_size"] + 1, dtype=torch.long))


def test_n_embd_must_divide_by_n_head():
    with pytest.raises(UserError, match="not divisible by n_head"):
        BaselineConfig(n_embd=10, n_head=3)


def test_sampling_keeps_to_the_top_k_and_temperature_0_is_the_maximum():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]])
    g = torch.Generator().manual_seed(0)
    drawn = torch.cat([sample_token(logits, 1.0, 2, g) for _ in range(300)]).flatten()
    assert set(drawn.tolist()) == {1, 2}
    share = (drawn == 1).float().mean().item()
    assert share == pytest.approx(1 / (1 + torch.exp(torch.tensor(-1.0)).item()), abs=0.1)
    assert sample_token(logits, 0, None, g).item() == 1


def test_parameters_and_flops_as_counted_by_hand():
    """65 characters, 2 layers of width 16, 8 positions: embedding (and tied head) 65 * 16; a block 3 C^2 + C^2 for attention,
    4 C^2 + 4 C^2 for the MLP and two norms of C; a last norm."""
    model = GPT(BaselineConfig(vocab_size=65, n_layer=2, n_head=2, n_embd=16, block_size=8))
    assert model.num_params() == 65 * 16 + 2 * (12 * 256 + 2 * 16) + 16 == 7264
    # 6 for each parameter; a token's attention: 2 products of T x C, forward and twice that backward, 2 each a layer
    assert model.flops_per_token() == 6 * 7264 + 2 * (2 * 2 * 8 * 16) * 3 == 46656
