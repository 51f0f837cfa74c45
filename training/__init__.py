"""What train.py is made of: its keys, batches, optimizers, processes, checkpoints, the run's files."""
