"""At which rate does the bounded curved model train with the full budget? For sweeps/verdict.py, on seeds that it does not use.

In sweeps/bounded.py one seed chose a rate that ten others did not bear out. So two seeds choose here, by their mean. gate+norm's rate is
that of shakespeare_lr.py (6e-3, out of four).

4 runs, 6 minutes of one thread each with AVX-512, compiled.
"""
from sweeps import shakespeare_lr as _budget

defaults = dict(_budget.defaults, eval_interval=500, compile=True)  # compiled, a step of c1-within takes 0.73 of its time, a control's 0.9
budget = _budget.budget  # 1,500 steps of 3,072 tokens
seeds = [1337, 1338]

arms = {'c1-within': dict(config='config/demo_mixed.py', max_distance=1.5, role='mixed', curvature_mode='fixed', curvature=1.0,
                          grid=dict(learning_rate=[3e-3, 6e-3]))}
