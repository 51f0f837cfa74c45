"""Does the curved model gain from Muon what the plain one gains? sweeps/terms.py's runs, with Muon for the matrices of the blocks.

Each arm under AdamW at two rates, and under Muon at four rates of the matrices (the rest keeps AdamW, at the arm's better rate of
results/terms and bounded: 6e-3, and 3e-3 for c0.1-head). Seed 1337 chooses. For the two arms that do not look at the previous token, and
whose gains are close, four more seeds measure: is the curved model's gain the plain one's? 56 runs of one to four minutes of one thread.
"""
from sweeps import terms as _terms

defaults, budget = _terms.defaults, _terms.budget  # 0.8M parameters, 600 steps of 1,024 tokens
seeds = [1337]

_models = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'gate+norm': dict(config='config/demo_baseline.py', role='control', model='controls', control='gate+norm'),
    'c0.1-head': dict(config='config/demo_mixed.py', max_distance=None, role='mixed', curvature_mode='fixed', curvature=0.1),
    'c1-within': dict(config='config/demo_mixed.py', max_distance=1.5, role='mixed', curvature_mode='fixed', curvature=1.0),
    # what is advised for Muon; like the plain GPT it has no look at the previous token
    'c1-origin': dict(config='config/demo_mixed.py', max_distance=1.5, role='mixed', curvature_mode='fixed', curvature=1.0,
                      reference='origin'),
}
arms = {}
for _name, _keys in _models.items():
    arms[_name] = dict(_keys, grid=dict(learning_rate=[3e-3, 6e-3]))
    arms[f'{_name}-muon'] = dict(_keys, role='other', optimizer='muon', learning_rate=3e-3 if _name == 'c0.1-head' else 6e-3,
                                 grid=dict(muon_lr=[5e-3, 1e-2, 2e-2, 4e-2]))
# two whose best was at the end of its range: further out
runs = [dict(arms=['baseline-muon', 'c1-origin-muon'], grid=dict(muon_lr=[8e-2])),
        dict(arms=['baseline'], grid=dict(learning_rate=[1.2e-2])), dict(arms=['c1-origin'], grid=dict(learning_rate=[1.5e-3]))]
_chosen = [('baseline', dict(learning_rate=[6e-3])), ('baseline-muon', dict(muon_lr=[4e-2])),
           ('c1-origin', dict(learning_rate=[3e-3])), ('c1-origin-muon', dict(muon_lr=[4e-2]))]
runs += [dict(arms=[_name], grid=_grid, seeds=[1338, 1339, 1340, 1341]) for _name, _grid in _chosen]
