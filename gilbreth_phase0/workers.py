"""Work on episodes in several processes, with results that do not depend on how many there are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

DEATHS = 3
"""So many times in a row, without a result between them, processes may die before that is the caller's error."""


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
        The results in the items' order; what a process was at that died (killed, out of memory) is done again. Asking
        for one raises what the worker raised, or `BrokenProcessPool` when processes died more than `DEATHS` times.
    """
    source = iter(items)
    workers: _Workers[Item, Result] = _Workers(make_worker, num_workers, preload)
    workers.add(islice(source, 2 * num_workers))

    def results() -> Iterator[Result]:
        while workers.is_busy:
            result = workers.next_result()
            workers.add(islice(source, 1))
            yield result

    try:
        yield results()
    finally:
        workers.end()


class _Workers(Generic[Item, Result]):
    """A pool of processes, and a new one with the same work where it breaks."""

    def __init__(
        self, make_worker: Callable[[], Callable[[Item], Result]], num_workers: int, preload: tuple[str, ...]
    ) -> None:
        self._make_worker, self._num_workers = make_worker, num_workers
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))
        self._ahead: deque[tuple[Item, Future[Result]]] = deque()
        self._deaths = 0
        self._pool = self._new_pool()

    @property
    def is_busy(self) -> bool:
        """Whether a result is still to come."""
        return bool(self._ahead)

    def add(self, items: Iterable[Item]) -> None:
        """Begins with further items."""
        for item in items:
            try:
                self._ahead.append((item, self._submit(item)))
            except BrokenProcessPool as error:
                self._begin_anew(error)
                self._ahead.append((item, self._submit(item)))

    def next_result(self) -> Result:
        """Waits for the result of the first item of all that are under way."""
        while True:
            try:
                result = self._ahead[0][1].result()
            except BrokenProcessPool as error:
                self._begin_anew(error)
                continue
            except BaseException:
                self._ahead.popleft()
                raise
            self._ahead.popleft()
            self._deaths = 0
            return result

    def end(self) -> None:
        """Waits for what runs and leaves the rest."""
        self._pool.shutdown(cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._num_workers, self._context, initializer=_start, initargs=(self._make_worker,))

    def _submit(self, item: Item) -> Future[Result]:
        with processes_ignore_stop_signal():
            return self._pool.submit(_work, item)

    def _begin_anew(self, error: BrokenProcessPool) -> None:
        """Gives what the dead processes were at, or had before them, to new ones."""
        self._deaths += 1
        if self._deaths > DEATHS:
            raise error
        say_death(self._deaths)
        self._pool.shutdown(wait=False)
        self._pool = self._new_pool()
        for index, (item, future) in enumerate(self._ahead):
            if not future.done() or isinstance(future.exception(), BrokenProcessPool):
                self._ahead[index] = (item, self._submit(item))


def say_death(times: int) -> None:
    """Says that a process died and that its work is done again."""
    print(
        f"warning: a worker process died (killed, or out of memory): what it was at is done again, with the same seed"
        f" ({times} of at most {DEATHS} times in a row)",
        file=sys.stderr,
        flush=True,
    )


@contextmanager
def processes_ignore_stop_signal() -> Iterator[None]:
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
