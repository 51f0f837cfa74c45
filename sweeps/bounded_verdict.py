"""Does curvature help once rows are kept from the ball's edge? The question of sweeps/bounded.py, on 24 new seeds, until it is decided.

c1-within, the best arm there, against ball-v, a flat model in a ball as small, each at the rate that seed 1337 chose there. After every
pair the sweep looks (experiments/sequential.py) and stops when it knows. gate+norm, the best control of sweeps/shakespeare_lr.py, runs on
the first 8 seeds beside them. After ten pairs, in which c1-within at 1.2e-2 varied twice as much as ball-v, came c1-within-slower, at
6e-3: it is in no question.

The runs of sweeps/terms.py (0.6M tokens), at most 66 of one to two minutes of one thread.
"""
from sweeps import bounded as _bounded

defaults, budget = _bounded.defaults, _bounded.budget
_all = list(range(2001, 2025))

_rates = {'ball-v': 6e-3, 'c1-within': 1.2e-2, 'gate+norm': 6e-3}
arms = {name: dict(_bounded.arms[name], learning_rate=rate) for name, rate in _rates.items()}
arms['c1-within-slower'] = dict(_bounded.arms['c1-within'], role='other', learning_rate=6e-3, seeds=_all[:5] + _all[8:13])
seeds = _all[:8]
runs = [dict(arms=['ball-v', 'c1-within'], seeds=_all[8:])]
question = dict(hypothesis='curvature is worth more than 0.004 nats a token over a flat model in a ball as small',
                arm='c1-within', against='ball-v', margin=0.004, stop='anytime')
