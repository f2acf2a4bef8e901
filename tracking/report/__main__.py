"""`python -m tracking.report RUN_DIR…`: shows runs without W&B and without a network."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tracking.errors import UserError, exit_on_user_error
from tracking.files import write_atomic

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Run folders; several are compared.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Where it goes. Without it: report.html in the run folder, or here for several runs."),
    ] = None,
    png: Annotated[bool, typer.Option("--png", help="Write the curves as one PNG instead of a page.")] = False,
) -> None:
    """Writes one self-contained HTML file of a run, or of several side by side, from their folders alone."""
    with exit_on_user_error():
        print(write_report(run_dirs, output, png=png))


def write_report(run_dirs: list[Path], output: Path | None, *, png: bool) -> str:
    """Reads the runs and writes the report.

    Args:
        run_dirs: Run folders.
        output: The file; chosen by the number of runs where it is None. A name in `.png` asks for a picture.
        png: Whether a picture is wanted.

    Returns:
        What to tell the user.

    Raises:
        UserError: A folder holds no run or cannot be read, there are too many, or the file cannot be written.
    """
    # NumPy, matplotlib and Jinja2 are not needed to answer --help.
    from tracking.report.data import read_run
    from tracking.report.figures import MAX_RUNS
    from tracking.report.page import html_page
    from tracking.report.picture import png_page
    from tracking.words import size

    if len(run_dirs) > MAX_RUNS:
        raise UserError(
            f"{len(run_dirs)} runs were given; {MAX_RUNS} can be told apart in one picture.\n  next: give fewer"
        )
    png = png or (output is not None and output.suffix == ".png")
    now = time.time()
    runs = [read_run(folder, now) for folder in run_dirs]
    content = png_page(runs, now) if png else html_page(runs, now)
    if output is None:
        folder = runs[0].folder if len(runs) == 1 else Path.cwd()
        output = folder / ("report.png" if png else "report.html")
    try:
        write_atomic(output, content)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written: {error.strerror}\n  next: --output FILE with a place of yours"
        ) from error
    return f"{output.absolute()} ({size(len(content))})"


if __name__ == "__main__":
    app(prog_name="python -m tracking.report")
