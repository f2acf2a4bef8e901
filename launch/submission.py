"""From a job to its run folder and its job id: intent, submission, outcome."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.config import Config
from launch.spec import JobSpec, commit_of
from launch.task import StageTask
from tracking.errors import UserError
from tracking.files import write_atomic, write_json


@dataclass(frozen=True)
class Submitted:
    """A job that was handed over.

    Attributes:
        job_id: Slurm's, or the process id of the local controller.
        log: Log of its first task.
        state: Asks for its state in capitals, with Slurm's reason; None when it is gone.
    """

    job_id: str
    log: Path
    state: Callable[[], str | None]


def submit(config: Config, spec: JobSpec) -> Submitted:
    """Makes the run folder, records the intent, submits, and records the outcome.

    Raises:
        UserError: A folder cannot be made, or Slurm refused the job; then nothing of it is left.
    """
    _make_folders(spec)
    try:
        write_atomic(spec.run_dir / "config.yaml", config.dump(spec.name))
        record = _record(spec)
        write_json(spec.run_dir / "submission.json", {"state": "submitting", "job_id": None, **record})
        submitted = _hand_over(spec)
    except UserError:
        shutil.rmtree(spec.run_dir)
        shutil.rmtree(spec.log_dir)
        raise
    write_json(spec.run_dir / "submission.json", {"state": "submitted", "job_id": submitted.job_id, **record})
    return submitted


def _make_folders(spec: JobSpec) -> None:
    made: list[Path] = []
    try:
        for folder in (spec.run_dir, spec.log_dir):
            folder.mkdir(parents=True)
            made.append(folder)
    except OSError as error:
        for folder in made:
            folder.rmdir()
        raise UserError(
            f"cannot make {error.filename}: {error.strerror}; set cluster.run_root to a folder of yours"
        ) from None


def _record(spec: JobSpec) -> dict[str, str | float | bool | None]:
    commit = commit_of(spec.root)
    command = shlex.join(["python", "-m", "launch.submit", *sys.argv[1:]])
    return {"command": command, "time": time.time(), "git_commit": commit.sha, "git_dirty": commit.dirty}


def _hand_over(spec: JobSpec) -> Submitted:
    task = StageTask(spec.module, str(spec.run_dir), spec.argv)
    # The job starts in the folder that it was submitted from.
    with contextlib.chdir(spec.root):
        return _to_slurm(spec, task) if spec.cluster.executor == "slurm" else _to_this_machine(spec, task)


def _to_slurm(spec: JobSpec, task: StageTask) -> Submitted:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from launch.executor import StageExecutor
    from launch.follow import slurm_state

    missing = [command for command in ("sbatch", "srun", "squeue") if shutil.which(command) is None]
    if missing:
        raise UserError(
            f"cluster {spec.cluster.name!r} needs Slurm, and {missing[0]} is not on the PATH here.\n"
            "  run this on a login node, or without Slurm: --cluster local"
        )
    try:
        job = StageExecutor(spec).submit(task)
    except FailedJobError as error:
        raise UserError(f"sbatch refused the job: {' '.join(str(error).split())}") from None
    except FailedSubmissionError as error:
        # The job may be queued all the same, so its files stay.
        raise SystemExit(f"error: {error}\n  look for it with: squeue --me --name={spec.name}") from None
    return Submitted(job.job_id, Path(job.paths.stdout), lambda: slurm_state(job.job_id))


def _to_this_machine(spec: JobSpec, task: StageTask) -> Submitted:
    from launch.executor import local_executor

    job = local_executor(spec).submit(task)
    return Submitted(job.job_id, Path(job.paths.stdout), lambda: str(job.get_info()["jobState"]))
