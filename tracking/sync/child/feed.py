"""Feeding a view from a journal until the journal ends."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tracking.errors import UserError
from tracking.files import fsync_file
from tracking.identity import read_identity
from tracking.journal import End, Event, Follower, Segment
from tracking.journal.lines import segment_path
from tracking.labels import NO_LABELS, Labels
from tracking.sync.child.parent import Parent
from tracking.sync.child.status import State, SyncStatus, write_status
from tracking.sync.child.task import Task
from tracking.sync.child.turn import Left, await_turn
from tracking.sync.claims import Heart, Holder
from tracking.sync.pushed import journal_position
from tracking.sync.views.offline import OfflineView
from tracking.sync.views.online import OnlineView, Patience
from tracking.sync.views.view import Shown, StreamLostError, View

_POLL_S = 1.0
_STATUS_S = 5.0
# `wandb sync` would write the folder's row 0 over the row 0 that is there.
_ADOPTED = "W&B may have rows of this run from elsewhere, behind which an offline folder cannot continue"


@dataclass
class Progress:
    """How far a feed came, for whoever decides what is tried next.

    Attributes:
        start: How many rows the server had when the view opened; None when it did not open.
        rows: How many rows were given.
        ended: Whether the journal has ended.
    """

    start: int | None = None
    rows: int = 0
    ended: bool = False


def feed(task: Task, progress: Progress) -> bool:
    """Replays the journal until it ends.

    Args:
        task: What to do.
        progress: Kept up to date.

    Returns:
        False when a later segment of the run began, which has a child of its own: W&B's run is then left open.

    Raises:
        UserError: The run folder holds no run, or W&B's folder cannot be written.
        NotConfirmedError: The server does not have everything at the end.
        Exception: Whatever W&B raises.
    """
    parent = Parent(task.parent)
    identity = read_identity(task.run_dir)
    if task.mode == "offline" and identity is not None and identity.adopted:
        _write_status(task, SyncStatus(task.segment or 0, "offline", "left", error=_ADOPTED))
        return True
    if task.mode == "offline":
        return _feed(task, progress, parent, None)
    claim = await_turn(task.run_dir, task.segment, parent)
    if isinstance(claim, Left):
        words = f"another process pushes this run ({claim.holder})"
        _write_status(task, SyncStatus(task.segment or 0, "online", "left", rows=claim.rows, error=words))
        return True
    heart = Heart()
    heart.keep(claim)
    try:
        return _feed(task, progress, parent, heart)
    finally:
        heart.release(claim)


def _feed(task: Task, progress: Progress, parent: Parent, heart: Heart | None) -> bool:
    gone = parent.is_gone()
    follower = Follower(task.run_dir)
    position = journal_position(task.run_dir)
    events = follower.poll()
    view = _open(task, events)
    progress.start = view.replay.next_row
    status_due = 0.0
    while True:
        _apply(task, view, follower, events)
        if position is not None:
            view.given(position)
        progress.rows = view.replay.next_row
        if task.segment is not None and follower.segment > task.segment:
            view.abandon()
            return False
        end = events[-1] if events and isinstance(events[-1], End) else None
        progress.ended = end is not None or gone
        if progress.ended:
            break
        if time.monotonic() >= status_due:
            _sync_journal(task, follower)
            _write(task, view, "running")
            status_due = time.monotonic() + _STATUS_S
        if heart is not None and heart.lost.is_set():
            raise StreamLostError("another process has taken the run over")
        view.check()
        parent.wait(_POLL_S)
        # Asked before the journal is read: what was written last is then in what is read.
        gone = parent.is_gone()
        position = journal_position(task.run_dir)
        events = follower.poll()
    _write(task, view, "done", view.close(end))
    return True


def _open(task: Task, events: list[Event]) -> View:
    identity = read_identity(task.run_dir)
    if identity is None:
        raise UserError(f"{task.run_dir} holds no run: there is no run.json in it")
    last = next((event for event in reversed(events) if isinstance(event, Segment)), None)
    labels = Labels(last.tags, last.group, last.job_type, last.notes) if last is not None else NO_LABELS
    if task.mode == "online":
        patience = Patience.of_child(task.finish_timeout)
        by = Holder.this_process("child")
        return OnlineView(task.run_dir, identity, labels, wandb_dir=task.wandb_dir, patience=patience, by=by)
    return OfflineView(identity, labels, task.run_dir, task.wandb_dir)


def _apply(task: Task, view: View, follower: Follower, events: list[Event]) -> None:
    if events and task.mode == "online":
        # What the server has seen must be in the journal even after a power cut.
        _sync_journal(task, follower)
    view.replay.apply(events)


def _sync_journal(task: Task, follower: Follower) -> None:
    """Makes the journal durable from here, which spares the training process the wait and shows it to other hosts."""
    with suppress(OSError):  # a full disk; the training process says so
        fsync_file(segment_path(task.run_dir, follower.segment))


def _write(task: Task, view: View, state: State, shown: Shown | None = None) -> None:
    folder: Path | None = shown.folder if shown is not None else None
    status = SyncStatus(
        segment=task.segment or 0,
        mode=task.mode,
        state=state,
        rows=view.replay.next_row,
        confirmed=shown.confirmed if shown is not None else None,
        folder=str(folder) if folder is not None else None,
        url=view.url,
        error=task.reason,
    )
    _write_status(task, status)


def _write_status(task: Task, status: SyncStatus) -> None:
    try:
        write_status(task.run_dir, status)
    except OSError as error:
        print(f"sync.json cannot be written: {error}", flush=True)
