"""Which (step, metric) pairs a run has logged already, so that a resumed segment does not log them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from tracking.journal.lines import Row

Value = TypeVar("Value")


class KnownPairs:
    """The pairs of earlier segments. The memory they take is given back when the run has passed their last step.

    Attributes:
        last_step: The last step that an earlier segment logged, -1 where there is none.
        skipped: How many pairs were left out so far.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.skipped = 0
        self._names: dict[int, frozenset[str]] = {}
        # Rows of one shape share one set, which keeps 100,000 rows in a few megabytes.
        shapes: dict[frozenset[str], frozenset[str]] = {}
        for row in rows:
            names = frozenset(row.data) | self._names.get(row.step, frozenset())
            self._names[row.step] = shapes.setdefault(names, names)
        self.last_step = max(self._names, default=-1)

    def fresh(self, step: int, data: Mapping[str, Value]) -> Mapping[str, Value]:
        """Returns what of a row is new; the row itself where all of it is."""
        names = self._names.get(step)
        if not names or names.isdisjoint(data):
            return data
        fresh = {key: value for key, value in data.items() if key not in names}
        self.skipped += len(data) - len(fresh)
        return fresh
