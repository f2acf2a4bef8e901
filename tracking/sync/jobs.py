"""Slurm's word on the jobs of many open runs, with one question for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from tracking.sync.slurm import UNKNOWN, JobState, job_states

_UNASKED = -1e9
_SOON_S = 2.0


class JobWatch:
    """Remembers what Slurm said, and asks again for every job that it was asked about when that is too old."""

    def __init__(self, interval: float) -> None:
        """Asks nobody yet.

        Args:
            interval: Seconds that an answer is good for.
        """
        self._interval = interval
        self._states: dict[str, JobState] = {}
        self._asked_at = _UNASKED
        self._guard = threading.Lock()

    def state(self, job: Mapping[str, Any] | None) -> JobState:
        """What Slurm says of a segment's job.

        Args:
            job: As the segment's first line has it; None outside Slurm, which nobody knows anything about.
        """
        number = str(job.get("job_id") or "") if job is not None else ""
        if not number:
            return UNKNOWN
        with self._guard:
            # A new job is asked for soon, together with those that come with it.
            patience = self._interval if number in self._states else min(_SOON_S, self._interval)
            self._states.setdefault(number, UNKNOWN)
            if time.monotonic() - self._asked_at >= patience:
                self._states.update(job_states(list(self._states)))
                self._asked_at = time.monotonic()
            return self._states[number]
