"""How far a run is on W&B's server: `RUN/push.json`, written by whoever holds the run's claim and read by anybody."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tracking.files import read_json, write_json

Phase = Literal["waiting", "opening", "pushing", "uploading", "confirming", "closing"]

_FIRST_RETRY_S = 30.0
_LAST_RETRY_S = 3600.0


@dataclass(frozen=True)
class Position:
    """A place in a journal: whatever is behind it has not been seen.

    Attributes:
        segment: The number of the file.
        size: Its size in bytes.
    """

    segment: int
    size: int


@dataclass(frozen=True)
class PushState:
    """How far a run is.

    Attributes:
        phase: What is being done.
        rows: How many rows W&B's client has been given.
        confirmed: How many rows the server said it has; None before it was asked.
        seen: How much of the journal the confirmed rows are; None while that is less than all that was read.
        closed: How the W&B run was ended (`finished`, `preempted` or `crashed`); None while it is open.
        settled: Whether the server still said so a while after the end: an upload by hand may have been under way.
        waiting: How many uploads wait.
        url: The run's page.
        error: The last fault in one line.
        failures: How many tries in a row have failed.
        next_try: When it is tried again, seconds since the epoch.
        by: Who wrote this: role, host and process.
        time: When, seconds since the epoch.
    """

    phase: Phase = "waiting"
    rows: int = 0
    confirmed: int | None = None
    seen: Position | None = None
    closed: str | None = None
    settled: bool = False
    waiting: int = 0
    url: str | None = None
    error: str | None = None
    failures: int = 0
    next_try: float | None = None
    by: str = ""
    time: float = field(default_factory=time.time)

    def failed(self, error: str) -> PushState:
        """The state after a try that failed: the next one comes after twice the time, an hour at most."""
        pause = min(_FIRST_RETRY_S * 2.0**self.failures, _LAST_RETRY_S)
        return replace(
            self,
            phase="waiting",
            error=error,
            failures=self.failures + 1,
            next_try=time.time() + pause,
            time=time.time(),
        )


def write_push_state(folder: Path, state: PushState) -> None:
    """Writes `push.json`. It is not synced to the disk: a state that is lost costs one look at the server.

    Raises:
        OSError: The folder cannot be written or is gone.
    """
    write_json(folder / "push.json", asdict(state), durable=False)


def read_push_state(folder: Path) -> PushState | None:
    """Reads `push.json`; None where it is absent or not of this form."""
    try:
        fields: dict[str, Any] | None = read_json(folder / "push.json")
        if fields is None:
            return None
        seen = fields.pop("seen")
        return PushState(**fields, seen=Position(**seen) if seen else None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def journal_position(run_dir: Path) -> Position | None:
    """The end of a journal as it is now; None where there is none."""
    numbers = [int(path.stem[8:]) for path in run_dir.glob("journal-*.jsonl") if path.stem[8:].isdigit()]
    if not numbers:
        return None
    last = max(numbers)
    return Position(last, (run_dir / f"journal-{last:03d}.jsonl").stat().st_size)
