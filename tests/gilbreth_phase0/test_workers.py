"""The functions come from the standard library: a worker process imports what it runs by name."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import count, islice
from pathlib import Path

import psutil
import pytest

from gilbreth_phase0.workers import DEATHS, ordered_map

from support import wait_until

DOUBLE = partial(partial, operator.mul, 2)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_order(num_workers: int) -> None:
    with ordered_map(DOUBLE, range(7), num_workers) as results:
        assert list(results) == [0, 2, 4, 6, 8, 10, 12]


def test_of_endless_items_only_what_is_wanted_is_taken() -> None:
    taken = count()
    with ordered_map(DOUBLE, taken, 2) as results:
        assert list(islice(results, 5)) == [0, 2, 4, 6, 8]
    assert next(taken) <= 5 + 4


def test_an_error_of_a_worker_arrives() -> None:
    with ordered_map(partial(partial, operator.floordiv, 1), [1, 0], 1) as results:
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_an_error_in_making_the_worker_arrives() -> None:
    with ordered_map(partial(int, "three"), [1], 1) as results, pytest.raises(ValueError, match="three"):
        next(results)


def test_a_killed_worker_is_an_error_and_no_wait(capfd: pytest.CaptureFixture[str]) -> None:
    """GIVEN a worker that dies of an item each time THEN it is tried a few times, and then told."""
    with ordered_map(partial(partial, os._exit), [1], 1) as results, pytest.raises(BrokenProcessPool):
        next(results)
    assert capfd.readouterr().err.count("a worker process died") == DEATHS


DIES_ONCE = "(__import__('pathlib').Path({path!r}).mkdir(), __import__('os').kill(__import__('os').getpid(), 9))"


def test_what_a_killed_worker_was_at_is_done_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """GIVEN two items of six whose worker is killed the first time THEN all results come, in order, each once."""
    items = [str(number) for number in range(6)]
    for number in (1, 4):
        died = str(tmp_path / f"it's {number}")
        once = DIES_ONCE.format(path=died)
        items[number] = f"{number} if __import__('pathlib').Path({died!r}).exists() else {once}"
    with ordered_map(partial(partial, eval), items, 2) as results:
        assert list(results) == [0, 1, 2, 3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it's 1", "it's 4"]
    assert "what it was at is done again, with the same seed" in capfd.readouterr().err


def test_a_stop_signal_does_not_kill_a_worker() -> None:
    with ordered_map(partial(partial, eval), ["__import__('os').getpid()"] * 6, 1) as results:
        worker = next(results)
        os.kill(worker, signal.SIGUSR2)
        os.kill(worker, signal.SIGINT)
        assert set(results) == {worker}


def test_workers_end_with_a_killed_parent() -> None:
    script = (
        "import time\n"
        "from functools import partial\n"
        "from gilbreth_phase0.workers import ordered_map\n"
        "with ordered_map(partial(partial, eval), [\"__import__('os').getpid()\"], 1) as results:\n"
        "    print(next(results), flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        assert worker.is_running()
    finally:
        parent.kill()
        parent.wait(timeout=10)
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, 10, "the worker's end")
