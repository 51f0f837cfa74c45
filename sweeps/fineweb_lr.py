"""GPT-2 124M on FineWeb, each arm at its own best learning rate: for a cluster.

7 arms x 3 learning rates x 1 seed = 21 runs of 2.5e9 tokens (20 a parameter). Arithmetic for the baseline:
(6 * 124e6 weights + 12 * 12 layers * 768 * 1,024 attention) * 2.5e9 = 2.1e18 flop a run, 4.4e19 for 21 of it: at an
assumed 1.5e14 flop/s of one GPU, 4 hours a run and 84 GPU-hours in all, and more for the mixed arms. Not measured.

    python data/fineweb/prepare.py --num_shards=26      # 2.5e9 tokens; the default is 0.9e9
    ./run_sweeps.sh sweeps/fineweb_lr.py --jobs 21 --launcher slurm
"""

defaults = dict(min_lr=None, lr_decay_iters=None)  # cosine to a tenth of the learning rate at the last step
budget = dict(tokens=2.5e9)  # 5,086 steps of 40 * 12 * 1,024 = 491,520
grid = dict(learning_rate=[3e-4, 6e-4, 1.2e-3])  # the configs' 6e-4 and both sides of it
seeds = [1337]
# then, with the arms that compete at their best rates, as
# runs = [dict(arms=['gate+norm', 'c1-within'], grid=dict(learning_rate=[6e-4]), seeds=[1338, 1339])]

arms = {
    'baseline': dict(config='config/train_fineweb_baseline.py', role='baseline'),
    'smear': dict(config='config/train_fineweb_smear.py', role='control'),
    'bounded': dict(config='config/train_fineweb_bounded.py', role='control'),
    'flat': dict(config='config/train_fineweb_flat.py', role='flat'),
    'gate+norm': dict(config='config/train_fineweb_baseline.py', role='control', model='controls', control='gate+norm'),
    'c1-within': dict(config='config/train_fineweb_mixed.py', role='mixed'),
    'learned': dict(config='config/train_fineweb_mixed.py', role='mixed', curvature_mode='random'),
}

# partition, account and qos are your cluster's. time_min is the limit of one job and no estimate: a run that takes
# longer saves before it, is queued again and goes on
slurm = dict(gpus=1, cpus=8, time_min=24 * 60)
