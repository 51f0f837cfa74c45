"""Does the learning rate decide who wins? On BPE, with 4,096 tokens a step and 1,500 steps.

    python data/packages/prepare.py --corpus=documentation --tokens=bpe

A published comparison of a few seeds says so: the curved model wins at rates of 5e-4 and 1e-3, the plain one at 1e-4 and 2e-4. So each arm
has these four rates, and a higher one, 3e-3. The model is small (2 blocks of 64, a vocabulary of 1,024), so that every seed is run at
every rate. 3 arms at 5 rates with 2 seeds: 30 runs of 1.5 to 3 minutes of one thread with AVX-512, compiled.
"""
from sweeps import verdict as _verdict

defaults = dict(_verdict.defaults, dataset='documentation_bpe', n_layer=2, n_head=2, n_embd=64, batch_size=32, block_size=128,
                eval_interval=500)
budget = dict(steps=1500)
grid = dict(learning_rate=[1e-4, 2e-4, 5e-4, 1e-3, 3e-3])
seeds = [3001, 3002]

arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    **{name: {key: value for key, value in arm.items() if key != 'learning_rate'} for name, arm in _verdict.arms.items()},
}
