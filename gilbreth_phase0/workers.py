"""Work on episodes in several processes, with results that do not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def ordered_map(
    make_worker: Callable[[], Callable[[Item], Result]],
    items: Iterable[Item],
    num_workers: int,
    preload: tuple[str, ...] = (),
) -> Iterator[Iterator[Result]]:
    """Applies a function in worker processes, which start at once and end with the block.

    Only a few items are taken ahead of the results that were asked for, so the items may be endless.

    Args:
        make_worker: Makes, once in each process, what is then called with the items; pickled. A result must follow from
            its item alone.
        items: What to work on.
        num_workers: How many processes.
        preload: Modules to import once for all processes, which are forked from the one that has them.

    Yields:
        The results in the items' order. Asking for one raises what the worker raised, or `BrokenProcessPool` when a
        process died (killed, out of memory).
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    source = iter(items)
    with _processes_ignore_stop_signal():
        pool = ProcessPoolExecutor(num_workers, context, initializer=_start, initargs=(make_worker,))
        ahead = deque(pool.submit(_work, item) for item in islice(source, 2 * num_workers))

    def results() -> Iterator[Result]:
        while ahead:
            result = ahead.popleft().result()
            with _processes_ignore_stop_signal():
                ahead.extend(pool.submit(_work, item) for item in islice(source, 1))
            yield result

    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _processes_ignore_stop_signal() -> Iterator[None]:
    """Keeps USR2 from the processes that are started within the block.

    Slurm's signals reach every process of a step, and USR2 kills one that has no handler. A blocked signal stays
    blocked in what is started, and waits here for this process's own handler.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_make_worker: Callable[[], Callable[[Any], Any]]


def _start(make_worker: Callable[[], Callable[[Any], Any]]) -> None:
    global _make_worker  # noqa: PLW0603  (a pool's process has nowhere else to keep it)
    _make_worker = make_worker
    # Ctrl-C reaches every process of the terminal; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


@cache
def _worker() -> Callable[[Any], Any]:
    # Made at the first item, not when the process starts: an error there would only be told as a broken pool.
    return _make_worker()


def _work(item: Any) -> Any:
    return _worker()(item)


def _end_with_parent() -> None:
    """Ends this process when its parent is gone (killed, so that nobody told the workers)."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
