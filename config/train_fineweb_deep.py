"""FineWeb with GPT-2's BPE, 48 blocks of width 384 (105M parameters): one node of GPUs, or one GPU and patience.
The arm: the Euclidean GPT, deep: what train_fineweb_{hc,mhc,vres}.py are compared with."""

out_dir = 'out/fineweb_deep'
model = 'baseline'

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
