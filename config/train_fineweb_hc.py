"""FineWeb with GPT-2's BPE, 48 blocks of width 384 (105M parameters): one node of GPUs, or one GPU and patience.
The arm: hyper-connections, 4 residual streams with maps that are not constrained and the same for all tokens.
Compare with train_fineweb_deep.py; with --n_layer=12 --n_head=12 --n_embd=768 with train_fineweb_baseline.py."""

out_dir = 'out/fineweb_hc'
model = 'mhc'
hc = 'hc'
hc_num_streams = 4
hc_maps = 'static'  # 'dynamic': read off each token
hc_expand = 'copy'

dataset = 'fineweb'  # python data/fineweb/prepare.py; --num_shards=103 for one epoch of max_iters
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 40  # 40 * 12 * 1024 = 491,520 tokens a step
n_layer = 48
n_head = 6
n_embd = 384

learning_rate = 6e-4
min_lr = 6e-5
beta2 = 0.95
weight_decay = 0.1
warmup_iters = 700
max_iters = 20000  # 9.8B tokens

eval_interval = 500
eval_iters = 200
log_interval = 10
