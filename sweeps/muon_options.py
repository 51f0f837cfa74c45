"""What do Muon's options do to the loss? Its rate adjusted, its momentum warmed up, QK-clip; on the plain GPT and on the default.

sweeps/muon.py's runs under Muon at 0.02, with one option at a time and nothing else changed:

    match    muon_adjust_lr = match_rms_adamw: 0.2 sqrt(max(out, in)) in place of sqrt(max(1, out / in)). At 4 x 128 that is 2.3 times as
             large, for the MLP's second matrix 4.5 times. So muon_lr is 0.009: for all but that one as much as without it
    warm     momentum from 0.85 to 0.95 in 200 of the 600 steps
    clip     QK-clip at 15. At twice the rate the plain GPT's largest logit is 25 to 29 without it, so the usual 100 would do nothing

Two seeds, no rate is chosen. 16 runs of two to three minutes of one thread.
"""
from sweeps import muon as _muon

defaults = dict(_muon.defaults, optimizer='muon', learning_rate=6e-3, muon_lr=2e-2)
budget, seeds = _muon.budget, [1337, 1338]

_models = {
    'baseline': dict(config='config/demo_baseline.py'),
    'c1-within': dict(config='config/demo_mixed.py', max_distance=1.5, curvature_mode='fixed', curvature=1.0),
}
_options = {
    'muon': {},
    'match': dict(muon_adjust_lr='match_rms_adamw', muon_lr=9e-3),
    'warm': dict(muon_momentum_warmup=200),
    'clip': dict(qk_clip=15.0),
}
_roles = {'baseline-muon': 'baseline', 'c1-within-muon': 'mixed'}
arms = {f'{model}-{name}': dict(keys, **option, role=_roles.get(f'{model}-{name}', 'other'))
        for model, keys in _models.items() for name, option in _options.items()}
