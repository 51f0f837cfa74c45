"""
Several processes train as one: same losses, same weights, for every model, with DDP and FSDP2. Real torchrun where it is a part of what
is tested, and with `make test-all` for all models; else processes with its environment (forked.py): each start of torchrun takes seconds.
"""
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import torch
from conftest import wait_for_step
from forked import ranks
from run_each import newton_schulz_in_float32
from running import ROOT, one_line, records, run
from safetensors.torch import load_file

import models
import train
from training import checkpoint, shards

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
SHORT = ["--max_iters=3", "--eval_interval=3", "--eval_iters=3", "--gradient_accumulation_steps=4", "--batch_size=2",
         "--warmup_iters=0", "--tensorboard_log=False"]
CASES = {  # every model, every kind of parameter that is sharded, whole, shared or a scalar
    "baseline": ["--bias=True", "--dropout=0.2"],
    "gated": ["--head_gate=attention", "--optimizer=muon"],
    "flat": ["--token_shift=difference", "--activation_checkpointing=True"],
    "smear": ["--token_shift=smear", "--optimizer=muon"],
    "per_head": ["--model=mixed", "--curvature_mode=random", "--optimizer=muon"],
    "one_c": ["--model=mixed", "--per_head_curvature=False", "--curvature_mode=parametric", "--dropout=0.2",
              "--activation_checkpointing=True"],
    "tied": ["--model=mixed", "--curvature_mode=tied", "--use_embedding_curvature=True", "--residual=transport"],
    "fixed": ["--model=mixed", "--curvature_mode=fixed", "--curvature=-0.1", "--reference=mean"],
    "dynamic": ["--model=mixed", "--curvature_mode=random", "--dynamic_curvature=True", "--residual=reference"],
    "controls": ["--model=controls", "--control=bound+gate+norm", "--activation_checkpointing=True"],
    "streams": ["--model=mhc", "--hc_maps=dynamic", "--optimizer=muon", "--value_residual=learned"],
    "static_streams": ["--model=mhc", "--activation_checkpointing=True"],  # a block's two sub-layers at once
    "curved_streams": ["--model=mhc_mixed", "--curvature_mode=random", "--hc_space=midpoint"],
    "terms": ["--model=terms", "--read=log", "--write=constant"],
    "tau": ["--model=tau", "--tau=median", "--position=alibi", "--n_kv_head=1"],
    "mobius": ["--model=stereographic", "--layers=mobius", "--attention=distance", "--head=lorentz", "--head_tied=False",
               "--head_scale_mode=learned", "--head_curvature_mode=parametric"],
    "clipped": ["--bias=True", "--optimizer=muon", "--muon_lr=0.1", "--muon_momentum_warmup=4", "--qk_clip=0.01"],
    "hyperplanes": ["--model=stereographic", "--norm=stereographic", "--head=stereographic", "--head_offset=True", "--optimizer=muon"],
    # from the first case's run
    "lessons": ["--model=mixed", "--curvature_mode=random", "--distill_layers=hidden", "--freeze=['transformer.wpe.weight','*curvature*']"],
    "float16": ["--model=mixed", "--curvature_mode=random", "--dtype=float16"],  # with its GradScaler
    "bfloat16": ["--model=mixed", "--curvature_mode=random", "--dtype=bfloat16", "--activation_checkpointing=True"],
}
TOLERANCE = {"float16": 1e-3, "bfloat16": 5e-3}  # of losses and weights where it is not 1e-5


def torchrun(processes, *args, **env):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                           f"--nproc-per-node={processes}", *map(str, args)],
                          cwd=ROOT, capture_output=True, text=True, timeout=300, env={**ENV, **env})


def forked(processes, module, *args, **options):
    """As torchrun(), without the start."""
    children = ranks(processes, module, args, **options)
    said = [child.communicate() for child in children]
    status = max(abs(child.returncode) for child in children)
    return subprocess.CompletedProcess(args, status, *("".join(each) for each in zip(*said)))


def same(one, other, tolerance=1e-5):
    """Losses and weights of two run directories."""
    for a, b in zip(records(one), records(other), strict=True):
        assert a["step"] == b["step"]
        for key in {"loss", "val_loss", "train_loss", "grad_norm", "qk_clip/largest_logit"} & set(a):
            assert a[key] == pytest.approx(b[key], rel=tolerance, abs=tolerance), (key, a["step"])
    first, second = (load_file(pathlib.Path(d) / "ckpt" / "last" / "model.safetensors") for d in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("processes, names, start", [
    # (kinds of parameters that other cases have, too, are left to the exhaustive ones)
    (2, [name for name in CASES if name not in ("flat", "fixed", "smear", "hyperplanes", "bfloat16")],
     lambda n, path: forked(n, "run_each", path)),
    (4, ["baseline", "per_head", "streams"], lambda n, path: forked(n, "run_each", path)),  # on two cores: what is sharded
    pytest.param(2, list(CASES), lambda n, path: torchrun(n, "tests/run_each.py", path), marks=pytest.mark.exhaustive),
    pytest.param(4, list(CASES), lambda n, path: forked(n, "run_each", path), marks=pytest.mark.exhaustive)],
    ids=["2", "4", "2-torchrun", "4-every"])
def test_many_processes_train_as_one(processes, names, start, small_run, tmp_path, capsys, monkeypatch):
    """Every case alone, and on several processes in both ways. (One start for all of them: it takes seconds.)"""
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", newton_schulz_in_float32())
    lines, pairs = [], []
    cases = {name: CASES[name] for name in names}
    for name, options in cases.items():
        args = [*small_run, *SHORT, *options, *([f"--distill_from={tmp_path / 'baseline'}"] if name == "lessons" else [])]
        assert run(train.main, args + [f"--out_dir={tmp_path / name}"], capsys)[0] == 0
        for kind in ("ddp", "fsdp"):
            lines.append([*args, f"--parallel={kind}", f"--out_dir={tmp_path / (name + kind)}"])
            pairs.append((tmp_path / name, tmp_path / (name + kind), TOLERANCE.get(name, 1e-5)))
            if not list(cases).index(name):  # the optimizers with a flag on the device that makes them skip an update
                lines.append([*lines[-1][:-1], f"--out_dir={tmp_path / (name + kind)}-gpu", "--as_on_a_gpu"])
                pairs.append((tmp_path / name, tmp_path / (name + kind + "-gpu"), 1e-5))
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    done = start(processes, tmp_path / "lines.json")
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in ("ddp", "fsdp"):
        assert done.stdout.count(f"{processes} processes, {kind}") == len(cases) + 1
    for one, many, tolerance in pairs:
        same(one, many, tolerance)
    if "clipped" in names:
        assert max(record.get("qk_clip/clipped_heads", 0) for record in records(tmp_path / "clipped")) > 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_compiled(kind, small_run, tmp_path, capsys):
    args = [*small_run, *SHORT, "--n_layer=2", "--model=mixed", "--eval_interval=100"]
    assert run(train.main, args + [f"--out_dir={tmp_path / 'one'}"], capsys)[0] == 0
    done = torchrun(2, "train.py", *args, f"--parallel={kind}", "--compile=True", f"--out_dir={tmp_path / 'two'}")
    assert done.returncode == 0 and "compile: on" in done.stdout, done.stderr[-3000:]
    same(tmp_path / "one", tmp_path / "two")


def test_resuming_on_another_number_of_processes(small_run, tmp_path, capsys, monkeypatch):
    """One process, then two with shards, then two whole, then one again: the run that was never stopped."""
    args = [*small_run, *SHORT, "--model=mixed", "--curvature_mode=random", "--max_iters=8", "--lr_decay_iters=8", "--optimizer=muon"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", newton_schulz_in_float32())
    assert run(train.main, args + [f"--out_dir={whole}"], capsys)[0] == 0
    assert run(train.main, args + [f"--out_dir={parts}", "--max_iters=2"], capsys)[0] == 0
    lines = [[*args, f"--out_dir={parts}", f"--parallel={kind}", f"--max_iters={until}", "--init_from=resume"]
             for until, kind in ((4, "fsdp"), (6, "ddp"))]
    (tmp_path / "lines.json").write_text(json.dumps(lines))
    done = forked(2, "run_each", tmp_path / "lines.json")
    assert done.returncode == 0 and "resumed from step 2" in done.stdout and "resumed from step 4" in done.stdout
    assert run(train.main, args + [f"--out_dir={parts}", "--init_from=resume"], capsys)[0] == 0
    same(whole, parts)


def two_processes_after_some_steps(args):
    """(torchrun with two of train.py that have done some steps, the process id of one of them)."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "train.py", *args]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    wait_for_step(next(a for a in args if a.startswith("--out_dir=")).partition("=")[2], 5, child)
    return child, int(subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True).stdout.split()[-1])


def test_a_signal_to_one_process_stops_all_and_saves(small_run, tmp_path):
    children = ranks(2, "train", [*small_run, *SHORT, "--max_iters=1000000", "--eval_interval=1000000"])
    with children[0], children[1]:
        wait_for_step(tmp_path / "run", 5, children[0])
        children[1].send_signal(signal.SIGUSR1)
        rest, err = children[0].communicate()
        assert (children[0].returncode, children[1].wait()) == (0, 0), err
    assert "saved" in rest and "--init_from=resume" in rest
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"
    assert checkpoint.load_state(tmp_path / "run" / "ckpt" / "last")["step"] >= 6


def test_a_killed_process_ends_the_run_with_one_line_and_it_can_go_on(small_run, tmp_path, capsys):
    args = [*small_run, *SHORT, "--max_iters=400", "--save_interval=2", "--eval_interval=400"]
    child, worker = two_processes_after_some_steps(args)
    with child:
        os.kill(worker, signal.SIGKILL)
        said = child.communicate()[1]
    one_line("\n".join(line for line in said.splitlines() if line.startswith("error: ")), "another process of this run failed")
    at = checkpoint.load_state(checkpoint.folder(tmp_path / "run", "last"))["step"]
    status, out, _ = run(train.main, args + ["--init_from=resume", f"--max_iters={at + 2}"], capsys)
    assert status == 0 and f"resumed from step {at}" in out and at >= 4


def errors_of(done):
    return "\n".join(line for line in done.stderr.splitlines() if line.startswith("error: "))


def test_errors_are_said_once(small_run, tmp_path):
    done = torchrun(2, "train.py", *small_run, "--gradient_accumulation_steps=3")
    assert done.returncode == 1
    one_line(errors_of(done), "dealt out to 2 processes")
    assert not (tmp_path / "run").exists()


def test_divergence_is_said_once_with_its_place(small_run, tmp_path):
    done = forked(2, "train", *small_run, *SHORT, "--learning_rate=1e30", "--min_lr=0", "--grad_clip=0",
                  "--max_iters=20", "--eval_interval=100", "--parallel=fsdp")
    one_line(errors_of(done), "diverged at step")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "diverged"


def test_a_full_disk_stops_all_with_one_line(small_run, tmp_path):
    done = forked(2, "train", *small_run, *SHORT, largest_file=20000)
    assert done.returncode == 2
    one_line(errors_of(done), "could not write the checkpoint")


# ----------------------------------------------------------------------------------------------------------------------
# one process

def test_gradient_norm_and_clipping_are_torchs(tokens):
    net = models.build("mixed", models.CONFIGS["mixed"](vocab_size=37, block_size=12, n_layer=2, n_head=2, n_embd=16))
    net(*tokens)[1].backward()
    grads = [p.grad.clone() for p in net.parameters()]
    expected = torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    clipped = [p.grad.clone() for p in net.parameters()]
    for p, g in zip(net.parameters(), grads):
        p.grad = g
    norm = shards.gradient_norm(net.parameters())
    shards.clip_gradients(net.parameters(), 0.1, norm)
    assert norm == expected and all(torch.equal(p.grad, c) for p, c in zip(net.parameters(), clipped))
