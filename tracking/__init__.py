"""The experiment: tracker, journal, synchronisation with W&B, checkpoints."""
