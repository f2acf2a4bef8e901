"""How long a login node waits for `launch.submit`, against `python -c "import submitit"`.

    python benchmarks/launch_startup.py [--rounds 15]

The commands take turns, so that a busy moment of the machine falls on all of them. Prints medians and their ratios to
submitit's import, and ends with 1 when a goal is missed (help under 3x, dry run under 6x).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
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


def seconds(command: Sequence[str], environment: Mapping[str, str] | None = None) -> float:
    """Runs a command in the project root and returns the wall time."""
    # As users have it: the byte code of the tree is kept, as that of the packages is.
    kept = {name: value for name, value in (environment or os.environ).items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return time.perf_counter() - start


def in_turns(rounds: int, runs: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Times commands in turns, so that a busy moment of the machine falls on all of them.

    Args:
        rounds: Runs of each.
        runs: What runs a command and returns its wall time, by name.
    """
    for run in runs.values():
        run()  # the first run reads from disk and writes the byte code
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(run())
    return times


def show(times: Mapping[str, Sequence[float]], reference: str, ratios: Mapping[str, float], limit: float = inf) -> bool:
    """Prints medians and their ratios to a reference.

    Args:
        times: Wall times by name.
        reference: The one that the others are compared with.
        ratios: Goals: each median stays below so many times the reference.
        limit: Seconds below which the medians with a goal stay too.

    Returns:
        Whether every goal is met.
    """
    medians = {name: statistics.median(values) for name, values in times.items()}
    rounds = len(times[reference])
    table = Table("command", "median s", "fastest s", "slowest s", "ratio", "goal", title=f"{rounds} rounds in turns")
    met = True
    for name, values in times.items():
        ratio, goal = medians[name] / medians[reference], ratios.get(name)
        met &= goal is None or (ratio < goal and medians[name] < limit)
        figures = [f"{value:.3f}" for value in (medians[name], min(values), max(values))]
        words = [f"< {goal:g}x" if goal else "", f"< {limit:g} s" if goal and limit < inf else ""]
        table.add_row(name, *figures, f"{ratio:.2f}x", ", ".join(word for word in words if word))
    Console(width=100).print(table)
    return met


def main(rounds: Annotated[int, typer.Option(help="Runs of each command.", min=10)] = 15) -> None:
    """Times the commands in turns and prints the table."""
    runs = {name: partial(seconds, [sys.executable, *arguments]) for name, arguments in COMMANDS.items()}
    sys.exit(int(not show(in_turns(rounds, runs), REFERENCE, GOALS)))


if __name__ == "__main__":
    typer.run(main)
