"""Measures how fast an attempt gets on, for the plan of the jobs that the rest needs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tracking.pace import Pace


class StepClock:
    """Starts with the first step of an attempt.

    Args:
        step: Steps that are done already.
        total: The configured number.
        save_freq: Steps between checkpoints.
    """

    def __init__(self, step: int, total: int, save_freq: int) -> None:
        self._first, self._total, self._save_freq = step, total, save_freq
        self._began = time.monotonic()
        self._startup = seconds_of_process()
        self._elsewhere = self._longest = self._held = 0.0

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Does not count the block as training."""
        since = time.monotonic()
        yield
        self._elsewhere += time.monotonic() - since

    def saved(self, step: int, done: int, seconds: float, held_seconds: float) -> Pace:
        """Takes what a save took, and says how fast the attempt is.

        Args:
            step: The step that was saved.
            done: Steps that are done now: training goes on beside a save.
            seconds: What all of the save took.
            held_seconds: How long training waited for it.
        """
        self._elsewhere += held_seconds
        self._longest, self._held = max(self._longest, seconds), max(self._held, held_seconds)
        training = max(time.monotonic() - self._began - self._elsewhere, 1e-6)
        return Pace(
            steps_per_second=round((done - self._first) / training, 6),
            save_seconds=round(self._longest, 3),
            held_seconds=round(self._held, 3),
            startup_seconds=round(self._startup, 1),
            save_freq=self._save_freq,
            step=step,
            total=self._total,
        )


def seconds_of_process() -> float:
    """How long ago this process began; Linux alone tells it (proc_pid_stat(5), field 22)."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return uptime - ticks / os.sysconf("SC_CLK_TCK")
