"""A job's dependencies against what became of the jobs that it waits for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.slurm import ALIVE, JobState, states

_CONDITION = re.compile(r"(afterok|afternotok):([0-9_:+*]+)")


def waited_for(dependency: str) -> list[tuple[str, str]]:
    """The conditions on how a job ended: (`afterok` or `afternotok`, job id).

    Args:
        dependency: As sbatch takes it: `afterok:12:13,afterany:14`.
    """
    return [
        (condition, job.partition("+")[0].removesuffix("_*"))
        for condition, jobs in _CONDITION.findall(dependency)
        for job in jobs.split(":")
        if job
    ]


def dependency_findings(dependency: str, known: Mapping[str, JobState], line: int | None = None) -> Iterator[Finding]:
    """Yields which conditions can never hold, or mean nothing.

    Args:
        dependency: As sbatch takes it.
        known: What Slurm says about the jobs; one that is absent is forgotten.
        line: Where it stands in a script.
    """
    # With `?` one condition is enough.
    found = list(_broken(dependency, known, line))
    if "?" not in dependency or len(found) == len(waited_for(dependency)):
        yield from found


def ask_for(dependency: str) -> Mapping[str, JobState]:
    """Asks Slurm for the jobs that a dependency names.

    Raises:
        SlurmSilent: Slurm did not answer.
    """
    jobs = {job for _, job in waited_for(dependency)}
    return states(jobs) if jobs else {}


def _broken(dependency: str, known: Mapping[str, JobState], line: int | None) -> Iterator[Finding]:
    for condition, job in waited_for(dependency):
        state = known.get(job)
        what = f"dependency {condition}:{job}"
        if state is None:
            yield rules.DEPENDENCY_UNKNOWN(
                f"{what}: Slurm knows no job {job}", "leave it out, or name a job that squeue or sacct shows", line
            )
        elif state.state not in ALIVE | {"UNKNOWN"} and (state.state == "COMPLETED") != (condition == "afterok"):
            yield rules.DEPENDENCY(
                f"{what}: job {job} is {state.state}",
                f"afterany:{job}, and let the job look whether there is something to do; or leave it out",
                line,
            )
