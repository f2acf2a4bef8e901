"""What the batch script does after srun: done, end, or requeue.

Each attempt leaves one record in RUN/attempts. Slurm itself requeues after a lost node and the stop protocol after a
planned stop; everything else (a rank killed, a crash) comes here, and goes on only while attempts make progress.

In a chain of jobs nothing but these records ends what hangs for ever. So each attempt there marks that it has begun,
and the next one decides about it where it left no record: killed with its batch script, or by the time limit.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from os import environ
from pathlib import Path
from typing import Annotated

import typer

from gilbreth_phase0.stop import CHAIN, REQUEUE_EXIT_CODE
from tracking.checkpoints import newest_step
from tracking.files import read_json, write_json
from tracking.ownership import AttemptKey, OwnershipLostError, owner_of

REFUSED_EXIT_CODE = 2
"""Refused input: no requeue can mend it."""

MAX_ATTEMPTS = 50
"""How many attempts a run may have where nothing else is said: more than a week of four-hour jobs."""

VARIABLE = "GILBRETH_MAX_ATTEMPTS"
"""How the batch script says it: `resources.max_segments`."""

_ATTEMPTS_WITHOUT_PROGRESS = 2

# Slurm kills what ignores TERM after 30 s, as a rule.
_SECONDS_FOR_AN_END = 120.0

_BEGUN = ".begun"
"""Ending of an attempt's mark, beside its record; chain.sh removes it where the attempt shall not count."""


class Outcome(StrEnum):
    """What becomes of the job after an attempt."""

    DONE = "done"
    END = "end"
    REQUEUE = "requeue"


_SHELL_CODES = {Outcome.DONE: 0, Outcome.END: 1, Outcome.REQUEUE: 75}


@dataclass(frozen=True)
class AttemptRecord:
    """How one attempt ended.

    Attributes:
        key: The attempt (`1234-000`).
        exit_code: srun's exit code; None where the attempt asked for the requeue itself, or left no record of its own.
        step: Step of the newest checkpoint when it ended.
        outcome: What was decided.
        reason: Why, in plain words.
        time: Seconds since the epoch.
        collected: Roll-outs and rounds of DAgger that there were.
    """

    key: str
    exit_code: int | None
    step: int
    outcome: Outcome
    reason: str
    time: float
    collected: int = 0


def claim_requeue(run_dir: Path, key: AttemptKey) -> bool:
    """Asks, for an attempt that stopped by itself and has saved, whether it may have itself requeued.

    The answer is recorded, so that the batch script does not requeue it a second time.
    """
    record = decide(run_dir, None, key, int(environ.get(VARIABLE, MAX_ATTEMPTS)), cancelled=False)
    keep(run_dir, record)
    print(f"{record.outcome.value}: {record.reason}", flush=True)
    return record.outcome is Outcome.REQUEUE


def begin(run_dir: Path, key: AttemptKey, max_attempts: int) -> AttemptRecord | None:
    """Takes note that an attempt of a chain begins, and decides about those before it that left no record.

    Args:
        run_dir: The run folder.
        key: The attempt that begins; all others are over, because the jobs of a chain run one after the other.
        max_attempts: How many attempts a run may have in all.

    Returns:
        The decision that ends the run; None where it goes on, with this attempt.
    """
    for earlier in _unrecorded(run_dir):
        if earlier != key and _job_state(earlier.job_id) in ("CANCELLED", "PREEMPTED"):
            _mark(run_dir, earlier).unlink(missing_ok=True)  # it did not end by itself, and says nothing about the run
        elif earlier != key:
            record = decide(run_dir, None, earlier, max_attempts, cancelled=False, why=f"attempt {earlier} was cut off")
            keep(run_dir, record)
            if record.outcome is not Outcome.REQUEUE:
                return record
    # At the time limit the next job may begin before the one before it could cancel it.
    before = f"{_job_before(run_dir, key)}-"
    for record in read_attempts(run_dir):
        if record.key.startswith(before) and record.outcome is Outcome.END:
            return record
    _mark(run_dir, key).parent.mkdir(exist_ok=True)
    write_json(_mark(run_dir, key), {"time": time.time()})
    return None


def _mark(run_dir: Path, key: AttemptKey) -> Path:
    return run_dir / "attempts" / f"{key}{_BEGUN}"


def _job_before(run_dir: Path, key: AttemptKey) -> str | None:
    """The job of the chain that this one was queued behind; None for one that was submitted by itself."""
    link = read_json(run_dir / "links" / f"{key.job_id}.json") or {}
    return str(link["after"]) if "after" in link else None


def cancelled_before(run_dir: Path, key: AttemptKey) -> str | None:
    """The job before this one in a chain, where it was cancelled: `scancel` ends the chain, not one job of it.

    Slurm lets the next job begin while the tasks of the one before are still being ended, so this waits for that.
    """
    job = _job_before(run_dir, key)
    if job is None:
        return None
    deadline = time.monotonic() + _SECONDS_FOR_AN_END
    while (state := _job_state(job)) == "COMPLETING" and time.monotonic() < deadline:
        time.sleep(1)
    return job if state == "CANCELLED" else None


def _unrecorded(run_dir: Path) -> Iterator[AttemptKey]:
    """The attempts that have begun and left no record, the first one first."""
    for mark in sorted((run_dir / "attempts").glob(f"*{_BEGUN}"), key=lambda path: path.stat().st_mtime):
        if not mark.with_suffix(".json").is_file():
            job_id, _, restarts = mark.stem.rpartition("-")
            yield AttemptKey(job_id, int(restarts))


def decide(
    run_dir: Path,
    exit_code: int | None,
    key: AttemptKey,
    max_attempts: int,
    cancelled: bool,
    *,
    why: str | None = None,
) -> AttemptRecord:
    """Decides what follows an attempt.

    Args:
        run_dir: The run folder.
        exit_code: srun's exit code; None where the attempt itself asks, after a planned stop, or where nobody knows it.
        key: The attempt that ended.
        max_attempts: How many attempts a run may have in all.
        cancelled: Whether Slurm says that the job was cancelled.
        why: How it ended, where the exit code does not tell.

    Returns:
        The decision and its reason; not yet written.
    """
    earlier = [record for record in read_attempts(run_dir) if record.key != str(key)]
    own = next((record for record in read_attempts(run_dir) if record.key == str(key)), None)
    step, collected = newest_step(run_dir / "checkpoints"), _collected(run_dir)
    # Where a run starts counts too: two attempts that come to no checkpoint are as hopeless.
    before = [(0, 0), *((record.step, record.collected) for record in earlier)][-_ATTEMPTS_WITHOUT_PROGRESS:]
    if (run_dir / "done.json").is_file():
        outcome, reason = Outcome.DONE, f"the run is complete (step {read_json(run_dir / 'done.json')['step']})"
    elif exit_code == REFUSED_EXIT_CODE:
        outcome, reason = Outcome.END, "the input was refused (exit code 2); see the error above"
    elif cancelled:
        outcome, reason = Outcome.END, "the job was cancelled"
    elif exit_code == OwnershipLostError.exit_code or _was_succeeded(run_dir, key):
        outcome, reason = Outcome.END, "a later attempt has taken the run"
    elif own is not None:
        already = own.outcome is Outcome.REQUEUE
        outcome, reason = Outcome.END, "this attempt has been requeued already" if already else own.reason
    elif len(earlier) + 1 >= max_attempts:
        outcome, reason = Outcome.END, f"{len(earlier) + 1} attempts have been made, {max_attempts} are allowed"
    elif len(before) == _ATTEMPTS_WITHOUT_PROGRESS and min(before) == (step, collected):
        outcome, reason = Outcome.END, f"{len(before)} attempts in a row made no progress from step {step}"
    else:
        why = why or ("planned stop" if exit_code in (None, 0, REQUEUE_EXIT_CODE) else f"exit code {exit_code}")
        outcome, reason = Outcome.REQUEUE, f"{why}, newest checkpoint at step {step}"
    return AttemptRecord(str(key), exit_code, step, outcome, reason, time.time(), collected)


def _collected(run_dir: Path) -> int:
    """What a run of DAgger has besides checkpoints: each roll-out is kept, and so is what came of a round."""
    return sum(1 for name in ("rollouts/seed-*.npz", "round.json") for _ in run_dir.glob(f"rounds/*/{name}"))


def _was_succeeded(run_dir: Path, key: AttemptKey) -> bool:
    owner = owner_of(run_dir)
    return owner is not None and owner.job_id == key.job_id and owner.restart_count > key.restart_count


def read_attempts(run_dir: Path) -> list[AttemptRecord]:
    """Reads the records of a run's attempts, in the order in which they ended."""
    values = [read_json(path) for path in (run_dir / "attempts").glob("*.json")]
    records = [AttemptRecord(**{**value, "outcome": Outcome(value["outcome"])}) for value in values]
    return sorted(records, key=lambda record: record.time)


def keep(run_dir: Path, record: AttemptRecord) -> None:
    """Writes an attempt's record, unless the attempt has left one already."""
    path = run_dir / "attempts" / f"{record.key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_json(path, asdict(record))


def was_cancelled(job_id: str) -> bool:
    """Asks Slurm whether a job was cancelled; a Slurm that does not answer is taken for a no."""
    return _job_state(job_id) == "CANCELLED"


def _job_state(job_id: str) -> str:
    """What Slurm says of a job; empty where it does not answer."""
    try:
        answer = subprocess.run(
            ["scontrol", "show", "job", job_id], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        print(f"attempt: scontrol does not tell the state of job {job_id}: {error}")
        return ""
    match = re.search(r"JobState=(\w+)", answer)
    return match[1] if match else ""


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__)


@app.command("decide")
def main(
    run_dir: Annotated[Path, typer.Option(help="The run folder.")],
    exit_code: Annotated[int, typer.Option(help="srun's exit code.")],
    max_attempts: Annotated[
        int, typer.Option(envvar=VARIABLE, help="How many attempts the run may have in all.", min=1)
    ] = MAX_ATTEMPTS,
) -> None:
    """Prints `done|end|requeue: reason` and exits with 0, 1 or 75."""
    key = AttemptKey.from_environment()
    # In a chain nobody asks for a requeue; where TERM came while the batch script asked here, it asks once more.
    before = [one for one in read_attempts(run_dir) if one.key == str(key)] if CHAIN in environ else []
    record = before[0] if before else decide(run_dir, exit_code, key, max_attempts, was_cancelled(key.job_id))
    keep(run_dir, record)
    print(f"{record.outcome.value}: {record.reason}", flush=True)
    raise typer.Exit(_SHELL_CODES[record.outcome])


@app.command("begin")
def main_begin(
    run_dir: Annotated[Path, typer.Option(help="The run folder.")],
    max_attempts: Annotated[
        int, typer.Option(envvar=VARIABLE, help="How many attempts the run may have in all.", min=1)
    ] = MAX_ATTEMPTS,
) -> None:
    """Takes note that an attempt of a chain begins; exits with 1 where those before it say that the run must end."""
    key = AttemptKey.from_environment()
    if (cancelled := cancelled_before(run_dir, key)) is not None:
        # This one is no job of the run's: the run was cancelled with that one.
        (run_dir / "links" / f"{key.job_id}.json").unlink(missing_ok=True)
        print(f"end: job {cancelled} of this chain was cancelled", flush=True)
        raise typer.Exit(1)
    ended = begin(run_dir, key, max_attempts)
    if ended is not None:
        print(f"end: {ended.reason}", flush=True)
        raise typer.Exit(1)


@app.command("show")
def show(run_dir: Annotated[Path, typer.Option(help="The run folder.")]) -> None:
    """Prints the attempts of a run, one JSON line each."""
    for record in read_attempts(run_dir):
        print(json.dumps(asdict(record)))


if __name__ == "__main__":
    app()
