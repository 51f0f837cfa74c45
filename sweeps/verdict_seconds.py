"""sweeps/verdict.py at equal seconds: the control has as many more steps as its steps are faster.

In verdict.py a run of c1-within took 1.14 times as long as one of gate+norm with the same seed (median of 7 pairs, two runs at a time on 2
cores, compiled). So gate+norm has 1,710 steps here, 14% more, with its rate falling to a tenth at the last of them.

c1-within is verdict.py's: copy its rows to out/sweeps/verdict_seconds/runs.csv, or they are made again. Then 3 runs of 5 to 6 minutes of
one thread with AVX-512. Written before any of them.
"""
from sweeps import verdict as _verdict

defaults = _verdict.defaults
seeds = [2001, 2002, 2003]

arms = {
    'gate+norm-longer': dict(_verdict.arms['gate+norm'], max_iters=1710),
    'c1-within': dict(_verdict.arms['c1-within'], max_iters=_verdict.budget['steps']),
}
question = dict(hypothesis='at equal seconds curvature per head is worth more than 0.004 nats a token over its best control',
                arm='c1-within', against='gate+norm-longer', margin=0.004, stop='fixed', spread=0.0065)
