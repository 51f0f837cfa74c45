"""All links at random: curvature has nothing to find; sweeps/tree.py in everything else."""
from sweeps import tree as _tree

defaults = dict(_tree.defaults, dataset='tree_0')
budget, grid, seeds, arms = _tree.budget, _tree.grid, _tree.seeds, _tree.arms
runs = _tree._seeds_at({'baseline': 6e-3, 'c1-origin': 1.2e-2})
