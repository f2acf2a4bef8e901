"""`python -m launch.preflight FILE.sh`: what Slurm and the nodes would make of anybody's batch script."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracking.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from launch.preflight.finding import Finding

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(help="Batch scripts, as sbatch would get them.", metavar="FILE...")],
    cluster: Annotated[
        str | None, typer.Option(help="Also hold what the scripts ask for against this cluster profile.")
    ] = None,
    *,
    live: Annotated[bool, typer.Option("--live", help="Also ask the Slurm that this shell talks to.")] = False,
    submit_dir: Annotated[
        Path, typer.Option(help="Where the scripts would be submitted from; relative paths start there.")
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Looks for what would make a batch script fail after hours in the queue.

    Ends with 1 where there are errors, 0 where there are none, and 2 where a file cannot be read.
    """
    with exit_on_user_error():
        found = run(files, cluster, submit_dir, live=live)
        if as_json:
            print(json.dumps({str(file): [one.as_json() for one in ones] for file, ones in found.items()}, indent=2))
        else:
            print_all(found)
        if any(finding.level == "error" for findings in found.values() for finding in findings):
            sys.exit(1)


def run(files: list[Path], cluster: str | None, submit_dir: Path, *, live: bool) -> dict[Path, list[Finding]]:
    """Reads the files and looks at each.

    Raises:
        UserError: A file cannot be read, or there is no such profile.
    """
    from launch.config import load_cluster
    from launch.preflight.script.lint import lint

    profile = load_cluster(cluster) if cluster is not None else None
    texts = {}
    for file in files:
        try:
            texts[file] = file.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}: {error}\n  next: give a batch script") from None
    return {file: lint(text, submit_dir.absolute(), profile, live=live) for file, text in texts.items()}


def print_all(found: dict[Path, list[Finding]]) -> None:
    """Prints the findings of each file, and how many there are."""
    from rich.console import Console

    from launch.preflight.finding import counted, show

    console = Console()
    for file, findings in found.items():
        console.print(f"{file}: {counted(findings)}", style="bold", highlight=False, markup=False, soft_wrap=True)
        show(findings, console)


if __name__ == "__main__":
    app(prog_name="python -m launch.preflight")
