"""What has become of the jobs that wrote a journal, in few words.

Where there is no Slurm, or it does not answer in time, nothing is known, and that is no error.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tracking import slurm

JobWord = Literal[
    "pending",
    "running",
    "completed",
    "failed",
    "cancelled",
    "timeout",
    "preempted",
    "node_fail",
    "out_of_memory",
    "unknown",
]

Ending = Literal["preempted", "crashed"]

_ALIVE = ("pending", "running")
# What Slurm has other words for. An ending job counts as running: its tasks may still write.
_SYNONYMS: dict[str, JobWord] = {
    "BOOT_FAIL": "node_fail",
    "COMPLETING": "running",
    "CONFIGURING": "running",
    "DEADLINE": "timeout",
    "LAUNCH_FAILED": "failed",
    "POWER_UP_NODE": "running",
    "RECONFIG_FAIL": "failed",
    "REQUEUED": "pending",
    "REQUEUE_FED": "pending",
    "REQUEUE_HOLD": "pending",
    "RESIZING": "running",
    "RESV_DEL_HOLD": "pending",
    "SIGNALING": "running",
    "SPECIAL_EXIT": "pending",
    "STAGE_OUT": "running",
    "STOPPED": "running",
    "SUSPENDED": "running",
}


@dataclass(frozen=True)
class JobState:
    """What Slurm says about a job.

    Attributes:
        word: Whether it waits or runs (a requeued job waits again), or how it ended.
        restarts: How often it was requeued; None where Slurm does not tell.
        cluster: The cluster that was asked; None where it does not tell.
    """

    word: JobWord
    restarts: int | None = None
    cluster: str | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the job waits or runs."""
        return self.word in _ALIVE


UNKNOWN = JobState("unknown")


def job_states(jobs: Sequence[str], timeout: float = 10.0) -> dict[str, JobState]:
    """Asks Slurm for jobs (`tracking.slurm`).

    Args:
        jobs: Values of SLURM_JOB_ID, which are plain numbers for elements of arrays too.
        timeout: Seconds until all that is not answered counts as unknown.

    Returns:
        A state for each job.
    """
    found, _ = slurm.query(jobs, time.monotonic() + timeout)
    return {job: _in_words(found[job]) if job in found else UNKNOWN for job in jobs}


def ending(segment_job: Mapping[str, Any] | None, state: JobState) -> Ending | None:
    """Tells what a segment without an end record has come to.

    Args:
        segment_job: The job that wrote it, as its first line has it (`tracking.metadata.slurm_facts`); None outside
            Slurm.
        state: What Slurm says about that job now.

    Returns:
        None while the segment may still grow and where nothing is known; `preempted` where the job was taken off its
        nodes and the run goes on, or may; else `crashed`.
    """
    if segment_job is None or state.word == "unknown":
        return None
    cluster = segment_job.get("cluster")
    if cluster and state.cluster and cluster != state.cluster:
        return None  # another cluster's job of the same number
    if state.is_alive:
        # The first attempt of a job has no restart count.
        requeued = state.restarts is not None and state.restarts > (segment_job.get("restart_count") or 0)
        return "preempted" if requeued else None
    return "preempted" if state.word in ("preempted", "timeout") else "crashed"


def _in_words(job: slurm.JobState) -> JobState:
    known: JobWord = next(
        (one for one in get_args(JobWord) if one == job.state.lower()), _SYNONYMS.get(job.state, "unknown")
    )
    # A requeue counts at once, while the tasks of the attempt that it ended have some seconds left to write.
    return JobState(known, None if job.state == "COMPLETING" else job.restarts, job.cluster)
