"""sweeps/verdict.py under Muon: does curvature help there, too, and does it gain from Muon what the others gain?

Muon for the matrices of the blocks at 0.02, its usual rate and the best of four of sweeps/muon.py for gate+norm and c1-within (baseline:
0.04, by 0.008 nats); the rest keeps AdamW at 6e-3. No seed chooses here, so every seed measures. Written before any of its runs, after
those of muon.py with 600 steps of 1,024 tokens, where gate+norm and c1-within are level under Muon (1.7048 and 1.7033, one seed).

The arms under AdamW are runs of verdict.py and verdict_controls.py: copy their rows to out/sweeps/verdict_muon/runs.csv, or they are made
again. Then 9 runs of 4 to 6 minutes of one thread with AVX-512.
"""
from sweeps import verdict as _verdict
from sweeps import verdict_controls as _controls

defaults, budget = _verdict.defaults, _verdict.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = [2001, 2002, 2003]

_models = {'baseline': _controls.arms['baseline'], **_verdict.arms}
arms = {}
for _name, _arm in _models.items():
    arms[_name] = dict(_arm, role='other')  # under AdamW
    arms[f'{_name}-muon'] = dict({key: value for key, value in _arm.items() if key != 'seeds'},
                                 optimizer='muon', muon_lr=0.02, learning_rate=6e-3)
question = dict(hypothesis='under Muon curvature per head is worth more than 0.004 nats a token over its best control',
                arm='c1-within-muon', against='gate+norm-muon', margin=0.004, stop='fixed', spread=0.0065)
