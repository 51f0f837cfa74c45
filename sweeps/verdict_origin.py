"""sweeps/verdict.py without the look at the previous token: the reference is the origin, and the flat twin the plain GPT.

So what c1-origin gains over the baseline is curvature's alone. gated is the plain GPT with a factor for each head and token
(head_gate='read', model_baseline.py), the cheapest flat form that kept the gain of curvature where tokens are shifted. Written before any
run of these two at this budget; in sweeps/ablation.py a learned c did as well at the origin as at the previous token (one seed, no bound).

baseline, gate+norm and c1-within are runs of verdict.py and verdict_controls.py: copy their rows to out/sweeps/verdict_origin/runs.csv, or
they are made again. Then 6 runs of 4 to 6 minutes of one thread with AVX-512.
"""
from sweeps import verdict as _verdict
from sweeps import verdict_controls as _controls

defaults, budget = _verdict.defaults, _verdict.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = [2001, 2002, 2003]

arms = {
    'baseline': _controls.arms['baseline'],
    **_verdict.arms,
    'c1-origin': dict(_verdict.arms['c1-within'], reference='origin'),
    'gated': dict(config='config/demo_baseline.py', role='control', head_gate='read', learning_rate=6e-3),
}
question = dict(hypothesis='without a look at the previous token, too, curvature is worth more than 0.004 nats a token over a gate',
                arm='c1-origin', against='gated', margin=0.004, stop='fixed', spread=0.0065)
