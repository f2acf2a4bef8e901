"""The roll-outs of a round, spread over a job's ranks and the processes of each.

ROUND/rollouts/seed-5000003.npz   one roll-out each, whole or absent

Which roll-outs a round has follows from its seeds and its budget alone: what a killed attempt has left is not done
again, and takeovers count in the order of the seeds, whoever did them when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gilbreth_phase0.acting import PolicyActor
from gilbreth_phase0.dagger.gates import Gate, Labeller
from gilbreth_phase0.dagger.policy_expert import PolicyExpert
from gilbreth_phase0.dagger.rollout import RollOut, roll_out
from gilbreth_phase0.environments import EnvironmentArguments, RobosuiteEnv
from gilbreth_phase0.job import Job
from gilbreth_phase0.progress import progress
from gilbreth_phase0.rollout import undisturbed
from gilbreth_phase0.stop import Stop
from gilbreth_phase0.trials import Stopped
from gilbreth_phase0.workers import ordered_map
from tracking.store.contents import file_digest

Item = tuple[int, int | None]
"""A seed, and how many takeovers its roll-out may have."""
Worker = Callable[[Item], RollOut]

_PRELOAD = ("gilbreth_phase0.policies", "lerobot.policies.factory", "lerobot.envs.utils")


@dataclass(frozen=True)
class Setup:
    """What a process needs to make roll-outs.

    Attributes:
        environment: Where.
        policy: The bundle of the policy that is rolled out.
        gate: When the expert takes over; None where a person decides that.
        expert: Another policy as the expert; None for the scripted one of the task.
    """

    environment: EnvironmentArguments
    policy: Path
    gate: Gate | None
    expert: PolicyExpert | None = None


class RollOutWorker:
    """Makes roll-outs in a process of its own, each from its seed and its budget alone."""

    def __init__(self, setup: Setup) -> None:
        """Builds the environment and loads the policy."""
        from gilbreth_phase0.experts import EXPERTS
        from gilbreth_phase0.policies import load_bundle

        self._env = RobosuiteEnv(setup.environment)
        self._policy = load_bundle(setup.policy)
        assert setup.gate is not None
        self._gate = setup.gate
        self._expert: Labeller = setup.expert or EXPERTS[setup.environment.task]()

    def __call__(self, item: Item) -> RollOut:
        """Makes one roll-out."""
        import torch

        seed, budget = item
        actor = PolicyActor(self._policy, self._env.task_description)
        with undisturbed(self._policy.model):
            torch.manual_seed(seed)
            return roll_out(self._env, actor, self._expert, self._gate, seed=seed, budget=budget)


@dataclass(frozen=True)
class Plan:
    """The roll-outs of a round.

    Attributes:
        folder: Where their files go.
        seeds: One a roll-out.
        budget: Takeovers of all of them together; None for any number.
        num_workers: Processes of each rank; 0 for this one, as a person needs it.
    """

    folder: Path
    seeds: Sequence[int]
    budget: int | None
    num_workers: int

    def file(self, seed: int) -> Path:
        """The file of a roll-out."""
        return self.folder / f"seed-{seed}.npz"

    def roll_outs(self, seeds: Iterable[int]) -> Iterator[RollOut]:
        """Reads the roll-outs of seeds, in their order; all of them must be there."""
        yield from (RollOut.read(self.file(seed)) for seed in seeds)

    def digest(self, seeds: Iterable[int]) -> str:
        """Tells the roll-outs of seeds from any others."""
        return hashlib.sha256("".join(file_digest(self.file(seed)) for seed in seeds).encode()).hexdigest()


def collect(job: Job, plan: Plan, make_worker: Callable[[], Worker]) -> list[int]:
    """Makes the roll-outs that are missing; every rank must call it.

    Args:
        job: This rank and its job.
        plan: The roll-outs.
        make_worker: Makes what makes them; pickled.

    Returns:
        The seeds that count: all of them, or those up to where the budget ended.

    Raises:
        Stopped: The ranks stopped before the last one; on every rank.
        Exception: What a roll-out raised on any rank; on every rank.
    """
    job.on_main(lambda: plan.folder.mkdir(parents=True, exist_ok=True))
    spent = 0
    with (
        _own_results(job, plan, make_worker, lambda: _left(plan, spent)) as own,
        progress("roll-outs", len(plan.seeds), shown=job.ranks.is_main) as advance,
    ):
        job.stop.restart_clock()
        for first in range(0, len(plan.seeds), job.ranks.world_size):
            found = job.gathered_from_all(lambda: next(own, None))
            for seed, takeovers in [each for each in found if each is not None]:
                cap = _left(plan, spent)
                spent += takeovers
                advance(f"{spent} takeovers")
                if cap is not None and takeovers >= cap:
                    return _cut(job, plan, make_worker, (seed, cap), again=takeovers > cap)
            stop = job.stop.at_boundary()
            if stop is not Stop.NO and first + job.ranks.world_size < len(plan.seeds):
                raise Stopped(stop)
    return list(plan.seeds)


def _left(plan: Plan, spent: int) -> int | None:
    return None if plan.budget is None else plan.budget - spent


@contextmanager
def _own_results(
    job: Job, plan: Plan, make_worker: Callable[[], Worker], left: Callable[[], int | None]
) -> Iterator[Iterator[tuple[int, int]]]:
    """The seeds of this rank with the takeovers of each, in order; what is missing is made and written."""
    seeds = plan.seeds[job.ranks.rank :: job.ranks.world_size]
    missing = [seed for seed in seeds if not plan.file(seed).is_file()]

    def results(made: Iterator[RollOut]) -> Iterator[tuple[int, int]]:
        wanted = set(missing)
        for seed in seeds:
            if seed in wanted:
                result = next(made)
                result.write(plan.file(seed))
            else:
                result = RollOut.read(plan.file(seed))
            yield seed, result.takeovers

    if not missing:
        yield results(iter(()))
    elif plan.num_workers == 0:
        # One after the other, each knows what those before it have cost.
        worker = make_worker()
        try:
            yield results(worker((seed, left())) for seed in missing)
        finally:
            # A person's window goes with the round.
            getattr(worker, "close", lambda: None)()
    else:
        items: list[Item] = [(seed, None) for seed in missing]
        with ordered_map(make_worker, items, plan.num_workers, _PRELOAD) as made:
            yield results(made)


def _cut(job: Job, plan: Plan, make_worker: Callable[[], Worker], last: Item, *, again: bool) -> list[int]:
    """Ends a round whose budget is spent: nothing behind the last roll-out counts, which has no takeover too many."""
    count = list(plan.seeds).index(last[0]) + 1

    def act() -> None:
        if again:
            items: list[Item] = [last]
            with ordered_map(make_worker, items, 1, _PRELOAD) as made:
                next(made).write(plan.file(last[0]))
        for seed in plan.seeds[count:]:
            plan.file(seed).unlink(missing_ok=True)

    # Behind this, no rank writes a roll-out any more.
    job.gathered(None)
    job.on_main(act)
    return list(plan.seeds[:count])


def check_expert(environment: EnvironmentArguments, expert: PolicyExpert | None, seeds: Sequence[int]) -> int | None:
    """Tries the expert until it succeeds once.

    Args:
        environment: Where.
        expert: As in `Setup`.
        seeds: At most so many tries.

    Returns:
        The steps that it needed; None where it never succeeded.
    """
    from gilbreth_phase0.experts import EXPERTS
    from gilbreth_phase0.rollout import run_episode

    labeller: Any = expert or EXPERTS[environment.task]()
    env = RobosuiteEnv(environment)
    try:
        for seed in seeds:
            episode = run_episode(env, labeller.action, seed)
            if episode.success:
                return episode.length
    finally:
        env.close()
    return None
