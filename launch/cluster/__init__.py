"""Cluster profiles: written from what Slurm tells, checked by a short job, shown."""
