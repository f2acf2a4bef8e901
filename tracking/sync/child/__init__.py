"""The sync engine as a child of rank 0, and its ends in the training process: starting it, and what it says."""
