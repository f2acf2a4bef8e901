"""`python -m launch.cluster`: profiles of clusters, written, checked and shown."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from tracking.errors import UserError, exit_on_user_error

app = typer.Typer(
    help="Profiles of clusters: written from what Slurm tells, checked by a short job, shown.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile, as in --cluster NAME.")]


@app.command()
def init(
    name: Name,
    *,
    partition: Annotated[str | None, typer.Option(help="Where jobs go; default: the one with the most GPUs.")] = None,
    account: Annotated[str | None, typer.Option(help="Who is charged; default: your default account.")] = None,
    qos: Annotated[str | None, typer.Option(help="QOS of jobs; default: that of the account.")] = None,
    run_root: Annotated[
        Path | None, typer.Option(help="Shared folder for runs; default: below $SCRATCH, /scratch or your home.")
    ] = None,
    modules: Annotated[
        list[str] | None,
        typer.Option("--module", help="A module that jobs load; repeat it. Default: those loaded here; '' for none."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a profile of yours that is there.")] = False,
) -> None:
    """Write a profile of this cluster from what its Slurm tells; asks nothing."""
    with exit_on_user_error():
        chosen = None if modules is None else tuple(filter(None, modules))
        _init(name, force, partition=partition, account=account, qos=qos, run_root=run_root, modules=chosen)


@app.command()
def check(
    name: Name,
    *,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes of the job; default: two, if there are.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs on each; default: one, if there are.")] = None,
    minutes: Annotated[float, typer.Option(min=0, help="How long to wait for the job.")] = 30.0,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Queue it; the same command again reads it.")] = False,
) -> None:
    """See by a short job whether the site is as jobs need it, and write that into the profile.

    Ends with 1 where jobs would fail: folders that are not shared, modules that do not load, tasks that do not start.
    """
    with exit_on_user_error():
        _check(name, nodes, gpus, 0.0 if no_wait else 60 * minutes)


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A profile; without it, all of them.")] = None,
) -> None:
    """Show all profiles, or what one of them holds."""
    with exit_on_user_error():
        _show(name)


def _init(name: str, force: bool, **wishes: Any) -> None:
    import shutil

    from rich.console import Console

    from launch.cluster import tables
    from launch.cluster.choice import Wishes, draft
    from launch.cluster.writing import create, own_path, profile_of, profile_text
    from launch.site import ask_site

    path = own_path(name, force)
    if shutil.which("scontrol") is None:
        raise UserError(
            "there is no Slurm on the PATH here.\n"
            "  next: run this on a login node; without Slurm, submit with --cluster local"
        )
    site = ask_site()
    made = draft(name, site, Wishes(**wishes))
    known = "all nodes are this machine" if site.one_machine else f"a {made.root.file_system} disk"
    text = profile_text(made.cluster, site, f"Found as {made.root.origin}, {known}.")
    if profile_of(text, name, path) != made.cluster:
        raise AssertionError(f"the profile reads back as another one:\n{text}")
    create(path, text, force)
    console = Console()
    tables.show_profile(made.cluster, path, console)
    for doubt in made.doubts:
        console.print(f"note: {doubt}", highlight=False, markup=False)
    print(f"next: python -m launch.cluster check {shlex.quote(name)}")


def _check(name: str, nodes: int | None, gpus: int | None, seconds: float) -> None:
    from rich.console import Console

    from launch.cluster import check, tables

    path, cluster = check.find_profile(name)
    again = f"python -m launch.cluster check {shlex.quote(name)}"
    if name == "lab":
        from launch.places import enter_lab

        enter_lab()
    under_way = check.pending(name)
    asked, job_id = under_way or check.submit(name, cluster, nodes, gpus)
    print(
        f"job {job_id} {'is under way already' if under_way else f'checks {name} on {asked.nodes} node(s)'}", flush=True
    )
    try:
        is_over = check.wait_for(name, job_id, seconds, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        is_over = False
    if not is_over:
        print(f"next: {again}  (reads the answer; the job stays queued)")
        return
    checked = check.conclude(name, cluster, asked, job_id)
    written = check.record(name, path, checked)
    tables.show_checked(checked, Console())
    print(f"written into {written}")
    bad = [part for part in ("shared", "srun", "modules") if (seen := getattr(checked, part)) and seen.ok is False]
    if bad:
        print(f"jobs would fail here ({', '.join(bad)}); log: {check.log_folder(name)}")
        print(f"next: mend the profile, then {again}")
        raise SystemExit(1)
    print(f"next: python -m launch.submit --stage smoke --cluster {shlex.quote(name)}")


def _show(name: str | None) -> None:
    from rich.console import Console

    from launch.cluster import tables
    from launch.cluster.writing import profile_of
    from launch.config import clusters, user_profiles
    from launch.profile import Cluster
    from tracking.errors import unknown

    found = clusters()
    if name is not None:
        if name not in found:
            raise unknown("cluster", name, found)
        tables.show_profile(profile_of(found[name].read_text(), name, found[name]), found[name], Console())
        return
    profiles: dict[str, tuple[Path, Cluster | str]] = {}
    for key, path in found.items():
        try:
            profiles[key] = path, profile_of(path.read_text(), key, path)
        except (UserError, OSError) as error:
            profiles[key] = path, str(error).partition("\n")[0]
    tables.show_profiles(profiles, user_profiles(), Console())


if __name__ == "__main__":
    app(prog_name="python -m launch.cluster")
