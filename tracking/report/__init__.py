"""A run, or several side by side, as one HTML file or one picture: made from the run folder alone, without a network.

`python -m tracking.report RUN_DIR…` writes it. Nothing in a run folder is changed but the report itself, so that a run
may be looked at while it is written.
"""
