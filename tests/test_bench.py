"""The benchmarks run and say what they should; they are not timed here."""
import csv
import os
import subprocess
import sys

import bench_attention
import bench_decode
import bench_kernels
import bench_model
import bench_stack
import pytest
import roofline
import torch
from running import one_line, run

import kernels

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def bench(name, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, os.path.join(ROOT, "bench", name), *arguments], capture_output=True, text=True,
                          env=environment)


def refused(main, argument, capsys, *parts):
    status, out, err = run(main, [argument], capsys)
    assert status == 2
    one_line(err, *parts)


def test_bench_kernels_writes_a_table_and_a_plot(tmp_path):
    done = bench("bench_kernels.py", "--rows=[240]", "--D=[16]", "--rounds=2", '--ops=["log_layernorm"]', "--c=head", "--device=cpu",
                f"--out={tmp_path / 'k.csv'}")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "k.csv") as f:
        table = list(csv.DictReader(f))
    assert {(line["provider"], line["passes"]) for line in table} == {
        (p, q) for p in ("eager", "compiled") for q in ("forward", "backward", "both")}
    for line in table:
        rows = {"forward": 2, "backward": 3, "both": 5}[line["passes"]]  # x -> out; g, x -> dx
        assert abs(float(line["GB_s"]) * float(line["ms"]) * 1e6 / (rows * 240 * 16 * 4) - 1) < 1e-6
        assert float(line["error"]) < 1e-5 and line["torch"] and line["hardware"]
    assert (tmp_path / "k.png").stat().st_size > 1000


def test_bad_input_is_one_line(capsys):
    for arguments in (['--ops=["expmapp"]'], ["--rounds=1"], ["--row=[3]"], ["--c=head", "--rows=[8]"], ["--rows=[]"], ["--ops=[]"]):
        with pytest.raises(SystemExit) as end:
            bench_kernels.main(arguments)
        said = capsys.readouterr().err
        assert end.value.code == 2 and len(said.strip().splitlines()) == 1, said


def test_the_roofline_file_is_what_the_script_writes():
    with open(os.path.join(ROOT, "bench", "roofline.md")) as f:
        assert f.read() == roofline.text()


@pytest.mark.parametrize("c", ["one", "head", "row"])
def test_every_provider_of_bench_kernels_passes_its_check(c):
    """The kernels among them, which need a GPU or, here, the interpreter."""
    found = {"eager": bench_kernels.in_pytorch, "triton": bench_kernels.in_triton}
    for name in bench_kernels.OPERATIONS:
        inputs, g = bench_kernels.make_inputs(name, 24, 8, torch.float32, c, "cpu")
        for provider, get in found.items():
            errors = bench_kernels.errors_of(get(name), bench_kernels.in_pytorch(name), inputs, g, bench_kernels.OPERATIONS[name])
            assert max(errors) < 1e-5, (name, provider)
    wrong = bench_kernels.errors_of(lambda *rows: 1.01 * kernels.expmap(*rows), bench_kernels.in_pytorch("expmap"),
                                    *bench_kernels.make_inputs("expmap", 24, 8, torch.float32, c, "cpu"), 2)
    assert max(wrong) > 1e-3


def test_bench_attention_checks_times_and_concludes(tmp_path, capsys):
    done = bench("bench_attention.py", "--sizes=[300,600]", "--head_dim=8", "--rounds=1", "--threads=1", f"--out={tmp_path / 'a.csv'}")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "a.csv") as f:
        table = list(csv.DictReader(f))
    assert [(line["T"], line["arm"]) for line in table] == [(T, arm) for T in ("300", "600") for arm in ("divide", "tiled", "sdpa")]
    for line in table:
        assert min(float(line["forward_ms"]), float(line["both_cpu_ms"])) > 0
    assert done.stdout.count("times as fast as scaled_dot_product_attention") == 2
    for wrong in ("--arms=[\"flash\"]", "--sizes=[0]", "--spread=-1"):
        refused(bench_attention.main, wrong, capsys)


def test_bench_decode_measures_the_bytes_of_caches(capsys):
    done = bench("bench_decode.py", "--quick=True", "--threads=1", "--bins=64")
    assert done.returncode == 0, done.stderr
    rows = [line.rsplit(maxsplit=5) for line in done.stdout.splitlines()[2:]]
    arms = ("baseline", "tau, exact", "tau, bins")
    assert [row[0].split(maxsplit=1) for row in rows] == [[T, arm] for T in ("128", "512") for arm in arms]
    assert all(float(row[1]) > 0 for row in rows)
    assert [row[-1] for row in rows] == ["1.0000", f"{65 / 128:.4f}", f"{64 * 65 / (128 * 128):.4f}",
                                         "1.0000", f"{65 / 128:.4f}", f"{64 * 65 / (128 * 512):.4f}"]
    refused(bench_decode.main, "--bins=0", capsys)


def test_a_wrong_cache_stops_bench_decode(monkeypatch, capsys):
    monkeypatch.setattr(bench_decode, "size_of", lambda cache: 1)
    with pytest.raises(SystemExit) as end:
        bench_decode.main(["--quick=True", "--threads=1"])
    assert end.value.code == 2 and "should have" in capsys.readouterr().err


def test_bench_model_takes_a_shape_with_a_context_of_its_own(capsys):
    done = bench("bench_model.py", "--of=distance", "--shape=1x64x96", "--mode=eager", "--rounds=1", "--threads=1", "--dtype=float32",
                "--memory=False", "--device=cpu")
    assert done.returncode == 0, done.stderr
    assert "1 x 64, T = 96, batch 1, eager" in done.stdout
    assert [line[2:31].strip() for line in done.stdout.splitlines()[-3:]] == ["baseline", "tau", "tau, tiled"]
    status, _, err = run(bench_model.main, ["--profile=True", "--of=training"], capsys)
    assert status == 2
    one_line(err, "profile")
    for wrong in ("1x65x96", "0x64x96", "1x64", "huge"):
        refused(bench_model.main, f"--shape={wrong}", capsys, "LAYERSxWIDTHxT")


def test_bench_model_trains_as_train_py_does(capsys, monkeypatch):
    """With Muon, QK-clip and what log_stability measures."""
    status, out, err = run(bench_model.main, ["--of=training", "--shape=toy", "--mode=eager", "--rounds=1", "--threads=1", "--memory=False",
                                              "--dtype=float32", "--device=cpu"], capsys)
    assert status == 0, err
    assert [line[2:31].strip() for line in out.splitlines()[-len(bench_model.TRAINING):]] == list(bench_model.TRAINING)
    made, plain = [], bench_model.make_optimizers
    monkeypatch.setattr(bench_model, "make_optimizers", lambda *args: made.append(plain(*args)) or made[-1])
    step, model = bench_model.make_step("mixed, muon, qk_clip", "toy", False, "cpu", "float32")
    step()
    assert isinstance(made[0][-1], torch.optim.Muon) and made[0][-1].state  # it has made an update
    assert model.transformer.h[0].attn.largest_logit.max() == 0  # read, and begun anew


def test_bench_stack_measures_runs_an_hour(tmp_path, capsys):
    status, out, err = run(bench_stack.main, ["--shape=toy", "--N=[1,3]", "--rounds=1", "--device=cpu", "--dtype=float32", "--steps=100",
                                              f"--out={tmp_path / 'new' / 's.csv'}"], capsys)
    assert status == 0, err
    with open(tmp_path / "new" / "s.csv") as f:
        table = list(csv.DictReader(f))
    arms = "baseline", "mixed, c per head"
    assert [(line["arm"], line["N"]) for line in table] == [(arm, N) for arm in arms for N in ("alone", "1", "3")]
    for line in table:
        runs = 3 if line["N"] == "3" else 1
        assert abs(float(line["runs_hour"]) * float(line["ms"]) * 100 / 3.6e6 / runs - 1) < 1e-6
    assert len(out.splitlines()) == 8
    refused(bench_stack.main, "--N=2", capsys, "N takes a list, each a whole number")
    for wrong in ("--N=[0]", "--arms=[\"curved\"]", "--shape=huge"):
        refused(bench_stack.main, wrong, capsys, wrong[2:3])
