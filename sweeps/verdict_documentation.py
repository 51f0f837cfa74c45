"""sweeps/verdict.py on another text: documentation of packages, by characters, with the same arms, rates and budget (1.3 epochs of it).

    python data/packages/prepare.py --corpus=documentation --tokens=char

Nothing is chosen on this text, so every seed measures. Written after five pairs of verdict.py. 6 runs of 5 to 6 minutes of one thread with
AVX-512, compiled.
"""
from sweeps import verdict as _verdict

defaults = dict(_verdict.defaults, dataset='documentation_char')
budget, arms = _verdict.budget, _verdict.arms
seeds = [2001, 2002, 2003]
question = dict(_verdict.question, stop='fixed')
