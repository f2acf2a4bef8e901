"""How long `launch.jobs` takes over many runs, in the lab, against `squeue` and `python -c "import submitit"`.

    python benchmarks/jobs_list.py [--rounds 15] [--runs 200] [--rows 5000]

The runs have journals of so many rows each; half of them are done, the others' jobs are gone, so that squeue and sacct
are asked for all of those. Prints medians and ratios to submitit's import. Ends with 1 when a goal is missed: all runs
listed in under 6x of the import, the newest in under 3x, help under 2x; each under a second.
"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from launch_startup import REFERENCE, ROOT, in_turns, seconds, show

# The root first: tests/ has a folder that is called tracking too.
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT))

from launch.lab import Lab

from job_runs import copy_run, finish, make_run, measure_pace

ALL, NEWEST, HELP = "jobs list --all", "jobs list", "jobs --help"


def main(
    rounds: Annotated[int, typer.Option(help="Runs of each command.", min=3)] = 15,
    runs: Annotated[int, typer.Option(help="How many run folders there are.", min=2)] = 200,
    rows: Annotated[int, typer.Option(help="Rows in each journal.", min=1)] = 5000,
) -> None:
    """Makes the runs, times the commands in turns and prints the table."""
    with tempfile.TemporaryDirectory(prefix="jobs-list-") as folder:
        lab = Lab(Path(folder) / "lab")
        lab.up()
        try:
            root = Path(folder) / "runs"
            first = make_run(root, "run-0", rows=rows)
            measure_pace(first, rows)
            for number in range(1, runs):
                copy = copy_run(first, f"run-{number}", str(100_000 + number))
                if number % 2:
                    finish(copy)
            run = partial(seconds, environment={**os.environ, **lab.environment()})
            jobs = [sys.executable, "-m", "launch.jobs"]
            timed = {
                REFERENCE: partial(run, [sys.executable, "-c", REFERENCE]),
                "squeue": partial(run, ["squeue", "--states=all"]),
                HELP: partial(run, [*jobs, "--help"]),
                NEWEST: partial(run, [*jobs, "list", f"--root={root}"]),
                ALL: partial(run, [*jobs, "list", "--all", f"--root={root}"]),
            }
            met = show(in_turns(rounds, timed), REFERENCE, {HELP: 2.0, NEWEST: 3.0, ALL: 6.0}, limit=1.0)
        finally:
            lab.down(wipe=True)
    sys.exit(int(not met))


if __name__ == "__main__":
    typer.run(main)
