"""One check of a smoke test: it has a name, a fix and a time limit, and passes where it holds on every rank."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gilbreth_phase0.arguments import mark_refusal
from gilbreth_phase0.job import Job
from gilbreth_phase0.ranks import Ranks
from gilbreth_phase0.run_folder import write_done
from tracking.errors import UserError

SECONDS = 300.0
"""Time limit of a check: a first step may wait for libraries on a slow disk, or for a compiler."""


class SmokeError(UserError):
    """A check that did not hold; the message ends with the fix."""


@dataclass
class Look:
    """What one rank sees in a check.

    Attributes:
        seen: What the line of a check that holds shows; rank 0's is printed.
        fault: What is wrong here; empty where nothing is.
    """

    seen: str = ""
    fault: str = ""


def failed(check: str, seen: str, fix: str) -> SmokeError:
    """Makes the error of a check that did not hold."""
    return SmokeError(f"FAILED: {check}\n  seen: {seen}\n  fix:  {fix}")


@contextmanager
def check(job: Job, name: str, fix: str, seconds: float = SECONDS) -> Iterator[Look]:
    """Runs the block as a check on every rank; all go on, or all end together after rank 0 has said why.

    The block makes its collective calls first, and then says what is wrong: who stops before one leaves the others
    waiting in it.

    Args:
        job: This rank and its job; every rank must come here.
        name: What holds, in the words of the report.
        fix: What to do where it does not.
        seconds: When a check that has no end is given up.

    Yields:
        Where the block puts what it sees.

    Raises:
        SmokeError: The block raised an error, on this rank.
        SystemExit: A rank has found a fault.
    """
    look = Look()
    with named(name, fix, job.run_dir, seconds):
        yield look
        faults = job.gathered((look.fault, _place()))
    seen = _summary(faults)
    if seen:
        _end_together(job, failed(name, seen, fix))
    job.say(f"ok      {name}: {look.seen}" if look.seen else f"ok      {name}")


@contextmanager
def named(name: str, fix: str, run_dir: Path, seconds: float) -> Iterator[None]:
    """Makes an error in the block, and a block without an end, the failure of a check on this rank alone.

    Raises:
        SmokeError: For an error in the block.
        UserError: The block's own, where its exit code is not that of a refusal.
    """
    timer = threading.Timer(seconds, _give_up, [run_dir, failed(name, f"no end after {seconds:g} s, {_place()}", fix)])
    timer.daemon = True
    timer.start()
    try:
        yield
    except UserError as error:
        # Another code is no refusal: a later attempt has taken the run, and goes on with it.
        if isinstance(error, SmokeError) or error.exit_code != SmokeError.exit_code:
            raise
        raise failed(name, f"{_indented(error)} ({_place()})", fix) from error
    except Exception as error:
        traceback.print_exc()
        raise failed(name, f"{type(error).__name__}: {_indented(error)} ({_place()})", fix) from error
    finally:
        timer.cancel()


def complete(job: Job, steps: int) -> None:
    """Writes the done record and leaves the ranks; every rank must call it."""

    def write() -> None:
        job.check_ownership()
        write_done(job.run_dir, steps)

    job.on_main(write)
    job.close()


def _place() -> str:
    return f"rank {Ranks.from_environment().rank} on {os.uname().nodename}"


def _indented(error: Exception) -> str:
    return "\n        ".join(str(error).splitlines())


def _summary(faults: list[tuple[str, str]]) -> str:
    """Writes each fault once, with the ranks that have it."""
    places: dict[str, list[str]] = {}
    for fault, place in faults:
        if fault:
            places.setdefault(fault, []).append(place)
    everywhere = len(faults) > 1
    return "\n        ".join(
        f"{fault} (every rank)" if everywhere and len(where) == len(faults) else f"{fault} ({', '.join(where)})"
        for fault, where in places.items()
    )


def _end_together(job: Job, error: SmokeError) -> NoReturn:
    # Where another rank ended first, srun would kill rank 0 before it has spoken.
    job.on_main(lambda: _say(job.run_dir, error))
    sys.exit(error.exit_code)


def _give_up(run_dir: Path, error: SmokeError) -> NoReturn:
    """Ends this process from the timer's thread: its main thread waits in a collective call that no signal ends."""
    _say(run_dir, error)
    os._exit(error.exit_code)


def _say(run_dir: Path, error: SmokeError) -> None:
    print(f"error: {error}", file=sys.stderr, flush=True)
    mark_refusal(run_dir, error)
