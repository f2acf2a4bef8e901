"""How fast training is, measured between logged steps."""

from __future__ import annotations

import time


class Throughput:
    """Counts steps and samples; the time of the first step is not known and is not counted."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._since: float | None = None
        self._steps = 0
        self._samples = 0

    def count(self, batch_size: int) -> None:
        """Counts a step that has just ended.

        Args:
            batch_size: The samples that each rank has seen in it.
        """
        if self._since is None:
            self._since = time.perf_counter()
            return
        self._steps += 1
        self._samples += batch_size

    def rates(self) -> dict[str, float]:
        """The rates since the last call, over all ranks; empty where no step was timed. Starts counting anew."""
        now = time.perf_counter()
        seconds = now - (self._since if self._since is not None else now)
        if not self._steps or seconds <= 0:
            return {}
        rates = {
            "perf/steps_per_sec": self._steps / seconds,
            "perf/samples_per_sec": self._samples * self._world_size / seconds,
        }
        self._since, self._steps, self._samples = now, 0, 0
        return rates
