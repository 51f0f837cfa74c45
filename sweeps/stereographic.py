"""Stereographic layers, attention, norm and heads: each switched on by itself (docs/stereographic.md). This is their ablation.

Heads are on a plain GPT (curvature 0, reference 'origin'), so that nothing but the head is curved. Four of them take a published claim
apart, that a Lorentz head gains over a Euclidean one that starts at zero:

    initialisation   zero, N(0, 0.02)        head-zero, head-untied; curved: head-lorentz-zero, head-lorentz
    scale            a learned factor        head-untied-scale; curved: head-lorentz-scale
    curvature        c = 0, c = 1            the Euclidean and the Lorentz head of each of these three pairs
    offset           of each token's plane   head-lorentz-offset, as in Bdeir et al. 2024

A curved head is no rescaled Euclidean one, but at c = 1 its logits are smaller: that part the two with a learned factor can undo. The
others are tied to the embedding, as the baseline's head is. The options of the blocks are on the mixed model with c = 0.1 per head; the
flat twins of two of them are flat+distance and flat+mobius. c0.1+all has layers, attention and head together.

The model of sweeps/terms.py: 19 arms at 1 learning rate with 2 seeds = 38 runs of 600 steps of 1,024 tokens, 1 to 4 minutes of one
thread each on a quiet machine.
"""
from sweeps import terms as _terms

defaults, budget = _terms.defaults, _terms.budget  # 0.8M parameters, 600 steps of 1,024 tokens
grid = dict(learning_rate=[3e-3])
seeds = [1337, 1338]

_mixed = dict(config='config/demo_mixed.py', model='stereographic', curvature_mode='fixed', curvature=0.1, role='mixed')
_plain = dict(_mixed, curvature=0.0, reference='origin', role='other')  # the baseline's trunk

arms = {
    'baseline': dict(config='config/demo_baseline.py', role='baseline'),
    'flat': dict(config='config/demo_flat.py', role='flat'),
    'c0.1-head': dict(config='config/demo_mixed.py', role='mixed', curvature_mode='fixed', curvature=0.1),
    # heads: untied, as published, and tied
    'head-zero': dict(_plain, head_tied=False, head_init='published', role='control'),
    'head-untied': dict(_plain, head_tied=False, role='control'),
    'head-lorentz': dict(_plain, head='lorentz', head_curvature=1.0, head_tied=False, head_init='published'),
    'head-lorentz-scale': dict(_plain, head='lorentz', head_curvature=1.0, head_tied=False, head_init='published',
                               head_scale_mode='learned'),
    'head-untied-scale': dict(_plain, head_tied=False, head_scale_mode='learned', role='control'),
    'head-lorentz-zero': dict(_plain, head='lorentz', head_curvature=1.0, head_tied=False, head_init='zero'),
    'head-lorentz-offset': dict(_plain, head='lorentz', head_curvature=1.0, head_tied=False, head_init='published', head_offset=True),
    'head-stereographic': dict(_plain, head='stereographic'),
    'head-product': dict(_plain, head='lorentz_product'),
    # blocks
    'c0.1+mobius': dict(_mixed, layers='mobius'),
    'c0.1+distance': dict(_mixed, attention='distance'),
    'c0.1+norm': dict(_mixed, norm='stereographic'),
    'c0.1+head': dict(_mixed, head='stereographic'),
    'c0.1+all': dict(_mixed, layers='mobius', attention='distance', head='stereographic'),
    'flat+distance': dict(_mixed, attention='distance', curvature=0.0, role='control'),
    'flat+mobius': dict(_mixed, layers='mobius', curvature=0.0, role='control'),
}
