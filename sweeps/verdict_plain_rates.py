"""At which rate of Muon do the plain GPT and c1-origin train with the full budget? For sweeps/verdict_plain.py; its seeds are others.

Both at 0.02 and 0.04, the two best of four for the plain GPT in sweeps/muon.py. 0.02 stays unless 0.04 is better by more than the spread of
a pair of seeds, 0.009. Those at 0.02 are verdict_muon.py's runs: copy its rows to out/sweeps/verdict_plain_rates/runs.csv, or they are made
again. Then 2 runs of 5 to 8 minutes of one thread with AVX-512, compiled.
"""
from sweeps import verdict_muon as _muon

defaults, budget = _muon.defaults, _muon.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = [2001]

arms = {name: dict({key: value for key, value in _muon.arms[name].items() if key != 'muon_lr'}, grid=dict(muon_lr=[0.02, 0.04]))
        for name in ('baseline-muon', 'c1-origin-muon')}
