"""Does curvature help, at each arm's own best learning rate? Tiny Shakespeare by characters, at a size for a CPU.

15 arms x 4 learning rates x 3 seeds = 180 runs of 1,500 steps. The first seed of everything comes first: 60 runs, after
which the tables say which arms compete (then take the other seeds away here and give them to those in `runs`).

On 2 cores that had other work, 1 thread, float32: 0.43 s a step for the baseline and 0.53 s for 'learned' (40 steps of
each: train.py config/demo_*.py --batch_size=24 --block_size=128 --threads=1). So 11 to 13 minutes a run and,
two at a time, 6 hours for the first seed and 18 for all.
"""

defaults = dict(
    n_layer=4, n_head=4, n_embd=128,  # 0.8M parameters
    batch_size=24, block_size=128,  # 24 * 128 = 3,072 tokens a step
    min_lr=None, lr_decay_iters=None,  # cosine to a tenth of the learning rate at the last step
    warmup_iters=100,
    eval_interval=250, eval_iters=36,  # 36 * 3,072 = 110,592 tokens: all windows of the validation text
)
budget = dict(steps=1500)  # 1,500 * 3,072 = 4.6M tokens, 4.6 epochs of tiny Shakespeare
grid = dict(learning_rate=[1e-3, 3e-3, 6e-3, 1.2e-2])  # the demo's 3e-3 and both sides of it
seeds = [1337, 1338, 1339]

_controls = dict(config='config/demo_baseline.py', role='control', model='controls')
_fixed = dict(config='config/demo_mixed.py', role='mixed', curvature_mode='fixed')
arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'smear': dict(config='config/demo_smear.py', role='control'),
    'flat': dict(config='config/demo_flat.py', role='flat'),  # also the controls' 'difference'
    # one ingredient of the geometry at a time, no curvature
    'bound': dict(_controls, control='bound'),
    'norm': dict(_controls, control='norm'),
    'gate': dict(_controls, control='gate'),
    'gate+norm': dict(_controls, control='gate+norm'),
    # c the same everywhere, for the whole row and per head
    'c0.1': dict(_fixed, curvature=0.1, per_head_curvature=False),
    'c1': dict(_fixed, curvature=1.0, per_head_curvature=False),
    'c-0.1': dict(_fixed, curvature=-0.1, per_head_curvature=False),
    'c0.1-head': dict(_fixed, curvature=0.1),
    'c1-head': dict(_fixed, curvature=1.0),
    'c-0.1-head': dict(_fixed, curvature=-0.1),
    # c learned, from U(0, 1) per head and block; and predicted from the token on top of that
    'learned': dict(config='config/demo_mixed.py', role='mixed'),
    'dynamic': dict(config='config/demo_mixed.py', role='mixed', dynamic_curvature=True),
}
