"""What happens inside a curved model at rates that are too high? Ten runs of remedies.py, with log_stability.

`python results/stability/high_rates.py out/sweeps/high_rates` makes the table of results/stability.md: where rows are at the end, how
much the maps of each block magnify, and the gradient of the last block; `results/stability/plots.py` makes the plot.

10 runs of 600 steps of 256 tokens, a quarter of a minute to a minute of one thread.
"""
from sweeps import remedies as _remedies

defaults = dict(_remedies.defaults, log_stability=True, eval_interval=100)
budget, seeds = _remedies.budget, _remedies.seeds

_names = ['baseline-adamw0.03-c0', 'baseline-muon0.1-c0',
          *(f'nothing-{_rate}-c{_c}' for _rate in ('adamw0.003', 'adamw0.03', 'muon0.1') for _c in ('0.1', '1')),
          'max_distance=1.5-adamw0.03-c1', 'max_distance=1.5-muon0.1-c1']
arms = {_name: _remedies.arms[_name] for _name in _names}
