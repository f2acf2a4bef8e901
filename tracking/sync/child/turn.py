"""A child's turn to push its run: it waits while another process does, for example a daemon that was there first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tracking.journal import End, Follower, Row
from tracking.sync.child.parent import Parent
from tracking.sync.claims import Claim, Holder, Observer

_LOOK_S = 2.0


@dataclass(frozen=True)
class Left:
    """The segment ended while another process pushed the run, which goes on with it.

    Attributes:
        holder: That process.
        rows: How many rows the run has.
    """

    holder: Holder
    rows: int


def await_turn(run_dir: Path, segment: int | None, parent: Parent) -> Claim | Left:
    """Waits until nobody else pushes a run, or until the segment has ended.

    Args:
        run_dir: The run folder.
        segment: The segment that the parent writes.
        parent: The training process.

    Raises:
        OSError: The run folder cannot be written.
    """
    observer, follower = Observer(), Follower(run_dir)
    ended, rows = False, 0
    while True:
        claim = Claim.take(run_dir, "child", observer)
        if claim is not None:
            return claim
        gone = parent.is_gone()
        for event in follower.poll():
            ended = isinstance(event, End)
            rows = event.n + 1 if isinstance(event, Row) else rows
        superseded = segment is not None and follower.segment > segment
        holder = observer.holder(run_dir)
        if holder is not None and (gone or ended or superseded):
            return Left(holder, rows)
        parent.wait(_LOOK_S)
