"""sweeps/attention.py on the 1,024 tokens of data/shakespeare_bpe/prepare.py (2.4 characters a token).

Its graphs come from a baseline on these tokens:

    python train.py config/demo_baseline.py --out_dir=out/embeddings_bpe --dataset=shakespeare_bpe --n_layer=6 --n_embd=64 --max_iters=300
    python data/laplacian.py --source=out/embeddings_bpe --heads=4 --k=8 --out=out/graph_bpe.npy
    python data/laplacian.py --source=out/embeddings_bpe --heads=4 --k=8 --out=out/graph_bpe_shuffled.npy --control=shuffled

(With k = 6 one of the four graphs is in two pieces.)
"""
from sweeps import attention as _chars

defaults = dict(_chars.defaults, dataset='shakespeare_bpe', eval_iters=48)  # 49,152 of the 49,420 tokens of the validation text
budget = dict(steps=300)  # 0.3M tokens
grid, seeds = dict(learning_rate=[3e-3, 6e-3, 1.2e-2]), _chars.seeds
arms = {name: {key: value.replace('_char', '_bpe') if key == 'laplacian_file' else value for key, value in arm.items() if key != 'grid'}
        for name, arm in _chars.arms.items() if name not in ('chain-rope', 'corpus-rotated')}

runs = [dict(arms=[arm], grid=dict(learning_rate=[rate]), seeds=_chars._more) for arm, rate in [
    ('baseline', 6e-3), ('modern', 6e-3), ('chain-alibi', 6e-3), ('corpus', 6e-3), ('corpus-shuffled', 6e-3), ('learned', 6e-3),
    ('no-graph', 3e-3),
    ('chain', 1.2e-2),  # seed 1337's best, at which other seeds do badly
    ('chain', 6e-3)]]
