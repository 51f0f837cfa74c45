"""Which half of bounded_rows does it: rows of a largest length, or updates?

By themselves, with the other switched off, at 0.2M parameters with AdamW, where both together gain 0.018 [0.005, 0.030] over the plain GPT
(isotropy_small.py): its budget, rate and seeds. What the lengths are relative to each other is all that they say, for every layer reads
rows through a LayerNorm: rows without a limit on updates can be replaced at once; updates without a bound on rows become small beside
them.

baseline and bounded are runs of isotropy_small.py: copy its rows to out/sweeps/bounded_halves/runs.csv, or they are made again. Then 6
runs of 4 minutes of one thread with AVX2. Written before any of them.
"""
from sweeps import isotropy_small as _isotropy

defaults, budget, seeds = _isotropy.defaults, _isotropy.budget, _isotropy.seeds  # 0.2M parameters, 1,500 steps of 3,072 tokens
_bounded = dict(_isotropy.arms['bounded'], role='other')
arms = {
    'baseline': _isotropy.arms['baseline'],
    'bounded': _bounded,
    'rows': dict(_bounded, longest_update=1e6),
    'updates': dict(_bounded, longest_row=1e6),
}
