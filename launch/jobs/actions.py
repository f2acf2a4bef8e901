"""What may be done to a run: cancelling it, and taking it up again under the same name and the same W&B run."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import sbatch
from launch.jobs.folders import RunFolder
from launch.jobs.view import ONGOING, RunView, lives_here
from launch.slurm import ALIVE, JobState, SlurmRefused, SlurmSilent, run_slurm, states
from tracking.errors import UserError
from tracking.exclusive import create_exclusive
from tracking.files import read_json, write_json
from tracking.sync.claims import Holder
from tracking.words import many

if TYPE_CHECKING:
    from launch.intent import Intent

_CONFIRM_S = 30.0
# A command on another host that is killed while it submits leaves its mark; nobody submits for so long.
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
        SlurmSilent: Whether Slurm has the new job is not known; the next call finds out.
    """
    script = run.log_dir / sbatch.SCRIPT
    if not script.is_file() or not run.submission:
        raise UserError(
            f"{run.name} cannot be submitted again: {script} is gone, or it was not submitted by launch.submit"
        )
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not on the PATH here\n  next: the same on a login node")
    try:
        requeues = run.path / "requeues"
        requeues.mkdir(exist_ok=True)
        numbers = sorted(int(path.stem) for path in requeues.glob("*.json") if path.stem.isdigit())
        if numbers and (adopted := _left_over(run, requeues / f"{numbers[-1]:03d}.json")):
            return adopted + _further(run)
        ours = requeues / f"{(numbers[-1] + 1 if numbers else 0):03d}.json"
        job_id = _call(run, ours, script, options)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename}: {error.strerror}\n"
            "  next: mend that, then the same command again: it finds out whether Slurm has the job"
        ) from None
    return f"submitted {run.name} again as job {job_id}: it goes on where it was saved{_further(run)}"


def _further(run: RunFolder) -> str:
    """Queues the further jobs of a chain, and says so in a line of its own."""
    from launch.chain import queue_links

    links = queue_links(run.path)
    return f"\n{links}" if links is not None else ""


def _call(run: RunFolder, mark: Path, script: Path, options: Sequence[str]) -> str:
    """Marks that this process submits the run, does so, and records the job; the mark's folder gets sbatch's answer."""
    holder = asdict(Holder.this_process("requeue"))
    fields = {"nonce": secrets.token_hex(4), "time": time.time(), "slurm": os.environ.get("SLURM_CONF")}
    if not create_exclusive(mark, json.dumps({**fields, "holder": holder}).encode()):
        raise UserError(f"another command takes {run.name} up at this moment")
    lost = _intent(run, mark, fields)
    remove = [part for name in _foreign(run) for part in ("-u", name)]
    try:
        lost.log_dir.mkdir()
        lost.log_mark.touch()
        # A script of its own: it tells this sbatch from others.
        own = shutil.copy(script, lost.log_dir / sbatch.SCRIPT)
        with chdir(run.root):
            command = ["env", *remove, "sbatch", f"--comment={lost.key}", *options, str(own)]
            job_id = sbatch.call(command, lost.log_dir)
    except sbatch.UnansweredError as error:
        write_json(mark, {**fields, "unanswered": True})
        raise SlurmSilent(
            f"{error}; whether Slurm has the new job of {run.name} is not known\n"
            "  next: the same command again in a while: it finds out"
        ) from None
    except UserError:
        write_json(mark, {**fields, "refused": True})
        raise
    _record(run, mark, fields, job_id)
    return job_id


def _left_over(run: RunFolder, mark: Path) -> str | None:
    """What a command that did not come to its end has left: its job is the run's.

    Returns:
        What was done; None where it has left no job.

    Raises:
        UserError: Another command is at it, or asked another Slurm.
        SlurmSilent: Nobody can tell yet.
    """
    from launch.intent import age
    from launch.orphans import slurm_job

    fields: dict[str, Any] = read_json(mark) or {}
    if "nonce" not in fields or fields.get("refused"):
        return None
    known = {*run.jobs, *map(str, run.submission.get("earlier_jobs", []))}
    job_id: str | None = fields.get("job_id")
    if job_id is None:
        holder = Holder(**fields["holder"]) if fields.get("holder") else None
        alive = holder.is_alive() if holder is not None else False
        if alive or (alive is None and age(mark) < _DEAD_S):
            raise UserError(f"another command takes {run.name} up at this moment ({holder})\n  next: try again later")
        if fields["slurm"] != os.environ.get("SLURM_CONF"):
            raise UserError(
                f"{run.name} was being submitted again with SLURM_CONF={fields['slurm'] or ''}; "
                "that Slurm may have its job\n"
                f"  next: the same command there; or where it has none for certain: rm {shlex.quote(str(mark))}"
            )
        job_id = slurm_job(_intent(run, mark, fields), known)
    if job_id is None or job_id in known:
        return None
    _record(run, mark, fields, job_id)
    return f"{run.name} was submitted again as job {job_id} by another command; it is recorded now"


def _intent(run: RunFolder, mark: Path, fields: Mapping[str, Any]) -> Intent:
    """A submission as Slurm can be asked for: its key is in the job's comment."""
    from launch.intent import Intent

    return Intent(
        name=run.name,
        nonce=str(fields["nonce"]),
        run_dir=run.path,
        log_dir=mark.with_suffix(""),
        executor="slurm",
        cluster="",
        slurm=fields["slurm"],
        request="",
        arguments=(),
        time=float(fields["time"]),
        holder=None,
        unanswered=bool(fields.get("unanswered")),
    )


def _record(run: RunFolder, mark: Path, fields: Mapping[str, Any], job_id: str) -> None:
    earlier = [*run.submission.get("earlier_jobs", []), run.submission.get("job_id")]
    record = {**run.submission, "state": "submitted", "job_id": job_id, "earlier_jobs": earlier}
    write_json(run.path / "submission.json", record)
    write_json(mark, {**fields, "job_id": job_id})


def _foreign(run: RunFolder) -> list[str]:
    """What the new job must not inherit of a job that this command may run in."""
    from launch.profile import Cluster
    from launch.render import foreign_names

    return foreign_names(os.environ, Cluster.model_validate(run.config.get("cluster")))
