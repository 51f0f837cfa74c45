"""Tiny Shakespeare by characters at a size for a 2-core CPU: a minute or two.
The arm: the Euclidean GPT whose rows and updates have a largest length in each head."""

out_dir = 'out/demo_bounded'
model = 'baseline'
bounded_rows = True

dataset = 'shakespeare_char'
batch_size = 32
block_size = 64  # 32 * 64 = 2,048 tokens a step
n_layer = 4
n_head = 4
n_embd = 128  # 0.8M parameters

learning_rate = 3e-3
min_lr = 3e-4
warmup_iters = 40
max_iters = 400  # 0.8M tokens, most of one epoch

eval_interval = 50
eval_iters = 20  # 40,960 tokens of each split
log_interval = 10
compile = False  # takes longer than what it would save in so few steps
