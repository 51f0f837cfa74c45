"""Does curvature gain anything once rows are kept from the ball's edge? Curved models with max_distance, and flat ones in a ball as small.

At c = 1 with max_distance = 1.5 a head's row is at most tanh(0.75) = 0.635 long. The flat models with the same bound, and nothing curved,
are model_terms.py's with a ball of that radius (curvature = 2.48 is only its size there).

The runs of sweeps/terms.py. Seed 1337 chooses the rates. A run takes one to two minutes of one thread.
"""
from sweeps import terms as _terms

defaults, budget = _terms.defaults, _terms.budget  # 0.8M parameters, 600 steps of 1,024 tokens
grid = dict(learning_rate=[6e-3, 1.2e-2])
seeds = [1337]

_base = dict(config='config/demo_baseline.py')
_within = dict(config='config/demo_mixed.py', max_distance=1.5, role='mixed', curvature_mode='fixed')
_ball = dict(_base, model='terms', curvature=2.48, role='control')

arms = {
    'baseline': dict(_base, role='baseline'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'gate+norm': dict(_base, role='control', model='controls', control='gate+norm'),
    'c1-within': dict(_within, curvature=1.0),
    'c3-within': dict(_within, curvature=3.0),
    'ball': dict(_ball),  # rows kept in the ball, nothing else
    'ball-limit': dict(_ball, write='limit'),  # and updates shortened as exp_0 does
    'ball-v': dict(_ball, write='v'),
    'bound+gate+norm': dict(_base, role='control', model='controls', control='bound+gate+norm'),  # a learned bound
}
runs = [dict(arms=['c1-within'], grid=dict(learning_rate=[1.2e-2]), seeds=[1338, 1339, 1340]),
        dict(arms=['ball-v'], grid=dict(learning_rate=[6e-3]), seeds=[1338, 1339, 1340])]
