"""How a run gets from nodes without internet to W&B: a small job after it, or the daemon on a login node."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from launch.config import Cluster
from launch.render import SUBMISSION_VARIABLES, foreign_variables, is_chain
from launch.spec import JobSpec
from tracking.errors import UserError
from tracking.store.root import VARIABLE

SCRIPT = "job_templates/sync_runs.sh"


def check_sync_after(cluster: Cluster) -> None:
    """Refuses a small job that could not push anything.

    Raises:
        UserError: There is no Slurm to queue it, or its nodes have no internet.
    """
    if cluster.executor == "local":
        raise UserError(
            f"--sync-after queues a job, and {cluster.name!r} has no queue; leave it out: the run is pushed while it "
            "runs, and what is left by python -m tracking.sync once"
        )
    if cluster.internet is False and cluster.sync_partition is None:
        raise UserError(
            f"--sync-after: the profile {cluster.name!r} says that its nodes have no internet (internet: false); name "
            "a partition whose nodes have: --set cluster.sync_partition=NAME"
        )


def queue_sync(spec: JobSpec, job_id: str) -> str:
    """Queues a small job that pushes what W&B does not have, once the job is over for good.

    Behind a chain of jobs it comes again after each of them.

    Args:
        spec: The job that it comes after.
        job_id: Slurm's number of that job.

    Returns:
        A line that says what was queued; the job itself is queued already, so where Slurm refuses, it says that.
    """
    command = sync_command(spec, job_id)
    remove = [part for name in foreign_variables(os.environ, spec) for part in ("-u", name)]
    try:
        answer = subprocess.run(
            ["env", *remove, *command], cwd=spec.root, capture_output=True, text=True, timeout=60, check=False
        )
        refusal = " ".join(answer.stderr.split())
    except subprocess.TimeoutExpired:
        return f"sync warning: Slurm did not answer; look with squeue --me, and else: {_again(spec, command)}"
    if answer.returncode != 0:
        return f"sync warning: sbatch refused the job that pushes ({refusal}); again: {_again(spec, command)}"
    again = ", and comes again after each further job of the run" if is_chain(spec) else ""
    return f"sync job {answer.stdout.strip()} pushes to W&B what is left when job {job_id} is over{again}"


def sync_command(spec: JobSpec, job_id: str) -> list[str]:
    """The `sbatch` that queues the small job."""
    cluster = spec.cluster
    fields = {field: getattr(cluster, field) for field in SUBMISSION_VARIABLES}
    fields["partition"] = cluster.sync_partition or cluster.partition
    log = f"{spec.log_dir}/%j_sync.out"
    return [
        "sbatch",
        "--parsable",
        # Also after a failure; a job that is requeued is not over.
        f"--dependency=afterany:{job_id}",
        f"--job-name=sync-{spec.name}",
        f"--output={log}",
        *(f"--{field}={value}" for field, value in fields.items() if value),
        SCRIPT,
        *(["--behind", spec.name, log] if is_chain(spec) else []),
        *map(str, roots_of(spec)),
    ]


def roots_of(spec: JobSpec) -> list[Path]:
    """What is pushed for a run: its folder's root, and the model store where there is one."""
    store = spec.environment.get(VARIABLE)
    return [spec.run_dir.parent, *([Path(store)] if store is not None and Path(store).is_dir() else [])]


def way_to_wandb(spec: JobSpec) -> str | None:
    """A line on how W&B gets the run where the profile says that nodes have no internet; None elsewhere."""
    if spec.cluster.internet is not False or spec.environment.get("WANDB_MODE") == "disabled":
        return None
    roots = shlex.join(part for root in roots_of(spec) for part in ("--root", str(root)))
    return (
        f"sync nodes of {spec.cluster.name} have no internet; on a login node: cd {shlex.quote(str(spec.root))} && "
        f"{shlex.quote(spec.python)} -m tracking.sync daemon {roots}"
    )


def push_from_here(spec: JobSpec) -> None:
    """Pushes what W&B does not have of a run whose nodes have no internet; where this host has none, says how to."""
    if way_to_wandb(spec) is None or not (spec.run_dir / "run.json").exists():
        return
    command = [spec.python, "-m", "tracking.sync", "run", str(spec.run_dir), "--closing"]
    subprocess.run(command, cwd=spec.root, check=False)


def _again(spec: JobSpec, command: list[str]) -> str:
    return f"cd {shlex.quote(str(spec.root))} && {shlex.join(command)}"
