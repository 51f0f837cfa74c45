"""
Text from a random hierarchy, where the best possible loss is known: a task in which curvature should help, if it helps anywhere.

Words are the nodes of a complete tree (`branching` children a node, `depth` levels below the root) under random names, and four marks.
Documents of three kinds, equally likely, follow one another:

    walk a b c d ... .         each node at the other end of a link of the one before (to its parent or a child), all equally likely
    siblings a b .             b: another child of a's parent, all equally likely
    ancestors a b c ... .      parent after parent, as many as a had ancestors in the tree

The first node is any of those that can begin such a document, equally likely. structure = 1 is the tree. With structure = s a share
1 - s of the links gets new parents: the parents of these links are dealt out anew among their children. Every node keeps its number of
children, and every chain its length, so that walks branch as before; what is lost is the hierarchy. At 0 all links are random.

The floor is the mean of -log p(word) under this process, in nats: the loss of a model that knows it all, what documents are about and where
they end included.
"""
import math
from dataclasses import dataclass

import numpy as np

KINDS = ("walk", "siblings", "ancestors")
END = "."
MARKS = (*KINDS, END)


@dataclass(frozen=True)
class Hierarchy:
    """parent (N), -1 for the root, node 0; children, neighbours: a list of nodes for each, of which one can be there twice; depth (N): in
    the tree, before links were changed."""
    parent: np.ndarray
    children: list
    neighbours: list
    depth: np.ndarray

    def siblings(self, node):
        return [other for other in self.children[self.parent[node]] if other != node] if self.parent[node] >= 0 else []

    def ancestors(self, node):
        chain = [node]
        for _ in range(self.depth[node]):
            chain.append(max(0, int(self.parent[chain[-1]])))  # the root's is the root: where links were changed chains can reach it early
        return chain[1:]


def hierarchy(branching, depth, structure, rng):
    nodes = sum(branching ** level for level in range(depth + 1))
    parent = np.concatenate(([-1], (np.arange(1, nodes) - 1) // branching))
    level = np.zeros(nodes, dtype=int)
    for node in range(1, nodes):
        level[node] = level[parent[node]] + 1
    changed = 1 + rng.permutation(nodes - 1)[:round((1 - structure) * (nodes - 1))]
    parent[changed] = rng.permutation(parent[changed])
    for node in changed[parent[changed] == changed]:  # its own parent: it swaps with another link
        other = rng.choice(changed[(changed != node) & (parent[changed] != node)])
        parent[node], parent[other] = parent[other], parent[node]
    children = [np.flatnonzero(parent == node).tolist() for node in range(nodes)]
    neighbours = [children[node] + ([int(parent[node])] if node else []) for node in range(nodes)]
    return Hierarchy(parent, children, neighbours, level)


def words_of(nodes, rng):
    """(the vocabulary, what word each node is): names say nothing of the tree."""
    names = [f"n{i:0{len(str(nodes - 1))}d}" for i in range(nodes)]
    return [*MARKS, *names], len(MARKS) + rng.permutation(nodes)


def documents(tree, word, length, tokens, rng):
    """(at least `tokens` words as ids, the sum of their -log p). length: nodes of a walk."""
    begin = {"walk": [n for n, near in enumerate(tree.neighbours) if near], "siblings": [n for n in range(len(word)) if tree.siblings(n)],
             "ancestors": [n for n in range(len(word)) if tree.depth[n]]}
    mark, out, nats = {name: i for i, name in enumerate(MARKS)}, [], 0.0
    while len(out) < tokens:
        kind = KINDS[rng.integers(len(KINDS))]
        node = begin[kind][rng.integers(len(begin[kind]))]
        chain, nats = [node], nats + math.log(len(KINDS)) + math.log(len(begin[kind]))
        if kind == "walk":
            for _ in range(length - 1):
                near = tree.neighbours[chain[-1]]
                chain.append(near[rng.integers(len(near))])
                nats -= math.log(near.count(chain[-1]) / len(near))
        elif kind == "siblings":
            near = tree.siblings(node)
            chain.append(near[rng.integers(len(near))])
            nats += math.log(len(near))
        else:
            chain += tree.ancestors(node)
        out += [mark[kind], *word[chain], mark[END]]
    return np.array(out), nats
