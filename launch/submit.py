"""`python -m launch.submit`: previews, checks and queues one stage."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracking.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from launch.config import Config
    from launch.spec import JobSpec
    from launch.submission import Submitted

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    stage: Annotated[str, typer.Option(help="What to run: collect, bc, eval or smoke.")],
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Cluster profile: lab, local, gilbreth, generic or one in ~/.config/gilbreth/clusters. "
            "Without it: Slurm's where sbatch is on the PATH, else local."
        ),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration and the script; touch nothing.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a value, as in --set bc.batch_size=32; may be repeated."
        ),
    ] = None,
    sync_after: Annotated[
        bool, typer.Option("--sync-after", help="Queue a small job that pushes the run to W&B after this one.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run; exit with 0 only when it is complete.")] = False,
) -> None:
    """Previews, checks and queues one stage of training as a Slurm job."""
    with exit_on_user_error():
        run(stage, cluster, settings or [], dry_run=dry_run, sync_after=sync_after, wait=wait)


def run(stage: str, cluster: str | None, settings: list[str], *, dry_run: bool, sync_after: bool, wait: bool) -> None:
    """Does what the command line asks for.

    Raises:
        UserError: Something in it cannot be run.
    """
    # pydantic and Jinja2 are not needed to answer --help.
    from launch.checks import findings, refuse_what_cannot_run
    from launch.config import resolve
    from launch.models import held_model
    from launch.spec import make_spec
    from launch.sync_after import check_sync_after, queue_sync, way_to_wandb

    config = resolve(stage, cluster or default_cluster(), settings)
    spec = make_spec(config, datetime.now())
    if sync_after:
        check_sync_after(spec.cluster)
    if dry_run:
        print(preview(config, spec), end="")
        for finding in findings(config, spec):
            print(f"note: a submission would be refused: {finding}", file=sys.stderr)
        return
    refuse_what_cannot_run(config, spec)
    if spec.cluster.name == "lab":
        enter_lab()
    from launch.submission import submit

    with held_model(config, spec) as spec_of_now:
        submitted = submit(config, spec_of_now)
    report(spec, submitted)
    if sync_after:
        print(queue_sync(spec, submitted.job_id), flush=True)
    elif way := way_to_wandb(spec):
        print(way, flush=True)
    if wait:
        end_with(spec, submitted)


def default_cluster() -> str:
    """Chooses the profile where none was named."""
    if shutil.which("sbatch") is None:
        return "local"
    return "lab" if in_lab() else "generic"


def in_lab() -> bool:
    """Whether the Slurm that this shell talks to is a lab on this machine."""
    path = os.environ.get("SLURM_CONF")
    try:
        return path is not None and re.search(r"^ClusterName=lab$", Path(path).read_text(), re.MULTILINE) is not None
    except OSError:
        return False


def enter_lab() -> None:
    """Makes this process talk to the lab, unless its shell does already.

    Raises:
        UserError: The lab is not running.
    """
    if in_lab() and shutil.which("sbatch") is not None:
        return
    from launch.lab import Lab

    lab = Lab()
    if not lab.is_up():
        raise UserError("the lab is not running.\n  start it: python -m launch.lab up")
    os.environ.update(lab.environment())


def preview(config: Config, spec: JobSpec) -> str:
    """Writes what a dry run shows: the resolved configuration, and what would run."""
    from launch.render import batch_script, local_python

    text = f"# configuration, as it would stand in {spec.run_dir}/config.yaml\n{config.dump(spec.name)}\n"
    if spec.cluster.executor == "slurm":
        return text + f"# script, as sbatch would get it\n{batch_script(spec, [str(spec.run_dir)])}"
    return text + (
        f"# no script: {spec.resources.tasks} process(es) on this machine, each\n"
        f"{local_python(spec)} -u -m submitit.core._submit {shlex.quote(str(spec.log_dir))}\n"
    )


def report(spec: JobSpec, submitted: Submitted) -> None:
    """Says what was queued, where it writes, and what to do next."""
    slurm = spec.cluster.executor == "slurm"
    watch = f"squeue --job {submitted.job_id}" if slurm else f"ps -p {submitted.job_id}"
    print(
        f"run  {spec.name}\n"
        f"job  {submitted.job_id} on {spec.cluster.name}\n"
        f"in   {spec.run_dir}\n"
        f"logs {spec.log_dir}\n"
        f"next {watch}; tail -F {shlex.quote(str(submitted.log))}",
        flush=True,
    )


def end_with(spec: JobSpec, submitted: Submitted) -> None:
    """Follows a run and ends this process with 0 when it is complete, else with 1."""
    from launch.follow import follow
    from launch.sync_after import push_from_here

    is_complete = follow(spec.run_dir, submitted.log, submitted.state)
    push_from_here(spec)
    if is_complete:
        print(f"done {spec.run_dir}")
        return
    print(f"error: the job is over and the run is not complete; see {submitted.log}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    app()
