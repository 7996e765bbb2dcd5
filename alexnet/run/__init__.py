"""The log, timing and checkpoints of a run."""
