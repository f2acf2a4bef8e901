"""How fast a run gets on: what a job measures, and how many more jobs the rest needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tracking.files import read_json, write_json

STATE = "pace.json"

SAVE_MARGIN = 1.5
"""A save that was measured once may take half as long again; a job that meets its limit loses all since then."""

RESERVE_SECONDS = 5.0
"""What a stop needs beside the save: the ranks' agreement, and the end of the processes."""


@dataclass(frozen=True)
class Pace:
    """What the newest attempt of a run measured.

    Attributes:
        steps_per_second: Of training alone, without evaluations and the waiting for saves.
        save_seconds: The longest save.
        held_seconds: How long training waited for a save at most; the rest goes on behind the steps.
        startup_seconds: From the start of the process to the first step: imports, data, the checkpoint.
        save_freq: Steps between checkpoints.
        step: The step of the newest checkpoint.
        total: The configured number of steps.
    """

    steps_per_second: float
    save_seconds: float
    held_seconds: float
    startup_seconds: float
    save_freq: int
    step: int
    total: int

    def write(self, run_dir: Path) -> None:
        """Writes RUN/pace.json."""
        write_json(run_dir / STATE, asdict(self))

    def steps_in(self, limit_seconds: float) -> int:
        """Steps that a job with this time limit does, with its saves and the stop at its end; at least 0."""
        step = 1 / self.steps_per_second
        left = limit_seconds - self.startup_seconds - RESERVE_SECONDS - SAVE_MARGIN * self.save_seconds - 2 * step
        return max(0, int(left / (step + self.held_seconds / self.save_freq)))

    def segments(self, limit_seconds: float, step: int | None = None) -> float:
        """Jobs that the rest needs, the one under way included.

        Args:
            limit_seconds: The time limit of each.
            step: Where it begins; the newest checkpoint where it is None.

        Returns:
            A whole number; infinity where not one step fits into a job.
        """
        rest, each = self.total - (self.step if step is None else step), self.steps_in(limit_seconds)
        if rest <= 0:
            return 1
        return math.ceil(rest / each) if each else math.inf


def read_pace(run_dir: Path) -> Pace | None:
    """Reads RUN/pace.json; None where there is none, or not of this form."""
    try:
        found = read_json(run_dir / STATE)
        return Pace(**found) if found else None
    except (ValueError, TypeError):
        return None


def total_steps(arguments: Mapping[str, Any]) -> int | None:
    """Steps of a whole run, of all its rounds; None for a stage that does not count any."""
    steps, rounds = arguments.get("training_steps", arguments.get("steps")), arguments.get("rounds", 1)
    return steps * rounds if isinstance(steps, int) and isinstance(rounds, int) else None
