"""A loopback W&B for tests: the real client and `wandb.Api` on one end, a view of what arrived on the other."""

from wandb_server.client import WandbClient
from wandb_server.faults import Fault
from wandb_server.server import API_KEY, ENTITY, WandbServer

__all__ = ["API_KEY", "ENTITY", "Fault", "WandbClient", "WandbServer"]
