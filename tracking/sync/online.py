"""A journal on W&B's server, live: behind what the server has, and checked against what the server says."""

from __future__ import annotations

import time
from pathlib import Path

from tracking.identity import Identity
from tracking.journal import End
from tracking.labels import Labels
from tracking.sync import offline
from tracking.sync.bounded import bounded
from tracking.sync.engine import Replay, close_run, open_run
from tracking.sync.uploads import Uploads
from tracking.sync.view import NotConfirmedError, Shown, StreamLostError

# W&B's client keeps silent about a stream that the server refuses for good (401, 403 or 404 in the middle of a run).
_CHECK_S = 60.0
_API_TIMEOUT_S = 5
_UPLOADS_S = 5.0


class OnlineView:
    """A journal on the server.

    Attributes:
        start: How many rows the server had when this view opened.
    """

    def __init__(
        self, identity: Identity, labels: Labels, run_dir: Path, wandb_dir: Path, finish_timeout: float
    ) -> None:
        """Opens the run and asks the server what it has.

        Raises:
            wandb.Error: The server refused or did not answer.
        """
        run = open_run(identity, labels, mode="online", directory=wandb_dir)
        self.start = int(run.step)
        self.replay = Replay(run, run_dir, start=self.start)
        self._uploads = Uploads(run, run_dir)
        self.url: str | None = run.url
        self._path = f"{run.entity}/{run.project}/{run.id}"
        self._identity = identity
        self._wandb_dir = wandb_dir
        # Half of the time to push, a fifth to be sure, the rest for an offline folder where both failed.
        self._push_seconds = finish_timeout * 0.5
        self._confirm_seconds = finish_timeout * 0.2
        self._uploads_due = 0.0
        self._checked_at = time.monotonic()
        self._due = self.start

    def check(self) -> None:
        """Moves uploads on; asks, once a minute, whether what was given a minute ago has arrived."""
        now = time.monotonic()
        if now >= self._uploads_due:
            self._uploads.advance()
            self._uploads_due = now + _UPLOADS_S
        if now - self._checked_at < _CHECK_S:
            return
        try:
            confirmed = rows_on_server(self._path)
        except Exception as error:  # noqa: BLE001 - whatever the client raises in an outage, W&B's service tries again
            print(f"the server cannot be asked how far it is: {error}", flush=True)
            return
        finally:
            self._checked_at = time.monotonic()
        if confirmed < self._due:
            raise StreamLostError(f"the server has {confirmed} rows, {self._due} were given to it a minute ago")
        self._due = self.replay.next_row

    def close(self, end: End | None) -> Shown:
        """Ends the run, and waits until the server says that it has every row."""
        rows = self.replay.next_row
        deadline = time.monotonic() + self._push_seconds
        self._uploads.wait(self._push_seconds / 2)
        try:
            bounded(lambda: close_run(self.replay.run, end), deadline - time.monotonic())
        except TimeoutError as error:
            raise NotConfirmedError(f"the server did not take everything: {error}") from error
        confirmed = self._wait_for(rows)
        # A later `wandb sync` of an earlier segment's folder would put the run back to where that segment was.
        offline.supersede(offline.published(self._wandb_dir, self._identity.run_id), self._wandb_dir)
        return Shown(url=self.url, confirmed=confirmed)

    def abandon(self) -> None:
        """Does nothing: the successor goes on with the W&B run."""

    def _wait_for(self, rows: int) -> int:
        deadline = time.monotonic() + self._confirm_seconds
        while True:
            try:
                confirmed = bounded(lambda: rows_on_server(self._path), self._confirm_seconds)
                missing = f"the server has {confirmed} of {rows} rows"
            except Exception as error:  # noqa: BLE001 - an outage has many names, and one meaning here
                confirmed, missing = -1, f"the server cannot be asked whether it has all {rows} rows: {error}"
            if confirmed >= rows:
                return confirmed
            if time.monotonic() > deadline:
                raise NotConfirmedError(missing)
            time.sleep(0.2)


def rows_on_server(path: str) -> int:
    """Asks the server how many rows of a run it has.

    Args:
        path: `entity/project/run id`.

    Raises:
        wandb.Error: The server refused or did not answer.
    """
    import wandb

    return int(wandb.Api(timeout=_API_TIMEOUT_S).run(path).lastHistoryStep) + 1
