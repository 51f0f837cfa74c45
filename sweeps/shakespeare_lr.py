"""Does curvature help, at each arm's own best learning rate? Tiny Shakespeare by characters, at a size for a CPU.

15 arms x 4 learning rates with one seed = 60 runs of 1,500 steps choose each arm's rate (and the best mixed arm and the
best control), and 3 more where the best was at the end of the grid; that seed then measures nothing. Then seeds (`runs`): five
for those that the question is about, two for the others at their own rates, 39 runs. What they say: results/shakespeare_lr/README.md.

A run takes 6 to 14 minutes of one thread here (2 cores, float32, two at a time), the controls less than the mixed arms.
"""

defaults = dict(
    n_layer=4, n_head=4, n_embd=128,  # 0.8M parameters
    dtype='float32',  # the same on every CPU; 'auto' is bfloat16 on those that multiply it faster
    batch_size=24, block_size=128,  # 24 * 128 = 3,072 tokens a step
    min_lr=None, lr_decay_iters=None,  # cosine to a tenth of the learning rate at the last step
    warmup_iters=100,
    eval_interval=250, eval_iters=36,  # 36 * 3,072 = 110,592 tokens: 864 of the validation text's 871 windows
)
budget = dict(steps=1500)  # 1,500 * 3,072 = 4.6M tokens, 4.6 epochs of tiny Shakespeare
grid = dict(learning_rate=[1e-3, 3e-3, 6e-3, 1.2e-2])  # the demo's 3e-3 and both sides of it
seeds = [1337]

_controls = dict(config='config/demo_baseline.py', role='control', model='controls')
_fixed = dict(config='config/demo_mixed.py', max_distance=None, role='mixed', curvature_mode='fixed')
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
    'learned': dict(config='config/demo_mixed.py', max_distance=None, role='mixed', curvature_mode='random'),
    'dynamic': dict(config='config/demo_mixed.py', max_distance=None, role='mixed', curvature_mode='random', dynamic_curvature=True),
}

runs = [
    # beyond the end of the grid at which an arm was best
    dict(arms=['baseline', 'norm'], grid=dict(learning_rate=[2.4e-2]), seeds=[1337]),
    dict(arms=['c1'], grid=dict(learning_rate=[3e-4]), seeds=[1337]),
    # seeds at the rates that seed 1337 chose
    dict(arms=['gate+norm'], grid=dict(learning_rate=[6e-3]), seeds=[1338, 1339, 1340, 1341, 1342]),  # the best control
    dict(arms=['c0.1-head'], grid=dict(learning_rate=[3e-3]), seeds=[1338, 1339, 1340, 1341, 1342]),  # the best mixed arm
    dict(arms=['learned'], grid=dict(learning_rate=[3e-3]), seeds=[1338, 1339, 1340, 1341, 1342]),  # the best that learns c
    dict(arms=['baseline'], grid=dict(learning_rate=[1.2e-2]), seeds=[1338, 1339]),
    dict(arms=['flat', 'gate', 'dynamic', 'smear', 'c-0.1-head'], grid=dict(learning_rate=[6e-3]), seeds=[1338, 1339]),
    dict(arms=['bound', 'c0.1', 'c-0.1', 'c1-head'], grid=dict(learning_rate=[3e-3]), seeds=[1338, 1339]),
    dict(arms=['norm'], grid=dict(learning_rate=[1.2e-2]), seeds=[1338, 1339]),
    dict(arms=['c1'], grid=dict(learning_rate=[1e-3]), seeds=[1338, 1339]),
]
