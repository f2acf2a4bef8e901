"""What each fault costs a training loop, and what becomes of its rows.

    python benchmarks/tracker_faults.py [--only PATTERN] [--finish-timeout 20]

Each fault is played once: a loop of 80 logged steps in a process of its own, W&B's real client, and a W&B on the
loopback (`tests/wandb_server`). Rows that are not on the server at the end are uploaded as the tracker tells the user
to. Ends with 1 when a row of the journal did not arrive, arrived twice, or the loop was held for 3 s.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# The root first: tests/ has a folder that is called tracking too.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fault_trials import TRIALS, Outcome, play  # noqa: E402

COLUMNS = ["fault", "what happened", "rows logged", "arrived", "twice", "held at the start, s", "longest call, s",
           "all calls, s", "finish, s"]  # fmt: skip
HELD_S = 3.0


def what_happened(outcome: Outcome) -> str:
    """In a few words, how the segment ended."""
    ended = {"online": "online to the end", "offline": "offline folder, uploaded by `wandb sync`"}
    words = [
        ended.get(outcome.ended, "no folder; made elsewhere by `python -m tracking.sync.child`, then `wandb sync`")
    ]
    if outcome.reason:
        words.append(outcome.reason.splitlines()[0].strip())
    if not outcome.held:
        words.append("killed; the child ended the run as crashed")
    if "cannot be written" in outcome.said:
        words.append("one warning")
    if outcome.calls > outcome.logged:
        words.append(f"{outcome.calls - outcome.logged} rows never found room")
    if "Another process continues" in outcome.said:
        words.append("the later process has the run, the first one says so and stops")
    return "; ".join(words)


def is_good(outcome: Outcome) -> bool:
    """Nothing lost, nothing twice, training not held."""
    whole = outcome.arrived == outcome.logged and outcome.twice == 0
    return whole and max(outcome.held.get("start", 0.0), outcome.held.get("longest", 0.0)) < HELD_S


def held(outcome: Outcome) -> list[str]:
    """How long the loop was held, for the last four columns; a process that was killed has not measured it."""
    places = {"start": 2, "longest": 4, "in_all": 3, "finish": 2}
    return [f"{outcome.held[name]:.{digits}f}" if outcome.held else "-" for name, digits in places.items()]


def main(
    only: Annotated[str, typer.Option(help="Play the faults whose title this pattern finds.")] = "",
    finish_timeout: Annotated[float, typer.Option(help="The tracker's, s.", min=1.0)] = 20.0,
) -> None:
    """Plays the faults and prints the table."""
    table = Table(*COLUMNS, box=MARKDOWN)
    good = True
    with tempfile.TemporaryDirectory(prefix="tracker-faults-") as temporary:
        for number, trial in enumerate(trial for trial in TRIALS.values() if re.search(only, trial.title)):
            print(f"{trial.title} …", file=sys.stderr, flush=True)
            folder = Path(temporary) / str(number)
            outcome = play(trial, folder, finish_timeout)
            good &= is_good(outcome)
            # The address of a trial's own server says nothing to a reader.
            said = " ".join("W&B" if word.startswith("http://") else word for word in what_happened(outcome).split())
            table.add_row(
                trial.title, said, str(outcome.logged), str(outcome.arrived), str(outcome.twice), *held(outcome)
            )
    Console(width=280).print(table)
    sys.exit(int(not good))


if __name__ == "__main__":
    typer.run(main)
