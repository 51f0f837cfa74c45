"""Is a trained GPT worth converting? A baseline is trained, becomes a curved model and trains on; beside it the same models from scratch.

Every arm but the half has the same total budget of 800 steps, those of its start included. 'continued' is the control of the conversion:
the same half, a new schedule, no curvature. The curved model has no token shift (reference 'origin'), so that at c = 0 it is the baseline
exactly. 'converted' lets c grow from 0 to 0.1 in 200 steps, 'at-once' begins with 0.1.

Seed 1337 chooses the learning rates; five others measure. A run takes half a minute to two minutes of one thread.
"""

defaults = dict(
    n_layer=4, n_head=4, n_embd=128,  # 0.8M parameters
    dtype='float32',
    batch_size=8, block_size=128,  # 1,024 tokens a step
    min_lr=None, lr_decay_iters=None,
    warmup_iters=40,
    eval_interval=100, eval_iters=100,  # 102,400 tokens
)
_curved = dict(config='config/demo_mixed.py', max_distance=None, role='mixed', curvature_mode='fixed', curvature=0.1, reference='origin')
_rates = dict(learning_rate=[1.5e-3, 3e-3, 6e-3, 1.2e-2])

arms = {
    'half': dict(config='config/demo_baseline.py', max_iters=400, grid=dict(learning_rate=[6e-3])),
    'baseline': dict(config='config/demo_baseline.py', role='baseline', max_iters=800, grid=_rates),
    'curved': dict(_curved, max_iters=800, grid=_rates),
    'continued': dict(config='config/demo_baseline.py', role='control', start='half', max_iters=400, grid=_rates),
    'converted': dict(_curved, start='half', curvature_warmup=200, max_iters=400, grid=_rates),
    'at-once': dict(_curved, start='half', max_iters=400, grid=_rates),
}
seeds = [1337]
runs = [dict(arms=list(arms), grid=dict(learning_rate=[6e-3]), seeds=[1338, 1339, 1340, 1341, 1342])]  # best for all of them
