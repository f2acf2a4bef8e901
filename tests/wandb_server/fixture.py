"""Fixtures of the loopback W&B, for the conftest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wandb_server.client import WandbClient
from wandb_server.server import WandbServer


@pytest.fixture
def wandb_server() -> Iterator[WandbServer]:
    """A loopback W&B of the test's own."""
    with WandbServer() as server:
        yield server
    if "wandb" in sys.modules:
        # In this process W&B's client would go on asking the first server that it was given.
        sys.modules["wandb"].teardown()


@pytest.fixture
def wandb_client(wandb_server: WandbServer, tmp_path: Path) -> WandbClient:
    """The real client, in processes that write into the test's folder only."""
    return WandbClient(wandb_server, tmp_path / "client")
