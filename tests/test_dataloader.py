"""Batches: deterministic, each window once an epoch, independent of evaluation; what a bad file gets."""
import json
import os

import numpy as np
import pytest
import torch
from conftest import write_dataset

from common.errors import UserError
from training.dataloader import HEADER_WORDS, MAGIC, VERSION, Loader, load_meta


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
        assert all(s >= 0 and s + 10 < n for s in starts)
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
    good = json.loads((folder / "meta.json").read_text())
    for text in ("{", "[" * 100_000, *(json.dumps({**good, key: 7}) for key in ("tokenizer", "characters"))):
        (folder / "meta.json").write_text(text)
        assert "damaged" in refused(folder)
    (folder / "meta.json").write_text(json.dumps({"corpus": "x"}))
    assert "damaged" in refused(folder)
    for vocab_size in ("65", -5, 0, 6.5):
        (folder / "meta.json").write_text(json.dumps(
            {"corpus": "x", "vocab_size": vocab_size, "train_tokens": 100, "val_tokens": 50}))
        assert "damaged" in refused(folder)
    for more in ({"header_bytes": "x"}, {"header_bytes": None}, {"dtype": "uint32"},
                 {"shards": {"train": [{"file": 3, "tokens": 5}], "val": []}}):
        (folder / "meta.json").write_text(json.dumps(
            {"corpus": "x", "vocab_size": 65, "train_tokens": 100, "val_tokens": 50, **more}))
        assert "damaged" in refused(folder)


# ----------------------------------------------------------------------------------------------------------------------
# shards

def write_shard(path, tokens, **changes):
    header = np.zeros(HEADER_WORDS, dtype="<i4")
    header[:3] = changes.get("magic", MAGIC), changes.get("version", VERSION), changes.get("count", len(tokens))
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes())


def write_shards(folder, sizes=(101, 57, 8, 230)):
    """Shards that count up from 0 through all of them; one is shorter than a window."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = np.cumsum([0, *sizes])
    shards = {"train": [], "val": [{"file": "val_000000.bin", "tokens": 60}]}
    for i, (start, size) in enumerate(zip(starts, sizes)):
        write_shard(folder / f"train_{i:06d}.bin", np.arange(start, start + size))
        shards["train"].append({"file": f"train_{i:06d}.bin", "tokens": size})
    write_shard(folder / "val_000000.bin", np.arange(60))
    (folder / "meta.json").write_text(json.dumps({
        "corpus": "shards", "vocab_size": 1000, "dtype": "uint16", "header_bytes": 4 * HEADER_WORDS,
        "train_tokens": int(sum(sizes)), "val_tokens": 60, "shards": shards}))
    return starts


def shard_loader(folder, batch_size=1, **more):
    return Loader(str(folder), "train", load_meta(str(folder)), batch_size, 10, 3, **more)


def test_shards_are_read_without_their_headers_and_windows_stay_in_one(tmp_path):
    starts = write_shards(tmp_path)
    data = shard_loader(tmp_path)
    assert data.windows == 10 + 5 + 0 + 22
    for epoch in range(3):
        firsts = []
        for k in range(epoch * data.windows, (epoch + 1) * data.windows):
            x, y = data.batch(k)
            assert torch.equal(y, x + 1) and torch.equal(x[0], torch.arange(10) + x[0, 0])  # no header, no seam
            firsts.append(x[0, 0].item())
        assert len(set(firsts)) == data.windows
        counts = np.histogram(firsts, bins=starts)[0]
        assert counts.tolist() == [10, 5, 0, 22]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_reading_ahead_changes_nothing(num_workers, tmp_path):
    write_shards(tmp_path)
    expected = [shard_loader(tmp_path, batch_size=4).batch(k) for k in range(0, 60, 2)]
    stream = shard_loader(tmp_path, batch_size=4, num_workers=num_workers).batches(range(0, 60, 2))
    for (x, y), (x2, y2) in zip(stream, expected, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_processes_share_the_batches_of_a_step_and_of_an_evaluation(tmp_path):
    write_shards(tmp_path)
    data = shard_loader(tmp_path, batch_size=4)
    alone = [x[:, 0].tolist() for x, _ in data.eval_batches(7)]
    assert len(alone) == data.num_eval_batches(7) == 7
    for world in (2, 3, 10):
        dealt = [[x[:, 0].tolist() for x, _ in data.eval_batches(7, rank, world)] for rank in range(world)]
        assert [dealt[i % world][i // world] for i in range(7)] == alone
    assert data.num_eval_batches(1000) == len(list(data.eval_batches(1000))) == 9


@pytest.mark.parametrize("change, words", [
    (dict(magic=1), "its header"), (dict(version=2), "its header"), (dict(count=100), "its header")])
def test_a_shard_with_a_wrong_header_is_refused(change, words, tmp_path):
    write_shards(tmp_path)
    write_shard(tmp_path / "train_000001.bin", np.arange(57), **change)
    message = refused(tmp_path)
    assert words in message and "train_000001.bin" in message


def test_a_truncated_and_a_missing_shard_are_refused(tmp_path):
    write_shards(tmp_path)
    path = tmp_path / "train_000003.bin"
    path.write_bytes(path.read_bytes()[:-2])
    assert "truncated" in refused(tmp_path) and "train_000003.bin" in refused(tmp_path)
    path.unlink()
    assert "is missing" in refused(tmp_path)


@pytest.mark.parametrize("how", ["cut", "swapped", "removed"])
def test_a_shard_that_changes_under_a_run_is_an_error_and_not_a_crash(how, tmp_path):
    write_shards(tmp_path)
    data = shard_loader(tmp_path)
    for k in range(data.windows):
        data.batch(k)
    path = tmp_path / "train_000003.bin"
    if how == "cut":  # a map past its file's end kills the process (SIGBUS)
        os.truncate(path, 1024)
    elif how == "swapped":  # same size, other tokens
        write_shard(tmp_path / "new", np.arange(230))
        os.replace(tmp_path / "new", path)
    else:
        path.unlink()
    with pytest.raises(UserError, match="train_000003.bin was changed or removed while this run reads it"):
        for k in range(data.windows):
            data.batch(k)
