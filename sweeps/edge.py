"""Where should a learned curvature start, so that few rows sit at the ball's edge, where rounding is magnified?

The mixed model's default was c per head and block from U(0, 1), learned: half of its rows end at the edge. Here are smaller starts, and the
baseline and controls beside them, in short runs. metrics.jsonl has the share of rows at the edge, block by block.

11 arms with seed 1337 at 2 learning rates, then more seeds where it matters. A run takes one to two minutes of one thread.
"""
from sweeps import terms as _terms

defaults, budget = _terms.defaults, _terms.budget  # 0.8M parameters, 600 steps of 1,024 tokens
grid = dict(learning_rate=[3e-3, 6e-3])
seeds = [1337]

_mixed = dict(config='config/demo_mixed.py', max_distance=None, role='mixed')
arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'uniform-1': dict(_mixed, curvature_mode='random', curvature=1.0),
    'uniform-0.1': dict(_mixed, curvature_mode='random', curvature=0.1),
    'start-0.1': dict(_mixed, curvature_mode='parametric', curvature=0.1),
    'start-0.03': dict(_mixed, curvature_mode='parametric', curvature=0.03),
    'fixed-0.1': dict(_mixed, curvature_mode='fixed', curvature=0.1),
    # no row farther out than 1.5/sqrt(c): sqrt(c)|x| <= tanh(0.75) = 0.64
    'uniform-1-within': dict(_mixed, curvature_mode='random', curvature=1.0, max_distance=1.5),
    'uniform-0.1-within': dict(_mixed, curvature_mode='random', curvature=0.1, max_distance=1.5),
    'fixed-0.1-within': dict(_mixed, curvature_mode='fixed', curvature=0.1, max_distance=1.5),
    'fixed-1-within': dict(_mixed, curvature_mode='fixed', curvature=1.0, max_distance=1.5),
}
runs = [dict(arms=['uniform-1', 'uniform-1-within'], grid=dict(learning_rate=[3e-3]), seeds=[1338, 1339, 1340]),
        dict(arms=['flat', 'fixed-0.1-within'], grid=dict(learning_rate=[6e-3]), seeds=[1338, 1339, 1340]),
        dict(arms=['fixed-0.1'], grid=dict(learning_rate=[3e-3]), seeds=[1338, 1339, 1340])]
