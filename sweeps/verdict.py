"""Does curvature help beyond its best control? The question of sweeps/shakespeare_lr.py, on new seeds, until it is decided.

At most 24 pairs of runs, c0.1-head against gate+norm, each at the rate that shakespeare_lr.py chose for it. The spread of a pair there was
0.0065 nats a token: 23 pairs show a difference of 0.004 with a probability of 80%, and 25 show that there is none. After every pair the
sweep looks, without more false positives (experiments/sequential.py), and stops when it knows.

A run takes 6 to 14 minutes of one thread; all 48 take 3 to 5 hours on 2 cores. Not run yet.
"""

defaults = dict(
    n_layer=4, n_head=4, n_embd=128,  # 0.8M parameters, as shakespeare_lr.py
    dtype='float32',
    batch_size=24, block_size=128,
    min_lr=None, lr_decay_iters=None,
    warmup_iters=100,
    eval_interval=250, eval_iters=36,
)
budget = dict(steps=1500)
seeds = list(range(2001, 2025))

arms = {
    'gate+norm': dict(config='config/demo_baseline.py', role='control', model='controls', control='gate+norm', learning_rate=6e-3),
    'c0.1-head': dict(config='config/demo_mixed.py', max_distance=None, role='mixed', curvature_mode='fixed', curvature=0.1,
                      learning_rate=3e-3),
}
question = dict(hypothesis='curvature per head is worth more than 0.004 nats a token over its best control',
                arm='c0.1-head', against='gate+norm', margin=0.004, stop='anytime', spread=0.0065)
