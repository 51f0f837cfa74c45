"""Does curvature improve the best GPT there is here, the plain one under Muon? c1-origin, whose flat twin it is, against it, on new seeds.

Three pairs of sweeps/verdict_muon.py say -0.0037 [-0.0260, +0.0187], at the same rate for both. Here each arm has its better rate of
verdict_plain_rates.py. The margin is half of what curvature gains over its best control (0.018, sweeps/verdict.py): a gain below it would
be no reason to change a GPT. At most 20 pairs, a look after each. Stated before any of these runs.

A run takes 5 to 8 minutes of one thread with AVX-512, compiled.
"""
from sweeps import verdict_muon as _muon

defaults, budget = _muon.defaults, _muon.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = list(range(2011, 2031))

arms = {
    'baseline-muon': dict(_muon.arms['baseline-muon'], muon_lr=0.02),
    'c1-origin-muon': dict(_muon.arms['c1-origin-muon'], muon_lr=0.02),
}
question = dict(hypothesis='under Muon curvature per head is worth more than 0.009 nats a token over the plain GPT',
                arm='c1-origin-muon', against='baseline-muon', margin=0.009, stop='anytime', spread=0.009)
