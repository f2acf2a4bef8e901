"""Runs as their users see them: what each one is, what it waits for, how it ended and why (`python -m launch.jobs`)."""
