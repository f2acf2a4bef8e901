"""Asking Slurm from a login node: bounded, batched and backed off, for a busy controller answers late or not at all.

The questions themselves stand in `tracking.slurm`, which the sync daemon asks too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tracking.errors import UserError
from tracking.slurm import Answer, JobState, ask, query

__all__ = ["ALIVE", "JobState", "SlurmRefused", "SlurmSilent", "run_slurm", "states"]

ALIVE = frozenset(
    {
        *("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING"),
        *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT", "STAGE_OUT", "POWER_UP_NODE"),
        "RECONFIG_FAIL",
    }
)
"""States of a job that waits or runs; one that is ending counts, because its tasks may still write."""

# What Slurm's commands say where the daemon behind them is down, restarting or overloaded.
_SILENCE = (
    *("Unable to contact", "timed out", "Connection refused", "Zero Bytes", "connection failure", "connect failure"),
    *("Resource temporarily unavailable", "Transport endpoint", "standby mode", "Connection reset", "rate limit"),
    *("Unexpected message", "Unable to establish", "Slurm temporarily unable", "authentication error", "Broken pipe"),
    *("did not answer in time", "Problem talking to", "Slurm accounting storage is disabled"),
)
_PAUSES = (0.5, 2.0, 5.0)
# A question that hangs must leave time for the one that is asked instead.
_SHARE = 0.4


class SlurmRefused(UserError):
    """Slurm answered, with a no; the message holds its words."""

    exit_code = 1


class SlurmSilent(UserError):
    """Slurm did not answer, or answered what nobody can read."""

    exit_code = 1


@dataclass
class _Patience:
    """How long a command that failed is left alone: each time twice as long, ten minutes at most."""

    pause: float = 0.0
    until: float = 0.0

    def failed(self) -> None:
        self.pause = min(max(15.0, 2 * self.pause), 600.0)
        self.until = time.monotonic() + self.pause

    def answered(self) -> None:
        self.pause = self.until = 0.0


_accounting = _Patience()


def run_slurm(command: Sequence[str], timeout: float = 30.0, *, tries: int = 1) -> str:
    """Runs one Slurm command.

    Args:
        command: The command with its arguments.
        timeout: Seconds until it counts as silent, over all tries.
        tries: How often it is run at most where Slurm is silent; more than once only for what changes nothing.

    Returns:
        What it printed.

    Raises:
        SlurmRefused: It said no.
        SlurmSilent: Slurm did not answer in time, or the command is not on the PATH.
    """
    answer = _persist(command, time.monotonic() + timeout, tries)
    if answer.output is not None and not answer.problem:
        return answer.output
    if answer.output is None and (_is_silence(answer) or _is_absent(answer)):
        raise SlurmSilent(f"Slurm did not answer: {answer.problem}\n  next: try again, or see `scontrol ping`")
    raise SlurmRefused(f"{command[0]} refused: {answer.problem}")


def states(job_ids: Iterable[str], timeout: float = 20.0) -> dict[str, JobState]:
    """Asks for many jobs at once.

    squeue is asked first, sacct for jobs that have left the queue, and scontrol where squeue does not answer. A sacct
    that fails is left alone for a while by this process, the longer the more often it fails.

    Args:
        job_ids: Slurm's numbers; `12_3` for an element of an array.
        timeout: Seconds for all questions together.

    Returns:
        A state for each job. One that is absent neither waits nor runs, and nobody remembers how it ended; one that is
        `UNKNOWN` could not be asked for.

    Raises:
        SlurmSilent: Nothing is known of any job, because Slurm did not answer.
    """
    wanted = list(job_ids)
    found, problems = query(wanted, time.monotonic() + timeout, _ask_with_patience)
    if not any(problem.command == "scontrol" for problem in problems):
        return found
    said = "; ".join(str(problem) for problem in problems)
    if not found:
        raise SlurmSilent(f"Slurm did not answer: {said}\n  next: try again, or see `scontrol ping`")
    return {job: found.get(job, JobState(job, "UNKNOWN", said)) for job in wanted}


def _ask_with_patience(command: Sequence[str], deadline: float) -> Answer:
    now = time.monotonic()
    own_deadline = now + _SHARE * (deadline - now)
    if command[0] != "sacct":
        return _persist(command, own_deadline, tries=1 + len(_PAUSES))
    if now < _accounting.until:
        return Answer(None, f"sacct has failed and is asked again in {_accounting.until - now:.0f} s")
    answer = ask(command, deadline)
    if answer.output is None:
        _accounting.failed()
    else:
        _accounting.answered()
    return answer


def _persist(command: Sequence[str], deadline: float, tries: int) -> Answer:
    """Asks again where Slurm is silent, after a longer pause each time, while there is time."""
    for pause in (*_PAUSES[: tries - 1], None):
        answer = ask(command, deadline)
        if pause is None or not _is_silence(answer) or time.monotonic() + pause >= deadline:
            break
        time.sleep(pause)
    return answer


def _is_silence(answer: Answer) -> bool:
    return answer.output is None and any(words.lower() in answer.problem.lower() for words in _SILENCE)


def _is_absent(answer: Answer) -> bool:
    return answer.problem.endswith("No such file or directory")
