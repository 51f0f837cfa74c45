"""sweeps/attention.py at a smaller and a larger size: does the distance between attention by distance and the baselines shrink or grow?

3 arms x 2 sizes x 3 or 4 learning rates with one seed = 21 runs choose each arm's rate; then three seeds of the two that are to be
compared, 12 runs. A run takes half a minute of one thread at width 32 and three minutes at width 128. The size between them, 64, is in
sweeps/attention.py. Attention by distance is here the chain with slopes by age, which did best there.
"""
from sweeps import attention as _middle

defaults = {key: value for key, value in _middle.defaults.items() if key != 'n_embd'}
budget, grid, seeds = _middle.budget, dict(learning_rate=[6e-3, 1.2e-2, 2.4e-2]), _middle.seeds
arms = {f'{name}-{width}': dict({key: value for key, value in _middle.arms[name].items() if key != 'grid'}, n_embd=width,
                                role='baseline' if (name, width) == ('baseline', 32) else 'other')
        for width in (32, 128) for name in ('baseline', 'modern', 'chain-alibi')}
runs = [
    dict(arms=['modern-32', 'chain-alibi-32', 'baseline-32'], grid=dict(learning_rate=[4.8e-2]), seeds=[1337]),  # beyond the end
    dict(arms=['modern-32'], grid=dict(learning_rate=[2.4e-2]), seeds=_middle._more[:3]),
    dict(arms=['chain-alibi-32'], grid=dict(learning_rate=[4.8e-2]), seeds=_middle._more[:3]),
    dict(arms=['modern-128'], grid=dict(learning_rate=[6e-3]), seeds=_middle._more[:3]),
    dict(arms=['chain-alibi-128'], grid=dict(learning_rate=[1.2e-2]), seeds=_middle._more[:3]),
]
