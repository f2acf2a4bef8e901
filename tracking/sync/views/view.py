"""The two places where a journal is shown: W&B's offline folder, and its server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tracking.journal import End
from tracking.sync.pushed import Position
from tracking.sync.views.engine import Replay


class NotConfirmedError(Exception):
    """The server does not have every row at the end; the message says how many are missing and why."""


class StreamLostError(Exception):
    """The server stopped taking rows without an error that W&B's client would report."""


@dataclass(frozen=True)
class Shown:
    """Where a run is to be seen after its end.

    Attributes:
        folder: W&B's offline folder.
        url: The run's page.
        confirmed: How many rows the server says it has.
    """

    folder: Path | None = None
    url: str | None = None
    confirmed: int | None = None


class View(Protocol):
    """A place where a journal is shown.

    Attributes:
        replay: What events are given to.
        url: The run's page, where there is one.
    """

    replay: Replay
    url: str | None

    def given(self, seen: Position) -> None:
        """Takes note of how much of the journal the rows so far are."""

    def check(self) -> None:
        """Called now and then: raises `StreamLostError` when what was given does not arrive."""

    def close(self, end: End | None) -> Shown:
        """Ends the W&B run; raises `NotConfirmedError` when not all of it has arrived."""

    def abandon(self) -> None:
        """Leaves the run to a successor, without a word to W&B; this process then ends at once."""
