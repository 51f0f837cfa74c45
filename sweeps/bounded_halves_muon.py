"""Which half of bounded_rows does it in a GPT of today (Muon, RoPE, QK norm; 0.8M parameters): rows of a largest length, or updates?

With AdamW at 0.2M the limit on updates alone is 0.030 [-0.017, 0.076] below the plain GPT and the bound on rows alone 0.145 above it
(bounded_halves.py). Here are the halves by themselves in verdict_bounded.py, on its first seeds, with its budget and rates.

baseline and bounded are runs of verdict_bounded.py: copy its rows to out/sweeps/bounded_halves_muon/runs.csv, or they are made again.
Then 6 runs of 6 to 11 minutes of one thread. Written before any of them.
"""
from sweeps import verdict_bounded as _verdict

defaults, budget = _verdict.defaults, _verdict.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = _verdict.seeds[:4]
_bounded = dict(_verdict.arms['bounded'], role='other', seeds=seeds)
arms = {
    'baseline': _verdict.arms['baseline'],
    'bounded': _bounded,
    'updates': dict(_bounded, longest_row=1e6),
    'rows': dict(_bounded, longest_update=1e6, seeds=seeds[:2]),
}
