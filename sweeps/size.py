"""Does what curvature gains grow or shrink with size? c = 1 with bounded rows against a flat model in a ball as small, at three widths and
three budgets of tokens.

Both at 6e-3 at width 128, at which c1-within did well in sweeps/bounded_verdict.py, and at 6e-3 times 128 / width elsewhere: a rule, not a
choice, so every seed measures. Then the joint fit of loss against parameters and tokens, and of the difference:

    python -m experiments.scaling out/sweeps/size --arm=c1-within --against=ball-v

16 arms with 3 seeds = 48 runs of half a minute to three minutes of one thread. Budgets are shorter where a step costs more.
"""
from sweeps import bounded as _bounded

defaults = {key: value for key, value in _bounded.defaults.items() if key not in ('n_embd', 'eval_interval', 'warmup_iters')}
seeds = [2001, 2002, 2003]

_steps = {64: (150, 300, 600), 128: (150, 300, 600), 256: (150, 300)}  # of 1,024 tokens; 0.2M, 0.8M, 3.2M parameters
arms = {f'{_name}-{_width}-{_n}': dict(
            _bounded.arms[_name], role='other', n_embd=_width, max_iters=_n, warmup_iters=_n // 10, learning_rate=6e-3 * 128 / _width,
            eval_interval=300 if (_width, _n) == (128, 600) else _n)  # those are bounded_verdict's runs
        for _width, _budgets in _steps.items() for _n in _budgets for _name in ('ball-v', 'c1-within')}
