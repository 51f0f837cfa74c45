"""Do several residual streams help, and which of their maps: H_res (the mixing), or H_pre and H_post (the reading and writing)?
Tiny Shakespeare by characters, 6 blocks of width 64, at a size for a CPU.

10 arms at 2 to 4 learning rates with one seed = 31 runs choose each arm's rate; then five seeds at it for nine of
them and at a second rate for one, 50 runs. A run takes 1 to 4 minutes of one thread. What they say: results/residual_streams/README.md.

The dynamic arm's H_res is a mixture of permutation matrices, which costs a third of Sinkhorn's iterations per token on a CPU.
"""

defaults = dict(
    n_layer=6, n_head=4, n_embd=64,  # 0.3M parameters; 4 streams add 0.3 to 17%
    dtype='float32',  # the same on every CPU; 'auto' is bfloat16 on those that multiply it faster
    batch_size=16, block_size=64,  # 16 * 64 = 1,024 tokens a step
    min_lr=None, lr_decay_iters=None,  # cosine to a tenth of the learning rate at the last step
    warmup_iters=60,
    eval_interval=200, eval_iters=60,  # 61,440 tokens
)
budget = dict(steps=600)  # 0.6M tokens, 0.6 epochs of tiny Shakespeare
grid = dict(learning_rate=[6e-3, 1.2e-2])
seeds = [1337]

_streams = dict(config='config/demo_baseline.py', model='mhc', role='other')
arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'vres': dict(config='config/demo_baseline.py', role='other', value_residual='learned'),
    'altup': dict(_streams, hc='altup', hc_expand='copy'),
    'hc': dict(_streams, hc='hc', hc_expand='copy'),
    'mhc': _streams,
    'mhc-no-mixing': dict(_streams, hc_freeze='res'),  # H_res stays the identity: H_pre and H_post are learned
    'mhc-only-mixing': dict(_streams, hc_freeze='pre+post'),  # all streams are read and written alike: H_res is learned
    'mhc-tau1': dict(_streams, hc_tau=1.0, grid=dict(learning_rate=[6e-3, 1.2e-2])),  # the papers' temperature; ours is 0.1
    'mhc-dynamic-tau1': dict(_streams, hc_maps='dynamic', hc_res='permutations', hc_tau=1.0, grid=dict(learning_rate=[6e-3])),
    'mhc-dynamic': dict(_streams, hc_maps='dynamic', hc_res='permutations'),
}
_more = [1338, 1339, 1340, 1341, 1342]
runs = [
    # beyond the end of the grid at which an arm was best
    dict(arms=['baseline', 'altup', 'mhc', 'mhc-no-mixing', 'mhc-only-mixing'], grid=dict(learning_rate=[2.4e-2]), seeds=[1337]),
    dict(arms=['altup', 'mhc-only-mixing'], grid=dict(learning_rate=[4.8e-2]), seeds=[1337]),
    dict(arms=['vres', 'hc', 'mhc-tau1', 'mhc-dynamic', 'mhc-dynamic-tau1'], grid=dict(learning_rate=[3e-3]), seeds=[1337]),
    # seeds at the rates that seed 1337 chose
    dict(arms=['baseline', 'mhc', 'mhc-no-mixing', 'mhc-only-mixing'], grid=dict(learning_rate=[1.2e-2]), seeds=_more),
    dict(arms=['vres', 'hc', 'mhc-tau1', 'mhc-dynamic-tau1'], grid=dict(learning_rate=[6e-3]), seeds=_more),
    dict(arms=['altup', 'mhc-only-mixing'], grid=dict(learning_rate=[2.4e-2]), seeds=_more),
]
