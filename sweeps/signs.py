"""Hyperbolic, spherical, or both? c = 1, c = -1, and a product of two balls and two spheres, all within 1.5 of the origin; the sphere
also without that bound, and with the origin as reference.

Which half of the sphere is it? Between rows d = 1.5 from the origin log_r reads x - w r with w = 1 + a (1 - cos(x, r)),
a = cosh(d) - 1 in the ball and cos(d) - 1 on the sphere (model_terms.py). read-ball and read-sphere are ball-v, which is flat, with
these reads: all else is equal.

Is it the length of updates? Arms called short have max_update: an update moves a row by less than 0.5 (or 0.25), where the ball's exp_0
does not let it go far and the sphere's sends it around. near: rows within 0.75, too.

The runs of sweeps/bounded.py: copy its rows to out/sweeps/signs/runs.csv, or some are made again. Seed 1337 chooses the rates, 1338 and
1339 measure at them (not shorter and near, which 1337 did not find better). 64 runs of one to three minutes of one thread, 12 of them those
of bounded.
"""
import math as _math

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
    'sphere-short': dict(_within, curvature=-1.0, max_update=0.5),
    'sphere-shorter': dict(_within, curvature=-1.0, max_update=0.25),
    'sphere-near': dict(_within, curvature=-1.0, max_distance=0.75, max_update=0.25),
    'signs-short': dict(_within, curvature_heads=[1.0, 1.0, -1.0, -1.0], max_update=0.5),
    'c1-short': dict(_within, curvature=1.0, max_update=0.5),
    'sphere-origin-short': dict(_within, curvature=-1.0, max_update=0.5, reference='origin'),
    'read-ball': dict(_bounded.arms['ball-v'], read='cosine', likeness=_math.cosh(1.5) - 1),
    'read-sphere': dict(_bounded.arms['ball-v'], read='cosine', likeness=_math.cos(1.5) - 1),
}
_chosen = {6e-3: ['baseline', 'ball-v', 'read-ball', 'read-sphere', 'sphere', 'sphere-within', 'sphere-origin', 'c1-origin',
                  'sphere-short', 'signs-short', 'sphere-origin-short'],
           1.2e-2: ['flat', 'c1-within', 'signs-within', 'c1-short']}
runs = [dict(arms=_names, grid=dict(learning_rate=[_rate]), seeds=[1338, 1339]) for _rate, _names in _chosen.items()]
