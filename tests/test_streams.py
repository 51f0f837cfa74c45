"""Hyper-connections, mHC, AltUp: against the published packages, doubly stochastic matrices, starts, telemetry."""
import copy
import math

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

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
    for step, parameters in ((their_step, (theirs.fn, theirs.base, theirs.scale)), (our_step, (ours.phi, ours.pre, ours.res, ours.post, ours.gates))):
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


def _package_step(module, x, y):
    h, add = module(x.flatten(0, 1))  # theirs: (n B, T, C), 'b s'
    return h, add(y)


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
    x, y = torch.randn(N, B, T, C), torch.randn(B, T, C)
    h, add = theirs(x.permute(1, 0, 2, 3).reshape(B * N, T, C))
    p, mix, w = ours.maps(x, *ours.for_places()[0])
    torch.testing.assert_close(mixing.read(x, p), h, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixing.write(x, y, mix, w), add(y).view(B, N, T, C).permute(1, 0, 2, 3), rtol=1e-5, atol=2e-6)


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
    assert 1e-5 < off.median() and 1e-3 < off.max() < 0.02  # what the paper's 20 iterations leave
    exact = doubly_stochastic.rounded(rough)
    for dim in (-1, -2):
        torch.testing.assert_close(exact.sum(dim), torch.ones_like(exact.sum(dim)), rtol=0, atol=1e-14)
    assert ((exact - rough).abs().amax((-1, -2)) <= 2 * off).all()
    assert torch.autograd.gradcheck(doubly_stochastic.rounded, rough[:5].detach().requires_grad_())
    done = doubly_stochastic.sinkhorn(logits[:5], 2000).requires_grad_()
    grad, = torch.autograd.grad(doubly_stochastic.rounded(done).square().sum(), done)
    assert torch.isfinite(grad).all() and grad.abs().max() < 10  # nothing lacks: no 0/0
