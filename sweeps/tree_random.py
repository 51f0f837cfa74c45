"""All links at random: curvature has nothing to find; sweeps/tree.py in everything else."""
from sweeps import tree as _tree

defaults = dict(_tree.defaults, dataset='tree_0')
budget, grid, seeds, arms = _tree.budget, _tree.grid, _tree.seeds, _tree.arms
