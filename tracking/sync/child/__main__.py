"""The sync engine as a child of rank 0: `python -m tracking.sync.child RUN --wandb-dir DIR --mode offline`.

It follows the journal while the training process lives and ends by itself: when the segment's end is written, or when
its parent is gone, and then the W&B run counts as crashed. Without `--parent` it replays what is there and ends.

Whatever fails here fails in this process alone. W&B's service dies of the TERM that Slurm sends to every process of a
job; the child then begins again in a fresh process, behind what the server has or, offline, from row 0. What the server
does not take in a few attempts goes into an offline folder, so that no run ends without one whole view.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, replace

from tracking.errors import UserError
from tracking.sync.child.feed import Progress, feed
from tracking.sync.child.parent import Parent
from tracking.sync.child.status import SyncStatus, write_status
from tracking.sync.child.task import Task, parse_task
from tracking.sync.probe import probe
from tracking.sync.services import end_services, forget_foreign_settings
from tracking.sync.views.view import NotConfirmedError

_ATTEMPTS = 3
_RETRY_S = 2.0
_NICE = 5


def main() -> int:
    """Runs the child; returns its exit code."""
    task = parse_task(sys.argv[1:], __doc__)
    forget_foreign_settings()
    progress = Progress()
    try:
        if task.mode == "probe":
            task = _ask(task)
        # Training has the first call on the node's cores. It waits for the verdict, so not before that.
        os.nice(max(0, _NICE - os.nice(0)))
        if not feed(task, progress):
            print(f"segment {task.segment} has a successor, whose child goes on", flush=True)
            end_services()
            # W&B's exit handlers would tell the server that the run has ended.
            os._exit(0)
    except UserError as error:
        return _failed(task, progress, str(error))
    except Exception as error:  # noqa: BLE001 - whatever W&B raises, the journal is there to begin again from
        traceback.print_exc()
        following = next_task(task, progress, error)
        if following is None:
            return _failed(task, progress, _line(error))
        if not progress.ended and task.parent is not None:
            Parent(task.parent).wait(_RETRY_S)
        _begin_again(following)
    return 0


def next_task(task: Task, progress: Progress, error: Exception) -> Task | None:
    """Decides what is tried after a failure.

    Args:
        task: What failed.
        progress: How far it came.
        error: What was raised.

    Returns:
        The same task once more, or its offline form with the reason, or None to give up.
    """
    if task.mode == "probe":
        return replace(
            task, mode="offline", verdict_fd=None, attempt=1, reason=f"asking the server failed: {_line(error)}"
        )
    got_further = progress.start is not None and progress.start > task.since
    attempt = 1 if got_further else task.attempt + 1
    if attempt <= _ATTEMPTS and not isinstance(error, NotConfirmedError):
        return replace(task, attempt=attempt, since=max(task.since, progress.start or 0))
    if task.mode == "online":
        return replace(task, mode="offline", attempt=1, since=0, reason=_line(error))
    return None


def _ask(task: Task) -> Task:
    verdict = probe(task.probe_timeout)
    print(f"probe: {verdict}", flush=True)
    if task.verdict_fd is not None:
        # The parent may have stopped waiting; what the server said holds all the same.
        with suppress(BrokenPipeError), os.fdopen(task.verdict_fd, "w") as pipe:
            pipe.write(json.dumps(asdict(verdict)) + "\n")
    return replace(task, mode=verdict.mode, verdict_fd=None, reason=verdict.reason or None)


def _begin_again(task: Task) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    end_services()
    command = [sys.executable, "-P", "-m", "tracking.sync.child", *task.arguments()]
    os.execv(sys.executable, command)


def _failed(task: Task, progress: Progress, error: str) -> int:
    print(f"error: {error}", file=sys.stderr)
    status = SyncStatus(task.segment or 0, task.mode, "failed", rows=progress.rows, error=error)
    with suppress(OSError):  # the log has the same words
        write_status(task.run_dir, status)
    return 1


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
