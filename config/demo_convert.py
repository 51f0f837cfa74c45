"""A trained baseline becomes a curved model: swap the geometry, align each layer with the teacher's, go on with the text. A minute or two.
First: python train.py config/demo_baseline.py"""

out_dir = 'out/demo_convert'
init_from = 'out/demo_baseline'  # its weights
model = 'mixed'
curvature_mode = 'fixed'
curvature = 0.1  # per head; at 0 the function would be the baseline's
reference = 'origin'
residual = 'origin'
max_distance = None  # rows stay as long as the baseline's

# the first 100 steps: the teacher's layers and logits, no text
distill_from = 'out/demo_baseline'
distill_layers = 'hidden'
distill_text = 0.0
distill_steps = 100

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
