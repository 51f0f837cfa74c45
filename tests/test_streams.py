"""Hyper-connections, mHC, AltUp: against the published packages, doubly stochastic matrices, starts, telemetry."""
import itertools

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model_baseline import randomised
from test_models import same_function

import models
from common.errors import UserError
from streams import doubly_stochastic, mixing, telemetry
from training.config import TrainConfig
from training.optimizer import make_optimizers, parameter_groups

B, T, N, C = 2, 5, 4, 16


def build(seed=1, **options):
    torch.manual_seed(seed)
    return models.build("mhc", models.CONFIGS["mhc"](**{**TINY, **options}))


def config(**options):
    return models.CONFIGS["mhc"](**{**TINY, "n_embd": C, **options})


def from_autograd(function, *args):
    """function's value and gradients of sum(value * fixed numbers)."""
    args = [a.detach().clone().requires_grad_() for a in args]
    out = function(*args)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return out, torch.autograd.grad((out * weights).sum(), args)


# ----------------------------------------------------------------------------------------------------------------------
# the published packages

def test_dynamic_mhc_equals_the_module_in_transformers_deepseek_v4():
    """Same parameters, forward and gradients. Theirs adds hc_eps = 1e-6 to p, to R and to every divisor (rows then sum to 1 - 4e-6);
    it is 0 here. Their R is ours transposed, in logits too."""
    from transformers.models.deepseek_v4.configuration_deepseek_v4 import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection
    torch.manual_seed(0)
    theirs = DeepseekV4HyperConnection(DeepseekV4Config(hc_mult=N, hidden_size=C, hc_eps=0.0, hc_sinkhorn_iters=20, rms_norm_eps=1e-6))
    with torch.no_grad():
        theirs.fn.normal_(0, 0.3)
        theirs.base.normal_(0, 0.5)
        theirs.scale.copy_(torch.tensor([0.7, 1.3, 0.9]))
    ours = build(n_embd=C, hc_maps="dynamic", hc_pre="sigmoid", hc_tau=1.0, hc_exact=False).hyper
    turned = torch.arange(N * N).view(N, N).T.flatten()
    order = torch.cat((torch.arange(N), 2 * N + turned, N + torch.arange(N)))  # pre, res, post of their pre, post, res
    with torch.no_grad():
        ours.phi[0] = theirs.fn[order]
        ours.gates[0] = theirs.scale[[0, 2, 1]]
        for name, part in zip(("pre", "res", "post"), theirs.base[order].split([N, N * N, N])):
            getattr(ours, name)[0] = part
    x, y = torch.randn(N, B, T, C), torch.randn(B, T, C)

    def their_step(x, y):
        streams = x.permute(1, 2, 0, 3).contiguous()
        post, comb, h = theirs(streams)
        return h, (post.unsqueeze(-1) * y.unsqueeze(-2) + comb.transpose(-1, -2) @ streams).permute(2, 0, 1, 3)

    def our_step(x, y):
        p, mix, w = ours.maps(x, *ours.for_places()[0])
        return mixing.read(x, p), mixing.write(x, y, mix, w)
    results = []
    for step, parameters in ((their_step, (theirs.fn, theirs.base, theirs.scale)),
                             (our_step, (ours.phi, ours.pre, ours.res, ours.post, ours.gates))):
        given_x, given_y = x.clone().requires_grad_(), y.clone().requires_grad_()
        h, out = step(given_x, given_y)
        loss = (h * torch.linspace(-1, 1, h.numel()).view(h.shape)).sum() + (out * torch.linspace(1, -2, out.numel()).view(out.shape)).sum()
        results.append((h, out, torch.autograd.grad(loss, (given_x, given_y, *parameters))))
    (h, out, (dx, dy, dfn, dbase, dscale)), (our_h, our_out, (our_dx, our_dy, dphi, dpre, dres, dpost, dgates)) = results
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * max(1.0, b.abs().max().item()))
    close(our_h, h)
    close(our_out, out)
    close(our_dx, dx)
    close(our_dy, dy)
    close(dphi[0], dfn[order])
    close(torch.cat((dpre[0], dres[0], dpost[0])), dbase[order])
    close(dgates[0], dscale[[0, 2, 1]])


@pytest.mark.parametrize("maps", ["static", "dynamic"])
def test_hc_equals_the_package_hyper_connections(maps):
    """hyper-connections 0.4.11: RMSNorm where the paper has LayerNorm, the sub-layer's own stream on the mixed side as here."""
    from hyper_connections import HyperConnections
    torch.manual_seed(0)
    theirs = HyperConnections(N, dim=C, layer_index=2)
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.3 * torch.randn_like(p))
        if maps == "static":
            theirs.dynamic_alpha_scale.zero_()
            theirs.dynamic_beta_scale.zero_()
    ours = build(n_embd=C, hc="hc", hc_maps=maps).hyper
    with torch.no_grad():
        ours.pre[0], ours.res[0], ours.post[0] = theirs.static_alpha[:, 0], theirs.static_alpha[:, 1:].T, theirs.static_beta
        if maps == "dynamic":
            ours.gain[0], ours.to_mix[0], ours.to_write[0] = theirs.norm.gamma + 1, theirs.dynamic_alpha_fn, theirs.dynamic_beta_fn
            ours.gates[0] = torch.stack((theirs.dynamic_alpha_scale, theirs.dynamic_beta_scale))
    x, y = torch.randn(N, B, T, C, requires_grad=True), torch.randn(B, T, C, requires_grad=True)
    streams = x.permute(1, 0, 2, 3).reshape(B * N, T, C)  # '(b s)'
    h, add = theirs(streams)
    out = add(y).view(B, N, T, C).permute(1, 0, 2, 3)
    p, mix, w = ours.maps(x, *ours.for_places()[0])
    our_h, our_out = mixing.read(x, p), mixing.write(x, y, mix, w)
    torch.testing.assert_close(our_h, h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_out, out, rtol=1e-5, atol=1e-6)
    loss = lambda h, out: (h.sin() * 3).sum() + out.cos().sum()
    their_grads = torch.autograd.grad(loss(h, out), (x, y, theirs.static_alpha, theirs.static_beta))
    our_grads = torch.autograd.grad(loss(our_h, our_out), (x, y, ours.pre, ours.res, ours.post))
    torch.testing.assert_close(our_grads[0], their_grads[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(our_grads[1], their_grads[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat((our_grads[2][0][:, None], our_grads[3][0].T), 1), their_grads[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(our_grads[4][0], their_grads[3], rtol=1e-4, atol=1e-4)


def test_static_mhc_equals_the_packages():
    """Their matrix is ours transposed, so that they divide columns last: equal where Sinkhorn has converged. (Their dynamic maps read
    each stream by itself; the paper and DeepSeek-V4 read all together, as ours do.)"""
    from hyper_connections.manifold_constrained_hyper_connections import ManifoldConstrainedHyperConnections
    torch.manual_seed(0)
    theirs = ManifoldConstrainedHyperConnections(N, dim=C, layer_index=1, sinkhorn_iters=60)
    with torch.no_grad():
        theirs.static_alpha.add_(0.5 * torch.randn_like(theirs.static_alpha))
        theirs.static_beta.add_(0.5 * torch.randn_like(theirs.static_beta))
    ours = build(n_embd=C, hc_pre="sigmoid", hc_tau=1.0, hc_sinkhorn_iters=60, hc_exact=False).hyper
    with torch.no_grad():
        ours.pre[0], ours.res[0], ours.post[0] = theirs.static_alpha[:, 0], theirs.static_alpha[:, 1:].T.flatten(), theirs.static_beta
    x, y = torch.randn(N, B, T, C, requires_grad=True), torch.randn(B, T, C, requires_grad=True)
    h, add = theirs(x.permute(1, 0, 2, 3).reshape(B * N, T, C))
    out = add(y).view(B, N, T, C).permute(1, 0, 2, 3)
    p, mix, w = ours.maps(x, *ours.for_places()[0])
    our_h, our_out = mixing.read(x, p), mixing.write(x, y, mix, w)
    torch.testing.assert_close(our_h, h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_out, out, rtol=1e-5, atol=2e-6)
    loss = lambda h, out: (h.sin() * 3).sum() + out.cos().sum()
    their_grads = torch.autograd.grad(loss(h, out), (x, y, theirs.static_alpha, theirs.static_beta))
    dx, dy, dpre, dres, dpost = torch.autograd.grad(loss(our_h, our_out), (x, y, ours.pre, ours.res, ours.post))
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    close(dx, their_grads[0])
    close(dy, their_grads[1])
    close(torch.cat((dpre[0][:, None], dres[0].view(N, N).T), 1), their_grads[2])
    close(dpost[0], their_grads[3])


# ----------------------------------------------------------------------------------------------------------------------
# doubly stochastic matrices

def plain_sinkhorn(logits, iters):
    for _ in range(iters):
        logits = torch.log_softmax(logits, -2)
        logits = torch.log_softmax(logits, -1)
    return logits.exp()


@pytest.mark.parametrize("shape", [(4, 4), (3, 1, 1), (2, 3, 2, 2), (5, 6, 6)])
def test_sinkhorn_and_its_gradient_are_those_of_the_plain_loop(shape):
    """The loop by autograd, which also differentiates the largest entry that is subtracted: a public kernel forgets that."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(shape, dtype=torch.float64)
    for iters in (1, 3, 20):
        out, (grad,) = from_autograd(lambda z: doubly_stochastic.sinkhorn(z, iters), logits)
        wanted, (wanted_grad,) = from_autograd(lambda z: plain_sinkhorn(z, iters), logits)
        torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-10, atol=1e-13)
    assert torch.autograd.gradcheck(lambda z: doubly_stochastic.sinkhorn(z, 3, 0.5), logits[..., :3, :3].clone().requires_grad_())


@pytest.mark.parametrize("kind", doubly_stochastic.KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10 ** 6), n=st.integers(1, 5), size=st.floats(0.1, 1.5))
def test_rows_and_columns_sum_to_one(kind, seed, n, size):
    """Of random logits around the start, in float32, with the default numbers of iterations; and those of the product over 48 layers."""
    options = config(hc_res=kind, hc_num_streams=n, hc_tau=1.0)
    start = doubly_stochastic.starting_logits(n, options)
    noise = torch.randn(48, len(start), generator=torch.Generator().manual_seed(seed))
    # Newton-Schulz starts from what is near an orthogonal matrix
    logits = start + (min(size, 0.1) if kind == "orthostochastic" else size) * noise
    mixes = doubly_stochastic.matrix(logits, n, options)
    assert mixes.shape == (48, n, n) and (mixes >= 0).all()
    product = torch.eye(n)
    for mix in mixes:
        product = mix @ product
    for matrix, bound in ((mixes, 1e-6), (product, 1e-5)):
        for sums in (matrix.sum(-1), matrix.sum(-2)):
            torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=bound)


def test_rounding_is_exact_changes_little_and_has_the_right_gradient():
    torch.manual_seed(0)
    logits = ((0.8 * torch.eye(4) + 0.05).log() + 0.5 * torch.randn(200, 4, 4)).double()
    rough = doubly_stochastic.sinkhorn(logits, 20)
    off = (rough.sum(-2) - 1).abs().amax(-1)
    assert off.median() > 1e-5 and 1e-3 < off.max() < 0.02  # what the paper's 20 iterations leave
    exact = doubly_stochastic.rounded(rough)
    for dim in (-1, -2):
        torch.testing.assert_close(exact.sum(dim), torch.ones_like(exact.sum(dim)), rtol=0, atol=1e-14)
    assert ((exact - rough).abs().amax((-1, -2)) <= 2 * off).all()
    # (rows sum to 1 whatever the logits are: it is there that rounded() has a kink, and no slope goes)
    assert torch.autograd.gradcheck(lambda z: doubly_stochastic.rounded(doubly_stochastic.sinkhorn(z, 4)), logits[:5].requires_grad_())
    # nothing lacks, or what rounding makes lack in some columns and in no row: slopes are of order 1
    for dtype in (torch.float64, torch.float32):
        logits = 4 * torch.eye(4, dtype=dtype) + 0.1 * torch.randn(2000, 4, 4, dtype=dtype)
        done = doubly_stochastic.sinkhorn(logits, 500).requires_grad_()
        grad, = torch.autograd.grad(doubly_stochastic.rounded(done).square().sum(), done)
        assert grad.abs().max() < 10


# ----------------------------------------------------------------------------------------------------------------------
# the start, and what training does with it

@pytest.mark.parametrize("options", [
    dict(hc="none"), dict(hc="hc", hc_expand="copy"), dict(hc="altup", hc_expand="copy"), dict(hc_num_streams=1, hc_expand="copy"),
    dict(hc_num_streams=1, hc_expand="copy", hc_pre="sigmoid"), dict(hc_start="uniform", hc_expand="copy", hc_start_mix=1e-6),
    dict(hc_start="uniform", hc_expand="copy"), dict(hc_start="uniform", hc_expand="first", hc_collapse="mean"),
    dict(hc_start="uniform", hc_expand="copy", hc_maps="dynamic"), dict(hc_start="uniform", hc_expand="copy", hc_freeze="res")])
def test_starts_that_are_the_baselines_function(options, tokens):
    """Of one stream; of copies that are read and written alike, whatever mixes them."""
    torch.manual_seed(1)
    plain = models.build("baseline", models.CONFIGS["baseline"](**TINY))
    net = build(**options)
    if options.get("hc_maps") == "dynamic":
        with torch.no_grad():
            net.hyper.gates[:, 0] = net.hyper.gates[:, 2] = 0  # H_res may depend on the token
    logits, loss = net(*tokens)
    expected, expected_loss = plain(*tokens)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-6)
    loss.backward()
    expected_loss.backward()
    theirs = dict(net.named_parameters())
    for key, p in plain.named_parameters():
        torch.testing.assert_close(theirs[key].grad, p.grad, rtol=1e-3, atol=2e-6, msg=key)


def maps_on(net, idx):
    """p, R, w of every sub-layer, as they are on these tokens."""
    with telemetry.recorded(net.hyper) as found, torch.no_grad():
        net(idx, idx)
    return [[m.clone() for m in each if m is not None] for each in found]


def moves(steps=50, **options):
    """The smallest move of (p, R, w) among all sub-layers, in `steps` steps at a rate of 6e-3 on text that can be learned."""
    torch.manual_seed(1)
    net = models.build("mhc", models.CONFIGS["mhc"](vocab_size=37, block_size=16, n_layer=2, n_head=2, n_embd=32, **options))
    text = torch.randint(37, (64,), generator=torch.Generator().manual_seed(2)).repeat(50)
    optimizers, rng = make_optimizers(net, TrainConfig(learning_rate=6e-3), "cpu"), torch.Generator().manual_seed(3)
    sample = text[:64].view(4, 16)
    before = maps_on(net, sample)
    for _ in range(steps):
        starts = torch.randint(3000, (8,), generator=rng)
        x, y = (torch.stack([text[i + k:i + k + 16] for i in starts]) for k in (0, 1))
        net(x, y)[1].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [min((a - b).abs().max().item() for a, b in zip(one, other)) for one, other in zip(zip(*before), zip(*maps_on(net, sample)))]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_permutations_are_all_of_them_in_order(n):
    found = doubly_stochastic.all_permutations(n, torch.zeros((), dtype=torch.float64))
    assert found.dtype == torch.float64 and found.argmax(-1).tolist() == [list(p) for p in itertools.permutations(range(n))]
    assert torch.equal(found.sum(-1), torch.ones(len(found), n, dtype=torch.float64))


@pytest.mark.parametrize("options", [{}, dict(hc_maps="dynamic", hc_res="permutations"), dict(hc_res="permutations"),
                                     dict(hc_res="orthostochastic"), dict(hc_res="identity"), dict(hc_pre="sigmoid", hc_post="softmax"),
                                     dict(hc_expand="first"), dict(hc="hc", hc_expand="copy")])
def test_every_logit_has_a_gradient_at_the_start_and_every_map_moves(options, tokens):
    net = build(**options)
    net(*tokens)[1].backward()
    for key, p in net.hyper.named_parameters():
        if key in ("pre", "res", "post", "phi", "collapse", "stream_embedding") and not (key == "collapse" and options.get("hc") == "hc"):
            assert (p.grad != 0).all(), key
    assert min(moves(**options)) > 1e-2


def test_the_published_start_does_not_move():
    """Logits 0 and -8 at temperature 0.05: exp(-160) is 0 in float32, and so is every slope. The same start moves at temperature 1."""
    p, mix, w = moves(hc_start="published", hc_tau=0.05, hc_exact=False)
    assert mix == 0 and p > 1e-3 and w > 1e-3
    net = build(hc_start="published", hc_tau=0.05, hc_exact=False)
    assert torch.equal(maps_on(net, torch.zeros(1, 12, dtype=torch.int64))[0][1], torch.eye(4))


def test_permuting_the_mix_changes_the_output(tokens):
    net = build()
    before = net(*tokens)[0]
    with torch.no_grad():
        net.hyper.res[1] = net.hyper.res[1].view(4, 4)[[1, 2, 3, 0]].flatten()
    assert (net(*tokens)[0] - before).abs().max() > 1e-3


def test_connections_are_not_decayed_and_not_muons():
    groups = parameter_groups(build(hc_maps="dynamic"))
    names = {name for name, _ in groups["vectors"]}
    assert {"hyper.res", "hyper.phi", "hyper.stream_embedding"} <= names and not any("hyper" in n for n, _ in groups["matrices"])


# ----------------------------------------------------------------------------------------------------------------------
# memory, telemetry, bad input

def kept_for_backward(net, tokens):
    """Bytes of distinct tensors that autograd keeps of a forward pass, without the parameters."""
    own, kept = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), t)  # the tensor, so that its address is not used again
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = net(*tokens)[1]
    return sum(size for size, _ in kept.values()), loss


@pytest.mark.parametrize("options", [{}, dict(hc="hc"), dict(hc_freeze="res"), dict(token_shift="difference", value_residual="learned"),
                                     dict(hc_num_streams=1, hc_collapse="mean")])
def test_a_block_at_once_is_its_two_sub_layers_one_by_one(options, tokens):
    """Logits, loss and gradients in float64, and with a cache: the streams between the sub-layers need not be made."""
    found = []
    for at_once in (True, False):
        net = randomised(build(**options), scale=0.1).double()
        for block in net.transformer.h:
            assert block.at_once
            block.at_once = at_once
        logits, loss = net(*tokens)
        loss.backward()
        generated = torch.cat(list(net.generate(tokens[0][:1, :3], 6, temperature=0)), 1)
        found.append([logits, loss, generated, *(p.grad for p in net.parameters())])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_no_written_streams_are_kept_for_the_backward_pass():
    """Of a block: its streams and what two sub-layers add, n + 2 rows; of the baseline's 17 two need not be kept."""
    torch.manual_seed(0)
    shape = dict(vocab_size=11, block_size=64, n_layer=4, n_head=2, n_embd=64)
    tokens = torch.randint(11, (2, 4, 64))
    plain, _ = kept_for_backward(models.build("baseline", models.CONFIGS["baseline"](**shape)), tokens)
    ours, loss = kept_for_backward(models.build("mhc", models.CONFIGS["mhc"](**shape)), tokens)
    loss.backward()
    assert 1.1 < ours / plain < 1.3
    curved, _ = kept_for_backward(models.build("mhc_mixed", models.CONFIGS["mhc_mixed"](**shape)), tokens)
    assert curved / plain < 2.1  # row scalars count more where rows are short


def test_telemetry(tokens):
    net = build(hc_start_mix=0.2)
    found = net.telemetry(tokens[0])
    assert found["streams/block0/attn_from_identity"] == pytest.approx(0.2, abs=1e-6)
    assert found["streams/block1/mlp_from_uniform"] == pytest.approx(0.8, abs=1e-6)
    assert found["streams/block1/mlp_product_from_uniform"] == pytest.approx(0.8 ** 4, abs=1e-6)
    assert found["streams/block1/mlp_gain_forward"] == pytest.approx(1, abs=1e-6)
    assert sum(found[f"streams/share{i}"] for i in range(4)) == pytest.approx(1)
    assert 0 < found["streams/block0/similarity"] < 1 and found["streams/block0/mlp_row_error"] < 1e-6
    alike = build(hc_start="uniform", hc_expand="copy").telemetry(tokens[0])
    assert alike["streams/block1/similarity"] == pytest.approx(1) and alike["streams/block0/attn_read_entropy"] == pytest.approx(1)
    free = build(hc="hc")
    with torch.no_grad():
        free.hyper.res *= 2
    assert free.telemetry(tokens[0])["streams/block1/mlp_gain_backward"] == pytest.approx(16)
    assert build(hc="none").telemetry(tokens[0]) == {}
    curved = models.build("mhc_mixed", models.CONFIGS["mhc_mixed"](**TINY)).telemetry(tokens[0])
    assert {"geometry/block1/geodesic_norm", "streams/block1/mlp_product_from_uniform"} <= set(curved)


@pytest.mark.parametrize("options, message", [
    (dict(hc_num_streams=0), "at least 1"), (dict(hc_num_streams=6, hc_res="permutations"), "at most 5"), (dict(hc_tau=0.0), "hc_tau"),
    (dict(hc_start_mix=0.0), "hc_start_mix"), (dict(hc_ns_coefficients=[1.0]), "3 are needed"),
    (dict(hc_start="published", hc_res="identity"), "hc_start = 'published' is for"), (dict(hc="altup", hc_maps="dynamic"), "not 'altup'")])
def test_combinations_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        config(**options)


@pytest.mark.parametrize("options, message", [
    (dict(hc="altup"), "--model=mhc"), (dict(dynamic_curvature=True), "one residual stream"), (dict(ops="triton"), "--ops=torch"),
    (dict(hc_space="midpoint", hc_pre="sigmoid"), "sum to 1"), (dict(hc_space="midpoint", hc_collapse="sum"), "sum to 1"),
    (dict(hc_space="midpoint", hc_res="orthostochastic", hc_exact=False), "sum to 1")])
def test_combinations_of_curvature_and_streams_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        models.CONFIGS["mhc_mixed"](**TINY, **options)


@pytest.mark.parametrize("options", [dict(), dict(hc="hc"), dict(hc_maps="dynamic"), dict(hc_space="midpoint"),
                                     dict(hc_space="midpoint", hc_maps="dynamic", per_head_curvature=False), dict(residual="transport")])
@pytest.mark.parametrize("reference, shift", [("origin", "none"), ("previous", "difference")])
def test_curved_streams_at_c_0_are_the_flat_ones(options, reference, shift, tokens):
    plain_options = {k: v for k, v in options.items() if k in ("hc", "hc_maps")}
    if reference == "origin":
        options = {**options, "residual": "origin"}
    flat = build(token_shift=shift, **plain_options)
    torch.manual_seed(1)
    curved = models.build("mhc_mixed", models.CONFIGS["mhc_mixed"](**TINY, **options, reference=reference, curvature_mode="fixed",
                                                                   curvature=0.0))
    same_function(randomised(flat), curved, tokens)
