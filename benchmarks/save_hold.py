"""How long a save holds training: synced and digested before the next step, or behind the next steps.

    python benchmarks/save_hold.py [--million 20 --million 100] [--saves 5] [--steps 10] [--folder DIR]

Two ranks on CPUs train under ZeRO 1, 16 bytes a parameter in a checkpoint, and save every few steps: by `save`, which
waits for the disk, by `begin` and `finish`, as training does, and not at all. The ways take turns in one process. What
a save costs is the time of all steps and saves, less that of the steps without saves.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import deepspeed  # noqa: F401 - before the ranks are forked
import torch
import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
# The root first: tests/ has a folder that is called tracking too.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gilbreth_phase0 import engine  # noqa: E402
from gilbreth_phase0.checkpointer import Checkpointer  # noqa: E402
from gilbreth_phase0.job import Job  # noqa: E402
from gilbreth_phase0.ranks import compile_extensions  # noqa: E402
from gilbreth_phase0.stop import StopProtocol  # noqa: E402

from forked_ranks import run_ranks  # noqa: E402

RANKS = 2
WIDTH = 1024
NONE, WAITING, BEHIND = "no saves", "waits for the disk", "behind the next steps"


class Model(nn.Module):
    """Square layers, of about so many million parameters."""

    def __init__(self, million: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        count = max(1, round(million * 1e6 / WIDTH / (WIDTH + 1)))
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(count)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The loss."""
        return self.layers(inputs).square().mean()


class Way:
    """One rank that trains and saves.

    Args:
        million: Parameters.
        job: This rank and its job.
    """

    def __init__(self, million: int, job: Job) -> None:
        self._job = job
        optimisation = engine.Optimisation(
            lr=1e-4,
            weight_decay=0.0,
            warmup_steps=1,
            training_steps=1_000_000,
            clip_grad_norm=1.0,
            zero_stage=1,
            micro_batch_size=4,
            gradient_accumulation=1,
        )
        self._engine = engine.initialise(Model(million), optimisation, job)
        self._saver = Checkpointer(self._engine, job)
        self._stop = StopProtocol(job.ranks.rank)
        self._stop.connect(job.control)
        self._step = 0
        self.held: list[float] = []

    def turn(self, way: str, steps: int) -> float:
        """Does the steps and one save behind the first of them; returns the seconds."""
        start = time.monotonic()
        for number in range(steps):
            self._engine.backward(self._engine(torch.randn(4, WIDTH)))
            self._engine.step()
            self._step += 1
            self._stop.at_boundary(self._saver.is_sealed)
            if self._stop.all_sealed and self._saver.is_under_way:
                self._finish()
            if number == 0 and way != NONE:
                self._saver.begin(self._step, {"step": self._step}, None, None)
                if way == WAITING:
                    self._finish()
        if self._saver.is_under_way:
            self._finish()
        seconds = time.monotonic() - start
        self._job.on_main(lambda: shutil.rmtree(self._job.run_dir / "checkpoints", ignore_errors=True))
        return seconds

    def close(self) -> None:
        """Leaves the other rank."""
        self._stop.disconnect()
        self._job.close()

    def _finish(self) -> None:
        self.held.append(self._saver.finish().held_seconds)


def measure(rank: int, folder: Path, million: int, saves: int, steps: int) -> None:
    """What a rank does; rank 0 leaves what it measured in a file."""
    job = Job.start(folder, "cpu")
    way = Way(million, job)
    way.turn(NONE, steps)
    seen: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "held": []} for name in (NONE, WAITING, BEHIND)}
    for _ in range(saves):
        for name, found in seen.items():
            way.held.clear()
            found["seconds"].append(way.turn(name, steps))
            found["held"] += way.held
    if rank == 0:
        (folder / "seen.json").write_text(json.dumps(seen))
    way.close()


def main(
    million: Annotated[list[int] | None, typer.Option(help="Parameters; may be repeated.", min=1)] = None,
    saves: Annotated[int, typer.Option(help="Of each kind.", min=1)] = 5,
    steps: Annotated[int, typer.Option(help="From one save to the next.", min=2)] = 10,
    folder: Annotated[Path | None, typer.Option(help="On the disk that counts; a temporary one without it.")] = None,
) -> None:
    """Measures, and prints the table."""
    compile_extensions()
    table = Table("parameters", "save", "held (s)", "cost in all (s)", "a step (s)", box=MARKDOWN)
    for count in million or [20, 100]:
        with tempfile.TemporaryDirectory(prefix="save-hold-", dir=folder) as name:
            run_ranks(RANKS, lambda rank, run=Path(name), count=count: measure(rank, run, count, saves, steps))
            seen = json.loads((Path(name) / "seen.json").read_text())
        bare = statistics.median(seen[NONE]["seconds"])
        for way in (WAITING, BEHIND):
            held, cost = (statistics.median(seen[way]["held"]), statistics.median(seen[way]["seconds"]) - bare)
            table.add_row(f"{count} M", way, f"{held:.2f}", f"{cost:.2f}", f"{bare / steps:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
