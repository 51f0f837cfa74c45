"""Batches: deterministic, each window once an epoch, independent of evaluation; what a bad file gets."""
import json

import numpy as np
import pytest
import torch
from conftest import write_dataset

from dataloader import Loader, load_meta
from errors import UserError


def loader(folder, n=1000, batch_size=4, block_size=10, seed=3, vocab_size=2000):
    if not (folder / "meta.json").exists():
        write_dataset(folder, np.arange(n) % 65000, np.arange(200), vocab_size=65000)
    return Loader(str(folder), "train", load_meta(str(folder)), batch_size, block_size, seed)


def test_targets_are_the_inputs_moved_on_by_one(tmp_path):
    x, y = loader(tmp_path).batch(0)
    assert x.shape == y.shape == (4, 10) and x.dtype == torch.int64
    assert torch.equal(y, x + 1)  # the file counts up


@pytest.mark.parametrize("n", [1000, 1001, 1007, 1010, 11, 12, 25])
def test_an_epoch_visits_each_window_once(n, tmp_path):
    data = loader(tmp_path, n=n, batch_size=1)
    assert data.windows == (n - 1) // 10
    for epoch in range(3):
        starts = [data.batch(epoch * data.windows + k)[0][0, 0].item() for k in range(data.windows)]
        assert len(set(starts)) == data.windows
        assert all(0 <= s and s + 10 < n for s in starts)
        apart = np.diff(sorted(starts))
        assert data.windows <= 2 or np.median(apart) == 10


def test_epochs_and_seeds_differ(tmp_path):
    data, other = loader(tmp_path), loader(tmp_path, seed=4)
    firsts = [[d.batch(k)[0][0, 0].item() for k in range(s, s + 20)] for d, s in ((data, 0), (data, 25), (other, 0))]
    assert firsts[0] != firsts[1] and firsts[0] != firsts[2]


def test_a_batch_depends_on_seed_and_step_alone(tmp_path):
    a, b = loader(tmp_path), loader(tmp_path)
    expected = [a.batch(k)[0] for k in range(60)]
    torch.manual_seed(99)
    np.random.seed(1)
    list(b.eval_batches(3))
    for k in (59, 3, 31, 0):  # in any order, whatever happened between
        assert torch.equal(b.batch(k)[0], expected[k])


def test_evaluation_batches_are_fixed_whole_and_distinct(tmp_path):
    data = loader(tmp_path)
    first, again = list(data.eval_batches(5)), list(loader(tmp_path, seed=8).eval_batches(5))
    assert len(first) == 5 and all(x.shape == (4, 10) for x, _ in first)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again))
    starts = [s for x, _ in first for s in x[:, 0].tolist()]
    assert len(set(starts)) == 20 and max(starts) > 900
    everything = list(data.eval_batches(1000))
    assert sum(len(x) for x, _ in everything) == 96  # 99 windows, whole batches of 4


def refused(folder, *args):
    with pytest.raises(UserError) as error:
        meta = load_meta(str(folder))
        Loader(str(folder), "train", meta, 2, args[0] if args else 4, 0).batch(0)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_data_gets_one_line(tmp_path):
    assert "no prepared data" in refused(tmp_path / "none")
    folder = write_dataset(tmp_path / "a", range(100), range(50))
    assert "outside the vocabulary" in refused(folder)
    folder = write_dataset(tmp_path / "b", [1] * 100, [1] * 50)
    assert "lower block_size" in refused(folder, 100)
    with open(folder / "train.bin", "r+b") as f:
        f.truncate(151)
    assert "truncated" in refused(folder)
    with open(folder / "train.bin", "r+b") as f:
        f.truncate(0)
    assert "it is empty" in refused(folder)
    (folder / "train.bin").unlink()
    assert "is missing; run: python" in refused(folder)
    (folder / "meta.json").write_text("{")
    assert "damaged" in refused(folder)
    (folder / "meta.json").write_text(json.dumps({"corpus": "x"}))
    assert "damaged" in refused(folder)
