"""W&B's client in a process that replays runs of others: which settings it must not see, and how its service ends."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

# Set by users for runs of their own; here they would change the id or attach to a service of the training process.
_FOREIGN = ("WANDB_RESUME", "WANDB_RUN_ID", "WANDB_SERVICE", "WANDB_MODE", "WANDB_DIR", "WANDB_DISABLED")


def forget_foreign_settings() -> None:
    """Removes the settings from the environment that belong to a run of the user's own, and what W&B would print."""
    for name in _FOREIGN:
        os.environ.pop(name, None)
    os.environ.setdefault("WANDB_SILENT", "true")


def end_services() -> None:
    """Ends W&B's service, which would go on sending what the next attempt sends."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # threads end at any time
            for child in (thread / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)


def send_within(interval: float) -> None:
    """Has W&B's client send rows at least twice an interval (else every 15 s), unless the user's settings say more."""
    os.environ.setdefault("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", f"{min(15.0, max(1.0, interval / 2)):g}")


def leave(code: int) -> NoReturn:
    """Ends the process without W&B's exit handlers, which would end the runs that are still being written."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
