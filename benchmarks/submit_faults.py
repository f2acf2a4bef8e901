"""SIGKILL of the submitting process at random moments, by phase, in the lab; then the same command again.

    python benchmarks/submit_faults.py [--kills 50] [--seed 0]

Every trial has a run root of its own; half of them name their run. Ends with 1 when a run got a second job, a job has
no run, a run has no job, a job did not run to its end, or something was left over.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# The root first: tests/ has a folder that is called tracking too.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from launch.lab import Lab  # noqa: E402

from submit_trials import PHASES, judge, play  # noqa: E402

COLUMNS = ["killed", "kills", "job adopted", "submitted by the next command", "refused: the name is taken",
           "second job for a run", "run or job lost, or left over"]  # fmt: skip


def main(
    kills: Annotated[int, typer.Option(help="How many, shared out over the phases.", min=1)] = 50,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kills, submits again, compares jobs with runs, and prints the table."""
    draw, console = random.Random(seed), Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    lab = Lab(folder)
    try:
        lab.up()
        environment = lab.environment()
        with tempfile.TemporaryDirectory(prefix="submit-faults-") as below:
            trials = [
                play(
                    Path(below) / str(number),
                    list(PHASES)[number % len(PHASES)],
                    draw,
                    environment,
                    # Names of all trials in turns with and without, in every phase.
                    *([f"name=run-{number}"] if number // len(PHASES) % 2 else []),
                )
                for number in track(range(kills), "kills", console=console)
            ]
            for trial in trials:
                judge(trial, environment)
    finally:
        lab.down(wipe=True)
    table = Table(*COLUMNS, box=MARKDOWN)
    for phase in PHASES:
        own = [trial for trial in trials if trial.phase == phase]
        adopted = sum(trial.adopted for trial in own)
        refused = sum("is there already" in trial.said for trial in own)
        second = sum(any(len(jobs) > 1 for jobs in trial.jobs.values()) for trial in own)
        other = sum(bool(trial.faults) for trial in own) - second
        table.add_row(phase, *map(str, (len(own), adopted, len(own) - adopted - refused, refused, second, other)))
    Console(width=160).print(table)
    for trial in trials:
        for fault in trial.faults:
            print(f"{trial.phase}: {fault}")
    sys.exit(int(any(trial.faults for trial in trials)))


if __name__ == "__main__":
    typer.run(main)
