"""
What sweep.py is made of, by what one wants to change:

    sweep_file    what a sweep file may say
    runs          its runs: how a configuration is resolved, what a run's hash is of, budgets
    folder        what is checked about a sweep's folder before anything starts
    rows          runs.csv
    job           one run: its command, its lock, its attempts, what counts as a crash
    launchers     where runs are done: processes here, or jobs of submitit (Slurm)
    terminal      what the user sees meanwhile
    after         the commands when all runs have ended
    statistics    what summarize_sweep.py computes of losses
"""
