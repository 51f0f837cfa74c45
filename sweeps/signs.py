"""Hyperbolic, spherical, or both? c = 1, c = -1, and a product of two balls and two spheres, all within 1.5 of the origin.

The runs of sweeps/bounded.py: copy its rows to out/sweeps/signs/runs.csv, or some are made again. One seed, which chooses the rates. Then 4
runs of one to three minutes of one thread.
"""
from sweeps import bounded as _bounded

defaults, budget, grid, seeds = _bounded.defaults, _bounded.budget, _bounded.grid, _bounded.seeds  # 600 steps of 1,024 tokens

_within = _bounded.arms['c1-within']
arms = {
    **{name: _bounded.arms[name] for name in ('baseline', 'flat', 'ball-v', 'c1-within')},
    'sphere-within': dict(_within, curvature=-1.0),
    'signs-within': dict(_within, curvature_heads=[1.0, 1.0, -1.0, -1.0]),
}
