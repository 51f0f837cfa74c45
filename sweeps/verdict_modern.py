"""Does curvature improve a GPT of today? Muon, rotary positions and QK norm: c1-origin against the plain GPT, both with all three.

c1-origin does not look at the previous token, so the plain GPT is its flat twin. With learned positions three pairs of verdict_muon.py
say -0.0037 [-0.0260, +0.0187]. RoPE and QK norm gained the plain GPT 0.20 nats in short runs (results/attention). Muon's rate is
0.02 for both, the plain GPT's best of three (verdict_muon_rates.py). At most 20 pairs, a look after each. Written before any of its runs.

bounded is a control for what max_distance does to c1-origin: rows of each head at most as long, and updates at most 1/2 long, without
curvature (model_baseline.py; those of c1-origin are at most 0.3 long at right angles to the row). It came in after three pairs, on their
seeds; the question stayed.

A run takes 6 to 10 minutes of one thread with AVX-512, compiled.
"""
from sweeps import verdict_muon as _muon

defaults = dict(_muon.defaults, position='rope', qk_norm=True)
budget = _muon.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = list(range(2011, 2031))

arms = {name: _muon.arms[f'{name}-muon'] for name in ('baseline', 'c1-origin')}
arms['bounded'] = dict(arms['baseline'], role='control', bounded_rows=True, seeds=seeds[:3])
question = dict(hypothesis='with Muon, RoPE and QK norm curvature per head is worth more than 0.004 nats a token over the plain GPT',
                arm='c1-origin', against='baseline', margin=0.004, stop='anytime', spread=0.009)
