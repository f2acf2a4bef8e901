"""Stopping at a step boundary, the same one on every rank.

A signal only sets a flag. At each step the ranks reduce their flags, and rank 0's view of the job's end, over a gloo
group of their own; the result is read one step late, so that no step waits for it on a GPU. When it says stop, all
ranks save the same step, and only then rank 0 hands the signal on to the handler that submitit had installed, which
requeues the job.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING

from tracking.pace import RESERVE_SECONDS, SAVE_MARGIN

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup, Work

REQUEUE_EXIT_CODE = 75
"""What a rank exits with when it stopped with work left and nobody but the batch script can requeue (EX_TEMPFAIL)."""

TERMINATED_EXIT_CODE = 143
"""What a rank exits with after TERM, as a shell reports it."""

CHAIN = "GILBRETH_CHAIN"
"""Set where Slurm must not requeue the job: the next one of the chain goes on."""

_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_WAIT_TO_BE_ENDED_SECONDS = 60.0


class Stop(IntEnum):
    """Why the ranks stop; the greater wins where they disagree."""

    NO = 0
    REQUEUE = 1
    TERMINATE = 2


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Holds USR2 and TERM back until the block ends, for this process and the ones that it starts.

    A stop signal reaches every process of a Slurm step: a compiler that dies of it leaves half an extension behind.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def job_end_time() -> float | None:
    """Asks Slurm when this job will be ended.

    Returns:
        Seconds since the epoch, or None outside Slurm and where squeue does not say.
    """
    given = os.environ.get("SLURM_JOB_END_TIME")  # Slurm 22.05.4 and newer, and not in every step
    if given and given.isdigit():
        return float(given)
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None:
        return None
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job_id, "--format", "%e"],
            env={**os.environ, "SLURM_TIME_FORMAT": "%s"},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"stop: squeue does not tell this job's end ({error}); waiting for Slurm's signal instead", flush=True)
        return None
    return float(answer) if answer.isdigit() else None


class StopProtocol:
    """What one rank knows of the stop, and the reduction that makes it the same on all.

    Args:
        rank: This rank; rank 0's clock decides about the end time.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._group: ProcessGroup | None = None
        self._end_time: float | None = None
        self._wanted = Stop.NO
        self._under_way: tuple[Work | None, torch.Tensor] | None = None
        self._requeue_handler: Callable[[int, FrameType | None], object] | None = None
        self._last_step_at = time.monotonic()
        self._step_seconds = 0.0
        self.save_seconds = 0.0
        """What a save is taken to need: an estimate, until `saved_in` tells what the first one of this attempt took."""
        self._measured = False
        self._is_saving = False
        self._flags_are_older = False
        self.all_sealed = False
        """Whether all ranks said at the boundary before the last one that a save has their shares on the disk."""

    def install(self) -> None:
        """Puts the flag-setting handlers in place and keeps submitit's for `hand_on`."""
        before = signal.signal(signal.SIGUSR2, self._on_signal)
        self._requeue_handler = before if callable(before) else None
        signal.signal(signal.SIGTERM, self._on_signal)

    def connect(self, group: ProcessGroup | None) -> None:
        """Joins the ranks, once they have met.

        Args:
            group: A gloo group of all ranks that nothing else uses, or None for a single rank.
        """
        self._group = group
        self._end_time = job_end_time() if self._rank == 0 else None

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._wanted = max(self._wanted, Stop.TERMINATE if number == signal.SIGTERM else Stop.REQUEUE)

    def at_boundary(self, sealed: bool = False, save_is_due: bool = False) -> Stop:
        """Says, after each step and on every rank alike, whether to stop now.

        The answer is what the ranks wanted one step ago; so is `all_sealed`.

        Args:
            sealed: Whether a save is under way whose share of this rank is on the disk.
            save_is_due: Whether a save begins at this boundary or the next one, in any case.
        """
        wanted = self._wanted
        if self._rank == 0 and not self._another_step_fits(save_is_due):
            wanted = max(wanted, Stop.REQUEUE)
        if self._group is None:
            self.all_sealed = sealed
            return wanted
        import torch
        import torch.distributed as dist

        flags = torch.tensor([int(wanted), int(not sealed)], dtype=torch.int32)
        before, self._under_way = (
            self._under_way,
            (dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True), flags),
        )
        self.all_sealed = False
        if before is None:
            return Stop.NO
        work, reduced = before
        if work is not None:
            work.wait()
        stop, unsealed = reduced.tolist()
        self.all_sealed = not unsealed and not self._flags_are_older
        self._flags_are_older = False
        return Stop(stop)

    def _another_step_fits(self, save_is_due: bool) -> bool:
        now = time.monotonic()
        # The answer is read a step late, and that step must fit too; the slowest recent step is what counts.
        self._step_seconds = max(now - self._last_step_at, 0.9 * self._step_seconds)
        self._last_step_at = now
        if self._end_time is None:
            return True
        saves = 2 if self._is_saving or save_is_due else 1  # one under way is finished before the last one
        needed = 2 * self._step_seconds + SAVE_MARGIN * saves * self.save_seconds + RESERVE_SECONDS
        return time.time() + needed < self._end_time

    def save_begun(self) -> None:
        """Takes note that a save is under way; flags that are on their way are of the one before it."""
        self._is_saving = self._flags_are_older = True

    def saved_in(self, seconds: float) -> None:
        """Takes what a save took; the longest one of this attempt counts."""
        self._is_saving = False
        self.save_seconds = max(self.save_seconds, seconds) if self._measured else seconds
        self._measured = True

    def disconnect(self) -> None:
        """Leaves the ranks, on every rank, after the reduction that is still under way."""
        if self._under_way is not None and self._under_way[0] is not None:
            self._under_way[0].wait()
        self._under_way = self._group = None

    def restart_clock(self) -> None:
        """Leaves what happened since the last boundary (a save, an evaluation) out of the step time."""
        self._last_step_at = time.monotonic()

    def hand_on(self, stop: Stop, may_requeue: Callable[[], bool]) -> None:
        """Ends this process after the save: rank 0 requeues, the others wait to be ended. Does not return.

        In a chain all of them just end: the batch script finds no done record, and hands on.

        Args:
            stop: What `at_boundary` said. TERM ends the run; it does not requeue it.
            may_requeue: Asked by rank 0 before the requeue; records the answer.
        """
        if stop is Stop.TERMINATE:
            sys.exit(TERMINATED_EXIT_CODE)
        if CHAIN in os.environ:
            # srun kills the others when one rank ends with another code.
            sys.exit(0)
        if self._requeue_handler is None:
            sys.exit(REQUEUE_EXIT_CODE)
        if self._rank == 0:
            if not may_requeue():
                sys.exit(1)
            # submitit's handler is what writes the pickle that the next attempt starts from, and calls scontrol.
            self._requeue_handler(signal.SIGUSR2, None)
        deadline = time.monotonic() + _WAIT_TO_BE_ENDED_SECONDS
        while time.monotonic() < deadline:
            time.sleep(0.2)
        sys.exit(REQUEUE_EXIT_CODE)
