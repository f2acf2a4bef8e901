"""One run as its user sees it: what the folder, the journal, the logs and Slurm say, put together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.jobs.causes import Cause, find_cause
from launch.jobs.folders import RunFolder
from launch.jobs.logs import rank_logs
from launch.jobs.progress import Progress, read_progress
from launch.jobs.reasons import explain_reason
from launch.slurm import ALIVE, JobState, SlurmSilent, states
from tracking.words import clock, duration

Word = Literal["submitting", "waits", "stuck", "runs", "ends", "done", "failed", "cancelled", "unknown"]

ONGOING: frozenset[Word] = frozenset({"submitting", "waits", "stuck", "runs", "ends"})
"""What a run is while a job of it waits or runs."""

# A run that logs nothing for so long may hang: saves, evaluations and compilers take minutes.
_SILENT_S = 20 * 60.0


@dataclass(frozen=True)
class RunView:
    """One run.

    Attributes:
        run: Its folder.
        word: What it does, in a word.
        words: The same with what there is to know about it, in one line.
        job_id: The job that stands for it now; None where none is known.
        job: What Slurm says of that job; None where it does not, or was not asked.
        progress: How far it is.
        segment: Which of its jobs that is, from 1.
        of: How many jobs it will take, about; None where nobody can tell.
        ends: When its training is expected to end, in seconds since the epoch, waiting left out; of a run that is over,
            when it ended.
        cause: Why it failed; of a run that goes on after a failed attempt, why that failed.
        advice: What may be done; empty where nothing need be.
    """

    run: RunFolder
    word: Word
    words: str
    job_id: str | None
    job: JobState | None
    progress: Progress
    segment: int
    of: int | None
    ends: float | None
    cause: Cause | None
    advice: str

    @property
    def is_ongoing(self) -> bool:
        """Whether a job of it waits or runs."""
        return self.word in ONGOING


def look_at(runs: Sequence[RunFolder], now: float, *, in_full: bool = False) -> tuple[list[RunView], str | None]:
    """Looks at runs, with one question to Slurm for all that are not complete.

    Args:
        runs: Run folders.
        now: Seconds since the epoch.
        in_full: Read more of each run's journal and logs than a list of many can.

    Returns:
        A view of each, and what went wrong with Slurm; None where nothing did.
    """
    asked = {job for run in runs if run.done is None and run.on_slurm for job in run.jobs if job[:1].isdigit()}
    try:
        known, problem = states(asked), None
    except SlurmSilent as error:
        known, problem = {}, str(error).splitlines()[0]
    return [_view(run, known, problem, now, in_full) for run in runs], problem


def _view(run: RunFolder, known: Mapping[str, JobState], problem: str | None, now: float, in_full: bool) -> RunView:
    progress = read_progress(run, now, in_full=in_full)
    job_id, job = _present_job(run, known)
    word = _word(run, job, silent=problem is not None)
    segment = max(1, progress.segments, len(run.attempts) + (word in ONGOING and bool(run.attempts)))
    went_on = in_full and word in ONGOING and bool(run.attempts) and run.attempts[-1].get("exit_code") is not None
    cause = _cause(run, job_id, None if went_on else job, in_full) if word == "failed" or went_on else None
    if word == "failed":
        words, advice = _failed(run, job, cause, now)
    elif word == "runs":
        words, advice = _running(job, progress, now)
    else:
        words, advice = _words(run, word, job, now)
    return RunView(
        run=run,
        word=word,
        words=words,
        job_id=job_id,
        job=job,
        progress=progress,
        segment=segment,
        of=_segments(run, word, progress, segment),
        ends=_ends(run, word, job, progress, now),
        cause=cause,
        advice=advice,
    )


def _present_job(run: RunFolder, known: Mapping[str, JobState]) -> tuple[str | None, JobState | None]:
    """The job that stands for the run: the one that runs, else one that ends or waits, else the last one.

    Slurm lets the next job of a chain begin while the tasks of the one before are still being ended.
    """
    found = [(job, state) for job in run.jobs if (state := known.get(job)) is not None and _is_of(run, state)]
    for wanted in (ALIVE - {"PENDING", "COMPLETING"}, {"COMPLETING"}, {"PENDING"}):
        for job, state in found:
            if state.state in wanted:
                return job, state
    if found and found[-1][0] == run.jobs[-1]:
        return found[-1]
    return (run.jobs[-1], None) if run.jobs else (None, None)


def _is_of(run: RunFolder, state: JobState) -> bool:
    """Whether a job is the run's: numbers begin again in another cluster, and in a lab that was wiped."""
    return not run.submission or state.name is None or state.name == run.name


def _word(run: RunFolder, job: JobState | None, *, silent: bool) -> Word:
    if run.done is not None:
        return "done"
    if not run.jobs:
        return "submitting" if run.submission.get("state") == "submitting" else "unknown"
    if not run.on_slurm:
        return "runs" if lives_here(run) else "failed"
    if job is None:
        return "unknown" if silent else "failed"
    if job.state == "PENDING" or job.state.startswith("REQUEUE"):
        return "stuck" if explain_reason(job.reason).is_stuck else "waits"
    if job.state in ALIVE:
        return "ends" if job.state == "COMPLETING" else "runs"
    return "cancelled" if job.state == "CANCELLED" else "unknown" if job.state == "UNKNOWN" else "failed"


def lives_here(run: RunFolder) -> bool:
    """Whether the process that controls a job of this machine is alive: its command line names the log folder."""
    number = run.jobs[-1].removeprefix("process-")
    try:
        command = Path("/proc", number, "cmdline").read_bytes()
    except OSError:
        return False
    return str(run.log_dir).encode() in command or str(run.path).encode() in command


def _cause(run: RunFolder, job_id: str | None, job: JobState | None, in_full: bool) -> Cause | None:
    last = run.attempts[-1] if run.attempts else {}
    environment = (run.config.get("cluster") or {}).get("conda_env")
    facts = {
        "stage": run.stage or "STAGE",
        "run": run.name,
        "environment": f"the conda environment {environment}" if environment else "the Python that submitted it",
        "nodes": (job.node_list if job is not None else None) or "NODE",
    }
    refused = "refused" in run.names or last.get("exit_code") == 2
    return find_cause(rank_logs(run, job_id), job, facts, refused=refused, in_full=in_full)


def _words(run: RunFolder, word: Word, job: JobState | None, now: float) -> tuple[str, str]:
    """What the run does in one line, and what may be done about it."""
    if word in ("waits", "stuck") and job is not None:
        reason = explain_reason(job.reason)
        again = "waits to go on" if job.restarts or run.attempts else "waits"
        starts = f"; expected to start {clock(job.start, now)}" if job.start is not None and job.start > now else ""
        return f"{again}: {reason.words}{starts}", reason.advice.replace("{job}", job.job_id)
    if word == "done":
        step, time = (run.done or {}).get("step"), (run.done or {}).get("time")
        ended = f" {clock(float(time), now)}" if isinstance(time, int | float) else ""
        return f"done{ended}" + (f", at step {step:,}" if isinstance(step, int) else ""), ""
    if word == "cancelled":
        return "cancelled" + _when(job, now), f"to take it up again: python -m launch.jobs requeue {run.name}"
    if word == "ends":
        return "ends: its processes are being stopped", ""
    if word == "submitting":
        return "is being submitted, or the command was interrupted", "the next launch.submit there finds out"
    return "nobody can tell: " + ("Slurm did not answer" if run.jobs else "no job of it is known"), ""


def _running(job: JobState | None, progress: Progress, now: float) -> tuple[str, str]:
    parts = ["runs" + (f" on {job.node_list}" if job is not None and job.node_list else "")]
    if job is not None and job.start is not None:
        parts.append(f"for {duration(now - job.start)}")
    if job is not None and job.end is not None:
        parts.append(f"{duration(job.end - now)} left")
    began = max(filter(None, (progress.logged, job.start if job is not None else None)), default=None)
    if began is not None and now - began > _SILENT_S:
        parts.append(f"has logged nothing for {duration(now - began)}")
        return ", ".join(parts), "see whether it hangs: python -m launch.jobs logs"
    return ", ".join(parts), ""


def _failed(run: RunFolder, job: JobState | None, cause: Cause | None, now: float) -> tuple[str, str]:
    attempt = run.attempts[-1] if run.attempts else {}
    last = attempt.get("reason")
    # Where nothing but the exit code is known, what was decided from earlier attempts says more.
    if cause is not None and not (cause.kind == "exit" and attempt.get("outcome") == "end"):
        return f"failed{_when(job, now)}: {cause}", cause.fix
    why = str(last) if last else "its job is over and the run is not complete" if job else "its job is gone"
    return f"failed{_when(job, now)}: {why}", f"python -m launch.jobs logs {run.name}"


def _when(job: JobState | None, now: float) -> str:
    return f" {clock(job.end, now)}" if job is not None and job.end is not None else ""


def _segments(run: RunFolder, word: Word, progress: Progress, segment: int) -> int | None:
    if word == "done":
        return segment
    further = progress.further_segments
    return segment - 1 + int(further) if further is not None and not math.isinf(further) else None


def _ends(run: RunFolder, word: Word, job: JobState | None, progress: Progress, now: float) -> float | None:
    if word == "done":
        time = (run.done or {}).get("time")
        return float(time) if isinstance(time, int | float) else None
    if word == "runs" and progress.seconds_left is not None and progress.logged is not None:
        return max(now, progress.logged + progress.seconds_left)
    return job.end if job is not None and word in ("failed", "cancelled") else None


def as_plain(view: RunView) -> dict[str, object]:
    """A view as plain values, for JSON."""
    progress, cause = view.progress, view.cause
    facts = {key: value for key, value in vars(view.job).items() if value is not None} if view.job else None
    why = {**vars(cause), "log": str(cause.log) if cause.log else None} if cause else None
    return {
        "run": view.run.name,
        "path": str(view.run.path),
        "stage": view.run.stage or None,
        "state": view.word,
        "words": view.words,
        "advice": view.advice or None,
        "job_id": view.job_id,
        "segment": view.segment,
        "segments": view.of,
        "step": progress.step,
        "total": progress.total,
        "round": vars(progress.round) if progress.round else None,
        "rate": progress.rate,
        "ends": view.ends,
        "metrics": progress.metrics,
        "rows": progress.rows,
        "rows_on_server": progress.on_server,
        "lag": progress.lag,
        "url": progress.url,
        "attempts": view.run.attempts,
        "slurm": facts,
        "cause": why,
    }
