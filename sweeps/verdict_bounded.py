"""Do rows and updates of a largest length, without curvature, improve a GPT of today? And is curvature worth anything beside them?

In verdict_modern.py (Muon, RoPE, QK norm) bounded is lower than the plain GPT in each of three pairs, by 0.020 [0.001, 0.038], and lower
than c1-origin, by 0.009 [0.001, 0.017]. It came in there after three pairs, as a control. This asks it as a question, on new seeds, with a
look after every pair; c1-origin has the first five, for the second.

bounded-0.3 has shorter updates, as long as those of c1-origin at right angles to a row (0.30 in place of 0.5): is that the difference
between the two? It came in after six runs (seeds 2031 and 2032, where c1-origin was 0.008 and 0.007 lower than bounded), on the same five
seeds as c1-origin; the question stayed.

A run takes 6 to 10 minutes of one thread with AVX-512, compiled, and 24 with AVX2 on Zen 1. Written before any of its runs.
"""
from sweeps import verdict_modern as _modern

defaults, budget = _modern.defaults, _modern.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = list(range(2031, 2051))

arms = {
    'baseline': _modern.arms['baseline'],
    'bounded': {**_modern.arms['bounded'], 'seeds': seeds},
    'c1-origin': {**_modern.arms['c1-origin'], 'seeds': seeds[:5]},
    'bounded-0.3': {**_modern.arms['bounded'], 'longest_update': 0.3, 'seeds': seeds[:5]},
}
question = dict(hypothesis='with Muon, RoPE and QK norm rows and updates of a largest length are worth more than 0.004 nats a token',
                arm='bounded', against='baseline', margin=0.004, stop='anytime', spread=0.0074)
