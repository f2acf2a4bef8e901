"""What may be done to a run: cancelling it, and taking it up again under the same name and the same W&B run."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

from launch import sbatch
from launch.jobs.folders import RunFolder
from launch.jobs.view import ONGOING, RunView, lives_here
from launch.places import ROOT
from launch.slurm import ALIVE, JobState, SlurmRefused, run_slurm, states
from tracking.errors import UserError
from tracking.exclusive import create_exclusive
from tracking.files import read_json, write_json
from tracking.words import many

_CONFIRM_S = 30.0
# A command that is killed while it submits leaves its record; nobody submits for so long.
_DEAD_S = 300.0


def cancel(view: RunView) -> str:
    """Cancels the jobs of a run and waits until Slurm says so.

    Returns:
        What became of it.

    Raises:
        UserError: It is over, or Slurm does not confirm.
    """
    run = view.run
    if view.word not in ONGOING:
        raise UserError(f"{run.name} is over ({view.words}); there is nothing to cancel")
    if not run.on_slurm:
        return _end_process(run)
    if not run.jobs:
        raise UserError(f"{run.name} has no job yet\n  next: python -m launch.jobs status {run.name}")
    jobs = [job for job, state in states(run.jobs).items() if state.state in ALIVE]
    run_slurm(["scancel", *jobs])
    left = wait_until_over(jobs)
    if left:
        raise UserError(
            f"Slurm was asked to cancel {', '.join(jobs)}, and after {_CONFIRM_S:.0f} s still says "
            f"{', '.join(f'{state.job_id} {state.state}' for state in left)}\n"
            f"  next: python -m launch.jobs status {run.name}"
        )
    return f"cancelled {run.name} ({many(len(jobs), 'job')}: {', '.join(jobs)})"


def wait_until_over(jobs: Sequence[str]) -> list[JobState]:
    """Waits for jobs that were cancelled, and returns those that are still there."""
    deadline = time.monotonic() + _CONFIRM_S
    pause = 0.2
    while True:
        known = states(jobs)
        # One that is ending was cancelled: what is left of it is being stopped.
        left = [state for state in known.values() if state.state in ALIVE - {"COMPLETING"}]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(pause)
        pause = min(2 * pause, 3.0)


def _end_process(run: RunFolder) -> str:
    pid = int(run.jobs[-1].removeprefix("process-"))
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _CONFIRM_S
    while lives_here(run) and time.monotonic() < deadline:
        time.sleep(0.1)
    if lives_here(run):
        raise UserError(f"process {pid} of {run.name} was asked to end and has not\n  next: kill {pid}, or kill -9")
    return f"ended {run.name} (process {pid})"


def requeue(view: RunView) -> str:
    """Takes a run that has ended up again: the same job where Slurm still knows it, else a new job of the same script.

    Returns:
        What was done.

    Raises:
        UserError: It is done, or a job of it waits or runs; Slurm does not answer, or refuses.
    """
    run = view.run
    if run.done is not None:
        raise UserError(f"{run.name} is complete ({view.words}); a run with other settings is another run")
    if view.word in ONGOING:
        raise UserError(f"{run.name} is not over ({view.words})")
    if view.word == "unknown":
        raise UserError(f"nobody can tell whether a job of {run.name} waits or runs ({view.words})\n  next: try later")
    if not run.on_slurm:
        command = run.submission.get("command", "python -m launch.submit …")
        raise UserError(f"{run.name} ran on this machine, where nothing is queued\n  next: {command}")
    if view.job is not None:
        try:
            run_slurm(["scontrol", "requeue", view.job.job_id])
        except SlurmRefused:
            pass  # too long ago, not its owner's any more, or a site that allows no requeue
        else:
            return f"requeued job {view.job.job_id}: {run.name} goes on where it was saved"
    return submit_again(run)


def submit_again(run: RunFolder, options: Sequence[str] = ()) -> str:
    """Submits the script of a run that is over once more, whatever Slurm still knows of its last job.

    Args:
        run: The run.
        options: What sbatch is called with beside.

    Returns:
        What was done; the run's record has the new job.

    Raises:
        UserError: Its script is gone, another command is at it, or Slurm refuses.
    """
    script = run.log_dir / sbatch.SCRIPT
    if not script.is_file() or not run.submission:
        raise UserError(
            f"{run.name} cannot be submitted again: {script} is gone, or it was not submitted by launch.submit"
        )
    old = run.jobs[-1] if run.jobs else ""
    folder = run.path / "requeues"
    folder.mkdir(exist_ok=True)
    numbers = sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())
    if numbers and (adopted := _left_over(run, folder / f"{numbers[-1]:03d}.json", old)):
        return adopted
    ours = folder / f"{(numbers[-1] + 1 if numbers else 0):03d}.json"
    if not create_exclusive(ours, f'{{"after": "{old}", "time": {time.time()}}}\n'.encode()):
        raise UserError(f"another command takes {run.name} up at this moment")
    remove = [part for name in _foreign(run) for part in ("-u", name)]
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not on the PATH here\n  next: the same on a login node")
    key = run.submission.get("key")
    with chdir(_root_of(run)):
        comment = [f"--comment={key}"] if key else []
        job_id = sbatch.call(["env", *remove, "sbatch", *comment, *options, str(script)], run.log_dir)
    _record(run, job_id)
    return f"submitted {run.name} again as job {job_id}: it goes on where it was saved"


def _left_over(run: RunFolder, record: Path, old: str) -> str | None:
    """What a command that was killed between `sbatch` and its record has left: its job is the run's."""
    if (read_json(record) or {}).get("after") != old:
        return None
    job_id = sbatch.answer(run.log_dir)
    if job_id is not None and job_id != old:
        _record(run, job_id)
        return f"{run.name} was submitted again as job {job_id} by a command that was interrupted; it is recorded now"
    if sbatch.is_running(run.log_dir) or (time.time() - record.stat().st_mtime < _DEAD_S and job_id is None):
        raise UserError(f"another command takes {run.name} up at this moment\n  next: try again in some minutes")
    return None


def _record(run: RunFolder, job_id: str) -> None:
    earlier = [*run.submission.get("earlier_jobs", []), run.submission.get("job_id")]
    record = {**run.submission, "state": "submitted", "job_id": job_id, "earlier_jobs": earlier}
    write_json(run.path / "submission.json", record)


def _foreign(run: RunFolder) -> list[str]:
    """What the new job must not inherit of a job that this command may run in."""
    from launch.profile import Cluster
    from launch.render import foreign_names

    return foreign_names(os.environ, Cluster.model_validate(run.config.get("cluster")))


def _root_of(run: RunFolder) -> Path:
    """Where the job starts: the tree as it was submitted, where that was kept, else the project."""
    snapshot = Path(str(run.submission.get("snapshot") or ROOT))
    return snapshot if snapshot.is_dir() else ROOT
