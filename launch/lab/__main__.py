"""`python -m launch.lab`: a real Slurm on this machine, started and stopped."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from launch.lab import Lab
from tracking.errors import exit_on_user_error

app = typer.Typer(
    help="A real Slurm of four nodes on this machine, for an ordinary user and for root.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Folder = Annotated[
    Path | None,
    typer.Option(
        help="Where the lab lives; default: GILBRETH_LAB, or a folder of your own in /tmp.", show_default=False
    ),
]
NodeName = Annotated[str, typer.Argument(metavar="NODE", help="node1, node2, node3 or node4")]


@app.command()
def up(folder: Folder = None) -> None:
    """Start what does not run yet; the first time on a machine, unpack Slurm's packages."""
    began = time.monotonic()
    with exit_on_user_error():
        lab = Lab(folder, report=typer.echo)
        lab.up()
        typer.echo(f"the lab in {lab.folder} is up ({time.monotonic() - began:.1f} s)")
        typer.echo(f'use it:  eval "$({_command("env", folder)})"  then sinfo, sbatch, srun, squeue, sacct')


@app.command()
def down(
    folder: Folder = None,
    wipe: Annotated[bool, typer.Option("--wipe", help="Delete the lab's folder too.")] = False,
) -> None:
    """Stop everything; queued jobs are kept unless --wipe is given."""
    with exit_on_user_error():
        lab = Lab(folder, report=typer.echo)
        lab.down(wipe=wipe)
        typer.echo(f"the lab in {lab.folder} is {'gone' if wipe else 'down'}")


@app.command()
def status(folder: Folder = None) -> None:
    """Show every daemon and node; exit code 0 only if all are up."""
    with exit_on_user_error():
        now = Lab(folder).status()
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"lab in {now.folder}")
    for column in ("part", "process", "Slurm's state"):
        table.add_column(column)
    for part in (*now.daemons, *now.nodes):
        table.add_row(part.name, str(part.pid) if part.pid else "[red]down[/red]", part.state)
    Console().print(table)
    if not now.is_up:
        typer.echo(f"not all is up; start the rest: {_command('up', folder)}", err=True)
        raise typer.Exit(1)


@app.command()
def env(folder: Folder = None) -> None:
    """Print the lines that let a shell use the lab: eval "$(python -m launch.lab env)"."""
    with exit_on_user_error():
        for name, value in Lab(folder).variables().items():
            typer.echo(f"export {name}={shlex.quote(value)}")


@app.command("kill-node")
def kill_node(node: NodeName, folder: Folder = None) -> None:
    """Cut the power of a node: everything on it is gone at once."""
    with exit_on_user_error():
        Lab(folder).kill_node(node)
        typer.echo(f"{node} is off; Slurm notices within half a minute and queues its jobs again")


@app.command("start-node")
def start_node(node: NodeName, folder: Folder = None) -> None:
    """Power a node on and wait until it takes jobs."""
    with exit_on_user_error():
        Lab(folder, report=typer.echo).start_node(node)
        typer.echo(f"{node} takes jobs")


def _command(name: str, folder: Path | None) -> str:
    return f"python -m launch.lab {name}" + (f" --folder {shlex.quote(str(folder))}" if folder else "")


if __name__ == "__main__":
    app(prog_name="python -m launch.lab")
