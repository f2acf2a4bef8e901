"""How long a login node waits for `launch.submit`, against `python -c "import submitit"`.

    python benchmarks/launch_startup.py [--rounds 15]

The commands take turns, so that a busy moment of the machine falls on all of them. Prints medians and their ratios to
submitit's import, and ends with 1 when a goal is missed (help under 3x, dry run under 6x).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "import submitit"
COMMANDS = {
    REFERENCE: ["-c", "import submitit"],
    "submit --help": ["-m", "launch.submit", "--help"],
    "submit --dry-run": ["-m", "launch.submit", "--stage", "bc", "--cluster", "gilbreth", "--dry-run"],
}
GOALS = {"submit --help": 3.0, "submit --dry-run": 6.0}


def seconds(arguments: list[str]) -> float:
    """Runs Python with these arguments and returns the wall time."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start


def main(rounds: Annotated[int, typer.Option(help="Runs of each command.", min=10)] = 15) -> None:
    """Times the commands in turns and prints the table."""
    for arguments in COMMANDS.values():
        seconds(arguments)  # the first run reads from disk and writes the byte code
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    medians = {name: statistics.median(values) for name, values in times.items()}
    table = Table("command", "median s", "fastest s", "slowest s", "ratio", "goal", title=f"{rounds} rounds in turns")
    missed = False
    for name, values in times.items():
        ratio, goal = medians[name] / medians[REFERENCE], GOALS.get(name)
        missed |= goal is not None and ratio >= goal
        figures = [f"{value:.3f}" for value in (medians[name], min(values), max(values))]
        table.add_row(name, *figures, f"{ratio:.2f}x", f"< {goal:g}x" if goal else "")
    Console(width=90).print(table)
    sys.exit(int(missed))


if __name__ == "__main__":
    typer.run(main)
