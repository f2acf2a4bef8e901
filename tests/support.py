"""What several test folders need."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

from tracking.errors import UserError

Result = TypeVar("Result")


def wait_until(predicate: Callable[[], Result], timeout: float, what: str, interval: float = 0.05) -> Result:
    """Polls until the predicate is true and returns its value; fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s for {what}")
        time.sleep(interval)
    return value


def free_port() -> int:
    """A TCP port on the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refusal(action: Callable[[], object]) -> str:
    """What the user is told who does this; fails the test if it is not refused."""
    try:
        action()
    except UserError as error:
        return str(error)
    raise AssertionError("nothing was refused")
