"""Feeding a view from a journal until the journal ends."""

from __future__ import annotations

import os
import select
import sys
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
from tracking.sync.offline import OfflineView
from tracking.sync.online import OnlineView
from tracking.sync.status import State, SyncStatus, write_status
from tracking.sync.task import Task
from tracking.sync.view import Shown, View

_POLL_S = 1.0
_STATUS_S = 5.0


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
    gone = parent.is_gone()
    follower = Follower(task.run_dir)
    events = follower.poll()
    view = _open(task, events)
    progress.start = view.replay.next_row
    status_due = 0.0
    while True:
        _apply(task, view, follower, events)
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
        view.check()
        parent.wait(_POLL_S)
        # Asked before the journal is read: what the parent wrote last is then in what is read.
        gone = parent.is_gone()
        events = follower.poll()
    _write(task, view, "done", view.close(end))
    return True


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


def _open(task: Task, events: list[Event]) -> View:
    identity = read_identity(task.run_dir)
    if identity is None:
        raise UserError(f"{task.run_dir} holds no run: there is no run.json in it")
    last = next((event for event in reversed(events) if isinstance(event, Segment)), None)
    labels = Labels(last.tags, last.group, last.job_type, last.notes) if last is not None else NO_LABELS
    if task.mode == "online":
        return OnlineView(identity, labels, task.run_dir, task.wandb_dir, task.finish_timeout)
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
    try:
        write_status(task.run_dir, status)
    except OSError as error:
        print(f"sync.json cannot be written: {error}", flush=True)
