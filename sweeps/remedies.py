"""What mends a curved model at rates that are too high? One factor changed at a time: remedies, and the residual and the reference.

Without `max_distance` rows go to the ball's edge, where blocks stop learning (results/stability.md). c = 0.1 and 1 per head, at a usual
rate of AdamW, at ten times that, and under Muon at five times the usual. `python results/stability/table.py out/sweeps/remedies`.

11 factors x 2 c x 3 optimizers and 3 runs of the baseline = 69 runs of 600 steps of 256 tokens, a quarter to half a minute of one thread.
"""
from sweeps import stability as _stability

defaults = dict(_stability.defaults, dtype='float32', eval_interval=300)
budget = dict(steps=600)
seeds = [1337]

_optimizers = {
    'adamw0.003': dict(optimizer='adamw', learning_rate=3e-3),
    'adamw0.03': dict(optimizer='adamw', learning_rate=3e-2),
    'muon0.1': dict(optimizer='muon', learning_rate=3e-3, muon_lr=0.1),
}
_factors = {
    'nothing': {},
    'max_distance=1.5': dict(max_distance=1.5),
    'max_distance=3': dict(max_distance=3.0),
    'max_update=0.5': dict(max_update=0.5),
    'update_scale': dict(update_scale='conformal'),
    'project_gradient': dict(project_gradient='straight'),
    'embedding_gradient': dict(embedding_gradient='riemannian'),
    'curvature_warmup': dict(curvature_warmup=300),
    'residual=transport': dict(residual='transport'),
    'residual=reference': dict(residual='reference'),
    'reference=origin': dict(reference='origin'),
}

arms = {f'baseline-{_name}-c0': dict(config='config/demo_baseline.py', role='baseline', **_keys) for _name, _keys in _optimizers.items()}
for _name, _keys in _optimizers.items():
    for _c in (0.1, 1.0):
        for _factor, _change in _factors.items():
            arms[f'{_factor}-{_name}-c{_c:g}'] = dict(config='config/demo_mixed.py', role='mixed', curvature_mode='fixed', curvature=_c,
                                                       **_keys, **{'max_distance': None, **_change})
