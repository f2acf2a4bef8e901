"""The sync engine: it replays a run's journal into W&B, as a child of rank 0 or from a login node."""
