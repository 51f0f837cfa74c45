"""What do Muon's options do to the loss? Its rate adjusted, its momentum warmed up, QK-clip; on the plain GPT and the default.

sweeps/muon.py's runs under Muon (rows of its baseline-muon and c1-within-muon at 0.02 and 0.04 are these), with one option at a time:

    match    muon_adjust_lr = match_rms_adamw: 0.2 sqrt(max(out, in)) in place of sqrt(max(1, out / in)). At 4 x 128 that is 2.3 times as
             large, for the MLP's second matrix 4.5 times; so muon_lr is smaller here
    warm     momentum from 0.85 to 0.95 in 200 of the 600 steps
    clip     QK-clip at 15. Without it the plain GPT's largest logit is 25 to 29 at 0.04, so the usual 100 would do nothing

Seed 1337 chooses each arm's rate, and 1338 and 1339 measure. 34 runs of one to two minutes of one thread.
"""
from sweeps import muon as _muon

defaults, budget, seeds = dict(_muon.defaults, optimizer='muon', learning_rate=6e-3), _muon.budget, [1337]

_models = {
    'baseline': dict(config='config/demo_baseline.py'),
    'c1-within': dict(config='config/demo_mixed.py', max_distance=1.5, curvature_mode='fixed', curvature=1.0),
}
_options = {
    'muon': dict(grid=dict(muon_lr=[2e-2, 4e-2])),
    'match': dict(muon_adjust_lr='match_rms_adamw', grid=dict(muon_lr=[6e-3, 1.2e-2, 2.4e-2])),
    'warm': dict(muon_momentum_warmup=200, grid=dict(muon_lr=[2e-2, 4e-2])),
    'clip': dict(qk_clip=15.0, grid=dict(muon_lr=[2e-2, 4e-2])),
}
_roles = {'baseline-muon': 'baseline', 'c1-within-muon': 'mixed'}
arms = {f'{model}-{name}': dict(keys, **option, role=_roles.get(f'{model}-{name}', 'other'))
        for model, keys in _models.items() for name, option in _options.items()}
