"""verdict_bpe.py's arms with Muon, RoPE and QK norm on another text in BPE, source code: do rows and updates of a largest length, without
curvature, improve a GPT of today there, and does curvature?

    python data/packages/prepare.py --corpus=code --tokens=bpe

On documentation bounded is 0.025 [0.009, 0.042] below the plain GPT and c1-origin is not, +0.008 [-0.018, +0.034], three pairs each. Model,
budget, rates and seeds are those; nothing is chosen on this text. Written before any of its runs. 9 runs of 4 to 5 minutes of one thread.
"""
from sweeps import verdict_bpe as _bpe

defaults, budget, seeds = dict(_bpe.defaults, dataset='code_bpe'), _bpe.budget, _bpe.seeds  # 0.2M parameters, 1,500 steps of 4,096 tokens
arms = {name: _bpe.arms[name] for name in ('baseline-muon', 'bounded-muon', 'c1-origin-muon')}
question = dict(hypothesis='in BPE, on source code, with Muon, RoPE and QK norm rows and updates of a largest length are worth more than '
                           '0.004 nats a token over the plain GPT',
                arm='bounded-muon', against='baseline-muon', margin=0.004, stop='fixed', spread=0.007)
