"""shakespeare_lr.py's question under Muon: does the order of the arms depend on the optimizer?

muon_lr is the rate of the blocks' matrices; AdamW takes embeddings, norms and curvatures at the demo's rate.
8 arms x 4 rates x 4 seeds = 128 runs of 1,500 steps: one seed chooses, three measure.
"""

defaults = dict(
    optimizer='muon', learning_rate=3e-3,
    n_layer=4, n_head=4, n_embd=128,  # 0.8M parameters
    dtype='float32',  # the same on every CPU; 'auto' is bfloat16 on those that multiply it faster
    batch_size=24, block_size=128,  # 24 * 128 = 3,072 tokens a step
    min_lr=None, lr_decay_iters=None,  # cosine to a tenth at the last step, of both rates
    warmup_iters=100,
    eval_interval=250, eval_iters=36,  # 36 * 3,072 = 110,592 tokens: 864 of the validation text's 871 windows
)
budget = dict(steps=1500)  # 1,500 * 3,072 = 4.6M tokens, 4.6 epochs of tiny Shakespeare
grid = dict(muon_lr=[5e-3, 1e-2, 2e-2, 4e-2])
seeds = [1337, 1338, 1339, 1340]

arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'smear': dict(config='config/demo_smear.py', role='control'),
    'bounded': dict(config='config/demo_bounded.py', role='control'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'gate+norm': dict(config='config/demo_baseline.py', role='control', model='controls', control='gate+norm'),
    'c1-within': dict(config='config/demo_mixed.py', role='mixed'),
    'learned': dict(config='config/demo_mixed.py', role='mixed', curvature_mode='random'),
    'dynamic': dict(config='config/demo_mixed.py', role='mixed', curvature_mode='random', dynamic_curvature=True),
}
