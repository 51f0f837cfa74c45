"""sweeps/corpus_documentation.py on source code, as BPE (python data/packages/prepare.py --corpus=code --tokens=bpe), 300 steps."""
from sweeps import corpus_documentation as _documentation

defaults = dict(_documentation.defaults, dataset='code_bpe', eval_interval=150)
budget = dict(steps=300)
seeds, arms, question = _documentation.seeds, _documentation.arms, _documentation.question
