"""Trying policies on all ranks of a job, while rank 0 decides which, and on which seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gilbreth_phase0.datasets import read_environment
from gilbreth_phase0.job import Job
from gilbreth_phase0.progress import progress
from gilbreth_phase0.stop import Stop
from tracking.errors import UserError
from tracking.model_management import WEIGHTS
from tracking.store.contents import file_digest

if TYPE_CHECKING:
    from gilbreth_phase0.evaluate import EvaluationResult
    from gilbreth_phase0.rollout import Episode

Value = TypeVar("Value")
Try = Callable[[Path, Sequence[int]], "EvaluationResult"]
"""Tries the policy of a bundle, one episode a seed."""

# How long another node may see a folder as it was before: longer than NFS clients keep what they know of one.
_STALE_SECONDS = 90.0


class Stopped(Exception):
    """The ranks stopped before the last episode.

    Attributes:
        stop: Why.
    """

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop)
        self.stop = stop


class TrialError(Exception):
    """A rank could not try a policy; the message says which, and why."""


@dataclass(frozen=True)
class _Order:
    """What all ranks are to do next; the digest is of the weights, which other nodes may still see as they were."""

    bundle: Path
    weights: str | None
    seeds: tuple[int, ...]
    environment: Path
    max_steps: int | None
    videos: Path | None


def with_all_ranks(
    job: Job,
    environment: Path,
    decide: Callable[[Try], Value],
    *,
    max_steps: int | None = None,
    videos: Path | None = None,
    filmed: Sequence[int] = (),
) -> Value:
    """Lets rank 0 decide something for which policies must be tried; every rank must call it, and shares in the trials.

    An episode follows from the policy and its seed alone, so that the result is the same with any number of ranks.

    Args:
        job: This rank and its job.
        environment: The bundle whose environment the episodes are in.
        decide: Called on rank 0.
        max_steps: Steps of an episode, in place of the environment's horizon.
        videos: Where films go of what the environment's own bundle does on exactly the seeds `filmed`; None for none.
        filmed: Those seeds.

    Returns:
        What it returned, on every rank.

    Raises:
        Stopped: The ranks stopped before; on every rank.
        Exception: What `decide` raised, on every rank. It gets a `TrialError` for what any rank's trial raised.
    """
    if job.ranks.is_main:

        def order(bundle: Path, seeds: Sequence[int]) -> EvaluationResult:
            folder = videos if bundle == environment and tuple(seeds) == tuple(filmed) else None
            wanted = _Order(bundle, _digest(bundle), tuple(seeds), environment, max_steps, folder)
            job.agreed(wanted)
            return _carry_out(job, wanted)

        return job.on_main(lambda: decide(order))
    while isinstance(given := job.agreed(None), _Order):
        # Rank 0 says what follows from a stop, or from a fault.
        with suppress(Stopped, TrialError):
            _carry_out(job, given)
    value, fault = given  # as `Job.on_main` sends them
    if fault is not None:
        raise fault
    return value  # type: ignore[no-any-return]


def _carry_out(job: Job, order: _Order) -> EvaluationResult:
    from gilbreth_phase0.evaluate import summary

    ranks, episodes = job.ranks, []
    fault: Exception | None = None
    own = _episodes(order, order.seeds[ranks.rank :: ranks.world_size])
    rounds = -(-len(order.seeds) // ranks.world_size)
    job.stop.restart_clock()
    with progress("evaluation rounds", rounds, shown=ranks.is_main) as advance:
        for _ in range(rounds):  # as many on every rank, or the ranks would not agree on a stop
            try:
                episodes += [episode for episode in [next(own, None)] if episode is not None]
            except Exception as error:  # noqa: BLE001 - raised again below
                fault = error
            advance(f"rank 0: {sum(episode.success for episode in episodes)}/{len(episodes)} succeeded")
            stop = job.stop.at_boundary()
            if stop is not Stop.NO:
                raise Stopped(stop)
    said = None if fault is None else f"rank {ranks.rank}: {type(fault).__name__}: {fault}"
    shares = job.gathered((episodes, said))
    if faults := [each for _, each in shares if each is not None]:
        raise TrialError(f"{order.bundle} could not be tried: {faults[0]}") from fault
    return summary(episode for share, _ in shares for episode in share)


def _episodes(order: _Order, seeds: Sequence[int]) -> Iterator[Episode]:
    """Loads the policy only when the first episode is asked for, where faults are expected."""
    from gilbreth_phase0.evaluate import evaluate_policy
    from gilbreth_phase0.policies import load_bundle

    deadline = time.monotonic() + _STALE_SECONDS
    while _digest(order.bundle) != order.weights:
        if time.monotonic() > deadline:
            raise UserError(
                f"{order.bundle} is not what rank 0 sees: is the run folder on a disk that all nodes share?"
            )
        time.sleep(0.5)
    environment = read_environment(order.environment)
    yield from evaluate_policy(load_bundle(order.bundle), environment, seeds, order.max_steps, order.videos)


def _digest(bundle: Path) -> str | None:
    try:
        return file_digest(bundle / WEIGHTS)
    except OSError:  # NFS: not there yet, or a stale handle
        return None
