"""Episodes of policies spread over processes, in two ways with the same results."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gilbreth_phase0.contenders import UNTRAINED
from gilbreth_phase0.environments import EnvironmentArguments, RobosuiteEnv
from gilbreth_phase0.rollout import Episode, run_policy_episode
from gilbreth_phase0.together import episodes_together
from gilbreth_phase0.videos import FilmedEnv
from gilbreth_phase0.workers import ordered_map
from tracking.names import slug

if TYPE_CHECKING:
    from gilbreth_phase0.policies import Policy

# Imported once for all workers: LeRobot and its policies take seconds.
PRELOAD = ("gilbreth_phase0.policies", "lerobot.policies.factory", "lerobot.envs.utils")


@dataclass(frozen=True)
class Films:
    """What is filmed.

    Attributes:
        folder: Holds a folder for each policy.
        episodes: So many of each policy's, the first ones.
    """

    folder: Path
    episodes: int

    def of(self, policy: str) -> Path:
        """The folder of a policy's films."""
        return self.folder / slug(policy)


@dataclass(frozen=True)
class Trial:
    """Policies that are to be tried from the same starts.

    Attributes:
        bundles: Folders by the policies' names.
        environment: What to rebuild.
        seeds: One an episode of each policy.
        device: `cpu` or `cuda`.
        num_workers: How many processes.
        untrained: Whether a fresh policy like the first is tried, too.
        films: What is filmed; None for nothing.
    """

    bundles: Mapping[str, Path]
    environment: EnvironmentArguments
    seeds: Sequence[int]
    device: str = "cpu"
    num_workers: int = 1
    untrained: bool = False
    films: Films | None = None

    @property
    def names(self) -> list[str]:
        """The policies, in the order in which they are tried."""
        return [*self.bundles, *([UNTRAINED] if self.untrained else [])]

    @property
    def filmed(self) -> frozenset[int]:
        """The seeds of the episodes that are filmed."""
        return frozenset(self.seeds[: self.films.episodes] if self.films is not None else [])

    def load(self, name: str) -> Policy:
        """Loads one of the policies."""
        from gilbreth_phase0.policies import load_bundle

        if name != UNTRAINED:
            return load_bundle(self.bundles[name], self.device)
        return untrained(load_bundle(next(iter(self.bundles.values())), self.device))


class PolicyWorker:
    """Runs episodes of a trial in a process of its own, with a policy of its own."""

    def __init__(self, trial: Trial) -> None:
        """Builds the environment."""
        self._trial = trial
        self._env = RobosuiteEnv(trial.environment, "rgb_array" if trial.films is not None else None)
        self._loaded: tuple[str, Policy] | None = None

    def __call__(self, item: tuple[str, int]) -> Episode:
        """Runs one episode of the named policy from a seed."""
        name, seed = item
        policy = self._policy(name)
        if self._trial.films is None or seed not in self._trial.filmed:
            return run_policy_episode(policy, self._env, seed)
        filmed = FilmedEnv(self._env, self._trial.films.of(name), (seed,))
        try:
            return run_policy_episode(policy, filmed, seed)
        finally:
            filmed.drop()

    def _policy(self, name: str) -> Policy:
        # Policies come one behind the other, and each may be large.
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            self._loaded = name, self._trial.load(name)
        return self._loaded[1]


@contextmanager
def apart(trial: Trial) -> Iterator[Iterator[tuple[str, Episode]]]:
    """Runs the episodes in processes that have a policy each: the fastest where the policy is on a CPU."""
    items = [(name, seed) for name in trial.names for seed in trial.seeds]
    with ordered_map(partial(PolicyWorker, trial), items, trial.num_workers, PRELOAD) as finished:
        yield ((name, episode) for (name, _), episode in zip(items, finished, strict=True))


@contextmanager
def together(trial: Trial) -> Iterator[Iterator[tuple[str, Episode]]]:
    """Runs the episodes in processes for which one policy acts, here: for a policy on a GPU, where it is once."""

    def finished() -> Generator[tuple[str, Episode]]:
        for name in trial.names:
            videos = trial.films.of(name) if trial.films is not None else None
            for episode in episodes_together(
                trial.load(name),
                trial.environment,
                trial.seeds,
                trial.num_workers,
                videos=videos,
                filmed=trial.filmed,
            ):
                yield name, episode

    episodes = finished()
    try:
        yield episodes
    finally:
        episodes.close()


def untrained(policy: Policy, seed: int = 0) -> Policy:
    """A policy of the same configuration with fresh weights and the same processors."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = type(policy.model)(policy.config)
    return dataclasses.replace(policy, model=model.to(policy.config.device))
