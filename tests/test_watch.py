"""log_stability: gradients, updates and Jacobians, against what the checkpoints and torch.func say."""
import pytest
import torch
from conftest import TINY
from running import MIXED, one_line, records, run
from safetensors.torch import load_file

import geometry
import models
import train
from training.watch import gradient_norms, map_norms, norm_of_midpoints, operator_norm, part_of


def test_updates_are_those_between_checkpoints_and_nothing_else_changes(small_run, tmp_path, capsys):
    args = [*small_run, *MIXED, "--max_iters=1", "--warmup_iters=0", "--eval_interval=1"]
    weights = {}
    for steps, more in ((1, ["--log_stability=True"]), (0, [])):
        out = tmp_path / str(steps)
        assert run(train.main, [*args, f"--max_iters={steps}", "--lr_decay_iters=1", *more, f"--out_dir={out}"], capsys)[0] == 0
        weights[steps] = load_file(out / "ckpt" / "last" / "model.safetensors")
    plain = tmp_path / "plain"
    assert run(train.main, [*args, "--lr_decay_iters=1", f"--out_dir={plain}"], capsys)[0] == 0
    end = load_file(plain / "ckpt" / "last" / "model.safetensors")
    assert all(torch.equal(end[name], weights[1][name]) for name in end)

    logged, = (r for r in records(tmp_path / "1") if "grad_norm" in r)
    squares = {}
    for name, new in weights[1].items():
        old, sums = weights[0][name].double(), squares.setdefault(part_of(name, new), [0.0, 0.0])
        sums[0] += (new.double() - old).square().sum().item()
        sums[1] += old.square().sum().item()
    assert set(squares) == {"block0", "block1", "embeddings", "curvature", "rest"}
    for part, (change, size) in squares.items():
        assert logged[f"stability/{part}/update_ratio"] == pytest.approx((change / size) ** 0.5, rel=1e-4), part
    norms = [logged[f"stability/{part}/grad_norm"] for part in squares]
    assert sum(n * n for n in norms) ** 0.5 == pytest.approx(logged["grad_norm"], rel=1e-5)
    start, _ = (r for r in records(tmp_path / "1") if "val_loss" in r)
    assert {f"stability/block{i}/{name}" for i in (0, 1) for name in (
        "log_by_x", "log_by_r", "add_by_x", "add_by_v", "log_grad_norm", "add_grad_norm")} <= start.keys()


def test_operator_norms_are_those_of_the_full_jacobian():
    torch.manual_seed(0)
    x, y, c = 0.3 * torch.randn(2, 5, 3), 0.3 * torch.randn(2, 5, 3), torch.tensor(0.7)
    y.requires_grad_()
    where = torch.zeros(2, 5, dtype=torch.bool)
    where[0, 1] = where[1, 3] = True
    found = operator_norm(geometry.logmap(x, y, c), y, where)
    wanted = [torch.linalg.matrix_norm(torch.func.jacrev(geometry.logmap, 1)(x[i], y[i].detach(), c), ord=2).item() for i in
              ((0, 1), (1, 3))]
    assert found == pytest.approx(max(wanted), rel=1e-5)


def test_norms_of_midpoints_are_those_of_the_full_jacobian():
    torch.manual_seed(0)
    B, T, H, D, c = 2, 6, 2, 3, torch.tensor([0.7, -0.4]).view(2, 1, 1)
    x = 0.3 * torch.randn(B, T, H, D)
    weights = torch.rand(T, T).tril(-1)
    midpoints = lambda x: geometry.gyromidpoint(x.transpose(1, 2), weights, c).transpose(1, 2)
    leaf = x.clone().requires_grad_()
    found = norm_of_midpoints(midpoints(leaf), leaf, weights)
    full = torch.func.jacrev(midpoints)(x)  # (B, T, H, D, B, T, H, D)
    at = torch.linspace(1, T - 1, 4).long().tolist()
    assert len(set(at)) == 4
    wanted = [(torch.linalg.matrix_norm(full[b, t, h, :, b, :, h].flatten(1), ord=2) / weights[t].norm()).item()
              for b in range(B) for t in at for h in range(H)]
    assert found == pytest.approx(max(wanted), rel=1e-5) and max(wanted) > 1.05


@pytest.mark.parametrize("options", [dict(), dict(per_head_curvature=False), dict(reference="mean", residual="reference"),
                                     dict(reference="ema", residual="transport", per_head_curvature=False, max_distance=None),
                                     dict(dynamic_curvature=True, use_embedding_curvature=True)])
def test_flat_maps_magnify_nothing_and_curved_ones_do(options, tokens):
    for curvature in (0.0, 2.0):
        torch.manual_seed(0)
        model = models.build("mixed", models.CONFIGS["mixed"](**TINY, **options, curvature_mode="fixed", curvature=curvature))
        with torch.no_grad():
            model.transformer.wte.weight.mul_(5)
        before = model(*tokens)[0]
        found = map_norms(model, tokens[0])
        names = {"log_by_x", "log_by_r", "add_by_x", "add_by_v"} | ({"midpoint_by_x", "add_by_r"} if "reference" in options else set())
        wanted = {f"stability/block{i}/{name}" for i in range(TINY["n_layer"]) for name in names}
        assert set(found) == wanted | ({"stability/embeddings/exp_by_x"} if "use_embedding_curvature" in options else set())
        assert model.training
        if curvature == 0:
            idle = options.get("residual") == "transport"  # x + v: without r
            assert found == pytest.approx({key: 0.0 if idle and key.endswith("add_by_r") else 1.0 for key in found}, rel=1e-5)
        else:
            assert all(abs(value - 1) > 1e-3 for value in found.values()), found
        assert torch.equal(model(*tokens)[0], before) and "residual" not in model.transformer.h[0].__dict__


@pytest.mark.parametrize("options", [dict(), dict(reference="origin"), dict(reference="mean", residual="reference", max_distance=0.5),
                                     dict(reference="mean", use_embedding_curvature=True, per_head_curvature=False)])
def test_gradients_of_the_maps_are_those_of_what_is_added_to_them(options, tokens):
    torch.manual_seed(0)
    model = models.build("mixed", models.CONFIGS["mixed"](**TINY, **options)).eval()
    idx, n = tokens[0], TINY["n_embd"]
    found = gradient_norms(model, idx)
    kinds = dict(log="tangent", add="residual", **(dict(midpoint="reference") if options.get("reference") == "mean" else {}))
    wanted = {f"stability/block{i}/{kind}_grad_norm": (block, name) for i, block in enumerate(model.transformer.h)
              for kind, name in kinds.items()}
    if "use_embedding_curvature" in options:
        wanted["stability/embeddings/exp_grad_norm"] = (model, "embedded")
    assert set(found) == set(wanted)
    assert all(p.grad is None for p in model.parameters())
    assert not any(name in vars(module) for module, name in wanted.values())
    zeros = {}

    def with_zeros(key, old):
        def f(*args):
            out = old(*args)
            zeros.setdefault(key, []).append(torch.zeros_like(out, requires_grad=True))
            return out + zeros[key][-1]
        return f
    for key, (module, name) in wanted.items():
        setattr(module, name, with_zeros(key, getattr(module, name)))
    model(idx[:, :-1], idx[:, 1:])[1].backward()
    for key, parts in zeros.items():
        assert len(parts) == (1 if "embeddings" in key else 2) and parts[0].numel() == idx[:, 1:].numel() * n
        assert found[key] == pytest.approx(torch.cat([z.grad.flatten() for z in parts]).norm().item(), rel=1e-5)


def test_without_maps_and_with_shards(tokens, small_run, capsys):
    plain = models.build("baseline", models.CONFIGS["baseline"](**TINY))
    assert map_norms(plain, tokens[0]) == gradient_norms(plain, tokens[0]) == {}
    status, _, err = run(train.main, [*small_run, "--log_stability=True", "--parallel=fsdp"], capsys)
    assert status == 2
    one_line(err, "log_stability", "--parallel=ddp")
