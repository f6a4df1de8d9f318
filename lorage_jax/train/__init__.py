"""A training run: optimizer, step, loop, checkpoints, and the losses of the methods."""
