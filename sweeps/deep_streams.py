"""Are several residual streams more stable in depth? 24 blocks of width 64: the largest learning rate that trains, gradient norms.
Tiny Shakespeare by characters, at a size for a CPU.

4 arms x 5 learning rates with one seed = 20 runs of 1 to 2 minutes of one thread. What they say: results/deep_streams/README.md.
"""

defaults = dict(
    n_layer=24, n_head=4, n_embd=64,  # 1.2M parameters
    dtype='float32',
    batch_size=8, block_size=64,  # 8 * 64 = 512 tokens a step
    min_lr=None, lr_decay_iters=None,
    warmup_iters=20,  # short: stability is the question
    grad_clip=0.0,  # and not clipped
    eval_interval=100, eval_iters=60,
)
budget = dict(steps=200)
grid = dict(learning_rate=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1])
seeds = [1337]

_streams = dict(config='config/demo_baseline.py', model='mhc', role='other')
arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'hc': dict(_streams, hc='hc', hc_expand='copy'),
    'mhc': _streams,
    'mhc-no-mixing': dict(_streams, hc_freeze='res'),
}
