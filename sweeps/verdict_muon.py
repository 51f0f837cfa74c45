"""sweeps/verdict.py under Muon: does curvature help there, too, and does it gain from Muon what the others gain?

Muon for the matrices of the blocks at 0.02, its usual rate and the best of four of sweeps/muon.py for gate+norm and c1-within (baseline:
0.04, by 0.008 nats); the rest keeps AdamW at 6e-3. No seed chooses here, so every seed measures. Written before any of its runs, after
those of muon.py with 600 steps of 1,024 tokens, where gate+norm and c1-within are level under Muon (1.7048 and 1.7033).

After the first seed (baseline 1.489, c1-within 1.514, gate+norm 1.533) two arms came in that do not look at the previous token, as the
plain GPT does not: c1-origin and gated (sweeps/verdict_origin.py). The question stayed.

The arms under AdamW are runs of verdict.py and verdict_controls.py: copy their rows to out/sweeps/verdict_muon/runs.csv, or they are made
again. Then 15 runs of 4 to 6 minutes of one thread with AVX-512.
"""
from sweeps import verdict as _verdict
from sweeps import verdict_controls as _controls
from sweeps import verdict_origin as _origin

defaults, budget = _verdict.defaults, _verdict.budget  # 0.8M parameters, 1,500 steps of 3,072 tokens
seeds = [2001, 2002, 2003]


def _muon(arm):
    return dict({key: value for key, value in arm.items() if key != 'seeds'}, optimizer='muon', muon_lr=0.02, learning_rate=6e-3)


_models = {'baseline': _controls.arms['baseline'], **_verdict.arms}
arms = {
    **{name: dict(arm, role='other') for name, arm in _models.items()},  # under AdamW
    **{f'{name}-muon': _muon(arm) for name, arm in _models.items()},
    **{f'{name}-muon': _muon(_origin.arms[name]) for name in ('c1-origin', 'gated')},
}
question = dict(hypothesis='under Muon curvature per head is worth more than 0.004 nats a token over its best control',
                arm='c1-within-muon', against='gate+norm-muon', margin=0.004, stop='fixed', spread=0.0065)
