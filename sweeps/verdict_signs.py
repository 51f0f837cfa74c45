"""Is the sphere as good as the ball, with the full budget? And a product of both, as good as balls alone?

In short runs, with updates shorter than 0.5 (max_update), the sphere is 0.011 behind c1-within and two balls and two spheres are 0.018
ahead, which two seeds do not show (signs.py). Here are both at their rate there, 6e-3, against c1-within of verdict.py, on its seeds and
at its rate. Written before any of its runs.

c1-within is verdict.py's: copy its rows to out/sweeps/verdict_signs/runs.csv, or they are made again. Then 6 runs of 5 to 11 minutes of
one thread, compiled.
"""
from sweeps import signs as _signs
from sweeps import verdict as _verdict

defaults, budget = _verdict.defaults, _verdict.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = [2001, 2002, 2003]

arms = {'c1-within': _verdict.arms['c1-within'],
        **{name: dict(_signs.arms[name], learning_rate=6e-3) for name in ('signs-short', 'sphere-short')}}
question = dict(hypothesis='a product of two balls and two spheres is worth more than 0.004 nats a token over four balls',
                arm='signs-short', against='c1-within', margin=0.004, stop='fixed', spread=0.0065)
