"""Following a run to its end. The done record says that it is complete, nothing else does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.slurm import ALIVE, SlurmSilent, states

# A job that Slurm requeues shows the state of its last attempt for a moment.
_SECONDS_UNTIL_SURE = 5.0
_SECONDS_BETWEEN_LOG_LINES = 5.0
_LINE_LIMIT = 110


def slurm_state(job_id: str) -> str | None:
    """Asks Slurm for a job.

    Returns:
        Its state with the reason or its nodes, `PENDING (Resources)`; `UNKNOWN` where Slurm did not answer; None where
        nobody remembers the job.
    """
    return _one_of([job_id])


def _one_of(jobs: Sequence[str]) -> str | None:
    """The state of the first job that waits or runs, else of the last one that somebody remembers."""
    try:
        known = states(jobs)
    except SlurmSilent:
        return "UNKNOWN"
    found = [known[job] for job in jobs if job in known]
    if not found:
        return None
    job = next((one for one in found if one.state in ALIVE), found[-1])
    detail = job.node_list or job.reason
    return f"{job.state} ({detail})" if detail else job.state


def _is_over(state: str | None) -> bool:
    return state is None or state.split()[0] not in ALIVE | {"UNKNOWN"}


def follow(run_dir: Path, log: Path, state: Callable[[], str | None], interval: float = 1.0) -> bool:
    """Prints what becomes of a run, until it is complete or its job is over.

    Args:
        run_dir: The run folder.
        log: The log of its first task, whose last line is shown now and then.
        state: Asks for the state of the job.
        interval: Seconds between two looks.

    Returns:
        Whether the run is complete.
    """
    shown_state: str | None = ""
    shown_line, next_line_at, over_since = "", 0.0, None
    while not (run_dir / "done.json").is_file():
        now, current = time.monotonic(), state()
        if _is_over(current) and (links := sorted(run_dir.glob("links/[0-9]*.json"), key=lambda path: int(path.stem))):
            # Where Slurm must not requeue, a run goes on in another job.
            current = _one_of([path.stem for path in links])
        if current != shown_state:
            print(f"[{time.strftime('%H:%M:%S')}] {current or 'gone from the queue'}", flush=True)
            shown_state = current
        if now >= next_line_at and (line := last_line(log)) != shown_line:
            print(f"    {line[:_LINE_LIMIT]}", flush=True)
            shown_line, next_line_at = line, now + _SECONDS_BETWEEN_LOG_LINES
        if _is_over(current):
            over_since = over_since or now
            if now - over_since > _SECONDS_UNTIL_SURE:
                return False
        else:
            over_since = None
        time.sleep(interval)
    return True


def last_line(log: Path) -> str:
    """Reads the last line of a log that holds something; empty where there is no log yet."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").replace("\r", "\n").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
