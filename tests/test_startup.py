"""Ctrl-C in the first second of every script, while its imports are under way, and packages that are not installed."""
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from running import ROOT

SCRIPTS = sorted(str(p.relative_to(ROOT)) for pattern in ("*.py", "bench/*.py", "data/*/prepare.py")
                 for p in pathlib.Path(ROOT).glob(pattern) if '__name__ == "__main__"' in p.read_text())

# stands for a package that takes a while to import: Ctrl-C comes meanwhile
SLOW = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n"


def test_all_scripts_are_found():
    assert {"train.py", "sample.py", "sweep.py", "data/fineweb/prepare.py", "bench/bench_kernels.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_the_imports_is_one_line(script, tmp_path):
    for name in ("torch", "numpy", "matplotlib", "tiktoken", "requests"):
        (tmp_path / f"{name}.py").write_text(SLOW)
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("script, package, file", [
    ("train.py", "torch", "requirements.txt"), ("plot_runs.py", "matplotlib", "requirements-eval.txt"),
    ("summarize_sweep.py", "scipy", "requirements-eval.txt")])
def test_a_package_that_is_not_installed_is_one_line(script, package, file, tmp_path):
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError('there is no {package}.part', name='{package}.part')\n")
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {package} is not installed: pip install -r {file}\n")


def test_a_module_of_ours_that_is_missing_is_a_bug_and_shows_as_one(tmp_path):
    (tmp_path / "torch.py").write_text("import no_such_module\n")
    done = subprocess.run([sys.executable, "train.py"], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and "Traceback" in done.stderr and "no_such_module" in done.stderr


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_shell_script_stops_as_well(number, status, tmp_path):
    """A signal to run_sweeps.sh while its sweep.py imports torch."""
    (tmp_path / "torch.py").write_text("import os, time\nopen(os.environ['BEGUN'], 'w').close()\ntime.sleep(30)\n")
    child = subprocess.Popen(["bash", "run_sweeps.sh", "sweeps/shakespeare_lr.py", "--dry-run"], cwd=ROOT, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             env={**os.environ, "PYTHONPATH": str(tmp_path), "BEGUN": str(tmp_path / "begun")})
    while not (tmp_path / "begun").exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (status, "", "terminated\n")  # the script passes both on as SIGTERM


def test_a_program_that_is_none_of_ours_keeps_its_own_ctrl_c():
    code = "import signal; from common import errors; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n"


def test_where_ctrl_c_is_ignored_it_stays_ignored(tmp_path):
    """A shell starts background jobs so: Ctrl-C is for the job in the foreground."""
    (tmp_path / "torch.py").write_text("import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN); raise SystemExit")
    done = subprocess.run([sys.executable, "train.py"], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert done.stdout == "True\n"


def test_ctrl_c_in_main_is_one_line_too(tmp_path):
    """After the imports main() gets KeyboardInterrupt as any program does, and its line is the same."""
    script = pathlib.Path(ROOT) / "bench" / "roofline.py"
    code = ("import os, signal, sys, runpy\nsys.argv = [sys.argv[1]]\nimport configurator\n"
            "configurator.resolve = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
