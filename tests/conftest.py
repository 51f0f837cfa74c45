"""Shared fixtures: a small prepared data set, tiny model shapes, sweeps of tiny runs."""
import functools
import gc
import json
import os
import pathlib
import signal
import sys
import time

import numpy as np
import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of the processes that tests start: one of them runs on a core
os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run on the CPU (test_kernels.py)
torch.set_num_threads(1)  # the suite runs in a process for each core (pytest.ini); tiny tensors gain nothing from threads

TINY = dict(vocab_size=37, block_size=12, n_layer=2, n_head=2, n_embd=16)
CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz.,;:!?'-"


# Those that take longest, in this order: one that begins last would leave the other process idle
LONGEST = ("test_machine_code", "test_many_processes_train_as_one", "test_every_part_runs_at_toy_size", "test_many_steps_stay_finite",
           "test_generated_code_trains_the_same", "test_compiled_gradients_agree_closely_at_the_edge", "test_submitit_runs",
           "test_a_run_killed_twenty_times", "test_a_sweep_killed_in_the_middle",
           "test_models_with_streams_compile", "test_all_points_that_models_make_are_points", "test_training_steps_with_the_kernels",
           "test_every_command_in_every_state")


def pytest_xdist_auto_num_workers(config):
    """One more than there are cores: tests that wait for a process or a clock leave a sixth of the time to others."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items):
    def place(item):
        return next((i for i, name in enumerate(LONGEST) if item.name.startswith(name)), len(LONGEST))
    items.sort(key=place)  # the others stay as they are


def pytest_collection_finish():
    """What the imports made stays: the collector need not look at it again, nor so often (a tenth of what compiling takes)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.fixture
def tokens():
    """(idx, targets), 3 x 12, of the TINY vocabulary."""
    g = torch.Generator().manual_seed(5)
    return tuple(torch.randint(TINY["vocab_size"], (3, TINY["block_size"]), generator=g) for _ in range(2))


def write_dataset(folder, train, val, vocab_size=36, **more):  # of CHARACTERS
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in (("train", train), ("val", val)):
        np.asarray(values, dtype="<u2").tofile(folder / f"{name}.bin")
    meta = {"corpus": "test text", "tokenizer": "char", "vocab_size": vocab_size, "characters": CHARACTERS,
            "dtype": "uint16", "header_bytes": 0, "train_tokens": len(train), "val_tokens": len(val), **more}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture
def data_dir(tmp_path):
    """A data folder with one set, 'words': text that can be learned (a few words in random order)."""
    rng = np.random.default_rng(0)
    words = ["the", "king", "shall", "go;", "my", "lord,", "to", "rome.\n"]
    text = " ".join(words[i] for i in rng.integers(0, len(words), 3000))
    ids = [CHARACTERS.index(c) for c in text]
    write_dataset(tmp_path / "data" / "words", ids[:10000], ids[10000:12000])
    return tmp_path / "data"


def wait_for_step(out_dir, step, child, seconds=120):
    """Until the process `child` has logged that step of the run in out_dir; fails if it ends before."""
    path, end = pathlib.Path(out_dir) / "metrics.jsonl", time.monotonic() + seconds
    while not (path.exists() and f'{{"step": {step}, "tokens"' in path.read_text()):
        assert child.poll() is None and time.monotonic() < end, f"no step {step} in {path}"
        time.sleep(0.02)


@pytest.fixture
def small_run(data_dir, tmp_path):
    """Arguments of a run of a few seconds at most."""
    return [f"--data_dir={data_dir}", "--dataset=words", f"--out_dir={tmp_path / 'run'}", "--n_layer=2", "--n_head=2",
            "--n_embd=16", "--block_size=16", "--batch_size=4", "--max_iters=12", "--eval_interval=6", "--eval_iters=2",
            "--log_interval=1", "--warmup_iters=2", "--tensorboard_log=False", "--device=cpu",
            "--dtype=float32"]  # numbers are compared: bfloat16 where a CPU has its instructions would be less exact


@pytest.fixture
def stub():
    """sweep.py's main, with runs of the stub trainer."""
    import sweep  # here: not every test file needs what it imports
    return functools.partial(sweep.main, command=(sys.executable, str(pathlib.Path(__file__).with_name("stub_trainer.py"))))


@pytest.fixture
def sweep_file(data_dir, tmp_path):
    """A function that writes a sweep of tiny runs on the test's text and returns its path."""
    def write(text="", seeds=(0,), arms="arms = {'baseline': dict(config='config/demo_baseline.py', role='baseline')}"):
        path = tmp_path / "small.py"
        path.write_text(f"""
defaults = dict(data_dir={str(data_dir)!r}, dataset='words', n_layer=1, n_head=2, n_embd=16, block_size=16,
                batch_size=4, warmup_iters=2, min_lr=None, eval_interval=20, eval_iters=2, log_interval=1,
                tensorboard_log=False, device='cpu')
budget = dict(steps=40)
seeds = {list(seeds)}
{arms}
{text}
""")
        return path
    return write


@pytest.fixture
def folder(tmp_path):
    """Of a sweep; it is not there yet."""
    return tmp_path / "sweep"


@pytest.fixture
def surroundings(monkeypatch):
    """Of data/fineweb/prepare.py: no proxy before the stand-ins of the hub, and this process keeps its handlers of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def prepare_fineweb(capsys):
    """prepare_fineweb(arguments...) -> (exit status, standard output, standard error) of data/fineweb/prepare.py's main."""
    from data.fineweb import prepare
    def call(*args, **options):
        with pytest.raises(SystemExit) as ended:
            prepare.main([*map(str, args), *(f"--{key}={value}" for key, value in options.items())])
        return ended.value.code, *capsys.readouterr()
    return call
