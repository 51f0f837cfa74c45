"""What curvature does, as an option of the plain GPT: does it keep the gain at 0.8M parameters?

verdict_terms.py found at 0.2M that a fixed formula of cosines with updates weighed by their length keeps two thirds of what curvature gains
over a gate and a norm. `token_shift = 'likeness'` and `bounded_rows = True` are close to that, two options of model_baseline.py: the same
formula of cosines; updates are limited to the same length by a simpler function, and short rows are not lengthened. sweeps/verdict.py's
budget, rate and first three seeds. Nothing was chosen on them for this arm: its numbers are those of a row 1.5 from the origin, where the
runs of verdict.py have theirs. Asked: is it better than gate+norm, the best flat form at this size?

baseline, gate+norm and c1-within are runs of verdict.py and verdict_controls.py: copy their rows to out/sweeps/component/runs.csv, or
they are made again. Then 4 runs of 5 minutes of one thread with AVX-512 (25 with AVX2 on Zen 1). Written before any of them; one of 250
steps was made before, to see that it trains.

bounded, the same without `token_shift`, came in after these: how much of it is the second option alone? At likeness's rate.
"""
from sweeps import verdict as _verdict
from sweeps import verdict_controls as _controls

defaults, budget = _verdict.defaults, _verdict.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = [2001, 2002, 2003]

arms = {
    'baseline': {**_controls.arms['baseline'], 'seeds': seeds},
    **_verdict.arms,
    'likeness': dict(config='config/demo_baseline.py', role='control', token_shift='likeness', bounded_rows=True, learning_rate=6e-3),
    'bounded': dict(config='config/demo_baseline.py', role='control', bounded_rows=True, learning_rate=6e-3),
}
question = dict(hypothesis='a plain GPT with token_shift = likeness and bounded_rows is more than 0.004 nats a token better than a '
                           'block with a gate and a norm', arm='likeness', against='gate+norm', margin=0.004, stop='fixed', spread=0.0065)
