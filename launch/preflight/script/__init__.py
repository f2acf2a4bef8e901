"""Anybody's sbatch script: what Slurm reads in it, what its shell runs, and the rules that look at both."""
