"""Are the hidden states of a mixed-curvature GPT more isotropic, and is it the curvature? Train, then analyse all runs.

Tiny Shakespeare by characters, at a size for a CPU. 9 arms x 3 seeds = 27 runs of 1,500 steps at one learning rate.
"""

defaults = dict(
    learning_rate=3e-3,
    n_layer=4, n_head=4, n_embd=128,  # 0.8M parameters
    dtype='float32',  # the same on every CPU; 'auto' is bfloat16 on those that multiply it faster
    batch_size=24, block_size=128,  # 24 * 128 = 3,072 tokens a step
    min_lr=None, lr_decay_iters=None,  # cosine to a tenth of the learning rate at the last step
    warmup_iters=100,
    eval_interval=250, eval_iters=36,  # 36 * 3,072 = 110,592 tokens: 864 of the validation text's 871 windows
)
budget = dict(steps=1500)  # 1,500 * 3,072 = 4.6M tokens, 4.6 epochs of tiny Shakespeare
seeds = [1337, 1338, 1339]

_controls = dict(config='config/demo_baseline.py', role='control', model='controls')
arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'smear': dict(config='config/demo_smear.py', role='control'),
    'bounded': dict(config='config/demo_bounded.py', role='control'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'norm': dict(_controls, control='norm'),
    'gate+norm': dict(_controls, control='gate+norm'),
    'c1-within': dict(config='config/demo_mixed.py', role='mixed'),
    'c-1-within': dict(config='config/demo_mixed.py', role='mixed', curvature=-1.0),
    'learned': dict(config='config/demo_mixed.py', role='mixed', curvature_mode='random'),
}

after = ['python analyze_representations.py {runs} --out={out}/analysis']
