"""SIGKILL at random moments of saving, pruning, consolidating and publishing, two ranks.

    python benchmarks/checkpoint_faults.py [--kills 200] [--seed 0] [--stage 1]

One run, killed again and again: each attempt resumes what the one before it has left, trains a step, saves, prunes,
consolidates and publishes to a model store, until it is killed. Ends with 1 when a checkpoint that was saved was not
found, one that looks whole was not, `latest` pointed nowhere, a consolidated model was cut or a published one lost.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
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

from checkpoint_trials import PARTS, Campaign  # noqa: E402

COLUMNS = ["killed while at", "kills", "whole checkpoint found and resumed", "that save was already whole", "faults"]


def main(
    kills: Annotated[int, typer.Option(help="How many, shared out over the parts.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    stage: Annotated[int, typer.Option(help="ZeRO stage.", min=0, max=3)] = 1,
) -> None:
    """Kills, looks, and prints the table."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-faults-") as folder:
        campaign = Campaign(Path(folder), seed, stage)
        console = Console(stderr=True)
        trials = [campaign.kill_in(PARTS[n % len(PARTS)]) for n in track(range(kills), "kills", console=console)]
    table = Table(*COLUMNS, box=MARKDOWN)
    hits = Counter(trial.hit for trial in trials)
    for part in (*PARTS, *(other for other in hits if other not in PARTS)):
        own = [trial for trial in trials if trial.hit == part]
        good = sum(not trial.faults for trial in own)
        newer = sum(trial.newest > trial.saved for trial in own)
        table.add_row(part, str(len(own)), str(good), str(newer), str(len(own) - good))
    Console(width=120).print(table)
    for trial in trials:
        for fault in trial.faults:
            print(f"{trial.hit}: {fault}")
    sys.exit(int(any(trial.faults for trial in trials)))


if __name__ == "__main__":
    typer.run(main)
