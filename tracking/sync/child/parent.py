"""The training process as its child sees it."""

from __future__ import annotations

import os
import select
import sys


class Parent:
    """The training process as its child sees it.

    A line on stdin means that there is something to read. The end of stdin alone would not tell that the parent died:
    its DataLoader workers hold copies of the pipe.
    """

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._closed = pid is None

    def is_gone(self) -> bool:
        """True when the training process has ended, or when there is none."""
        return self._closed or os.getppid() != self._pid

    def wait(self, timeout: float) -> None:
        """Waits for a word from the training process, at most `timeout` seconds."""
        ready, _, _ = select.select([sys.stdin.fileno()], [], [], timeout)
        if ready and not os.read(sys.stdin.fileno(), 4096):
            self._closed = True
