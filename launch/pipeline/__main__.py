"""`python -m launch.pipeline`: stages that follow each other, queued at once with a gate behind each."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.places import default_cluster, enter_lab, run_root
from tracking.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from launch.pipeline.record import Record

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__, no_args_is_help=True
)

_Cluster = Annotated[
    str | None, typer.Option(help="Cluster profile, as of launch.submit; it says where the run folders are.")
]
_Root = Annotated[Path | None, typer.Option(help="Folder of the run folders, where it is not the profile's.")]


@app.command()
def run(
    stages: Annotated[list[str] | None, typer.Argument(help="The stages in order: collect bc dagger eval.")] = None,
    *,
    name: Annotated[str | None, typer.Option(help="Name of the pipeline, and the alias of its models.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Take this pipeline up where it stopped, as it was asked for.")
    ] = None,
    cluster: _Cluster = None,
    root: _Root = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="bc.batch_size=8 or bc.resources.time=60 for one stage, cluster.run_root=… for all, "
            "gate.resources.memory_gb=8 for the gates; may be repeated.",
        ),
    ] = None,
    low: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="STAGE.METRIC=NUMBER", help="The least that a stage's evaluation must find."),
    ] = None,
    high: Annotated[
        list[str] | None,
        typer.Option("--max", metavar="STAGE.METRIC=NUMBER", help="The most that a stage's evaluation may find."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done for each stage; touch nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Go on in spite of preflight's errors.")] = False,
) -> None:
    """Queues the stages; of a pipeline that stopped, what is missing."""
    with exit_on_user_error():
        conditions = {"min": low or [], "max": high or []}
        where, asked = (
            _resumed(
                resume, name, stages or [], cluster=cluster, root=root, settings=settings or [], conditions=conditions
            )
            if resume is not None
            else _asked(name, stages or [], cluster=cluster, root=root, settings=settings or [], conditions=conditions)
        )
        _run(where, asked, dry_run=dry_run, force=force)


def _run(where: Path, asked: Record, *, dry_run: bool, force: bool) -> None:
    from launch.pipeline import record as records
    from launch.pipeline.submitting import Pipeline, check_all, mend, prepare, submit_all
    from launch.pipeline.tables import place, plan
    from launch.preflight.finding import counted

    at = place(where, asked.cluster)
    if asked.cluster == "lab" and (asked.steps or not dry_run):
        enter_lab()

    def checked() -> Pipeline:
        pipeline = prepare(where, asked)
        errors = check_all(pipeline)
        if errors and not dry_run and not force:
            raise UserError(f"preflight: {counted(errors)}; nothing was queued\n  go on in spite of errors: --force")
        print(f"pipeline {asked.name} in {records.folder_of(where, asked.name)}")
        print(*plan(asked.stages, pipeline.decisions), sep="\n", flush=True)
        if errors:
            rules = ", ".join(dict.fromkeys(one.rule for one in errors))
            print(f"preflight: {'a submission would be refused' if dry_run else '--force goes on'}: {rules}")
        return pipeline

    if dry_run:
        checked()
        return
    # What is refused by itself is refused before anything is written.
    pipeline = None if asked.steps else checked()
    with records.claimed(where, asked.name):
        # Another command may have been faster, or killed.
        before = records.read(where, asked.name)
        if before is not None and before.steps:
            asked.steps, pipeline = before.steps, None
            mend(where, asked)
        submit_all(pipeline or checked())
    print(f"next: python -m launch.pipeline status {asked.name}{at}")


def _asked(
    name: str | None,
    stages: list[str],
    *,
    cluster: str | None,
    root: Path | None,
    settings: list[str],
    conditions: dict[str, list[str]],
) -> tuple[Path, Record]:
    from launch.pipeline import plan
    from launch.pipeline import record as records

    stages = plan.check_stages(stages)
    cluster = cluster or default_cluster()
    settings = [*([f"cluster.run_root={root.absolute()}"] if root is not None else []), *settings]
    name = plan.check_pipeline_name(name or f"pipeline-{datetime.now():%Y%m%d-%H%M%S}")
    asked = records.Record(name, cluster, stages, settings, plan.read_conditions(conditions, stages))
    where = _where(asked)
    before = records.read(where, name)
    if before is not None:
        if before.stages != stages or before.cluster != cluster:
            raise UserError(
                f"the pipeline {name} is {' '.join(before.stages)} on {before.cluster}, not {' '.join(stages)} on "
                f"{cluster}\n  next: another --name"
            )
        asked.steps, asked.time = before.steps, before.time
    return where, asked


def _resumed(
    name: str,
    other: str | None,
    stages: list[str],
    *,
    cluster: str | None,
    root: Path | None,
    settings: list[str],
    conditions: dict[str, list[str]],
) -> tuple[Path, Record]:
    from launch.pipeline import plan
    from launch.pipeline import record as records
    from tracking.redact import REDACTED

    if other is not None or stages:
        raise UserError("--resume takes a pipeline up as it was asked for: leave out the stages and --name")
    record = records.known(root.absolute() if root is not None else run_root(cluster or default_cluster()), name)
    if any(REDACTED in setting for setting in record.settings):
        raise UserError("its settings held a secret, which is not kept\n  next: the whole command again, with --name")
    record.settings = [*record.settings, *settings]
    for stage, given in plan.read_conditions(conditions, record.stages).items():
        merged = {str(one["metric"]): one for one in record.conditions.get(stage, ())}
        for one in given:
            metric = str(one["metric"])
            merged[metric] = {**merged.get(metric, {}), **one}
        record.conditions[stage] = list(merged.values())
    return _where(record), record


def _where(record: Record) -> Path:
    """The run root, which all stages share."""
    from launch.pipeline.submitting import steps_of

    roots = {step.spec.run_dir.parent for step in steps_of(record)}
    if len(roots) > 1:
        raise UserError("all stages of a pipeline need one cluster.run_root: set it without a stage's name before it")
    return roots.pop()


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(help="The pipeline; the one that was submitted last without it.")
    ] = None,
    cluster: _Cluster = None,
    root: _Root = None,
) -> None:
    """Shows where a pipeline is; exit code 1 where a gate has failed or a stage has ended without being complete."""
    with exit_on_user_error():
        where, record, at = _found(name, cluster, root)
        from launch.pipeline.decisions import see

        seen, problem = see(where, record)
        from rich.console import Console

        from launch.pipeline.tables import status as table

        console = Console(highlight=False, markup=False)
        with console.capture() as captured:
            console.print(table(record, seen, at))
        # Columns are filled up with blanks, which are in the way of whoever copies.
        print(*(line.rstrip() for line in captured.get().rstrip("\n").split("\n")), sep="\n")
        if problem is not None:
            print(f"warning: {problem}")
        raise typer.Exit(int(any(one.has_failed for one in seen)))


@app.command()
def cancel(
    name: Annotated[str, typer.Argument(help="The pipeline.")], cluster: _Cluster = None, root: _Root = None
) -> None:
    """Cancels every job of a pipeline; `run --resume NAME` takes it up again."""
    with exit_on_user_error():
        from launch.pipeline import record as records
        from launch.pipeline.submitting import cancel_all
        from tracking.words import many

        where, record, _ = _found(name, cluster, root)
        with records.claimed(where, record.name):
            jobs = cancel_all(where, record)
        print(f"cancelled {many(len(jobs), 'job')} of {record.name}{': ' if jobs else ''}{', '.join(jobs)}")


def _found(name: str | None, cluster: str | None, root: Path | None) -> tuple[Path, Record, str]:
    """The run root, the pipeline, and the options by which other commands find it."""
    from launch.pipeline import record as records
    from launch.pipeline.tables import place

    where = root.absolute() if root is not None else run_root(cluster or default_cluster())
    record = records.known(where, name)
    at = place(where, record.cluster)
    if record.cluster == "lab":
        enter_lab()
    return where, record, at


if __name__ == "__main__":
    app()
