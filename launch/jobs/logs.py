"""The logs of a run: one file a rank and job, written on while a job is requeued."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launch.jobs.folders import RunFolder
from launch.places import ROOT
from tracking.errors import UserError

_READ_BYTES = 2**20
# Slurm is asked rarely; whether the run is done is seen in its folder.
_SECONDS_BETWEEN_QUESTIONS = 5.0
# A requeued job shows how its last attempt ended for a moment.
_SECONDS_UNTIL_SURE = 5.0
# After the done record the batch script has some words left.
_SECONDS_OF_SILENCE = 3.0


def rank_logs(run: RunFolder, job_id: str | None) -> dict[int, Path]:
    """The log of each rank of one job.

    Args:
        run: Its run.
        job_id: The job; None finds nothing.

    Returns:
        Those that there are; rank 0's also holds what the batch script says. The smoke scripts write one for all ranks.
    """
    if job_id is None:
        return {}
    form = re.compile(rf"{re.escape(job_id)}_(\d+)_log\.out")
    try:
        names = [(form.fullmatch(path.name), path) for path in run.log_dir.iterdir()]
    except OSError:
        names = []
    found = {int(match[1]): path for match, path in names if match is not None}
    if found:
        return found
    common = [path for folder in (ROOT / "logs", ROOT) for path in folder.glob(f"*[_-]{job_id}.out")]
    return {0: common[0]} if common else {}


def log_of(run: RunFolder, job_id: str | None, rank: int) -> Path:
    """The log of a rank.

    Raises:
        UserError: There is none, or none yet.
    """
    logs = rank_logs(run, job_id)
    if rank in logs:
        return logs[rank]
    if logs:
        there = f"{min(logs)} to {max(logs)}" if len(logs) > 1 else str(*logs)
        raise UserError(f"rank {rank} of {run.name} has no log; there is rank {there}")
    raise UserError(
        f"job {job_id} of {run.name} has written no log yet in {run.log_dir}\n"
        f"  next: python -m launch.jobs status {run.name}"
    )


def last_lines(path: Path, count: int) -> tuple[list[str], int]:
    """The last lines of a log.

    Returns:
        The lines, and where in the file they end.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        begin = size
        text = b""
        while begin > 0 and text.count(b"\n") <= count and size - begin < _READ_BYTES:
            begin = max(0, begin - 2**16)
            file.seek(begin)
            text = file.read(size - begin)
    lines = text.decode(errors="replace").splitlines()
    return [_last_state(line) for line in lines[-count:]], size


def follow(
    find_log: Callable[[], Path | None],
    state: Callable[[], tuple[str, bool]],
    is_done: Callable[[], bool],
    offset: tuple[Path | None, int] = (None, 0),
    interval: float = 0.5,
) -> Iterator[str]:
    """Yields what is written to a run's log, over requeues and further jobs, until the run is done or has ended.

    Args:
        find_log: The log that is written now; None while there is none.
        state: What the run does, in words, and whether it is over.
        is_done: Whether the run is complete; asked often.
        offset: A log, and how much of it has been shown.
        interval: Seconds between two looks.
    """
    path, at = offset
    said, asked_at, over_since, rest, heard_at = "", float("-inf"), None, "", time.monotonic()
    while True:
        done, now = is_done(), time.monotonic()
        if now - asked_at >= _SECONDS_BETWEEN_QUESTIONS:
            asked_at = now
            words, over = state()
            if words != said:
                yield f"[{time.strftime('%H:%M:%S')}] {words}"
                said = words
            over_since = (over_since or now) if over else None
        newest = find_log()
        if newest != path:
            path, at, rest = newest, 0, ""
        text, at = _added(path, at) if path is not None else ("", at)
        if text:
            heard_at = now
            *lines, rest = (rest + text).split("\n")
            yield from (_last_state(line) for line in lines)
        silent = now - heard_at > _SECONDS_OF_SILENCE
        if (done and silent) or (not done and over_since is not None and now - over_since > _SECONDS_UNTIL_SURE):
            if rest:
                yield _last_state(rest)
            return
        time.sleep(interval)


def _added(path: Path, at: int) -> tuple[str, int]:
    try:
        with path.open("rb") as file:
            # A job that starts from the beginning may have made it anew.
            file.seek(at if at <= path.stat().st_size else 0)
            content = file.read()
            return content.decode(errors="replace"), file.tell()
    except OSError:
        return "", at


def _last_state(line: str) -> str:
    """Of a progress bar, which draws one line again and again, what is to be seen."""
    return line.rstrip("\r").rpartition("\r")[2]
