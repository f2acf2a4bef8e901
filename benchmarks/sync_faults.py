"""Every fault of pushing runs, and what becomes of their rows: `python -m tracking.sync` on a loopback W&B.

    python benchmarks/sync_faults.py [--kills 200] [--outage 60] [--only PATTERN] [--seed 0]

Each fault is played once with real processes: jobs of `ExperimentTracker`, the daemon with `--interval 1`, W&B's own
client. Then jobs run one after the other in six places (runs of one to three segments, online and offline, some killed
and requeued ten steps back), and whoever pushes them is killed with signal 9, in the phase that was hit least so far:
it is stopped, its phase is read, and it is killed there. Ends with 1 when a row of a journal is not on the server, is
there twice or differs, a summary or an upload is missing, a run is in a wrong state, or a phase was hit less than ten
times in 200 kills.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# The root first: tests/ has a folder that is called tracking too.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sync_campaign import FOLDER, PHASES, VICTIMS, Campaign, play_campaign  # noqa: E402
from sync_site import Tally  # noqa: E402
from sync_trials import TRIALS, play  # noqa: E402

COUNTS = ["rows expected", "rows on the server", "lost", "twice", "unequal"]


def counts(tallies: list[Tally]) -> list[str]:
    """The cells under `COUNTS`, over several runs."""
    sums = [
        sum(tally.expected for tally in tallies),
        sum(tally.there for tally in tallies),
        sum(tally.lost for tally in tallies),
        sum(tally.twice for tally in tallies),
        sum(tally.unequal for tally in tallies),
    ]
    return [str(number) for number in sums]


def remarks(tallies: list[Tally], notes: list[str], problems: list[str]) -> str:
    """What else there is to say."""
    words = [*notes, *(f"**{problem.splitlines()[0]}**" for problem in problems)]
    for what, number in (
        ("values of the summary are old", sum(tally.stale for tally in tallies)),
        ("uploads wait or are there twice", sum(tally.uploads for tally in tallies)),
    ):
        words += [f"**{number} {what}**"] if number else []
    return "; ".join(words)


def play_faults(only: str, outage: float, folder: Path) -> bool:
    """Plays every fault, prints the table and says whether all went well."""
    table = Table("fault", *COUNTS, "state", "remarks", box=MARKDOWN)
    good = True
    for number, title in enumerate(title for title in TRIALS if re.search(only, title)):
        print(f"{title} …", file=sys.stderr, flush=True)
        outcome = play(title, folder / str(number), outage)
        good &= outcome.is_good
        tallies = list(outcome.tallies.values())
        states = ", ".join(sorted({tally.state for tally in tallies}))
        table.add_row(title, *counts(tallies), states, remarks(tallies, outcome.notes, outcome.problems))
    if table.row_count:
        Console(width=220).print(table)
    return good


def show_campaign(campaign: Campaign, seconds: float) -> None:
    """Prints what was killed, and what became of the runs."""
    seen = Counter((kill.victim, kill.phase) for kill in campaign.kills)
    phases = [*PHASES, FOLDER]
    table = Table("killed", *phases, "together", box=MARKDOWN)
    for victim in VICTIMS:
        numbers = [seen[victim, phase] for phase in phases]
        table.add_row(victim, *(str(number) if number else "" for number in numbers), str(sum(numbers)))
    table.add_row("together", *(str(campaign.count()[phase]) for phase in phases), str(len(campaign.kills)))
    Console(width=160).print(table)
    tallies = list(campaign.tallies.values())
    states = Counter(tally.state for tally in tallies)
    table = Table("runs", "segments", "minutes", "then, s", *COUNTS, "states", "remarks", box=MARKDOWN)
    table.add_row(
        str(len(tallies)),
        str(campaign.segments),
        f"{seconds / 60:.0f}",
        f"{campaign.settled:.0f}",
        *counts(tallies),
        ", ".join(f"{number} {state}" for state, number in states.items()),
        remarks(tallies, [], campaign.problems),
    )
    Console(width=160).print(table)
    for name, tally in campaign.tallies.items():
        if not tally.is_whole or tally.state != "finished":
            print(f"{name}: {tally}")


def main(
    kills: Annotated[int, typer.Option(help="How often somebody is killed; 0 leaves that out.", min=0)] = 200,
    outage: Annotated[float, typer.Option(help="How long outages last, s.", min=1.0)] = 60.0,
    only: Annotated[str, typer.Option(help="Play the faults whose title this pattern finds.")] = "",
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Plays everything and prints the tables."""
    with tempfile.TemporaryDirectory(prefix="sync-faults-") as temporary:
        good = play_faults(only, outage, Path(temporary))
        if kills:
            print(f"{kills} kills …", file=sys.stderr, flush=True)
            began = time.monotonic()
            campaign = play_campaign(Path(temporary) / "campaign", kills, seed=seed)
            show_campaign(campaign, time.monotonic() - began)
            enough = kills < 200 or min(campaign.count()[phase] for phase in PHASES) >= 10
            good &= campaign.is_good and enough
    sys.exit(int(not good))


if __name__ == "__main__":
    typer.run(main)
