"""Tiny Shakespeare by characters, nanoGPT's 6 x 384 (10.7M parameters): minutes on a GPU.
The arm: the Euclidean GPT whose rows and updates have a largest length in each head."""

out_dir = 'out/shakespeare_bounded'
model = 'baseline'
bounded_rows = True

dataset = 'shakespeare_char'
batch_size = 64
block_size = 256  # 64 * 256 = 16,384 tokens a step
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2  # an epoch is 61 steps: the text is seen 81 times

learning_rate = 1e-3
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
max_iters = 5000  # 82M tokens

eval_interval = 250
eval_iters = 25  # 25 * 16,384 tokens: all of the validation text
log_interval = 10
