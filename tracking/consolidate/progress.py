"""How far a consolidation is: a bar in a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tracking.consolidate.writing import Progress

_LINE_INTERVAL_S = 10.0


@contextmanager
def shown_progress(total: int) -> Iterator[Progress]:
    """Shows on stderr how many of the bytes are written, and how many a second.

    Args:
        total: Bytes in all.
    """
    if sys.stderr.isatty():
        with _bar(total) as advance:
            yield advance
    else:
        yield _Lines(total)


@contextmanager
def _bar(total: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("consolidating"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda written: bar.advance(task, written)


class _Lines:
    def __init__(self, total: int) -> None:
        self._total = total
        self._written = 0
        self._start = self._last = time.monotonic()

    def __call__(self, written: int) -> None:
        self._written += written
        now = time.monotonic()
        if now - self._last >= _LINE_INTERVAL_S:
            self._last = now
            print(
                f"consolidating: {self._written / 1e9:.2f} of {self._total / 1e9:.2f} GB,"
                f" {self._written / 1e6 / (now - self._start):.0f} MB/s",
                file=sys.stderr,
                flush=True,
            )
