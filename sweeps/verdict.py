"""Does curvature help beyond its best control? The question of sweeps/shakespeare_lr.py, with its budget, on new seeds, until it is known.

At most 24 pairs of runs, c1-within against gate+norm. c1-within is the best curved arm since rows are kept from the ball's edge
(sweeps/bounded_verdict.py), at the better of two rates of sweeps/verdict_rates.py; gate+norm is the best control of shakespeare_lr.py, at
the best of four rates there. After every pair the sweep looks, without more false positives (experiments/sequential.py), and stops when
it knows. With the spread of a pair there, 0.0065 nats a token, 24 pairs are enough with a probability of 50% for a difference of 0.008.
For one of 0.004, or none, they are too few: some 41 and 53 pairs (sweep.py --dry-run).

A run takes 5 to 6 minutes of one thread with AVX-512, compiled; all 48 take some 2.5 hours on 2 cores.
"""
from sweeps import verdict_rates as _rates

defaults, budget = _rates.defaults, _rates.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = list(range(2001, 2025))

arms = {
    'gate+norm': dict(config='config/demo_baseline.py', role='control', model='controls', control='gate+norm', learning_rate=6e-3),
    'c1-within': dict({key: value for key, value in _rates.arms['c1-within'].items() if key != 'grid'}, learning_rate=6e-3),
}
question = dict(hypothesis='curvature per head is worth more than 0.004 nats a token over its best control',
                arm='c1-within', against='gate+norm', margin=0.004, stop='anytime', spread=0.0065)
