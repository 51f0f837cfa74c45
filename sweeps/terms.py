"""Which term of curvature carries what it gains? Curvature per head (c = 0.1, fixed) and the terms of it, one at a time (model_terms.py).

The model of sweeps/shakespeare_lr.py with a seventh of its tokens. 21 arms at 2 learning rates with one seed = 42 runs choose each arm's
rate; a second seed for six of them, 6 runs. A run takes 1 to 2 minutes of one thread.
"""

defaults = dict(
    n_layer=4, n_head=4, n_embd=128,  # 0.8M parameters
    dtype='float32',
    batch_size=8, block_size=128,  # 1,024 tokens a step
    min_lr=None, lr_decay_iters=None,
    warmup_iters=60,
    eval_interval=300, eval_iters=100,  # 102,400 tokens
)
budget = dict(steps=600)
grid = dict(learning_rate=[3e-3, 6e-3])
seeds = [1337]
runs = [
    dict(arms=['flat', 'gate+norm', 'write-v', 'limit', 'gated-flat'], grid=dict(learning_rate=[6e-3]), seeds=[1338]),
    dict(arms=['c0.1-head'], grid=dict(learning_rate=[3e-3]), seeds=[1338]),
]

_base = dict(config='config/demo_baseline.py')


def _term(**keys):
    return dict(_base, model='terms', curvature=0.1, role='other', **keys)


arms = {
    'baseline': dict(_base, role='baseline'),
    'c0.1-head': dict(config='config/demo_mixed.py', max_distance=None, role='mixed', curvature_mode='fixed', curvature=0.1),  # log, mobius
    'gate+norm': dict(_base, role='control', model='controls', control='gate+norm'),
    'ball': _term(),  # rows kept in a ball, nothing else
    'read': _term(read='log'),
    'write': _term(write='mobius'),
    'read-length': _term(read='length'),
    'read-direction': _term(read='direction'),
    'write-alpha': _term(write='alpha'),
    'write-beta': _term(write='beta'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'write-x': _term(write='x'),
    'write-v': _term(write='v'),
    'write-xv': _term(write='xv'),
    'write-constant': _term(write='constant'),
    'write-limit': _term(write='limit'),  # of write-v what shortens an update
    'limit': _term(write='limit', ball=False),  # the flat control with limited updates
    'plain-limit': _term(read='row', write='limit', ball=False),  # the baseline with them
    # the factor for each head and token that the curved arms have, in a plain GPT
    'gated': dict(_base, role='control', head_gate='read'),
    'gated-attention': dict(_base, role='control', head_gate='attention'),
    'gated-flat': dict(config='config/demo_flat.py', role='control', head_gate='read'),
}
