"""Muon's keys, and QK-clip."""
import math

import pytest
import torch
from conftest import TINY
from running import one_line, records, run
from safetensors.torch import load_file

import models
import train
from training import bf16_products
from training.config import TrainConfig
from training.muon import deal_out
from training.optimizer import make_optimizers, set_momentum
from training.qk_clip import QKClip

NH, C = TINY["n_head"], TINY["n_embd"]


def build(name="baseline", **options):
    torch.manual_seed(1)
    return models.build(name, models.CONFIGS[name](**{**TINY, **options}))


def muon_of(net, **keys):
    return next(o for o in make_optimizers(net, TrainConfig(optimizer="muon", **keys), "cpu") if isinstance(o, torch.optim.Muon))


def test_logits_beyond_float16_are_finite():
    """Products of 70,000, which are 25,000 as logits."""
    layer = models.build("baseline", models.CONFIGS["baseline"](**TINY)).transformer.h[0].attn
    layer.measure_logits("cpu")
    q = torch.full((1, TINY["n_head"], 3, 8), 70_000 ** 0.5 / 8 ** 0.5).half()
    layer.keep_largest_logit(q, q)
    torch.testing.assert_close(layer.largest_logit, torch.full_like(layer.largest_logit, 70_000 / 8 ** 0.5), rtol=1e-2, atol=0)


def test_matrices_of_another_shape_have_another_rate():
    """Of the same gradients: what Newton-Schulz makes of them is the same, the sizes of the updates are as the rates."""
    sizes = {}
    for adjust, rate in (("original", lambda out, into: math.sqrt(max(1, out / into))),
                         ("match_rms_adamw", lambda out, into: 0.2 * math.sqrt(max(out, into)))):
        net = build()
        matrices = [net.transformer.h[0].mlp.c_fc.weight, net.transformer.h[0].mlp.c_proj.weight, net.transformer.h[0].attn.c_proj.weight]
        before = [p.detach().clone() for p in matrices]
        for p in matrices:
            p.grad = torch.nn.init.orthogonal_(torch.empty_like(p))
        muon_of(net, muon_lr=0.01, muon_adjust_lr=adjust, weight_decay=0.0).step()
        sizes[adjust] = [((old - p.detach()).norm() / rate(*p.shape)).item() for old, p in zip(before, matrices)]
    assert sizes["original"] == pytest.approx(sizes["match_rms_adamw"], rel=1e-4)


def test_momentum_rises():
    net = build()
    muon = muon_of(net, muon_momentum=0.95, muon_momentum_warmup=10)
    found = []
    for step in (0, 5, 10, 99):
        set_momentum([muon], TrainConfig(optimizer="muon", muon_momentum_warmup=10), step)
        found.append(muon.param_groups[0]["momentum"])
    assert found == pytest.approx([0.85, 0.9, 0.95, 0.95])
    set_momentum([muon], TrainConfig(optimizer="muon", muon_momentum=0.5, muon_momentum_warmup=10), 3)
    assert muon.param_groups[0]["momentum"] == 0.5


def test_products_without_bf16_instructions_are_those_with_them(monkeypatch):
    """Rounded once, after a sum in float32; and so is all of Newton-Schulz."""
    torch.manual_seed(0)
    a, b = torch.randn(5, 40), torch.randn(40, 7)
    with bf16_products.InFloat32():
        found = a.bfloat16() @ b.bfloat16()
        assert (a @ b).dtype == torch.float32 and found.dtype == torch.bfloat16
    assert torch.equal(found, (a.bfloat16().double() @ b.bfloat16().double()).float().bfloat16())
    steps = {}
    for has in (True, False):
        monkeypatch.setattr(bf16_products, "has_bf16_products", lambda has=has: has)
        assert isinstance(bf16_products.fast_bf16_products("cpu"), bf16_products.InFloat32) == (not has)
        net = build()
        before = {p: p.detach().clone() for p in net.parameters()}
        net(*(torch.arange(24).view(2, 12) % 37,) * 2)[1].backward()
        muon = muon_of(net, muon_lr=1.0, weight_decay=0.0)
        muon.step()
        steps[has] = [p.detach() - before[p] for group in muon.param_groups for p in group["params"]]
    for one, other in zip(steps[True], steps[False]):
        assert one.norm() > 1 and (one - other).norm() < 0.02 * one.norm()


def test_matrices_are_dealt_out_by_their_work():
    shapes = [(384, 128), (128, 128), (512, 128), (128, 512)] * 4
    work = lambda shape: min(shape) ** 2 * max(shape)
    for processes in (1, 2, 3, 8, 40):
        owners = deal_out(shapes, processes)
        of_each = [sum(work(shape) for shape, owner in zip(shapes, owners) if owner == rank) for rank in range(processes)]
        assert max(of_each) <= max(sum(map(work, shapes)) / processes * 4 / 3, max(map(work, shapes)))


def largest_logits(net, idx):
    """By hand: (layers, nh)."""
    found = []
    def look(attn, args, out):
        q, k, _ = (h.view(*idx.shape, NH, -1).transpose(1, 2) for h in attn.c_attn(args[0]).split(C, dim=2))
        q, k = attn.queries_and_keys(q, k)
        logits = (q @ k.transpose(-1, -2) / (C // NH) ** 0.5).tril()
        found.append(logits.amax((0, 2, 3)))
    hooks = [block.attn.register_forward_hook(look) for block in net.transformer.h]
    net(idx)
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


@pytest.mark.parametrize("name,options", [("baseline", dict(bias=True)), ("mixed", dict(position="rope"))])
@torch.no_grad()
def test_logits_above_the_limit_are_scaled_to_it(name, options, tokens):
    idx, _ = tokens
    net = build(name, **options).train()
    rows = net.transformer.h[0].attn.c_attn.weight.view(3, NH, -1, C)
    rows[:2, 0] *= 40  # of the first head alone
    before, weights = largest_logits(net, idx), net.transformer.h[0].attn.c_attn.weight.clone()
    limit = 0.5 * before[0, 0].item()
    assert before[0, 0] > 2 * before[0, 1]
    clip = QKClip(net, limit)
    net(idx)
    clip.after_update(lambda tensor: tensor, skipped=torch.zeros(()))
    torch.testing.assert_close(clip.found, before)
    assert clip.numbers() == {"qk_clip/largest_logit": pytest.approx(before.max().item()), "qk_clip/clipped_heads": 1}
    after = largest_logits(net, idx)
    assert after[0, 0].item() == pytest.approx(limit, rel=1e-4)
    assert torch.equal(rows[:, 1:], weights.view(3, NH, -1, C)[:, 1:]) and torch.equal(rows[2], weights.view(3, NH, -1, C)[2])
    assert after[0, 1].item() == pytest.approx(before[0, 1].item(), rel=1e-5)


@torch.no_grad()
def test_a_step_that_was_skipped_leaves_the_weights(tokens):
    net = build().train()
    before = {name: p.clone() for name, p in net.named_parameters()}
    clip = QKClip(net, 1e-6)
    net.transformer.h[0].attn.c_attn.weight[0, 0] = math.nan  # its logits are no numbers
    net(tokens[0])
    before["transformer.h.0.attn.c_attn.weight"][0, 0] = math.nan
    clip.after_update(lambda tensor: tensor, skipped=torch.ones(()))
    for name, p in net.named_parameters():
        torch.testing.assert_close(p, before[name], rtol=0, atol=0, equal_nan=True)
    assert "qk_clip/clipped_heads" in clip.numbers()  # also where the first step was skipped
    assert all(layer.largest_logit.max() == 0 for layer in clip.layers)


def test_a_first_step_without_an_update_is_logged(small_run, tmp_path, capsys, monkeypatch):
    """float16's scaler skips steps whose gradients overflow."""
    plain = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **options: plain(*args, **{**options, "init_scale": 2.0 ** 126}))
    args = [*small_run, "--dtype=float16", "--qk_clip=0.01", "--max_iters=3"]
    status, _, err = run(train.main, args, capsys)
    assert "Traceback" not in err and status in (0, 3)
    assert any("qk_clip/largest_logit" in record for record in records(tmp_path / "run"))


def test_a_run_says_what_was_clipped(small_run, tmp_path, capsys):
    """(In several processes it is the same: test_parallel.py.)"""
    args = [*small_run, "--optimizer=muon", "--muon_lr=0.3", "--qk_clip=0.05", "--max_iters=4"]
    assert run(train.main, args, capsys)[0] == 0
    assert max(r["qk_clip/clipped_heads"] for r in records(tmp_path / "run") if "loss" in r) > 0
    assert not any("logit" in key for key in load_file(tmp_path / "run" / "ckpt" / "last" / "model.safetensors"))


def test_compiled_it_measures_the_same_logits():
    net = build()
    clip = QKClip(net, 1.0)
    idx = torch.arange(TINY["block_size"])[None]
    torch.compile(net, backend="eager", fullgraph=True)(idx, idx)
    compiled = torch.stack([layer.largest_logit.clone() for layer in clip.layers])
    torch.testing.assert_close(compiled, largest_logits(net, idx))


@pytest.mark.parametrize("more,said", [
    (["--qk_clip=0"], "more than 0"), (["--qk_clip=1", "--qk_norm=True"], "qk_norm"), (["--qk_clip=1", "--model=tau"], "no products"),
    (["--qk_clip=1", "--model=stereographic", "--attention=distance"], "no products"),
    (["--qk_clip=1", "--freeze=['*c_attn*']", "--init_from=scratch"], "freeze"),
    (["--muon_momentum_warmup=3"], "no effect"),
    (["--optimizer=muon", "--muon_momentum=0.5", "--muon_momentum_warmup=3"], "muon_momentum_warmup has no effect"),
    (["--muon_adjust_lr=match_rms_adamw"], "muon")])
def test_what_cannot_be(more, said, small_run, tmp_path, capsys):
    status, _, err = run(train.main, [*small_run, *more], capsys)
    assert status == 2 and not (tmp_path / "run" / "ckpt").exists()
    one_line(err, said)
