"""Is it curvature, or the small ball? sweeps/verdict.py's curved arm against other flat models, with the same budget and seeds.

ball-v is flat, in a ball as small, with updates weighed by their length (sweeps/bounded.py): the best flat model there. gated-flat is the
cheapest flat one that kept the gain in sweeps/terms.py. Rates: 6e-3 for both, which did best in those short runs; the baseline's is the
best of five of shakespeare_lr.py. Stated after three pairs of verdict.py and before any run of ball-v.

c1-within and gate+norm are verdict.py's runs: copy its rows to out/sweeps/verdict_controls/runs.csv, or they are made again. Then 17 runs
of 5 minutes of one thread with AVX-512, compiled.
"""
from sweeps import bounded as _bounded
from sweeps import verdict as _verdict

defaults, budget = _verdict.defaults, _verdict.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = list(range(2001, 2007))

arms = {
    **_verdict.arms,
    'ball-v': dict(_bounded.arms['ball-v'], learning_rate=6e-3),
    'gated-flat': dict(config='config/demo_flat.py', role='control', head_gate='read', learning_rate=6e-3, seeds=seeds[:3]),
    'baseline': dict(config='config/demo_baseline.py', role='baseline', learning_rate=1.2e-2, seeds=seeds[:3]),
    'flat': dict(config='config/demo_flat.py', role='flat', learning_rate=6e-3, seeds=seeds[:3]),
    # the default: c of each head and block from U(0, 1), learned
    'learned': dict(config='config/demo_mixed.py', max_distance=1.5, curvature_mode='random', curvature=1.0, role='other',
                    learning_rate=6e-3, seeds=seeds[:2]),
}
question = dict(hypothesis='curvature per head is worth more than 0.004 nats a token over a flat model in a ball as small',
                arm='c1-within', against='ball-v', margin=0.004, stop='anytime', spread=0.0065)
