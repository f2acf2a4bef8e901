"""A journal on W&B's server, live: behind what the server has, and checked against what the server says."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

from tracking.identity import Identity, rows_before
from tracking.intents import pending_intents
from tracking.journal import End
from tracking.labels import Labels
from tracking.sync.bounded import bounded
from tracking.sync.claims import Holder
from tracking.sync.pushed import Phase, Position, PushState, read_push_state, write_push_state
from tracking.sync.views import offline
from tracking.sync.views.engine import Replay, close_run, open_run
from tracking.sync.views.origin import read_origin
from tracking.sync.views.shown_run import open_api, shown_run
from tracking.sync.views.uploads import Uploads
from tracking.sync.views.view import NotConfirmedError, Shown, StreamLostError

# W&B's client keeps silent about a stream that the server refuses for good (401, 403 or 404 in the middle of a run).
_LOST_S = 60.0
_API_TIMEOUT_S = 5
_UPLOADS_S = 5.0


@dataclass(frozen=True)
class Patience:
    """How long the view waits for the server, in seconds.

    Attributes:
        upload: For uploads at the end of a run.
        push: For the rows at the end of a run.
        confirm: For the server's word that it has them.
        ask: Between two questions how far the server is.
    """

    upload: float
    push: float
    confirm: float
    ask: float

    @classmethod
    def of_child(cls, finish_timeout: float) -> Patience:
        """Half of the time to push, a fifth to be sure, the rest for an offline folder where both failed."""
        return cls(finish_timeout * 0.25, finish_timeout * 0.5, finish_timeout * 0.2, 15.0)


@dataclass(frozen=True)
class _Mark:
    """How far W&B's client had been given the journal at a moment."""

    rows: int
    seen: Position
    time: float


class OnlineView:
    """A journal on the server; how far it is stands in `RUN/push.json`.

    Attributes:
        start: How many of the journal's rows the server had when this view opened.
        state: What was written last.
    """

    def __init__(
        self, run_dir: Path, identity: Identity, labels: Labels, *, wandb_dir: Path, patience: Patience, by: Holder
    ) -> None:
        """Opens the run and asks the server what it has.

        Args:
            run_dir: The run folder.
            identity: Which run.
            labels: Tags, group, job type and notes.
            wandb_dir: Where W&B's client may write.
            patience: How long the server is waited for.
            by: This process, for whoever reads the state.

        Raises:
            wandb.Error: The server refused or did not answer.
        """
        self._run_dir = run_dir
        self.state = replace(
            read_push_state(run_dir) or PushState(), by=str(by), seen=None, closed=None, settled=False, next_try=None
        )
        self._write("opening")
        run = open_run(identity, labels, mode="online", directory=wandb_dir, origin=read_origin(run_dir))
        self._before = rows_before(run_dir, identity, there=int(run.step))
        self.start = int(run.step) - self._before
        self.replay = Replay(run, run_dir, start=self.start, before=self._before)
        self.url: str | None = run.url
        self._path = f"{run.entity}/{run.project}/{run.id}"
        self._identity = identity
        self._patience = patience
        self._uploads = Uploads(run, run_dir)
        self._uploads_due = 0.0
        self._asked_at = 0.0
        self._marks: deque[_Mark] = deque()
        self.state = replace(self.state, url=self.url, confirmed=self.start, rows=self.start, failures=0, error=None)
        self._write("pushing")

    @property
    def is_confirmed(self) -> bool:
        """Whether the server has said that it has all that it was given."""
        return not self._marks

    def given(self, seen: Position) -> None:
        """Takes note of how much of the journal the rows so far are."""
        if seen != (self._marks[-1].seen if self._marks else self.state.seen):
            self._marks.append(_Mark(self.replay.next_row, seen, time.monotonic()))
            self.state = replace(self.state, rows=self.replay.next_row)

    def check(self) -> None:
        """Moves uploads on, and asks now and then whether what was given has arrived.

        Raises:
            StreamLostError: The server lacks what it was given a minute ago.
        """
        self.replay.files.advance()
        now = time.monotonic()
        if now >= self._uploads_due:
            self._uploads.advance()
            self._uploads_due = now + _UPLOADS_S
        if self._marks and now - self._asked_at >= self._patience.ask:
            self._ask()

    def close(self, end: End | None) -> Shown:
        """Ends the run, and waits until the server says that it has every row."""
        rows = self.replay.next_row
        self._write("uploading")
        self.replay.files.upload()
        self._uploads.wait(self._patience.upload)
        self._write("closing")
        self.replay.restore_summary()
        try:
            bounded(lambda: close_run(self.replay.run, end), self._patience.push)
        except TimeoutError as error:
            raise NotConfirmedError(f"the server did not take everything: {error}") from error
        self._write("confirming")
        confirmed = self._wait_for(rows)
        # A later `wandb sync` of W&B's own folder would put the run back to where that folder's segment was.
        offline.set_aside(self._run_dir, self._identity.run_id)
        seen = self._marks[-1].seen if self._marks else self.state.seen
        ended = end.state if end is not None else "crashed"
        failed = self._uploads.failed()
        self.state = replace(self.state, rows=rows, confirmed=confirmed, seen=seen, closed=ended, error=None)
        if failed:
            self.state = self.state.failed(failed)
        self._write("waiting")
        return Shown(url=self.url, confirmed=confirmed)

    def abandon(self) -> None:
        """Leaves the W&B run open for a successor."""
        self._write("waiting")

    def _ask(self) -> None:
        self._asked_at = time.monotonic()
        try:
            confirmed = bounded(lambda: rows_on_server(self._path), _LOST_S) - self._before
        except Exception as error:  # noqa: BLE001 - whatever the client raises in an outage, W&B's service tries again
            self.state = replace(self.state, error=f"the server cannot be asked how far it is: {error}")
            self._write()
            return
        mark = self._marks[0]
        if confirmed < mark.rows and self._asked_at - mark.time > _LOST_S:
            raise StreamLostError(f"the server has {confirmed} rows, {mark.rows} were given to it a minute ago")
        seen = self.state.seen
        while self._marks and self._marks[0].rows <= confirmed:
            seen = self._marks.popleft().seen
        self.state = replace(self.state, confirmed=confirmed, seen=seen, error=None)
        self._write()

    def _wait_for(self, rows: int) -> int:
        deadline = time.monotonic() + self._patience.confirm
        while True:
            try:
                confirmed = bounded(lambda: rows_on_server(self._path), self._patience.confirm) - self._before
                missing = f"the server has {confirmed} of {rows} rows"
            except Exception as error:  # noqa: BLE001 - an outage has many names, and one meaning here
                confirmed, missing = -1, f"the server cannot be asked whether it has all {rows} rows: {error}"
            if confirmed >= rows:
                return confirmed
            if time.monotonic() > deadline:
                raise NotConfirmedError(missing)
            time.sleep(0.2)

    def _write(self, phase: Phase | None = None) -> None:
        waiting = len(pending_intents(self._run_dir))
        self.state = replace(self.state, phase=phase or self.state.phase, waiting=waiting, time=time.time())
        try:
            write_push_state(self._run_dir, self.state)
        except OSError as error:
            print(f"{self._run_dir.name}: push.json cannot be written: {error}", flush=True)


def state_on_server(identity: Identity) -> tuple[int, str]:
    """Asks the server how far a run is.

    Returns:
        How many rows it has, in history and summary alike, and its state; no rows for a run that is not there.

    Raises:
        wandb.Error: The server refused or did not answer.
    """
    api = open_api()
    run = shown_run(api, f"{identity.entity or api.default_entity}/{identity.project}/{identity.run_id}")
    if run is None:
        return 0, "missing"
    # An upload by hand of an earlier state takes only the summary back: rows are never taken away.
    last = min(int(run.handle.lastHistoryStep), int(run.handle.summary.get("_step", -1)))
    return last + 1, run.state


def rows_on_server(path: str) -> int:
    """Asks the server how many rows of a run it has.

    Args:
        path: `entity/project/run id`.

    Raises:
        wandb.Error: The server refused or did not answer.
    """
    import wandb

    return int(wandb.Api(timeout=_API_TIMEOUT_S).run(path).lastHistoryStep) + 1
