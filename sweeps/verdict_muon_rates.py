"""Is 0.02 the plain GPT's rate of Muon with the full budget, too? Asked after verdict_muon.py, whose arms all have it.

0.04 was the plain GPT's best of four in short runs (sweeps/muon.py). It is tried here first, then 0.01 for it and for c1-origin, its curved
twin. Those at 0.02 are verdict_muon.py's runs: copy its rows to out/sweeps/verdict_muon_rates/runs.csv, or they are made again. Then 3 runs
of 5 to 8 minutes of one thread with AVX-512, compiled.
"""
from sweeps import verdict_muon as _muon

defaults, budget = _muon.defaults, _muon.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = [2001]

arms = {name: dict({key: value for key, value in _muon.arms[name].items() if key != 'muon_lr'}, grid=dict(muon_lr=rates))
        for name, rates in {'baseline-muon': [0.01, 0.02, 0.04], 'c1-origin-muon': [0.01, 0.02]}.items()}
