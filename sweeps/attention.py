"""Attention by distance between scalars (model_tau.py): does it cost quality, and does the graph do anything? Tiny Shakespeare by
characters, 6 blocks of width 64, at a size for a CPU. sweeps/attention_bpe.py: the same on tokens of a small BPE.

The graphs come from the token embeddings of a baseline, made once before the sweep (a minute and a half, then seconds):

    python train.py config/demo_baseline.py --out_dir=out/embeddings_char --n_layer=6 --n_embd=64 --max_iters=300
    python data/laplacian.py --source=out/embeddings_char --heads=4 --out=out/graph_char.npy
    python data/laplacian.py --source=out/embeddings_char --heads=4 --out=out/graph_char_shuffled.npy --control=shuffled
    python data/laplacian.py --source=out/embeddings_char --heads=4 --out=out/graph_char_rotated.npy --control=rotated

10 arms at 2 or 3 learning rates with one seed = 28 runs choose each arm's rate; then five seeds at it for nine of them, 45 runs. A run
takes about a minute of one thread. What they say: results/attention/README.md.
"""

defaults = dict(
    n_layer=6, n_head=4, n_embd=64,  # 0.3M parameters
    dtype='float32',  # the same on every CPU; 'auto' is bfloat16 on those that multiply it faster
    batch_size=16, block_size=64,  # 16 * 64 = 1,024 tokens a step
    min_lr=None, lr_decay_iters=None,  # cosine to a tenth of the learning rate at the last step
    warmup_iters=60,
    eval_interval=200, eval_iters=60,  # 61,440 tokens
)
budget = dict(steps=600)  # 0.6M tokens
grid = dict(learning_rate=[6e-3, 1.2e-2, 2.4e-2])
seeds = [1337]

_upper = dict(learning_rate=[1.2e-2, 2.4e-2])  # the lowest rate was the worst of every arm that had it
_base = dict(config='config/demo_baseline.py')
_tau = dict(_base, model='tau', role='other')
_graph = dict(_tau, laplacian='corpus')
arms = {
    'baseline': dict(_base, role='baseline'),
    'modern': dict(_base, role='other', position='rope', qk_norm=True),  # the baseline of today
    'chain': _tau,  # no corpus: neighbours are the next coordinates
    'chain-rope': dict(_tau, position='rope', grid=_upper),  # rotated before lambda, as published
    'chain-alibi': dict(_tau, position='alibi', grid=_upper),  # distance in time counts, too
    'corpus': dict(_graph, laplacian_file='out/graph_char.npy'),
    'corpus-shuffled': dict(_graph, laplacian_file='out/graph_char_shuffled.npy'),  # of features that have nothing to do with one another
    'corpus-rotated': dict(_graph, laplacian_file='out/graph_char_rotated.npy'),  # its eigenvalues, no graph
    'learned': dict(_tau, laplacian='learned', laplacian_per_head=True),
    'no-graph': dict(_tau, laplacian='none', laplacian_per_head=True),  # lambda = sigmoid(w . x): neither graph nor energy
}

_more = [1338, 1339, 1340, 1341, 1342]
runs = [dict(arms=[arm], grid=dict(learning_rate=[rate]), seeds=_more) for arm, rate in {
    'baseline': 1.2e-2, 'modern': 1.2e-2, 'chain': 2.4e-2, 'chain-alibi': 2.4e-2, 'corpus': 2.4e-2,
    'corpus-shuffled': 2.4e-2, 'corpus-rotated': 1.2e-2, 'learned': 2.4e-2, 'no-graph': 2.4e-2}.items()]
