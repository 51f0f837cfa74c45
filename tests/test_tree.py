"""data/tree: the hierarchy and its dial, the documents, the floor, the files."""
import math
import os
import runpy

import numpy as np
import pytest
from running import ended, one_line, run

from common.errors import UserError
from data import tokenizer, tree_text
from training.dataloader import load_meta

PREPARE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "tree", "prepare.py")


@pytest.fixture(scope="module")
def prepare():
    return runpy.run_path(PREPARE)["main"]


@pytest.mark.parametrize("structure", [1.0, 0.7, 0.02, 0.0])
def test_the_dial_changes_links_and_keeps_how_much_walks_branch(structure):
    tree, changed = (tree_text.hierarchy(3, 4, s, np.random.default_rng(0)) for s in (1.0, structure))
    assert len(tree.parent) == 121 and tree.parent[0] == -1 and [tree.depth[n] for n in (0, 1, 4, 13, 40, 120)] == [0, 1, 2, 3, 4, 4]
    assert all(tree.parent[child] == node for node, near in enumerate(tree.children) for child in near)
    assert [len(near) for near in changed.children] == [len(near) for near in tree.children]
    assert (changed.depth == tree.depth).all() and (changed.parent != np.arange(121)).all() and changed.parent[0] == -1
    moved = (changed.parent != tree.parent).mean()
    assert moved == 0 if structure == 1 else 0.9 * (1 - structure) - 0.02 < moved <= 1 - structure


def read_documents(text):
    """The documents of a text, as lists of words."""
    found = [document.split() for document in text.strip().split(tree_text.END)]
    return found[:-1] if not found[-1] else found


@pytest.mark.parametrize("structure", [1.0, 0.3])
def test_documents_are_what_they_say_and_the_floor_is_their_probability(structure):
    rng = np.random.default_rng(1)
    tree = tree_text.hierarchy(2, 4, structure, rng)
    words, word = tree_text.words_of(31, rng)
    node_of = {words[w]: node for node, w in enumerate(word)}
    assert len(node_of) == 31 and set(node_of).isdisjoint(tree_text.MARKS)
    ids, nats = tree_text.documents(tree, word, 6, 20_000, rng)
    found = read_documents(" ".join(words[i] for i in ids))
    parent, expected, kinds = tree.parent.tolist(), 0.0, []
    links = [[n for n, p in enumerate(parent) if p == node] + [parent[node]] * (node > 0) for node in range(31)]
    sisters = [[n for n, p in enumerate(parent) if p == parent[node] and n != node and node] for node in range(31)]
    begins = {"walk": sum(map(bool, links)), "siblings": sum(map(bool, sisters)), "ancestors": 30}
    for kind, *names in found:
        nodes = [node_of[name] for name in names]
        kinds.append(kind)
        expected += math.log(3 * begins[kind])
        if kind == "walk":
            assert len(nodes) == 6
            for a, b in zip(nodes, nodes[1:]):
                expected -= math.log(links[a].count(b) / len(links[a]))
        elif kind == "siblings":
            a, b = nodes
            assert b in sisters[a]
            expected += math.log(len(sisters[a]))
        else:
            assert all(b == max(0, parent[a]) for a, b in zip(nodes, nodes[1:])) and len(nodes) == 1 + tree.depth[nodes[0]]
    assert nats == pytest.approx(expected, rel=1e-12)
    assert all(abs(kinds.count(kind) / len(kinds) - 1 / 3) < 0.04 for kind in tree_text.KINDS)


def test_floors_hardly_depend_on_the_dial():
    floors = []
    for structure in (1.0, 0.5, 0.0):
        rng = np.random.default_rng(2)
        ids, nats = tree_text.documents(tree_text.hierarchy(3, 4, structure, rng), tree_text.words_of(121, rng)[1], 12, 50_000, rng)
        floors.append(nats / len(ids))
    assert max(floors) - min(floors) < 0.03


def test_from_the_command_line_to_a_sample(prepare, small_run, data_dir, tmp_path, capsys):
    folder = data_dir / "tree"
    small = [f"--out_dir={folder}", "--depth=3", "--branching=2", "--tokens=10_000", "--structure=0.5"]
    assert run(prepare, small, capsys)[0] == 0
    first = (folder / "train.bin").read_bytes()
    status, said, _ = run(prepare, small, capsys)
    meta = load_meta(str(folder))
    assert status == 0 and f"{meta['val_floor']:.4f} nats a token" in said and (folder / "train.bin").read_bytes() == first
    assert meta["made"]["structure"] == 0.5 and meta["vocab_size"] == 15 + 4
    status, said, error = ended("train", [*small_run, "--dataset=tree", "--max_iters=2", "--eval_interval=2"])
    assert status == 0, error
    status, text, error = ended("sample", [f"--out_dir={tmp_path / 'run'}", "--start=walk", "--max_new_tokens=5", "--device=cpu"])
    assert status == 0 and len(text.split()) == 6 and set(text.split()) <= set(meta["words"].split()), error
    bad = ended("sample", [f"--out_dir={tmp_path / 'run'}", "--start=to be", "--device=cpu"])
    assert bad[0] == 2
    one_line(bad[2], "the word 'to' is not among the 19 words")


@pytest.mark.parametrize("argument, message", [
    ("--structure=1.1", "from 0 to 1"), ("--branching=1", "at least 2"), ("--depth=0", "at least 1"), ("--tokens=5", "at least 10000"),
    ("--depth=30", "there may be 60,000"), ("--out_dir=", "out_dir is empty"), ("--dept=3", "did you mean 'depth'")])
def test_bad_options_are_one_line(argument, message, prepare, tmp_path, capsys):
    status, _, error = run(prepare, [f"--out_dir={tmp_path / 'x'}", argument], capsys)
    assert status == 2 and not (tmp_path / "x").exists()
    one_line(error, message)


@pytest.mark.parametrize("words", [None, "", "a  b", "a a"])
def test_damaged_words(words):
    with pytest.raises(UserError, match="words"):
        tokenizer.load_tokenizer({"tokenizer": "words", "vocab_size": 2, "words": words})
