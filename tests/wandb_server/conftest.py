"""The loopback W&B's fixtures, for its own tests."""

from wandb_server.fixture import wandb_client, wandb_server

__all__ = ["wandb_client", "wandb_server"]
