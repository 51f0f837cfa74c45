"""sweeps/corpus_documentation.py on source code (python data/packages/prepare.py --corpus=code --tokens=char)."""
from sweeps import corpus_documentation as _documentation

defaults = dict(_documentation.defaults, dataset='code_char')
budget, seeds, arms, question = _documentation.budget, _documentation.seeds, _documentation.arms, _documentation.question
