"""What Slurm says about the jobs that wrote a journal, asked for many at once.

squeue knows jobs that wait or run, and for some minutes those that have ended; sacct knows the others, where there is
accounting. Where there is no Slurm, or it does not answer in time, nothing is known, and that is no error.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

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
# Slurm cuts what is wider than its column, so that each has a width.
_COLUMNS = "JobID:20,State:20,RestartCnt:12,Cluster:64"
# These change what squeue and sacct list, and would hide jobs.
_FILTERS = ("SQUEUE_", "SACCT_")


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
    """Asks Slurm for jobs, with one question to squeue and one to sacct at most.

    Args:
        jobs: Values of SLURM_JOB_ID, which are plain numbers for elements of arrays too.
        timeout: Seconds until all that is not answered counts as unknown.

    Returns:
        A state for each job.
    """
    deadline = time.monotonic() + timeout
    wanted = sorted({job for job in jobs if re.fullmatch(r"[0-9]+", job)})
    found: dict[str, JobState] = {}
    if wanted:
        queued = _ask(
            ["squeue", "--noheader", "--states=all", f"--jobs={','.join(wanted)}", f"--Format={_COLUMNS}"], deadline
        )
        found = dict(_from_squeue(queued or ""))
        if queued is None:
            found = dict(_from_scontrol(wanted, deadline))
    if rest := [job for job in wanted if job not in found]:
        fields = "--format=JobIDRaw,State,Cluster"
        answer = _ask(
            ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(rest)}", fields], deadline
        )
        found |= _from_sacct(answer or "")
    return {job: found.get(job, UNKNOWN) for job in jobs}


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


def _ask(command: Sequence[str], deadline: float) -> str | None:
    """What a Slurm command printed; empty for a job that it does not know, None where it did not answer."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_FILTERS)}
    try:
        answer = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=max(0.0, deadline - time.monotonic()),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode == 0:
        return answer.stdout
    # squeue says so where it was asked for one job alone.
    return "" if "Invalid job id" in answer.stderr else None


def _from_squeue(answer: str) -> Iterator[tuple[str, JobState]]:
    for line in answer.splitlines():
        fields = line.split()
        if len(fields) >= 3:
            job, word, restarts, *cluster = fields
            yield job, _state(word, restarts, cluster[0] if cluster else None)


def _from_sacct(answer: str) -> Iterator[tuple[str, JobState]]:
    for line in answer.splitlines():
        fields = line.split("|")
        if len(fields) == 3:
            job, word, cluster = fields
            yield job, _state(word, None, cluster)


def _from_scontrol(jobs: Sequence[str], deadline: float) -> Iterator[tuple[str, JobState]]:
    """One question a job, for a squeue that refuses the question; without Slurm the first one ends it."""
    for job in jobs:
        answer = _ask(["scontrol", "--oneliner", "show", "job", job], deadline)
        if answer is None:
            return
        for line in answer.splitlines():  # the number of an array brings all its elements
            fields = dict(re.findall(r"\b(JobId|JobState|Restarts)=(\S+)", line))
            if fields.get("JobId") == job:
                yield job, _state(fields.get("JobState", ""), fields.get("Restarts"), None)


def _state(word: str, restarts: str | None, cluster: str | None) -> JobState:
    name = word.partition(" ")[0].rstrip("+")  # `CANCELLED by 1000`
    known: JobWord = next((one for one in get_args(JobWord) if one == name.lower()), _SYNONYMS.get(name, "unknown"))
    # A requeue counts at once, while the tasks of the attempt that it ended have some seconds left to write.
    counted = restarts is not None and restarts.isdigit() and name != "COMPLETING"
    count = int(restarts) if restarts is not None and counted else None
    return JobState(known, count, cluster if cluster and cluster != "N/A" else None)
