"""One run on its way to W&B's server, in steps that a process takes for many runs in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tracking.errors import UserError
from tracking.identity import Identity, read_identity, rows_before
from tracking.intents import pending_intents
from tracking.journal import End, Follower, Segment
from tracking.labels import Labels
from tracking.sync.child.status import read_status
from tracking.sync.claims import Claim, Heart, Holder, Observer
from tracking.sync.jobs import JobWatch
from tracking.sync.pushed import PushState, journal_position, read_push_state, write_push_state
from tracking.sync.slurm import ending
from tracking.sync.views.online import OnlineView, Patience, state_on_server

# What is read of a journal at once; the rows made of it take some ten times as much memory.
_READ_BYTES = 4 * 2**20
# How long a network file system may take to show what another host wrote before.
_GAP_S = 60.0
# The job's child and the training process write at least every few seconds while they live.
_SILENT_S = 120.0
_SETTLE_S = 60.0
_ASK_S = 2.0
_HELD_S = 5.0

# How W&B names the states that a journal can end in.
_SERVER_STATES = {"finished": {"finished"}, "preempted": {"preempted"}, "crashed": {"crashed", "failed", "killed"}}


@dataclass(frozen=True)
class Tools:
    """What all runs of one pushing process share.

    Attributes:
        holder: This process, as claims name it.
        scratch: Where W&B's client may write.
        observer: Judges other processes' claims.
        heart: Keeps this process's claims alive.
        jobs: Asks Slurm.
        interval: Seconds between two looks at a run that is being written.
        say: Prints a line.
    """

    holder: Holder
    scratch: Path
    observer: Observer
    heart: Heart
    jobs: JobWatch
    interval: float
    say: Callable[[str], None]


@dataclass(frozen=True)
class Visit:
    """What a step came to.

    Attributes:
        outcome: `busy` (more to do at once), `live` (all is there, and the run goes on), `done`, `later` (some of it
            is being written and pushed when that is over) or `held` (another process pushes it).
        pause: Seconds until the next step.
        is_sure: Of `held`, that the other process is known to be alive; one on another host has to be watched.
        error: What is left, though the rows are there: uploads that failed.
    """

    outcome: Literal["busy", "live", "done", "later", "held"]
    pause: float = 0.0
    is_sure: bool = False
    error: str | None = None


def held(folder: Path, observer: Observer) -> Visit:
    """The visit of a folder that another process has claimed."""
    holder = observer.holder(folder)
    return Visit("held", _HELD_S, is_sure=holder is not None and holder.is_here())


class RunPush:
    """One run.

    Attributes:
        path: The run folder.
        bytes_read: How much of the journal was read, for a progress line.
    """

    def __init__(self, run_dir: Path, tools: Tools) -> None:
        self.path = run_dir
        self.bytes_read = 0
        self._tools = tools
        self._claim: Claim | None = None
        self._view: OnlineView | None = None
        self._follower = Follower(run_dir)
        self._segment: Segment | None = None
        self._end: End | None = None
        self._gap_since: float | None = None
        self._said = -1

    def visit(self) -> Visit:
        """Takes the next step.

        Raises:
            UserError: The folder holds no run, or something in it is no part of one.
            NotConfirmedError: The server does not have everything at the end.
            StreamLostError: The server stopped taking rows.
            OSError: The disk.
            Exception: Whatever W&B raises.
        """
        if self._claim is None:
            self._claim = Claim.take(self.path, self._tools.holder.role, self._tools.observer)
            if self._claim is None:
                return held(self.path, self._tools.observer)
            self._tools.heart.keep(self._claim)
        if self._view is None:
            if self._is_settled():
                return self._leave()
            self._view = self._open()
        self._feed(self._view)
        self._view.check()
        if self._follower.more:
            return Visit("busy")
        if self._follower.gap is not None:
            return Visit("busy", 1.0)
        end = self._end or self._end_without_record()
        if end is not None:
            shown = self._view.close(end)
            self._tools.say(f"{self.path.name}: {shown.confirmed} rows on the server, {end.state}")
            state = self._view.state
            return self._leave(state.error if state.next_try is not None else None)
        if not self._view.is_confirmed:
            return Visit("busy", min(_ASK_S, self._tools.interval))
        if self._view.state.confirmed != self._said:
            self._said = self._view.state.confirmed or 0
            self._tools.say(f"{self.path.name}: {self._said} rows on the server")
        return Visit("live", self._tools.interval)

    def fail(self, error: str) -> PushState:
        """Records that a step failed; the claim is kept until the process ends, because its client may still send."""
        state = (self._view.state if self._view else read_push_state(self.path)) or PushState()
        state = replace(state, by=str(self._tools.holder)).failed(error)
        try:
            write_push_state(self.path, state)
        except OSError as fault:
            self._tools.say(f"{self.path.name}: push.json cannot be written: {fault.strerror}")
        return state

    def _leave(self, error: str | None = None) -> Visit:
        if self._claim is not None:
            self._tools.heart.release(self._claim)
        return Visit("done", error=error)

    def _open(self) -> OnlineView:
        identity, segment = self._identity(), newest_segment(self.path)
        labels = Labels(segment.tags, segment.group, segment.job_type, segment.notes)
        # A run of a hundred thousand rows takes half a minute to push; a model may take an hour.
        patience = Patience(upload=3600.0, push=300.0, confirm=60.0, ask=_ASK_S)
        scratch, by = self._tools.scratch, self._tools.holder
        return OnlineView(self.path, identity, labels, wandb_dir=scratch, patience=patience, by=by)

    def _feed(self, view: OnlineView) -> None:
        # Asked before the journal is read: no less than this is then in what is read.
        position = journal_position(self.path)
        patient = self._gap_since is None or time.monotonic() - self._gap_since < _GAP_S
        events = self._follower.poll(_READ_BYTES, patient=patient)
        if self._follower.gap is not None and self._gap_since is None:
            self._gap_since = time.monotonic()
            self._tools.say(f"{self.path.name}: {self._follower.gap}; waiting for it for {_GAP_S:g} s")
        for event in events:
            if isinstance(event, Segment):
                self._segment, self._end = event, None
            elif isinstance(event, End):
                self._end = event
        view.replay.apply(events)
        self.bytes_read = self._follower.bytes_read
        if position is not None and not self._follower.more and self._follower.gap is None:
            view.given(position)

    def _end_without_record(self) -> End | None:
        if self._segment is None:
            return None
        state = self._tools.jobs.state(self._segment.job)
        word = ending(self._segment.job, state)
        if word is None and not state.is_alive and self._is_silent(self._segment.segment):
            word = "crashed"
        return End(word, 1, time.time()) if word is not None else None

    def _is_silent(self, segment: int) -> bool:
        status = read_status(self.path)
        if status is not None and status.segment == segment and status.state == "done":
            return True  # the training process is gone, says its child
        written = [path.stat().st_mtime for path in self.path.glob("journal-*.jsonl")]
        written += [path.stat().st_mtime for path in [self.path / "sync.json"] if path.exists()]
        # Two times of the same file server, whatever this host's clock says.
        assert self._claim is not None
        return self._claim.beaten_at() - max(written, default=0.0) > _SILENT_S

    def _is_settled(self) -> bool:
        """Whether the server still has what it was given when the run ended."""
        state = read_push_state(self.path)
        if state is None or state.closed is None or state.seen != journal_position(self.path):
            return False
        if pending_intents(self.path):
            return False
        if not state.settled:
            identity = self._identity()
            rows, word = state_on_server(identity)
            rows -= rows_before(self.path, identity)
            if rows < (state.confirmed or 0) or word not in _SERVER_STATES[state.closed]:
                self._tools.say(f"{self.path.name}: the server has {rows} rows, {word}: pushing again")
                return False
            write_push_state(self.path, replace(state, settled=True, next_try=None, time=time.time()))
        return True

    def _identity(self) -> Identity:
        identity = read_identity(self.path)
        if identity is None:
            raise UserError(f"{self.path} holds no run: there is no run.json in it")
        return identity


def newest_segment(run_dir: Path) -> Segment:
    """The first line of the newest file of a journal.

    Raises:
        UserError: There is no journal, or the file is no part of one.
    """
    from tracking.journal.lines import parse, segment_path

    position = journal_position(run_dir)
    if position is None:
        raise UserError(f"{run_dir} holds no journal: nothing was logged there")
    with segment_path(run_dir, position.segment).open("rb") as file:
        try:
            header = parse(file.readline())
        except ValueError:
            header = None
    if not isinstance(header, Segment):
        raise UserError(f"{segment_path(run_dir, position.segment)} does not begin with a segment line")
    return header
