"""Does what curvature gains grow or shrink with size? sweeps/bounded_verdict.py's two arms at three widths, three budgets of tokens each.

Each arm's rate at width 128 is the one that seed 1337 chose in sweeps/bounded.py; at other widths it is that times 128 / width, a rule,
not a choice. Every seed measures. Then the joint fit of loss against parameters and tokens, and of the difference:

    python -m experiments.scaling out/sweeps/size --arm=c1-within --against=ball-v

18 arms with 3 seeds = 54 runs of half a minute to four minutes of one thread. Budgets are shorter where a step costs more.
"""
from sweeps import bounded as _bounded

defaults = {key: value for key, value in _bounded.defaults.items() if key not in ('n_embd', 'eval_interval')}
seeds = [2001, 2002, 2003]

_steps = {64: (300, 600, 1200), 128: (150, 300, 600), 256: (75, 150, 300)}  # of 1,024 tokens; 0.2M, 0.8M, 3.2M parameters
arms = {f'{_name}-{_width}-{_n}': dict(_bounded.arms[_name], role='other', n_embd=_width, max_iters=_n, warmup_iters=_n // 10,
                                       eval_interval=_n, learning_rate=_rate * 128 / _width)
        for _width, _budgets in _steps.items() for _n in _budgets for _name, _rate in (('ball-v', 6e-3), ('c1-within', 1.2e-2))}
del defaults['warmup_iters']
