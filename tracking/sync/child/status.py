"""How far a sync child is: `RUN/sync.json`, written by the child and read by anybody."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from tracking.files import read_json, write_json

State = Literal["running", "done", "failed", "left"]


@dataclass(frozen=True)
class SyncStatus:
    """What a child says of itself.

    Attributes:
        segment: The journal segment that it was started for.
        mode: `online` or `offline`.
        state: `done` when W&B has every row, `failed` when it has not and nothing more is tried, `left` when another
            process pushes the run or has to (`error` says why).
        rows: How many rows of the run W&B has been given.
        confirmed: How many rows the server said it has, at the end of an online segment.
        folder: W&B's offline folder, once it is published.
        url: The run's page.
        error: The last fault in one line; in an offline child, why the rows do not go to the server.
        time: When this was written, seconds since the epoch.
    """

    segment: int
    mode: str
    state: State
    rows: int = 0
    confirmed: int | None = None
    folder: str | None = None
    url: str | None = None
    error: str | None = None
    time: float = field(default_factory=time.time)


def write_status(run_dir: Path, status: SyncStatus) -> None:
    """Writes `RUN/sync.json`.

    Raises:
        OSError: The folder cannot be written.
    """
    write_json(run_dir / "sync.json", asdict(status))


def read_status(run_dir: Path) -> SyncStatus | None:
    """Reads `RUN/sync.json`; None where it is absent or not of this form."""
    try:
        fields = read_json(run_dir / "sync.json")
        return None if fields is None else SyncStatus(**fields)
    except (ValueError, TypeError):
        return None
