"""sweeps/bounded_verdict.py's question on other texts: documentation of packages, by characters. sweeps/corpus_code.py is the same on
source code; sweeps/corpus_documentation_bpe.py and sweeps/corpus_code_bpe.py are both with 1,024 BPE tokens and half of the steps.

    python data/packages/prepare.py --corpus=documentation --tokens=char

The arms and rates are those of tiny Shakespeare: nothing is chosen on these texts, so every seed measures. After the first ten runs, in
which c1-within lost, came the same at a lower rate. 13 runs of two minutes of one thread.
"""
from sweeps import bounded as _bounded

defaults = dict(_bounded.defaults, dataset='documentation_char')
budget, seeds = _bounded.budget, [2001, 2002, 2003]
_rates = {'baseline': 6e-3, 'gate+norm': 6e-3, 'ball-v': 6e-3, 'c1-within': 1.2e-2}
arms = {name: dict(_bounded.arms[name], learning_rate=rate) for name, rate in _rates.items()}
arms['baseline']['seeds'] = seeds[:1]
arms['c1-within-slower'] = dict(_bounded.arms['c1-within'], learning_rate=6e-3)
question = dict(hypothesis='curvature is worth more than 0.004 nats a token over a flat model in a ball as small',
                arm='c1-within', against='ball-v', margin=0.004)
