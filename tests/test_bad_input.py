"""What train.py does with bad options, data and folders: one line, and no file is changed."""
import json
import sys

import pytest
import torch
from conftest import write_dataset
from running import MIXED, files_of, one_line, records, run
from safetensors.torch import load_file, save_file

import models
import train
from training import checkpoint


def test_a_directory_that_holds_a_run_is_not_overwritten(small_run, tmp_path, capsys):
    assert run(train.main, small_run, capsys)[0] == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    status, _, err = run(train.main, small_run, capsys)
    assert status == 2
    one_line(err, "holds a run already", "--overwrite=True")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    assert run(train.main, small_run + ["--overwrite=True"], capsys)[0] == 0


@pytest.mark.parametrize("args, parts", [
    (["--init_from=resume", "--batch_size=8", "--learning_rate=0.5"], ["batch_size was 4"]),
    (["--init_from=resume", "--n_embd=32"], ["n_embd was 16"]),
    (["--init_from=resume", "--max_iters=3"], ["at step 12 already", "max_iters = 3"]),
    (["--overwrite=True", "--wandb_log=True"], ["pip install wandb"]),
])
def test_what_is_refused_changes_no_file_of_the_run(args, parts, small_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert run(train.main, small_run, capsys)[0] == 0
    before = files_of(tmp_path / "run")
    status, _, err = run(train.main, small_run + args, capsys)
    assert status == 2
    one_line(err, *parts)
    assert files_of(tmp_path / "run") == before


def test_looking_at_a_run_changes_no_file_of_it(small_run, tmp_path, capsys):
    assert run(train.main, small_run, capsys)[0] == 0
    before = files_of(tmp_path / "run")
    status, out, _ = run(train.main, small_run + ["--init_from=resume", "--eval_only=True"], capsys)
    assert status == 0 and "val loss" in out
    assert files_of(tmp_path / "run") == before


def test_no_run_inherits_the_checkpoints_of_another(small_run, tmp_path, capsys):
    """Overwritten where ckpt is a link to another disk; and where config.json is gone."""
    out_dir, disk = tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    out_dir.mkdir()
    (out_dir / "ckpt").symlink_to(disk)
    assert run(train.main, small_run, capsys)[0] == 0
    assert (disk / "last").is_dir()
    assert run(train.main, small_run + ["--overwrite=True", "--seed=2", "--max_iters=0"], capsys)[0] == 0
    assert all(checkpoint.load_state(disk / name)["step"] == 0 for name in ("last", "best"))
    assert sorted(p.name for p in disk.iterdir()) == ["best", "last"]
    assert run(train.main, small_run + ["--overwrite=True"], capsys)[0] == 0
    (out_dir / "config.json").unlink()
    for how in ("auto", "scratch"):
        status, _, err = run(train.main, small_run + [f"--init_from={how}", "--seed=2"], capsys)
        assert status == 2
        one_line(err, "holds checkpoints of a run", "--overwrite=True")


def test_a_finished_budget_of_seconds_stays_finished(small_run, tmp_path, capsys):
    args = small_run + ["--max_iters=100000", "--eval_interval=100000", "--max_seconds=0.05", "--init_from=auto"]
    steps = []
    for _ in range(2):
        assert run(train.main, args, capsys)[0] == 0
        steps.append(json.loads((tmp_path / "run" / "summary.json").read_text())["step"])
    assert steps[0] == steps[1]


def test_odd_files_of_a_run_get_one_line_or_are_read_over(small_run, tmp_path, capsys):
    assert run(train.main, small_run, capsys)[0] == 0
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as f:
        f.write(b"3\n{}\n\xff\xfe{\n")
    assert run(train.main, small_run + ["--init_from=resume", "--max_iters=14"], capsys)[0] == 0
    assert records(tmp_path / "run")[-1]["step"] == 14
    state = tmp_path / "run" / "ckpt" / "last" / "state.pt"
    torch.save({"step": 3}, state)
    one_line(run(train.main, small_run + ["--init_from=resume"], capsys)[2], "state.pt", "has no 'optimizers'")
    (tmp_path / "run" / "config.json").write_text("null")
    one_line(run(train.main, small_run + ["--init_from=resume"], capsys)[2], "config.json is damaged")


def test_a_damaged_or_foreign_state_is_refused_before_the_optimizer_reads_it(small_run, tmp_path, capsys):
    assert run(train.main, small_run, capsys)[0] == 0
    assert run(train.main, small_run + ["--n_embd=8", f"--out_dir={tmp_path / 'other'}"], capsys)[0] == 0
    path, resume = tmp_path / "run" / "ckpt" / "last" / "state.pt", small_run + ["--init_from=resume", "--max_iters=14"]
    good = torch.load(path)
    name = next(iter(good["optimizers"]))

    def moments(**change):
        return {**good, "optimizers": {**good["optimizers"], name: {**good["optimizers"][name], **change}}}
    other = torch.load(tmp_path / "other" / "ckpt" / "last" / "state.pt")
    nan = torch.full_like(good["optimizers"][name]["exp_avg"], float("nan"))
    for state, part in ((other, "the parameter's shape"), ({**good, "step": "x"}, "step = 'x'"), ({**good, "step": -3}, "step = -3"),
                        ({**good, "best": None}, "best = None"), ({**good, "seconds": None}, "seconds = None"),
                        ({**good, "optimizers": []}, "optimizers = []"), (moments(exp_avg=nan), "a NaN or an Inf"),
                        (moments(exp_avg=3), "the parameter's shape"), (moments(more=nan), "another optimizer's"),
                        ({**good, "optimizers": {**good["optimizers"], name: 3}}, "another optimizer's")):
        torch.save(state, path)
        status, _, err = run(train.main, resume, capsys)
        assert status == 2, part
        one_line(err, part)
    torch.save(good, path)
    whole = path.read_bytes()
    number = good["optimizers"][name]["exp_avg"].numpy().tobytes()[-4:]
    assert number in whole
    place = whole.index(number)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
    one_line(run(train.main, resume, capsys)[2], "damaged", "checksum")
    path.write_bytes(whole)
    weights = path.with_name("model.safetensors")
    tensors = load_file(weights)
    key = next(iter(tensors))
    tensors[key].view(-1)[0] = float("nan")
    save_file(tensors, weights)
    status, _, err = run(train.main, resume, capsys)
    assert status == 2
    one_line(err, "damaged", key, "a NaN or an Inf")


def test_a_float32_run_goes_on_in_float16(small_run, capsys):
    assert run(train.main, small_run, capsys)[0] == 0
    assert run(train.main, small_run + ["--init_from=resume", "--dtype=float16", "--max_iters=14"], capsys)[0] == 0


def test_a_float16_step_with_infinite_gradients_is_skipped_by_every_optimizer(small_run, tmp_path, capsys, monkeypatch):
    """And such a run, of which Muon has no state yet, can be resumed."""
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kwargs: scaler(*args, init_scale=2.0 ** 40, **kwargs))
    args = [*small_run, *MIXED, "--optimizer=muon", "--dtype=float16", "--max_iters=1"]
    assert run(train.main, args, capsys)[0] == 0
    weights = load_file(tmp_path / "run" / "ckpt" / "last" / "model.safetensors")
    torch.manual_seed(1337)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    start = models.build("mixed", models.config_from_dict("mixed", config))
    assert all(torch.equal(weights[name], p) for name, p in start.named_parameters())
    assert run(train.main, args + ["--init_from=resume", "--max_iters=2"], capsys)[0] == 0


def test_weights_with_a_nan_never_replace_a_checkpoint(small_run, tmp_path, capsys):
    args = small_run + ["--save_interval=1", "--eval_interval=100", "--warmup_iters=0", "--learning_rate=1e38", "--min_lr=1"]
    status, _, err = run(train.main, args, capsys)
    assert status == 3
    one_line(err, "diverged at step")
    folder = tmp_path / "run" / "ckpt" / "last" / "model.safetensors"
    assert not folder.exists() or all(torch.isfinite(w).all() for w in load_file(folder).values())


@pytest.mark.parametrize("args, parts", [
    (["--dataset=nothing"], ["no prepared data"]),
    (["--block_size=5000"], ["block_size = 5000", "lower block_size"]),
    (["--device=tpu9"], ["device = 'tpu9'"]),
    (["--device=cuda:77"], ["not available"]),
    (["--parallel=fsdp"], ["torchrun --nproc-per-node"]),
    (["--save_interval=0"], ["save_interval = 0"]),
    (["--seed=99999999999999999999"], ["seed", "between -2^63 and 2^63"]),
    (["--optimizer=muon", "--muon_ns_steps=100"], ["muon_ns_steps", "less than 100"]),
    (["--overwrite=True", "--init_from=auto"], ["overwrite = True", "auto"]),
    (["--threads=3000000000"], ["threads", "less than"]),
    (MIXED + ["--curvature=1e300"], ["curvature", "1e+30"]),
    (MIXED + ["--reference=window", "--reference_window=" + "9" * 23], ["reference_window"]),
    (["--out_dir="], ["out_dir is empty"]),
    (["--init_from=resume"], ["no such run"]),
    (["--wandb_log=True"], ["pip install wandb"]),
])
def test_bad_options_get_one_line_and_leave_nothing(args, parts, small_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    status, _, err = run(train.main, small_run + args, capsys)
    assert status == 2
    one_line(err, *parts)
    assert not (tmp_path / "run").exists()


def test_a_token_outside_the_vocabulary_is_named(small_run, data_dir, capsys):
    write_dataset(data_dir / "words", [1, 2, 60000] * 100, [1, 2] * 100)
    status, _, err = run(train.main, small_run, capsys)
    assert status == 2
    one_line(err, "token 60000", "outside the vocabulary")


def test_data_that_are_refused_leave_no_run(small_run, data_dir, tmp_path, capsys):
    path = data_dir / "words" / "val.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\xff\xff")  # the last token: in no window of the first steps
    status, _, err = run(train.main, small_run, capsys)
    assert status == 2
    one_line(err, "65535", "outside the vocabulary")
    assert not (tmp_path / "run").exists()
    path.write_bytes(whole)
    assert run(train.main, small_run, capsys)[0] == 0  # the same command


class FakeWandb:
    """Stands for the package: its init fails, or records what it gets."""

    def __init__(self, error=None):
        self.error, self.logged, self.ended = error, [], False

    def init(self, **how):
        if self.error:
            raise self.error
        self.how = how
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.ended = True


def test_weights_and_biases_gets_the_numbers_or_nothing_is_touched(small_run, tmp_path, capsys, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert run(train.main, small_run + ["--wandb_log=True"], capsys)[0] == 0
    assert fake.how["name"] == "run" and fake.how["config"]["n_layer"] == 2 and fake.ended
    assert [(s, n["val_loss"]) for s, n in fake.logged if "val_loss" in n] == [
        (r["step"], r["val_loss"]) for r in records(tmp_path / "run") if "val_loss" in r]
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(RuntimeError("api_key not configured\nmore")))
    status, _, err = run(train.main, small_run + ["--wandb_log=True", "--overwrite=True"], capsys)
    assert status == 2
    one_line(err, "api_key not configured", "--wandb_log=False")
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*")) == before
    status, _, err = run(train.main, small_run + ["--wandb_log=True", f"--out_dir={tmp_path / 'new'}"], capsys)
    assert status == 2 and not (tmp_path / "new").exists()


def test_an_out_dir_that_cannot_be_written(small_run, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    status, _, err = run(train.main, small_run + [f"--out_dir={tmp_path / 'file' / 'run'}"], capsys)
    assert status == 2
    one_line(err, "file")
