"""isotropy.py at 0.2M parameters, where a run is short: all arms and seeds, trained, then analysed.

The rate is verdict_size.py's at this size. 27 runs of 2 to 4 minutes of one thread with AVX-512. Written before any of them.
"""
from sweeps import isotropy as _isotropy

defaults = dict(_isotropy.defaults, n_embd=64, learning_rate=1.2e-2)
budget, seeds, after = _isotropy.budget, _isotropy.seeds, _isotropy.after
arms = {name: dict(arm, compile=True) if arm['role'] == 'mixed' else arm for name, arm in _isotropy.arms.items()}
