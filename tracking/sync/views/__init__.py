"""A journal as W&B shows it: on the server, or in an offline folder."""
