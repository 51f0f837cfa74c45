"""Which term of curvature carries what it gains? sweeps/verdict.py's curved arm (c = 1 per head, rows at most 1.5 from the origin) with one
term of its geometry taken away or alone, with the same budget and seeds.

What each arm is: model_terms.py. All but the terms is c1-within's: the ball, the rate (6e-3), the shift to the previous token. Written
after four pairs of verdict.py; nothing is chosen here. c1-within and gate+norm are verdict.py's runs: copy its rows to
out/sweeps/verdict_terms/runs.csv, or they are made again. Then 9 arms with 3 seeds, 27 runs of 5 to 6 minutes of one thread with AVX-512.
"""
from sweeps import verdict as _verdict

defaults, budget = _verdict.defaults, _verdict.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = [2001, 2002, 2003]


def _term(**keys):
    return dict(config='config/demo_baseline.py', model='terms', curvature=1.0, max_distance=1.5, role='other', learning_rate=6e-3, **keys)


arms = {
    **_verdict.arms,
    'read': _term(read='log'),  # x + v
    'write': _term(write='mobius'),  # x - r is read
    'read+v': _term(read='log', write='v'),  # alpha and beta of the update's length alone
    'write+direction': _term(read='direction', write='mobius'),  # log's direction, flat length
    'read+norms': _term(read='log', write='norms'),  # without the angle between row and update
    'v': _term(write='v'),  # no log, and of the sum the update's length alone
    'direction+v': _term(read='direction', write='v'),
    'read+beta': _term(read='log', write='beta'),  # alpha = 1
    'read+limit': _term(read='log', write='limit'),  # updates are shortened, nothing else
}
