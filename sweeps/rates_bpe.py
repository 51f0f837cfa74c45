"""Does the learning rate decide who wins? On BPE, with 4,096 tokens a step and 1,500 steps.

    python data/packages/prepare.py --corpus=documentation --tokens=bpe

A published comparison of a few seeds says so: the curved model wins at rates of 5e-4 and 1e-3, the plain one at 1e-4 and 2e-4. So each arm
has these four rates, and higher ones. The model is small (2 blocks of 64, a vocabulary of 1,024), so that every seed is run at every rate.
6e-3 and 1.2e-2 came in when 3e-3 was the best of five for each arm of the first seed: which is each arm's best?
3 arms at 7 rates with 2 seeds: 42 runs of 1.5 to 3 minutes of one thread with AVX-512, compiled.
"""
from sweeps import verdict as _verdict

defaults = dict(_verdict.defaults, dataset='documentation_bpe', n_layer=2, n_head=2, n_embd=64, batch_size=32, block_size=128,
                eval_interval=500)
budget = dict(steps=1500)
grid = dict(learning_rate=[1e-4, 2e-4, 5e-4, 1e-3, 3e-3, 6e-3, 1.2e-2])
seeds = [3001, 3002]

arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    **{name: {key: value for key, value in arm.items() if key != 'learning_rate'} for name, arm in _verdict.arms.items()},
}
