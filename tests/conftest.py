"""Fixtures for every test."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.lab import Lab

from wandb_server.fixture import wandb_client, wandb_server

__all__ = ["wandb_client", "wandb_server"]


def pytest_configure() -> None:
    """Has Ctrl-C reach the programs that tests start: a shell's background jobs, and their children, ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["plain", "sp ace", "quo'te", 'dou"ble', "'; echo foo", "new\nline"])
def weird_tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a name that unquoted shell text breaks on."""
    folder = tmp_path / str(request.param)
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A running Slurm for all tests of the session; `lab.environment()` is what its clients need."""
    # pytest's temporary folders are too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    own = Lab(folder)
    try:
        own.up()
        yield own
    finally:
        own.down(wipe=True)
