"""The benchmarks run and say what they should; they are not timed here."""
import csv
import os
import subprocess
import sys

import pytest

import bench_kernels
import roofline

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def bench(name, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, os.path.join(ROOT, "bench", name), *arguments], capture_output=True, text=True,
                          env=environment)


def test_bench_kernels_writes_a_table_and_a_plot(tmp_path):
    run = bench("bench_kernels.py", "--rows=[240]", "--D=[16]", "--rounds=2", '--ops=["logmap"]', "--c=head", "--device=cpu",
                f"--out={tmp_path / 'k.csv'}")
    assert run.returncode == 0, run.stderr
    with open(tmp_path / "k.csv") as f:
        table = list(csv.DictReader(f))
    assert {(line["provider"], line["passes"]) for line in table} == {
        (p, q) for p in ("eager", "compiled") for q in ("forward", "backward", "both")}
    for line in table:
        rows = {"forward": 3, "backward": 5, "both": 8}[line["passes"]]
        assert abs(float(line["GB_s"]) * float(line["ms"]) * 1e6 / (rows * 240 * 16 * 4) - 1) < 1e-6
        assert float(line["error"]) < 1e-5 and line["torch"] and line["hardware"]
    assert (tmp_path / "k.png").stat().st_size > 1000


def test_bad_input_is_one_line(capsys):
    for argument in ('--ops=["expmapp"]', "--rounds=1", "--row=[3]"):
        with pytest.raises(SystemExit) as end:
            bench_kernels.main([argument])
        said = capsys.readouterr().err
        assert end.value.code == 2 and len(said.strip().splitlines()) == 1, said


def test_the_roofline_file_is_what_the_script_writes():
    with open(os.path.join(ROOT, "bench", "roofline.md")) as f:
        assert f.read() == roofline.text()
