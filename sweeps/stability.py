"""Where does curvature make training diverge? Every curvature under AdamW and Muon, at rates that are too high, in float32 and bfloat16.

The Euclidean baseline is in every cell, so that what is due to the optimizer is not laid to curvature. Arms called within have the
max_distance of the default, c1-within; the others have none. A run has diverged when it stopped at a NaN or an Inf, or ended above
its start.
`python results/stability/table.py out/sweeps/stability` counts them, with where the rows are; results/stability.md says what came out.

13 models x 2 optimizers x 2 dtypes at 5 rates = 260 runs of a quarter to half a minute of one thread.
"""

defaults = dict(
    n_layer=2, n_head=2, n_embd=64,  # 0.1M parameters
    batch_size=4, block_size=64,  # 256 tokens a step
    min_lr=None, lr_decay_iters=None,
    warmup_iters=20,
    eval_interval=250, eval_iters=40, tensorboard_log=False, compile=False,
)
budget = dict(steps=1000)
_rates = [1e-4, 1e-3, 1e-2, 3e-2, 1e-1]


_mixed = dict(config='config/demo_mixed.py', max_distance=None, role='mixed')
_models = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'c1-within': dict(_mixed, curvature_mode='fixed', curvature=1.0, max_distance=1.5),
    'learned-within': dict(_mixed, curvature_mode='random', curvature=1.0, max_distance=1.5),
    **{f'c{c:g}': dict(_mixed, curvature_mode='fixed', curvature=c) for c in (1.0, 10.0, -1.0)},
    'learned': dict(_mixed, curvature_mode='random', curvature=1.0),
    **{f'c{c:g}': dict(_mixed, curvature_mode='fixed', curvature=c) for c in (0.1, -0.1)},
    **{f'c{c:g}-within': dict(_mixed, curvature_mode='fixed', curvature=c, max_distance=1.5) for c in (10.0, -1.0, 0.1, -0.1)},
}
arms = {}
for _dtype, _short in (('float32', '32'), ('bfloat16', '16')):
    for _name, _keys in _models.items():
        # Muon's rate is that of the matrices; the rest (embeddings, gains, c) keeps AdamW's 3e-3
        arms[f'{_name}-adamw-{_short}'] = dict(_keys, dtype=_dtype, optimizer='adamw', grid=dict(learning_rate=_rates))
        arms[f'{_name}-muon-{_short}'] = dict(_keys, dtype=_dtype, optimizer='muon', learning_rate=3e-3, grid=dict(muon_lr=_rates))
seeds = [1337]
