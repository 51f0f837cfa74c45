"""sweeps/verdict.py on source code, by characters, with the same arms, rates and budget, as sweeps/verdict_documentation.py is.

    python data/packages/prepare.py --corpus=code --tokens=char

Nothing is chosen on this text, so every seed measures. Written after verdict.py and verdict_documentation.py, which say -0.018 and -0.022,
and before any run here at this budget. 6 runs of 5 to 6 minutes of one thread with AVX-512, compiled.
"""
from sweeps import verdict_documentation as _documentation

defaults = dict(_documentation.defaults, dataset='code_char')
budget, seeds, arms, question = _documentation.budget, _documentation.seeds, _documentation.arms, _documentation.question
