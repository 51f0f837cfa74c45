"""A task in which curvature should help: text from a tree (data/tree_text.py). sweeps/tree_half.py and sweeps/tree_random.py are the same
with half of the links and all links at random: an instrument has to find an effect where there is one, and none where there is none.

The data, made once, in seconds:

    python data/tree/prepare.py --structure=1 --out_dir=data/tree_100
    python data/tree/prepare.py --structure=0.5 --out_dir=data/tree_50
    python data/tree/prepare.py --structure=0 --out_dir=data/tree_0

Their floors, the loss of a model that knows everything, are 1.2216, 1.2268 and 1.2297 nats a token. 5 arms at 2 learning rates with one
seed = 10 runs, of one to two minutes of one thread each. The model is small on purpose: 364 nodes in 32 dimensions.
"""

defaults = dict(
    dataset='tree_100',
    n_layer=2, n_head=2, n_embd=32,  # 38,000 parameters
    dtype='float32',
    batch_size=32, block_size=64,  # 2,048 tokens a step
    min_lr=None, lr_decay_iters=None,
    warmup_iters=50,
    eval_interval=200, eval_iters=40,  # 81,920 tokens
)
budget = dict(steps=1000)  # 2M tokens, two epochs
grid = dict(learning_rate=[6e-3, 1.2e-2])
seeds = [1337]

arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'gate+norm': dict(config='config/demo_baseline.py', role='control', model='controls', control='gate+norm'),
    'c0.1-head': dict(config='config/demo_mixed.py', max_distance=None, role='mixed', curvature_mode='fixed', curvature=0.1),
    'learned': dict(config='config/demo_mixed.py', max_distance=None, role='mixed'),
}
