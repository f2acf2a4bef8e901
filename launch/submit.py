"""`python -m launch.submit`: previews, checks and queues one stage."""

from __future__ import annotations

import gc
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.places import default_cluster, enter_lab, in_lab
from tracking.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from launch.config import Config
    from launch.questions import Questions
    from launch.spec import JobSpec
    from launch.submission import Submitted

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    context: typer.Context,
    stage: Annotated[str | None, typer.Option(help="What to run: collect, bc, dagger, eval or smoke.")] = None,
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
    force: Annotated[
        bool, typer.Option("--force", help="Queue it in spite of preflight's errors, and say which.")
    ] = False,
    snapshot: Annotated[
        bool, typer.Option("--snapshot", help="Have the job run a copy of the tree as it is now, whatever is edited.")
    ] = False,
    resume_submission: Annotated[
        Path | None,
        typer.Option(
            "--resume-submission",
            metavar="RUN",
            help="Finish the submission of this run folder that was interrupted: its job is adopted, or submitted.",
        ),
    ] = None,
) -> None:
    """Previews, checks and queues one stage of training as a Slurm job."""
    with exit_on_user_error():
        if resume_submission is not None:
            resume(resume_submission.absolute())
        elif stage is None:
            raise UserError("--stage is missing: collect, bc, dagger, eval or smoke")
        else:
            run(
                stage,
                cluster,
                settings or [],
                dry_run=dry_run,
                sync_after=sync_after,
                wait=wait,
                force=force,
                snapshot=snapshot,
                asked=context.obj,
            )


def run(
    stage: str,
    cluster: str | None,
    settings: list[str],
    *,
    dry_run: bool,
    sync_after: bool,
    wait: bool,
    force: bool = False,
    snapshot: bool = False,
    asked: Questions | None = None,
) -> None:
    """Does what the command line asks for; `asked` is what Slurm was asked already.

    Raises:
        UserError: Something in it cannot be run.
    """
    name = cluster or default_cluster()
    asked = asked or ask_ahead(name)
    # pydantic and Jinja2 are not needed to answer --help.
    from launch.chain import plan
    from launch.config import resolve
    from launch.models import held_models
    from launch.preflight import check, report_findings
    from launch.spec import make_spec
    from launch.sync_after import check_sync_after, queue_sync, way_to_wandb

    config = resolve(stage, name, settings)
    spec = make_spec(config, datetime.now())
    if sync_after:
        check_sync_after(spec.cluster)
    if dry_run:
        print(preview(config, spec), end="", flush=True)
        if (jobs := plan(config, spec)) is not None and spec.cluster.executor == "slurm":
            print(f"plan: {jobs.sentence(spec)}", file=sys.stderr)
        report_findings(config, spec, live=reaches_slurm(spec), asked=asked)
        return
    if spec.cluster.name == "lab":
        enter_lab()
    from launch.submission import pick_up, submit

    if (earlier := pick_up(config, spec)) is not None:
        spec, submitted = earlier
    else:
        import_module("launch.executor")  # here, because Slurm is still at its answers
        check(config, spec, live=reaches_slurm(spec), force=force, asked=asked)
        with held_models(config, spec) as spec_of_now:
            submitted = submit(config, spec_of_now, snapshot=snapshot)
    report(spec, submitted)
    if (jobs := plan(config, spec)) is not None and spec.cluster.executor == "slurm":
        print(f"plan {jobs.sentence(spec)}", flush=True)
    if submitted.links is not None:
        print(submitted.links, flush=True)
    if sync_after:
        print(queue_sync(spec, submitted.job_id), flush=True)
    elif way := way_to_wandb(spec):
        print(way, flush=True)
    if wait:
        end_with(spec, submitted)


def ask_ahead(cluster: str) -> Questions | None:
    """Asks Slurm what preflight will want to know, while Python imports the rest; None without a Slurm to ask here."""
    if cluster == "local" or shutil.which("sbatch") is None or (cluster == "lab" and not in_lab()):
        return None
    from launch.questions import Questions

    return Questions()


def ask_first(arguments: Sequence[str]) -> Questions | None:
    """As `ask_ahead`, before typer has read the arguments: it imports pydantic for that."""
    pairs = [pair for argument in arguments for pair in argument.split("=", 1)]  # --cluster NAME, --cluster=NAME
    if "--stage" not in pairs or "--help" in pairs:
        return None
    named = dict(pairwise(pairs)).get("--cluster")
    return ask_ahead(named or default_cluster())


def reaches_slurm(spec: JobSpec) -> bool:
    """Whether the Slurm that the commands here talk to is the one that the job would go to."""
    is_there = spec.cluster.executor == "slurm" and shutil.which("sbatch") is not None
    return is_there and (spec.cluster.name != "lab" or in_lab())


def resume(run_dir: Path) -> None:
    """Finishes a submission that was interrupted.

    Raises:
        UserError: There is none of that run, or nobody can tell yet whether Slurm has its job.
    """
    from launch.submission import resumed

    arguments = resumed(run_dir, enter_lab)
    if arguments is not None:
        # The record holds the command line: of this one, not of the one that asked for it.
        sys.argv[1:] = arguments
        app(arguments)


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

    gc.enable()  # this may take days
    is_complete = follow(spec.run_dir, submitted.log, submitted.state)
    push_from_here(spec)
    if is_complete:
        print(f"done {spec.run_dir}")
        return
    print(f"error: the job is over and the run is not complete; see {submitted.log}", file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    # A submission is imports for the most part, and nothing that they make is garbage.
    gc.disable()
    app(obj=ask_first(sys.argv[1:]))
