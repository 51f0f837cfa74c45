"""ablate_curvature.py: every effect again with models that are built anew, the gradients against differences, and its place in
the summary of a sweep."""
import json
import math
import os

import numpy as np
import pytest
import torch
from conftest import TINY, write_dataset
from running import ended, one_line, run
from test_summarize import ARMS, Written, known

import ablate_curvature
import models
from analysis import ablation, surrogates
from common.errors import UserError
from experiments import report
from experiments import statistics as ss
from training import checkpoint
from training.dataloader import Loader, load_meta


def tiny_mixed(**options):
    torch.manual_seed(0)
    return models.build("mixed", models.CONFIGS["mixed"](**{**TINY, "n_layer": 3, **options})).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a mixed run of 12 steps with large steps for c."""
    folder = tmp_path_factory.mktemp("run")
    ids = np.random.default_rng(0).integers(0, 8, (400, 1)) + np.arange(30) % 9  # a rhythm to learn, 12,000 tokens
    write_dataset(folder / "data" / "words", ids.reshape(-1)[:10000], ids.reshape(-1)[10000:])
    arguments = [f"--data_dir={folder / 'data'}", "--dataset=words", f"--out_dir={folder / 'run'}", "--n_layer=2",
                 "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4", "--max_iters=12",
                 "--eval_interval=6", "--eval_iters=4", "--warmup_iters=2", "--tensorboard_log=False", "--device=cpu",
                 "--dtype=float32", "--model=mixed", "--curvature_mode=random", "--learning_rate=1e-2", "--curvature_lr_mult=5"]
    status, _, err = ended("train", arguments)
    assert status == 0, err
    return str(folder / "run")


def effects(result):
    return {e.change: e.difference for e in result.effects}


def test_ablation_of_a_real_run(trained):
    folder = trained
    result = ablation.ablate(folder, "last", device="cpu")
    with open(os.path.join(folder, "summary.json")) as f:
        assert result.loss.mean == pytest.approx(json.load(f)["val_loss"], rel=1e-6)
    assert result.batches == 4 and result.tokens == 4 * 4 * 16 and result.left_out == []
    assert all(d.n == 4 and d.low < d.mean < d.high and d.mean != 0 for d in effects(result).values())

    # every effect again, with models that are built from the changed weights instead of changed in place
    model, config = checkpoint.load_model(folder, "last")
    loader = Loader(os.path.join(config["data_dir"], "words"), "val",
                                     load_meta(os.path.join(config["data_dir"], "words")), 4, 16, 0)
    batches = list(loader.eval_batches(4))
    weights = model.state_dict()
    c = [weights[f"transformer.h.{i}.curvature.c"] for i in range(2)]
    torch.manual_seed(config["seed"])
    start = models.build("mixed", models.config_from_dict("mixed", config)).state_dict()

    def losses(values):
        other = models.build("mixed", models.config_from_dict("mixed", config)).eval()
        other.load_state_dict({**weights, **{f"transformer.h.{i}.curvature.c": v for i, v in enumerate(values)}})
        with torch.no_grad():
            return np.array([other(x, y)[1].item() for x, y in batches])
    truth = {"c = 0": [0 * v for v in c], "c negated": [-v for v in c],
             "c moved among blocks": c[::-1], "c moved among heads": [v.flip(0) for v in c],
             "c as it started": [start[f"transformer.h.{i}.curvature.c"] for i in range(2)]}
    assert set(truth) | set(surrogates.TERMS) == set(effects(result))
    for change, values in truth.items():
        expected = ss.mean_interval(losses(values) - losses(c))
        assert effects(result)[change].mean == pytest.approx(expected.mean, abs=1e-6), change
        assert effects(result)[change].high == pytest.approx(expected.high, abs=1e-5), change
    assert [(s.place, s.head) for s in result.slopes] == [(f"block {i}", h) for i in range(2) for h in range(2)]
    assert [s.c for s in result.slopes] == pytest.approx([v.item() for block in c for v in block])
    assert any(abs(s.c - s.c_start) > 0.01 for s in result.slopes)  # it was learned


def test_the_gradient_by_c_is_the_slope_of_the_loss(tokens):
    """Central differences in float64, for a learned c, a fixed one (a buffer, its limits computed before), a gate."""
    for options in ({}, {"curvature_mode": "fixed", "curvature": 0.3}, {"dynamic_curvature": True},
                    {"curvature_mode": "tied", "per_head_curvature": False, "use_embedding_curvature": True}):
        model = tiny_mixed(**options).double()
        batches = [tokens, tuple(t.flip(0) for t in tokens)]
        values = ablation.values_of(model)
        found = ablation.gradients(model, batches)
        assert not any(b.requires_grad for b in model.buffers())
        assert set(found) == {n for n in values if n.endswith("curvature.c")}
        for name, by_batch in found.items():
            for head in range(by_batch.shape[1]):
                sides = []
                for h in (1e-5, -1e-5):
                    moved = values[name].clone()
                    moved.view(-1)[head] += h
                    ablation.set_curvature(model, {**values, name: moved})
                    sides.append(ablation.batch_losses(model, batches))
                slope = (sides[0] - sides[1]) / 2e-5
                assert by_batch[:, head] == pytest.approx(slope, rel=1e-4, abs=1e-8), (options, name)
        ablation.set_curvature(model, values)


def test_a_fixed_curvature_is_changed_with_what_was_computed_from_it(tokens):
    """c = 0 set afterwards is the model that was built with c = 0, and not one cut off at the old ball's edge."""
    model, flat = (tiny_mixed(curvature_mode="fixed", curvature=c) for c in (4.0, 0.0))
    flat.load_state_dict(model.state_dict())
    with torch.no_grad():
        for m in (model, flat):
            m.transformer.wte.weight.mul_(40)  # rows beyond the radius 1/2
    before = model(*tokens)[1].item()
    trained = ablation.values_of(model)
    ablation.set_curvature(model, {n: torch.zeros_like(v) for n, v in trained.items()})
    assert model(*tokens)[1].item() == flat(*tokens)[1].item() != before
    ablation.set_curvature(model, trained)
    assert model(*tokens)[1].item() == before


def test_what_changes_there_are():
    def of(**options):
        values = ablation.values_of(tiny_mixed(**options))
        found, left_out = ablation.changes(values, values)
        return values, found, left_out
    values, found, left_out = of()
    assert [len(s) for s in found.values()] == [1, 2, 1, 1, 1] and left_out == []
    first = found["c moved among blocks"][0]
    for i in range(3):
        assert torch.equal(first[f"transformer.h.{i}.curvature.c"], values[f"transformer.h.{(i + 1) % 3}.curvature.c"])
    values, found, left_out = of(curvature_mode="tied", per_head_curvature=False, dynamic_curvature=True)
    assert list(found) == ["c = 0", "c as it started", "c negated", "gate off"] and len(left_out) == 2
    gates = [v for n, v in found["gate off"][0].items() if "gate" in n]
    assert len(gates) == 6 and not any(g.any() for g in gates)


def test_a_fixed_c_of_zero_does_nothing_at_all(small_run, tmp_path, capsys):
    import train
    args = [*small_run, "--model=mixed", "--curvature_mode=fixed", "--curvature=0", "--max_iters=4"]
    assert run(train.main, args, capsys)[0] == 0
    result = ablation.ablate(str(tmp_path / "run"), "last", device="cpu")
    assert len(result.effects) == 5 + len(surrogates.TERMS)
    for e in result.effects[5:]:  # terms, of ordinary operations: but for rounding
        assert abs(e.difference.mean) < 1e-4, e
    for e in result.effects[:5]:
        assert (e.difference.mean, e.difference.low, e.difference.high, e.least, e.most) == (0, None, None, 0, 0)
    assert all(s.c == s.c_start == 0 for s in result.slopes) and any(s.gradient.mean != 0 for s in result.slopes)


def test_a_c_that_keeps_its_sign_and_that_of_a_head(small_run, tmp_path, capsys):
    """curvature_form = 'softplus', and a curved head: against models that are built with the numbers."""
    import train
    args = [*small_run, "--model=stereographic", "--curvature_mode=random", "--curvature_form=softplus", "--head=stereographic",
            "--head_curvature=0.05", "--head_curvature_mode=parametric", "--max_iters=6", "--learning_rate=1e-2", "--curvature_lr_mult=5"]
    assert run(train.main, args, capsys)[0] == 0
    folder = str(tmp_path / "run")
    result = ablation.ablate(folder, "last", device="cpu")
    with open(os.path.join(folder, "summary.json")) as f:
        assert result.loss.mean == pytest.approx(json.load(f)["val_loss"], rel=1e-6)
    model, config = checkpoint.load_model(folder, "last")
    batches = list(ablation.loader_of(folder, config, "cpu").eval_batches(config["eval_iters"]))
    before, weights = ablation.batch_losses(model, batches).mean(), dict(model.named_parameters())

    def change(**options):
        other = models.build("stereographic", models.config_from_dict("stereographic", {**config, **options})).eval()
        with torch.no_grad():
            for name, p in other.named_parameters():
                p.copy_(weights[name])
        return ablation.batch_losses(other, batches).mean() - before
    found = effects(result)
    assert found["c = 0"].mean == pytest.approx(change(curvature_mode="fixed", curvature=0.0, curvature_form="plain"), abs=1e-6)
    assert found["head: c = 0"].mean == pytest.approx(change(head_curvature=0.0, head_curvature_mode="fixed"), abs=1e-6)
    head = result.slopes[-1]
    assert head.place == "head" and head.c_start == pytest.approx(0.05) and head.c == pytest.approx(model.lm_head.c().item()) != 0.05
    for s in result.slopes[:-1]:
        assert s.c > 0 and s.c_start > 0
    loss = {h: change(head_curvature_mode="fixed", head_curvature=head.c + h) for h in (1e-2, -1e-2)}
    assert head.gradient.mean == pytest.approx((loss[1e-2] - loss[-1e-2]) / 2e-2, rel=0.05)


def test_the_command_of_the_ablation(trained, tmp_path, capsys):
    folder = trained
    status, out, _ = run(ablate_curvature.main, [folder, "--checkpoint=last", "--batches", "1"], capsys)
    assert status == 0
    assert all(part in out for part in ("one batch: no intervals", "block 1, head 1", "c moved among heads"))
    for args, parts in (([], ["run"]), ([folder, "--batches=0"], ["'0' is not a whole number of at least 1"]),
                        ([tmp_path / "none"], ["no such run"]), ([folder, "--checkpoint=first"], ["'first'"])):
        status, _, err = run(ablate_curvature.main, args, capsys)
        assert status == 2
        one_line(err, *parts)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "config.json").write_text('{"model": "baseline"}')
    status, _, err = run(ablate_curvature.main, [tmp_path / "flat"], capsys)
    assert status == 2
    one_line(err, "model = 'baseline' has no curvature")


def test_a_run_on_another_text_is_not_evaluated(trained, tmp_path):
    folder = trained
    config = checkpoint.load_config(folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    os.symlink(os.path.join(folder, "ckpt"), copy / "ckpt")
    (copy / "config.json").write_text(json.dumps({**config, "corpus_sha256": "0" * 64}))
    with pytest.raises(UserError, match="another text"):
        ablation.ablate(str(copy), "last")


def test_c_at_the_start_of_a_run_that_began_with_trained_weights_is_theirs(trained, tmp_path):
    config, copy = checkpoint.load_config(trained), tmp_path / "copy"
    copy.mkdir()
    os.symlink(os.path.join(trained, "ckpt"), copy / "ckpt")
    (copy / "config.json").write_text(json.dumps({**config, "began_from": str(trained)}))
    found = ablation.ablate(str(copy), "best", 1)
    assert all(s.c_start == s.c for s in found.slopes) and any("started" in e.change for e in found.effects)
    (copy / "config.json").write_text(json.dumps({**config, "began_from": str(tmp_path / "gone")}))
    found = ablation.ablate(str(copy), "best", 1)
    assert all(math.isnan(s.c_start) for s in found.slopes) and not any("started" in e.change for e in found.effects)
    assert "not there any more" in " ".join(found.left_out)


def test_the_summary_of_a_mixed_arm_has_its_curvature(trained, tmp_path, capsys):
    written = Written(tmp_path / "s", ARMS, known, lrs=[3e-3], seeds=[1, 2])
    target = written.folder / "runs" / f"mixed-{3e-3}-2"
    for name in ("config.json", "ckpt"):
        os.symlink(os.path.join(trained, name), target / name)
    found, arms = written.summary(batches=2, selection_seed=1)
    assert set(arms["mixed"].ablations) == {2} and arms["mixed"].ablations[2].batches == 2
    text = report.as_markdown(report.document(found, []))
    direct = effects(ablation.ablate(trained, "last", 2, "cpu"))
    assert "Is the curvature doing anything?" in text and f"{direct['c = 0'].mean:+.4f}" in text
    content = json.loads(json.dumps(report.finite(report.as_dict(found))))
    assert content["arms"][3]["curvature"]["2"]["slopes"][0]["place"] == "block 0"
    os.remove(target / "ckpt")
    found, _ = written.summary(batches=2, selection_seed=1)
    assert "mixed: the curvature of seed 2 could not be looked at: no checkpoint 'last'" in " ".join(found.notes)


def test_surrogates_are_the_models_of_the_terms(tokens):
    """The same weights in model_terms.py, with parts of log_r(x) and of the sum."""
    c = 2.0
    mixed = tiny_mixed(curvature_mode="fixed", curvature=c, max_distance=None)
    with torch.no_grad():
        mixed.transformer.wte.weight.mul_(8)
    whole = mixed(*tokens)[1].item()
    for name, (read, write) in surrogates.TERMS.items():
        terms = models.build("terms", models.CONFIGS["terms"](
            **{**TINY, "n_layer": 3}, curvature=c, read=read or "log", write=write or "mobius")).eval()
        terms.load_state_dict(mixed.state_dict())
        with surrogates.in_place(mixed, name):
            found = mixed(*tokens)[1].item()
        assert found == pytest.approx(terms(*tokens)[1].item(), rel=1e-5), name
        assert found != whole
    assert mixed(*tokens)[1].item() == whole
    assert not surrogates.possible(tiny_mixed(reference="origin"))
    assert not surrogates.possible(models.build("baseline", models.CONFIGS["baseline"](**TINY)))
