"""sweeps/verdict.py at three sizes: 0.2M, 0.8M and 3.2M parameters, with the same 4.6M tokens. Does what curvature gains grow or shrink?

Rates are 6e-3 times 128 / width for both arms: a rule, not a choice, so every seed measures. At width 128 the runs are verdict.py's: copy
its rows to out/sweeps/verdict_size/runs.csv, or they are made again. The question is asked at 3.2M parameters. Then the fit:

    python -m experiments.scaling out/sweeps/verdict_size --arm=c1-within --against=gate+norm

Written before any of its runs. 6 runs of 2 minutes and 6 of 17 minutes of one thread with AVX-512, compiled.
"""
from sweeps import verdict as _verdict

defaults = {key: value for key, value in _verdict.defaults.items() if key != 'n_embd'}
budget = _verdict.budget  # 1,500 steps of 3,072 tokens
seeds = [2001, 2002, 2003]

arms = {f'{_name}-{_width}': dict(_arm, role='other', n_embd=_width, learning_rate=6e-3 * 128 / _width)
        for _width in (64, 128, 256) for _name, _arm in _verdict.arms.items()}
question = dict(hypothesis='at 3.2M parameters curvature per head is worth more than 0.004 nats a token over its best control',
                arm='c1-within-256', against='gate+norm-256', margin=0.004, stop='fixed', spread=0.0065)
