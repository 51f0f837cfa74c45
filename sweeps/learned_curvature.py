"""How should c be learned? Plainly, through a softplus, per coordinate, at its own rate; beside it c fixed, where the learned ones start.

All with the default max_distance. The model and the steps of sweeps/stability.py: 8 arms at 2 rates with 4 seeds = 64 runs of a quarter
of a minute of one thread. One seed chooses the rate, three measure.
"""
from sweeps import stability as _stability

defaults, budget = dict(_stability.defaults, dtype='float32'), _stability.budget  # 0.1M parameters, 1,000 steps of 256 tokens
grid = dict(learning_rate=[3e-3, 1e-2])
seeds = [1337, 1338, 1339, 1340]

_mixed = dict(config='config/demo_mixed.py', max_distance=1.5, curvature=1.0, role='mixed')
_learned = dict(_mixed, curvature_mode='parametric')
arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'fixed': dict(_mixed, curvature_mode='fixed'),
    'learned': dict(_learned),
    'softplus': dict(_learned, curvature_form='softplus'),
    'coordinate': dict(_learned, curvature_unit='coordinate'),  # starts at 1 / 32: rows of a head are 32 long
    'slow': dict(_learned, curvature_lr_mult=0.1),
    'fast': dict(_learned, curvature_lr_mult=10.0),
}
