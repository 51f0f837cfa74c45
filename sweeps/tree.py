"""A task in which curvature should help: text from a tree (data/tree_text.py). sweeps/tree_half.py and sweeps/tree_random.py are the same
with half of the links and all links at random: an instrument has to find an effect where there is one, and none where there is none.

The data, made once, in a minute:

    python data/tree/prepare.py --structure=1 --tokens=4_000_000 --out_dir=data/tree_100
    python data/tree/prepare.py --structure=0.5 --tokens=4_000_000 --out_dir=data/tree_50
    python data/tree/prepare.py --structure=0 --tokens=4_000_000 --out_dir=data/tree_0

c1-origin has the baseline as its flat twin: neither looks at the previous token. c1-within has flat. Seed 1337 chooses each arm's rate out
of two, three others measure those two. The model is small on purpose: 364 nodes in 32 dimensions. A run takes half a minute to two of one
thread with AVX-512.
"""

defaults = dict(
    dataset='tree_100',
    n_layer=2, n_head=2, n_embd=32,  # 38,000 parameters
    dtype='float32',
    batch_size=32, block_size=64,  # 2,048 tokens a step
    min_lr=None, lr_decay_iters=None,
    warmup_iters=50,
    eval_interval=1000, eval_iters=80,  # 163,840 tokens
)
budget = dict(steps=2000)  # 4.1M tokens, one epoch
grid = dict(learning_rate=[6e-3, 1.2e-2])
seeds = [1337]

_c1 = dict(config='config/demo_mixed.py', max_distance=1.5, role='mixed', curvature_mode='fixed', curvature=1.0)
arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'gate+norm': dict(config='config/demo_baseline.py', role='control', model='controls', control='gate+norm'),
    'c1-origin': dict(_c1, reference='origin'),
    'c1-within': _c1,
}


def _seeds_at(rates):
    """Three seeds of each arm of rates (a dict) at the rate that seed 1337 chose."""
    return [dict(arms=[arm], grid=dict(learning_rate=[rate]), seeds=[1338, 1339, 1340]) for arm, rate in rates.items()]


runs = _seeds_at({'baseline': 1.2e-2, 'c1-origin': 1.2e-2})
