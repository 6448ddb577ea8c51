"""The training loop, and the checkpoints from which it can go on after a stop."""
