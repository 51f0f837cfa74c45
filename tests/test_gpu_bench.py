"""bench/gpu.py without a GPU: all of it at toy size, and what happens to a part that fails, crashes or hangs."""

import json
import os
import signal
import subprocess
import sys
import time

import gpu
import pytest

from gpu_parts import PARTS, Job, Settings, report, results, watched_train, workers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMMAND = [sys.executable, os.path.join(ROOT, "bench", "gpu.py")]


def without_interpreter(**more):
    return {**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, **more}


def test_every_part_runs_at_toy_size(tmp_path):
    run = subprocess.run(
        [*COMMAND, "--device=cpu", "--quick=True", f"--out={tmp_path}", "--seconds=1000"],
        capture_output=True,
        text=True,
        env=without_interpreter(),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert sorted(os.listdir(tmp_path)) == [f"cpu-quick{end}" for end in ("-kernels.png", "-losses.png", ".json", ".md")]
    content = json.loads((tmp_path / "cpu-quick.json").read_text())
    assert list(content["parts"]) == list(PARTS) and content["quick"]
    rows = {name: part["rows"] for name, part in content["parts"].items()}
    assert {part["status"] for part in content["parts"].values()} == {"done"}
    assert not [row for part in rows.values() for row in part if row.get("error")]
    assert {row["job"] for row in rows["ceilings"]} == {"card", "copy", "matrix product", "launches"}
    assert rows["ceilings"][0]["torch"] and rows["ceilings"][0]["triton"]
    assert rows["correctness"][-1]["ok"] and rows["correctness"][-1]["compared"] > 10
    assert {row["passes"] for row in rows["kernels"] if "ms" in row} == {"forward", "backward", "both"}
    assert {row["what"] for row in rows["gpt2"]} == {"step", "agreement"} and rows["gpt2"][-1]["ok"]
    resumed = [row for row in rows["equality"] if row["what"] == "equality"]
    assert resumed and all(row["ok"] and row["largest_difference"] == 0 for row in resumed)  # on a CPU it is the same run
    watched = [row for row in rows["equality"] if row["what"] == "watch"]
    assert watched and watched[0]["watched_steps"] > 0 and not watched[0]["applicable"]
    assert [row["N"] for row in rows["stacks"]] == ["alone", 2] and all(row["runs_hour"] > 0 for row in rows["stacks"])
    assert rows["target"][0]["reached"]
    page = (tmp_path / "cpu-quick.md").read_text()
    assert "| baseline | 2 | no |" in page
    assert "Toy sizes" in page and page.count("not measured") >= 7 and "| every kernel agrees with float64 |" in page
    # pictures and tables again, from the JSON file alone
    (tmp_path / "cpu-quick.md").unlink()
    gpu.replot(str(tmp_path))
    assert (tmp_path / "cpu-quick.md").read_text() == page


WORKER = """
import json, os, sys, time
for line in sys.stdin:
    number = int(line)
    print(json.dumps({"row": {"pid": os.getpid(), "number": number}}), flush=True)
    if number == 1:
        os.kill(os.getpid(), 11)
    if number == 2:
        time.sleep(60)
    if number == 3:
        print("CUDA error: an illegal memory access", file=sys.stderr)
        os._exit(17)
    print(json.dumps({"done": number}), flush=True)
"""


def done_by(command, jobs, folder, seconds=30, stopped=lambda: False):
    rows = []
    for thread in workers.run_jobs(jobs, 1, command, time.time() + seconds, rows.append, stopped, str(folder)):
        thread.join()
    return rows


def test_a_crash_a_hang_and_a_lost_device_cost_one_job_each(tmp_path):
    jobs = [Job("good"), Job("crash"), Job("hang", seconds=1), Job("lost"), Job("good again")]
    rows = done_by([sys.executable, "-c", WORKER], jobs, tmp_path)
    errors = {row["job"]: row["error"] for row in rows if "error" in row}
    assert set(errors) == {"crash", "hang", "lost"}
    assert "SIGSEGV" in errors["crash"] and "too long" in errors["hang"]
    assert "exit status 17" in errors["lost"] and "illegal memory access" in errors["lost"]
    pids = {row["job"]: row["pid"] for row in rows if "pid" in row}
    assert pids["good"] == pids["crash"] and len(set(pids.values())) == 4  # a new process after each of the three
    with pytest.raises(ProcessLookupError):
        os.kill(pids["hang"], 0)


def test_jobs_that_there_is_no_time_for_are_rows(tmp_path):
    rows = done_by([sys.executable, "-c", WORKER], [Job("hang")] * 3 + [Job("late")], tmp_path, seconds=3)
    assert rows[-1] == {"job": "late", "error": "not measured: the time was up"}


def test_a_part_that_raises_is_a_row_and_the_others_go_on(tmp_path):
    """Without Triton the parts with kernels fail; the rest is measured."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['kernels'] = None\n")
    run = subprocess.run(
        [
            *COMMAND,
            "--device=cpu",
            "--quick=True",
            f"--out={tmp_path / 'out'}",
            '--parts=["correctness","gpt2"]',
            "--seconds=1000",
        ],
        capture_output=True,
        text=True,
        env=without_interpreter(PYTHONPATH=str(tmp_path)),
    )
    assert run.returncode == 1, run.stdout + run.stderr
    parts = json.loads((tmp_path / "out" / "cpu-quick.json").read_text())["parts"]
    assert parts["correctness"]["status"] == "failed" and "kernels" in parts["correctness"]["rows"][0]["error"]
    assert parts["gpt2"]["status"] == "done" and parts["ceilings"]["status"] == "done" and "target" not in parts
    assert "| correctness | the whole part |" in (tmp_path / "out" / "cpu-quick.md").read_text()


def test_a_signal_leaves_what_was_measured(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "--device=cpu", "--quick=True", f"--out={tmp_path}", "--seconds=1000"],
        stdout=subprocess.PIPE,
        text=True,
        env=without_interpreter(),
    )
    for line in process.stdout:
        if line.startswith("correctness: "):
            break
    process.send_signal(signal.SIGTERM)
    said = process.stdout.read()
    assert process.wait(60) == 1 and "SIGTERM: stopped" in said
    parts = json.loads((tmp_path / "cpu-quick.json").read_text())["parts"]
    states = {name: part["status"] for name, part in parts.items()}
    assert states.pop("ceilings") == "done" and "correctness" in states  # of the toy parts two are under way, and no other begins
    assert states.keys() <= {"correctness", "gpt2"} and set(states.values()) == {"stopped"}
    assert (tmp_path / "cpu-quick.md").exists()


def test_a_later_run_keeps_the_other_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # main() sets it
    for part in ("gpt2", "target"):
        found = results.Results(str(tmp_path), False)
        for name in ("ceilings", part):
            found.begin(name)
            found.add(name, {"job": "x", "card": "NVIDIA H100 80GB HBM3"} if name == "ceilings" else {"job": part})
            found.end(name, 1.0, False)
        found.write()
    parts = json.loads((tmp_path / "nvidia-h100-80gb-hbm3.json").read_text())["parts"]
    assert list(parts) == ["ceilings", "gpt2", "target"]
    for broken, message in (("{}", "not written by"), ("{", "not whole JSON")):
        (tmp_path / "nvidia-h100-80gb-hbm3.json").write_text(broken)
        with pytest.raises(SystemExit) as end:
            gpu.main(["--device=cpu", "--quick=True", f"--out={tmp_path}"])
        assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("card, known", [("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA H200", "H200"),
                                         ("NVIDIA GH200 480GB", None), ("NVIDIA H100 PCIe", None), ("NVIDIA H100 NVL", None)])
def test_a_card_is_compared_with_its_own_datasheet(card, known):
    assert report.nominal({"parts": {"ceilings": {"rows": [{"card": card}]}}})[0] == known


def measured(**values):
    """Results of a card as they might be"""
    step = dict(what="step", shape="124M", dtype="bfloat16", tokens=32768)
    faster = dict(what="faster", op="logmap", dtype="bfloat16", D=768, passes="forward")
    speed = dict(what="speed", provider="triton", op="logmap", dtype="bfloat16", D=768)
    mixed = report.MIXED
    rows = {
        "ceilings": [{"card": "NVIDIA H100 80GB HBM3"}],
        "correctness": [
            dict(what="all kernels", compared=9, wrong=values.get("wrong", 0), not_run=0, ok=not values.get("wrong", 0))
        ],
        "gpt2": [
            dict(step, arm="baseline", mode="compiled", ms=80, tokens_s=410_000),
            dict(step, arm=f"{mixed}, triton", mode="compiled", ms=82, tokens_s=400_000),
            dict(what="ratio", shape="124M", arm=f"{mixed}, triton", mode="compiled", ratio=values.get("ratio", 1.04)),
            dict(what="ratio", shape="124M", arm=mixed, mode="compiled", ratio=1.2),
        ],
        "kernels": [
            dict(speed, passes="forward", share_of_copy=values.get("share", 0.95)),
            dict(speed, passes="backward", share_of_copy=0.81),
            dict(speed, D=64, passes="forward", share_of_copy=0.1),
            dict(faster, over_inductor=1.3),
        ],
        "equality": [
            dict(what="equality", ok=True),
            dict(what="equality", ok=values.get("equal", True)),
            dict(what="watch", ok=None),
        ],
    }
    return {"quick": False, "parts": {name: {"rows": members} for name, members in rows.items()}}


def test_verdicts():
    found = [reached for _, _, reached in report.goals(measured())]
    assert found == [True, True, False, True, True, True, True, True, True, None]
    assert [reached for _, _, reached in report.goals(measured(ratio=1.06, share=0.85, wrong=1, equal=False))] == [
        False,
        False,
        False,
        True,
        True,
        False,
        True,
        True,
        False,
        None,
    ]
    assert all(reached is None for _, _, reached in report.goals({"quick": False, "parts": {}}))


def test_rows_that_the_page_cannot_take_do_not_stop_a_run(tmp_path):
    found = results.Results(str(tmp_path), False)
    found.begin("ceilings")
    found.add("ceilings", {"job": "card", "card": "X"})
    found.add("ceilings", {"job": "copy", "what": "copy", "bytes": None, "GB_s": None})  # NaN
    found.end("ceilings", 1.0, False)
    found.write()
    assert "could not be made: TypeError" in (tmp_path / "x.md").read_text()
    assert json.loads((tmp_path / "x.json").read_text())["parts"]["ceilings"]["status"] == "done"


def test_predictions_are_beside_measurements():
    found = {what: (round(predicted, 2), value) for what, predicted, value in report.predictions(measured())}
    assert found["124M, mixed / baseline, fused, 32,768 tokens a step"][1] == 1.04
    import roofline

    assert (
        round(roofline.ratios("124M", "H100")["fused"], 2) == 1.07
        and round(roofline.ratios("124M", "H100")["compiled"], 2) == 1.28
    )


def test_waits_are_counted_where_a_step_is_not_logged(monkeypatch, recwarn):
    """The watch itself, with a device that is pretended."""
    import torch

    modes, waits = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waits.append(1))
    monkeypatch.setattr(watched_train, "UNWATCHED", 3)
    monkeypatch.setattr(watched_train.train, "lr_at", lambda step, config: 0.5)
    watch = watched_train.Watch()

    class Config:
        log_interval = 10

    import warnings

    for step in (2, 3, 10):
        assert watched_train.train.lr_at(step, Config) == 0.5
        torch.cuda.synchronize()
        warnings.showwarning("called a synchronizing CUDA operation", UserWarning, watched_train.__file__, 1)
    assert modes == ["default", "warn", "default"] and len(waits) == 3 and watch.steps == 1
    assert len(watch.waits) == 2 and "test_gpu_bench.py" in watch.waits[0] and "watched_train.py:1" in watch.waits[1]
    watched_train.warnings.showwarning = watch.showwarning


@pytest.mark.parametrize(
    "arguments", [["--device=cpu"], ['--parts=["nothing"]'], ["--seconds=1"], ["--replot=nowhere"], ["--out="]]
)
def test_bad_input_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        gpu.main(arguments)
    said = capsys.readouterr().err
    assert end.value.code == 2 and len(said.strip().splitlines()) == 1, said


def test_jobs_of_a_gpu_are_all_there():
    """What would be measured on a card: nothing is left out by a typo that toy sizes do not meet."""
    from gpu_parts import correctness, kernel_speed, steps

    jobs = {name: gpu.module_of(name).jobs(Settings(name, "cuda:0", False, "")) for name in PARTS}
    checked = {
        (job.arguments[0], job.arguments[1], D)
        for job in jobs["correctness"]
        if len(job.arguments) == 3
        for D in job.arguments[2]
    }
    assert checked == {
        (op, dtype, D)
        for op in (*correctness.MAPS, "log_layernorm")
        for dtype in ("float32", "bfloat16", "float16")
        for D in correctness.WIDTHS
    }
    timed = {
        (job.arguments[0], job.arguments[1], D)
        for job in jobs["kernels"]
        for D in job.arguments[3]
        if job.arguments[2] == "bfloat16"
    }
    assert timed == {
        (provider, op, D)
        for provider in ("triton", "inductor", "eager")
        for op in kernel_speed.OPERATIONS
        for D in kernel_speed.WIDTHS
    }
    for part in ("gpt2", "shapes"):
        for job in jobs[part]:
            shape, arm, mode = job.arguments
            assert shape in steps.SHAPES and arm in {**steps.ARMS, **steps.ON_KERNELS} and mode in ("eager", "compiled")
    assert {job.arguments[0] for job in jobs["stacks"]} <= {*steps.ARMS}
    assert len({job.name for name in PARTS for job in jobs[name]}) == sum(map(len, jobs.values()))
