"""Which part of the mixed-curvature block does what: one change at a time to 'learned' (c per head and block from
U(0, 1), reference 'previous', residual 'origin'), beside the flat arms. Tiny Shakespeare by characters, at a size for
a CPU.

31 arms x 4 learning rates with one seed = 124 runs, then 50 runs with more seeds. 15 of the arms are those of
shakespeare_lr.py: with --out out/sweeps/shakespeare_lr their runs are not made again (the folder is this sweep's then, its
sweep.json and summary too, until shakespeare_lr.py is started there again). The flat control is that of reference
'previous' with residual 'origin' or 'transport'; the other references and residuals have flat controls of their own
(flat-..., the same arm at c = 0), and it is these that an effect of their curvature is to be measured against.
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
grid = dict(learning_rate=[1e-3, 3e-3, 6e-3, 1.2e-2])
seeds = [1337]

_controls = dict(config='config/demo_baseline.py', role='control', model='controls')
_mixed = dict(config='config/demo_mixed.py', max_distance=None, role='mixed', curvature_mode='random')
_fixed = dict(_mixed, curvature_mode='fixed')
_flat = dict(_fixed, curvature=0.0, role='control')
arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'smear': dict(config='config/demo_smear.py', role='control'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'bound': dict(_controls, control='bound'),
    'norm': dict(_controls, control='norm'),
    'gate': dict(_controls, control='gate'),
    'gate+norm': dict(_controls, control='gate+norm'),
    'learned': _mixed,
    # how c is chosen
    'learned-whole': dict(_mixed, per_head_curvature=False),
    'frozen': dict(_mixed, curvature_lr_mult=0.0),  # c stays at its start, random
    'parametric': dict(_mixed, curvature_mode='parametric'),  # learned, all from 1
    'tied': dict(_mixed, curvature_mode='tied'),
    'dynamic': dict(_mixed, dynamic_curvature=True),
    'dynamic-whole': dict(_mixed, dynamic_curvature=True, per_head_curvature=False),
    # fixed c: its sign, its size, one for the row or one a head
    'c0.1': dict(_fixed, curvature=0.1, per_head_curvature=False),
    'c1': dict(_fixed, curvature=1.0, per_head_curvature=False),
    'c-0.1': dict(_fixed, curvature=-0.1, per_head_curvature=False),
    'c0.1-head': dict(_fixed, curvature=0.1),
    'c1-head': dict(_fixed, curvature=1.0),
    'c-0.1-head': dict(_fixed, curvature=-0.1),
    # how tokens enter the ball, where they are read, how the update is added
    'embedding': dict(_mixed, use_embedding_curvature=True),
    'at-origin': dict(_mixed, reference='origin'),  # no token shift: its flat counterpart is the baseline
    'at-mean': dict(_mixed, reference='mean'),
    'flat-mean': dict(_flat, reference='mean'),
    'at-window': dict(_mixed, reference='window'),
    'flat-window': dict(_flat, reference='window'),
    'at-ema': dict(_mixed, reference='ema'),
    'flat-ema': dict(_flat, reference='ema'),
    'transported': dict(_mixed, residual='transport'),
    'added-at-reference': dict(_mixed, residual='reference'),
    'flat-added': dict(_flat, residual='reference'),
}
# seeds for the arms that the question is about, at the rates that seed 1337 chose in shakespeare_lr.py (frozen: learned's;
# at-origin: both middle ones); add others' own
runs = [
    dict(arms=['baseline'], grid=dict(learning_rate=[1.2e-2]), seeds=[1338, 1339, 1340, 1341, 1342]),
    dict(arms=['flat', 'gate', 'gate+norm'], grid=dict(learning_rate=[6e-3]), seeds=[1338, 1339, 1340, 1341, 1342]),
    dict(arms=['c0.1-head', 'learned', 'frozen'], grid=dict(learning_rate=[3e-3]), seeds=[1338, 1339, 1340, 1341, 1342]),
    dict(arms=['smear', 'c-0.1-head', 'dynamic'], grid=dict(learning_rate=[6e-3]), seeds=[1338, 1339, 1340]),
    dict(arms=['at-origin'], grid=dict(learning_rate=[3e-3, 6e-3]), seeds=[1338, 1339, 1340]),
]
