"""Following a run to its end. The done record says that it is complete, nothing else does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}
_OVER |= {"FINISHED", "INTERRUPTED"}  # submitit's words for a job on this machine
# A job that Slurm requeues shows the state of its last attempt for a moment.
_SECONDS_UNTIL_SURE = 5.0
_SECONDS_BETWEEN_LOG_LINES = 5.0
_LINE_LIMIT = 110


def slurm_state(job_id: str) -> str | None:
    """Asks Slurm for a job.

    Returns:
        Its state and the reason, `PENDING (Resources)`; `UNKNOWN` where Slurm did not answer; None where it has
        forgotten the job.
    """
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T|%r|%N"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "UNKNOWN"
    if answer.returncode != 0:
        return None if "Invalid job id" in answer.stderr else "UNKNOWN"
    if not answer.stdout.strip():
        return None
    state, reason, nodes = answer.stdout.splitlines()[0].split("|")
    detail = nodes or (reason if reason != "None" else "")
    return f"{state} ({detail})" if detail else state


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
        if current != shown_state:
            print(f"[{time.strftime('%H:%M:%S')}] {current or 'gone from the queue'}", flush=True)
            shown_state = current
        if now >= next_line_at and (line := last_line(log)) != shown_line:
            print(f"    {line[:_LINE_LIMIT]}", flush=True)
            shown_line, next_line_at = line, now + _SECONDS_BETWEEN_LOG_LINES
        if current is None or current.split()[0] in _OVER:
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
