"""How soon is a validation loss reached: steps, tokens and seconds of training to target_val_loss (all in runs.csv).

Tiny Shakespeare by characters, at a size for a CPU. 7 arms x 4 learning rates x 4 seeds = 112 runs of up to 3,000 steps, each at
most about 25 minutes of one thread and its evaluations. One seed chooses each arm's rate, by its steps to the target; three measure.
The rate is constant after the warm-up: under a decay the step at which a loss is reached depends on the planned length.
Seconds are comparable only between runs of one machine with the same --jobs and --threads, and nothing else on it.
"""

defaults = dict(
    # a loss of this text that each of these arms has reached within 1,500 decayed steps (results/shakespeare_lr/README.md)
    target_val_loss=1.70,
    decay_lr=False,
    n_layer=4, n_head=4, n_embd=128,  # 0.8M parameters
    dtype='float32',  # the same on every CPU; 'auto' is bfloat16 on those that multiply it faster
    batch_size=24, block_size=128,  # 24 * 128 = 3,072 tokens a step
    min_lr=None, lr_decay_iters=None,
    warmup_iters=100,
    eval_interval=50,  # the resolution of the answer; the clock stands still in evaluations
    eval_iters=36,  # 36 * 3,072 = 110,592 tokens: 864 of the validation text's 871 windows
)
budget = dict(steps=3000)  # 3,000 * 3,072 = 9.2M tokens: a run that has not got there by then never reached the target
grid = dict(learning_rate=[1e-3, 3e-3, 6e-3, 1.2e-2])  # with the best rate of each arm in shakespeare_lr.py
seeds = [1337, 1338, 1339, 1340]

arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'smear': dict(config='config/demo_smear.py', role='control'),
    'bounded': dict(config='config/demo_bounded.py', role='control'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'gate+norm': dict(config='config/demo_baseline.py', role='control', model='controls', control='gate+norm'),
    'c1-within': dict(config='config/demo_mixed.py', role='mixed'),
    'learned': dict(config='config/demo_mixed.py', role='mixed', curvature_mode='random'),
}
