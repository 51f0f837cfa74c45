"""Hyperbolic, spherical, or both? c = 1, c = -1, and a product of two balls and two spheres, all within 1.5 of the origin; the sphere
also without that bound, and with the origin as reference.

The runs of sweeps/bounded.py: copy its rows to out/sweeps/signs/runs.csv, or some are made again. One seed, which chooses the rates.
Then 10 runs of one to three minutes of one thread.
"""
from sweeps import bounded as _bounded

defaults, budget, grid, seeds = _bounded.defaults, _bounded.budget, _bounded.grid, _bounded.seeds  # 600 steps of 1,024 tokens

_within = _bounded.arms['c1-within']
arms = {
    **{name: _bounded.arms[name] for name in ('baseline', 'flat', 'ball-v', 'c1-within')},
    'sphere-within': dict(_within, curvature=-1.0),
    'signs-within': dict(_within, curvature_heads=[1.0, 1.0, -1.0, -1.0]),
    # is it the bound, which was made for the ball's edge?
    'sphere': dict(_within, curvature=-1.0, max_distance=None),
    'sphere-origin': dict(_within, curvature=-1.0, max_distance=None, reference='origin'),
    'c1-origin': dict(_within, curvature=1.0, reference='origin'),
}
