"""Progress to look at: a bar on a terminal, a plain line every few seconds in a job's log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str], None]
"""Counts one unit as done; the text says how things stand ("12/13 succeeded")."""

LOG_SECONDS = 5.0


@contextmanager
def progress(title: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Advance]:
    """Shows how much of `total` is done, at what rate and how long the rest takes.

    Args:
        title: What is counted, in the plural ("demonstrations").
        total: How many there will be.
        done: How many an earlier process has done.
        shown: False on a rank that stays silent.

    Yields:
        The function to call after each one.
    """
    if not shown:
        yield lambda status: None
        return
    if sys.stdout.isatty():
        with _bar(title, total, done) as advance_bar:
            yield advance_bar
        return
    started = last = time.monotonic()
    first = done

    def advance(status: str) -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last < LOG_SECONDS and done < total:
            return
        last = now
        rate = (done - first) / max(now - started, 1e-9)
        print(f"{title}: {done}/{total}, {status}, {rate:.1f}/s, {(total - done) / rate:.0f} s left", flush=True)

    print(f"{title}: {done}/{total}, starting", flush=True)
    yield advance


@contextmanager
def _bar(title: str, total: int, first: int) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    with Progress(*columns) as bar:
        task = bar.add_task(title, total=total, completed=first, status="starting")

        def advance(status: str) -> None:
            rate = (bar.tasks[0].completed + 1 - first) / max(time.monotonic() - started, 1e-9)
            bar.update(task, advance=1, status=f"{status}, {rate:.1f}/s")

        yield advance
