"""The sync engine as a child of rank 0: `python -m tracking.sync.child RUN --wandb-dir DIR --mode offline`.

It follows the journal while the training process lives and ends by itself: when the segment's end is written, or when
its parent is gone, and then the W&B run counts as crashed. Without `--parent` it replays what is there and ends.

Whatever fails here fails in this process alone. W&B's service dies of the TERM that Slurm sends to every process of a
job; the child then begins again from row 0 in a fresh process, which the offline form allows at any time.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from tracking.errors import UserError
from tracking.identity import read_identity
from tracking.journal import End, Event, Follower, Segment
from tracking.sync import offline
from tracking.sync.engine import Replay, SyncMode, close_run, open_run
from tracking.sync.status import State, SyncStatus, write_status

_ATTEMPTS = 3
_POLL_S = 1.0
_STATUS_S = 5.0

# Set by users for runs of their own; here they would change the id or attach to a service of the training process.
_FOREIGN = ("WANDB_RESUME", "WANDB_RUN_ID", "WANDB_SERVICE", "WANDB_MODE", "WANDB_DIR", "WANDB_DISABLED")


@dataclass(frozen=True)
class Task:
    """What one child does.

    Attributes:
        run_dir: The run folder.
        wandb_dir: The folder that holds W&B's `wandb`.
        mode: Where the rows go.
        parent: The training process, or None to replay what is there and end.
        segment: The segment that the parent writes; the last one without a parent.
        attempt: How often this child has begun, from 1.
    """

    run_dir: Path
    wandb_dir: Path
    mode: SyncMode
    parent: int | None
    segment: int | None
    attempt: int


def main() -> int:
    """Runs the child; returns its exit code."""
    task = _parse(sys.argv[1:])
    # Training has the first call on the node's cores.
    os.nice(10)
    for name in _FOREIGN:
        os.environ.pop(name, None)
    try:
        follow(task)
    except UserError as error:
        return _failed(task, str(error))
    except Exception:  # noqa: BLE001 - whatever W&B raises, the answer is the same: once more, from the journal
        traceback.print_exc()
        if task.attempt < _ATTEMPTS:
            _begin_again(task)
        return _failed(task, traceback.format_exc().splitlines()[-1])
    return 0


def follow(task: Task) -> None:
    """Replays the journal until it ends.

    Raises:
        UserError: The run folder holds no run, or W&B's folder cannot be written.
        wandb.Error: W&B failed.
    """
    identity = read_identity(task.run_dir)
    if identity is None:
        raise UserError(f"{task.run_dir} holds no run: there is no run.json in it")
    follower = Follower(task.run_dir)
    parent = _Parent(task.parent)
    gone = parent.is_gone()
    events = follower.poll()
    building = offline.make_building_folder(task.wandb_dir, identity.run_id) if task.mode == "offline" else None
    run = open_run(identity, mode=task.mode, directory=building or task.wandb_dir, tags=_tags(events))
    replay = Replay(run, start=0 if building else run.step)
    status_due = 0.0
    while True:
        replay.apply(events)
        if task.segment is not None and follower.segment > task.segment:
            _leave_to_successor(task, replay, building)
            return
        end = events[-1] if events and isinstance(events[-1], End) else None
        if end is not None or gone:
            break
        if time.monotonic() >= status_due:
            write_status(task.run_dir, _status(task, "running", replay.next_row))
            status_due = time.monotonic() + _STATUS_S
        parent.wait(_POLL_S)
        # Asked before the journal is read: what the parent wrote last is then in what is read.
        gone = parent.is_gone()
        events = follower.poll()
    close_run(run, end)
    folder = offline.publish(building, task.wandb_dir, identity.run_id) if building else None
    write_status(task.run_dir, _status(task, "done", replay.next_row, folder=folder))


class _Parent:
    """The training process as its child sees it.

    A line on stdin means that there is something to read. The end of stdin alone would not tell that the parent died:
    its DataLoader workers hold copies of the pipe.
    """

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._closed = pid is None

    def is_gone(self) -> bool:
        return self._closed or os.getppid() != self._pid

    def wait(self, timeout: float) -> None:
        ready, _, _ = select.select([sys.stdin.fileno()], [], [], timeout)
        if ready and not os.read(sys.stdin.fileno(), 4096):
            self._closed = True


def _tags(events: list[Event]) -> tuple[str, ...]:
    return next((event.tags for event in reversed(events) if isinstance(event, Segment)), ())


def _leave_to_successor(task: Task, replay: Replay, building: Path | None) -> None:
    replay.run.finish(exit_code=1)
    if building is not None:
        shutil.rmtree(building, ignore_errors=True)
    write_status(task.run_dir, _status(task, "replaced", replay.next_row))
    print(f"segment {task.segment} was replaced by a later one; its child takes over")


def _begin_again(task: Task) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = [argument for argument in sys.orig_argv[1:] if not argument.startswith("--attempt=")]
    # W&B's exit handlers would wait for a service that is dead.
    os.execv(sys.executable, [sys.executable, *arguments, f"--attempt={task.attempt + 1}"])


def _failed(task: Task, error: str) -> int:
    print(f"error: {error}", file=sys.stderr)
    write_status(task.run_dir, _status(task, "failed", rows=0, error=error))
    return 1


def _status(task: Task, state: State, rows: int, *, folder: Path | None = None, error: str | None = None) -> SyncStatus:
    return SyncStatus(
        segment=task.segment or 0,
        mode=task.mode,
        state=state,
        rows=rows,
        folder=str(folder) if folder else None,
        error=error,
    )


def _parse(arguments: list[str]) -> Task:
    parser = argparse.ArgumentParser(prog="python -m tracking.sync.child", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--wandb-dir", type=Path, required=True)
    parser.add_argument("--mode", choices=("online", "offline"), default="offline")
    parser.add_argument("--parent", type=int)
    parser.add_argument("--segment", type=int)
    parser.add_argument("--attempt", type=int, default=1)
    return Task(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
