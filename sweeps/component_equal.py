"""Is the flat GPT with what curvature does as good as the curved one? The equivalence test of component.py, on new seeds.

In component.py likeness (the plain GPT with `token_shift = 'likeness'` and `bounded_rows = True`) is 0.0033 [-0.0054, +0.0121] above
c1-within: three pairs, which cannot tell 0.004 from nothing. Nine more can, if there is no difference and a pair's spread is the 0.0035
seen there. Looked at once, after all nine. Nothing was chosen on these seeds for either arm; on the first four c1-within and gate+norm
have their runs of verdict.py: copy these rows to out/sweeps/component_equal/runs.csv, or they are made again. Then 14 runs of 11 minutes
of one thread with AVX2 (Zen 3), 5 with AVX-512. Written before any of them.
"""
from sweeps import component as _component

defaults, budget = _component.defaults, _component.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = list(range(2004, 2013))

arms = {
    'gate+norm': {**_component.arms['gate+norm'], 'seeds': seeds[:4]},
    'c1-within': _component.arms['c1-within'],
    'likeness': _component.arms['likeness'],
}
question = dict(hypothesis='a plain GPT with token_shift = likeness and bounded_rows, without curvature, is as good as the curved GPT, '
                           'to 0.004 nats a token', arm='likeness', against='c1-within', margin=0.004, stop='fixed', spread=0.0035)
