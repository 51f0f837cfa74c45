"""Learning from another run: the loss by its formula, what is listened to, steps, freezing, resuming, bad input."""
import pytest
import torch
from conftest import write_dataset
from running import one_line, records, run
from safetensors.torch import load_file
from test_model_baseline import randomised
from test_models import build

import train
from training import distill
from training.config import TrainConfig

ARGS = ["--max_iters=8", "--warmup_iters=0", "--learning_rate=3e-3"]


@pytest.fixture
def teacher(small_run, tmp_path, capsys):
    """A short run of the baseline."""
    assert run(train.main, [*small_run, *ARGS, "--max_iters=30", f"--out_dir={tmp_path / 'teacher'}"], capsys)[0] == 0
    return tmp_path / "teacher"


def lessons(teacher_net, pupil_net, monkeypatch, **options):
    """Lessons of two models that are in memory."""
    monkeypatch.setattr(distill.checkpoint, "exists", lambda *args: True)
    monkeypatch.setattr(distill.checkpoint, "load_model", lambda *args: (teacher_net.eval(), {"model": "baseline", "tokenizer": {}}))
    return distill.Lessons(TrainConfig(distill_from="x", **options), pupil_net, {}, "cpu")


def rows_of(net, idx, kind):
    """Logits, and rows by plain loops over blocks."""
    x, found = net.start(idx), []
    for block in net.transformer.h:
        attended = block.attn(block.ln_1(x))
        x = x + attended
        x = x + block.mlp(block.ln_2(x))
        found.append(x if kind == "hidden" else attended)
    return net.lm_head(net.transformer.ln_f(x)), found


@pytest.mark.parametrize("kind", ["hidden", "attention"])
def test_the_loss_is_its_formula(kind, tokens, monkeypatch):
    idx, targets = tokens
    mine, its = (randomised(build("baseline", {}), seed=i).double() for i in range(2))
    teach = lessons(its, mine, monkeypatch, distill_layers=kind, distill_text=0.3, distill_logits=0.7, distill_temperature=1.7,
                    distill_layers_weight=0.4)
    text = mine(idx, targets)[1]
    found = teach.loss(text, idx, 0)
    (a, rows), (b, its_rows) = rows_of(mine, idx, kind), rows_of(its, idx, kind)
    p, q = torch.softmax(b / 1.7, -1), torch.softmax(a / 1.7, -1)
    kl = 1.7 ** 2 * (p * (p / q).log()).sum(-1).mean()
    unit = lambda row: row / row.square().mean(-1, keepdim=True).sqrt()
    apart = sum((unit(r) - unit(s)).square().mean() for r, s in zip(rows, its_rows)) / 2
    torch.testing.assert_close(found.item(), (0.3 * text + 0.7 * kl + 0.4 * apart).item(), rtol=1e-5, atol=0)
    assert teach.numbers() == pytest.approx({"distill_logits": kl.item(), "distill_layers": apart.item()}, rel=1e-5)
    found.backward()
    assert all(p.grad.abs().sum() > 0 for p in mine.parameters()) and all(p.grad is None for p in its.parameters())


@pytest.mark.parametrize("name, options, layers", [
    ("baseline", {}, "hidden"), ("mixed", dict(curvature_mode="fixed", curvature=0.0, reference="origin"), "hidden"),
    ("mixed", dict(curvature_mode="fixed", curvature=0.0, reference="origin"), "attention"), ("mhc", dict(hc="none"), "hidden")])
def test_a_teacher_of_the_same_function_has_nothing_to_teach(name, options, layers, tokens, monkeypatch):
    idx, targets = tokens
    its, mine = randomised(build("baseline", {})), build(name, options)
    mine.load_state_dict(its.state_dict(), strict=False)
    teach = lessons(its, mine, monkeypatch, distill_layers=layers)
    text = mine(idx, targets)[1]
    found = teach.loss(text, idx, 0)
    torch.testing.assert_close(found, text, rtol=0, atol=1e-5)
    assert teach.numbers() == pytest.approx({"distill_logits": 0, "distill_layers": 0}, abs=1e-6)


def test_streams_and_recomputed_blocks_are_heard_once(tokens, monkeypatch):
    idx, targets = tokens
    its = randomised(build("baseline", {}))
    found = []
    for recompute in (False, True):
        mine = build("mhc", dict(value_residual="learned"))
        mine.activation_checkpointing = recompute
        teach = lessons(its, mine, monkeypatch, distill_layers="hidden")
        for _ in range(2):
            mine.zero_grad()
            loss = teach.loss(mine(idx, targets)[1], idx, 0)
            loss.backward()
        found.append([loss, *(p.grad for p in mine.parameters())])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        mine.eval()(idx, targets)  # an evaluation is not listened to
    assert not mine.training and teach.pupil.logits is None and not teach.pupil.rows


@pytest.mark.parametrize("name", ["mhc", "mhc_mixed"])
def test_attention_between_streams_is_heard_as_it_is(name, tokens, monkeypatch):
    """It is one row for all streams. As many streams as sequences: a mean over the wrong dimension would fit."""
    mine = build(name, dict(hc_num_streams=len(tokens[0])))
    teach = lessons(build("baseline", {}), mine, monkeypatch, distill_layers="attention")
    made = []
    for block in mine.transformer.h:
        block.attn.register_forward_hook(lambda module, given, out: made.append(out[0] if isinstance(out, tuple) else out))
    loss = mine(*tokens)[1]
    for a, b in zip(made, teach.pupil.rows, strict=True):
        assert a.shape == (*tokens[0].shape, 16) and torch.equal(a, b)
    assert torch.isfinite(teach.loss(loss, tokens[0], 0))


def test_a_pupil_comes_nearer_to_its_teacher(teacher, small_run, tmp_path, capsys):
    """From the same start, as many steps: nearer in logits and in layers than with the text alone."""
    last = {}
    for name, options in (("text", ["--distill_logits=0.0", "--distill_layers=hidden", "--distill_layers_weight=1e-9"]),
                          ("lessons", ["--distill_text=0.0", "--distill_layers=hidden"])):
        out = tmp_path / name
        args = [*small_run, "--max_iters=60", "--warmup_iters=0", "--learning_rate=1e-2", "--model=mixed", f"--distill_from={teacher}"]
        assert run(train.main, [*args, *options, f"--out_dir={out}"], capsys)[0] == 0
        last[name] = [line for line in records(out) if "distill_layers" in line][-1]
    assert last["lessons"]["distill_layers"] < 0.7 * last["text"]["distill_layers"]
    first = next(line for line in records(tmp_path / "lessons") if "distill_logits" in line)
    assert last["lessons"]["distill_logits"] < 0.5 * first["distill_logits"]


def test_after_its_steps_the_text_alone_is_left_and_a_resumed_run_is_the_same(teacher, small_run, tmp_path, capsys):
    args = [*small_run, *ARGS, "--model=mixed", f"--distill_from={teacher}", "--distill_steps=5", "--distill_text=0.0", "--eval_interval=3",
            f"--init_from={teacher}", "--reference=origin"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    status, said, _ = run(train.main, [*args, f"--out_dir={whole}"], capsys)
    assert status == 0 and "learns from" in said and "compile: off (layers are listened to)" in said
    steps = [line for line in records(whole) if "loss" in line]
    assert ["distill_logits" in line for line in steps] == [True] * 5 + [False] * 3
    assert all(line["loss"] < 1 for line in steps[:5]) and all(line["loss"] > 1 for line in steps[5:])  # KL is small from the start
    assert run(train.main, [*args, f"--out_dir={parted}", "--max_iters=3", "--lr_decay_iters=8"], capsys)[0] == 0
    resumed = [*args[:-2], "--reference=origin", f"--out_dir={parted}", "--init_from=resume", "--lr_decay_iters=8"]
    assert run(train.main, resumed, capsys)[0] == 0
    one, other = (load_file(folder / "ckpt" / "last" / "model.safetensors") for folder in (whole, parted))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_frozen_parameters_are_another_run(small_run, tmp_path, capsys):
    args = [*small_run, *ARGS, "--max_iters=3"]
    assert run(train.main, args, capsys)[0] == 0
    status, _, err = run(train.main, [*args, "--max_iters=6", "--init_from=resume", "--freeze=['transformer.wpe.weight']"], capsys)
    assert status == 2
    one_line(err, "cannot resume", "freeze was [] there and is ['transformer.wpe.weight'] now")


def test_frozen_parameters_stay(small_run, tmp_path, capsys):
    args = [*small_run, *ARGS, "--freeze=['transformer.h.*.mlp.*','transformer.wpe.weight']"]
    status, said, _ = run(train.main, args, capsys)
    assert status == 0 and f"frozen: {2 * 2 * 4 * 16 * 16 + 16 * 16:,} numbers" in said
    torch.manual_seed(1337)
    start = build("baseline", {}, seed=1337, vocab_size=36, block_size=16).state_dict()
    after = load_file(tmp_path / "run" / "ckpt" / "last" / "model.safetensors")
    for name, value in after.items():
        assert torch.equal(value, start[name]) == (".mlp." in name or ".wpe." in name), name


@pytest.mark.parametrize("options, parts", [
    (["--distill_text=2.0"], ["distill_text has no effect with no distill_from"]),
    (["--distill_from={teacher}", "--distill_layers_weight=2.0"], ["distill_layers_weight has no effect with distill_layers = 'none'"]),
    (["--distill_from={teacher}", "--compile=True"], ["compile = True does not go with distill_from"]),
    (["--distill_from={teacher}", "--distill_text=0.0", "--distill_logits=0.0"], ["leave nothing to learn from"]),
    (["--distill_from={teacher}", "--distill_temperature=0.0"], ["distill_temperature = 0: must be more than 0"]),
    (["--distill_from={teacher}", "--distill_steps=0"], ["distill_steps = 0: must be more than 0"]),
    (["--distill_from={teacher}", "--n_layer=3", "--distill_layers=hidden"], ["distill_layers needs n_layer = 2"]),
    (["--distill_from={teacher}", "--block_size=32"], ["has block_size = 16, and 32 are read here"]),
    (["--distill_from={teacher}", "--dataset=others"], ["has other tokens than dataset = 'others'"]),
    (["--distill_from=nowhere"], ["nowhere"]),
    (["--distill_from="], ["distill_from is empty"]),
    (["--distill_from={teacher}", "--out_dir={teacher}", "--overwrite=True"], ["a run cannot learn from itself"]),
    (["--distill_from={teacher}", "--distill_temperature=1e30"], ["distill_temperature = 1e+30", "at most 1,000"]),
    (["--freeze=['transformer.x.*']"], ["no parameter is called 'transformer.x.*'", "transformer.wte.weight"]),
    (["--freeze=['*']"], ["freeze leaves nothing to be trained"]),
    (["--freeze=['transformer.h.*']", "--optimizer=muon"], ["'muon' trains the matrices of blocks", "--optimizer=adamw"])])
def test_bad_input_is_one_line(options, parts, teacher, small_run, data_dir, tmp_path, capsys):
    write_dataset(data_dir / "others", [1, 2, 3] * 1000, [1, 2] * 500, vocab_size=4, characters="abcd")
    status, _, err = run(train.main, [*small_run, *(option.format(teacher=teacher) for option in options)], capsys)
    assert status == 2 and not (tmp_path / "run" / "config.json").exists()
    one_line(err, *parts)
