"""Which term of curvature carries what it gains? verdict_size.py's curved arm at 0.2M parameters (c = 1 per head, rows at most 1.5 from the
origin) with one term of its geometry taken away or alone, with the same budget and seeds.

At 0.2M what curvature gains is largest, -0.0298 [-0.0428, -0.0167], and a run is short. What each arm is: model_terms.py. All but the terms
is c1-within's: the ball, the rate, the shift to the previous token. Nothing is chosen here. c1-within and gate+norm are verdict_size.py's
runs: copy its rows to out/sweeps/verdict_terms/runs.csv, or they are made again. Then 13 arms with 3 seeds, 39 runs of 2 to 4 minutes of
one thread with AVX-512. Written before any of them, after one seed of two arms at 0.8M.
"""
import math

from sweeps import verdict as _verdict

defaults = dict(_verdict.defaults, n_embd=64)  # 0.2M parameters
budget = _verdict.budget  # 1,500 steps of 3,072 tokens
_rate = 1.2e-2  # 6e-3 times 128 / 64, as in verdict_size.py
seeds = [2001, 2002, 2003]


def _term(**keys):
    return dict(config='config/demo_baseline.py', model='terms', curvature=1.0, max_distance=1.5, role='other', learning_rate=_rate, **keys)


arms = {
    **{name: dict(arm, learning_rate=_rate) for name, arm in _verdict.arms.items()},
    'read': _term(read='log'),  # x + v
    'write': _term(write='mobius'),  # x - r is read
    'read+v': _term(read='log', write='v'),  # alpha and beta of the update's length alone
    'write+direction': _term(read='direction', write='mobius'),  # log's direction, flat length
    'read+norms': _term(read='log', write='norms'),  # without the angle between row and update
    'v': _term(write='v'),  # no log, and of the sum the update's length alone
    'direction+v': _term(read='direction', write='v'),
    'read+beta': _term(read='log', write='beta'),  # alpha = 1
    'read+limit': _term(read='log', write='limit'),  # updates are shortened, nothing else
    # after the first seed, where direction+v did as well as all of it: is a learned weight of the previous token enough?
    'weighted+v': _term(read='weighted', write='v'),
    'weighted': _term(read='weighted'),
    # and after three seeds, where it is a third of the gain: a weight by how alike the two are, as log's direction has it, learned
    'likeness+v': _term(read='likeness', write='v'),
    # and where the learned one stays near its start: fixed at what log's direction is of rows 1.5 from the origin, without any curved map
    'cosine+v': _term(read='cosine', likeness=round(math.cosh(1.5) - 1, 4), write='v'),
}
