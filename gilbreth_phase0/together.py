"""One policy for several environments, each in a process of its own: what a policy on a GPU wants.

Observations go through it one by one, each environment with its own queue of actions and its own random numbers: on a
CPU an episode is the same, bit for bit, with any number of environments and as when it runs alone. The processes wait
for each other at every step, which is slower than a policy of its own for each (`workers.ordered_map`).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt

from gilbreth_phase0.acting import PolicyActor
from gilbreth_phase0.environments import EnvironmentArguments, Observation, RobosuiteEnv, Vector
from gilbreth_phase0.rollout import Episode, undisturbed
from gilbreth_phase0.videos import film
from gilbreth_phase0.workers import DEATHS, processes_ignore_stop_signal, say_death

if TYPE_CHECKING:
    import torch

    from gilbreth_phase0.policies import Policy


def episodes_together(
    policy: Policy,
    environment: EnvironmentArguments,
    seeds: Iterable[int],
    num_environments: int,
    *,
    videos: Path | None = None,
    filmed: Collection[int] = (),
) -> Iterator[Episode]:
    """Runs a policy of this process in environments of other processes; yields episodes as they end.

    Args:
        policy: With the processors that belong to it.
        environment: What to rebuild in each process.
        seeds: One an episode.
        num_environments: How many processes.
        videos: Where films go; None for none.
        filmed: The seeds of the episodes that are filmed.

    Raises:
        EOFError, OSError: Processes died more than `DEATHS` times in a row without an episode between them.
    """
    left = deque(seeds)
    deaths = 0
    while left:
        count = min(num_environments, len(left))
        make = partial(_make_environment, environment, videos, frozenset(filmed))
        try:
            for episode in _until_a_death(policy, make, deque(left), count):
                left.remove(episode.seed)
                deaths = 0
                yield episode
        except (EOFError, OSError):
            deaths += 1
            if deaths > DEATHS:
                raise
            say_death(deaths)


class RestingEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that does nothing between the end of an episode and the next reset: others may still be going."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Starts an episode."""
        self._last: tuple[Observation, float, bool, bool, dict] | None = None
        observation, info = self.env.reset(seed=seed)
        return observation, info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict]:
        """Applies one action, or gives again what the last one of the episode gave."""
        if self._last is not None:
            return self._last
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            self._last = observation, float(reward), terminated, truncated, info
        return observation, float(reward), terminated, truncated, info


class _Seat:
    """The policy's side of one environment: a queue, random numbers, and how the episode goes.

    Args:
        policy: Shared with the other seats, but for its queue.
        task_description: What policies that read language are told.
    """

    def __init__(self, policy: Policy, task_description: str) -> None:
        shared = {id(tensor): tensor for tensor in itertools.chain(policy.model.parameters(), policy.model.buffers())}
        # The memo of a deep copy says what is not copied: all weights.
        own = dataclasses.replace(policy, model=copy.deepcopy(policy.model, shared))
        self._actor = PolicyActor(own, task_description)
        self._on_gpu = str(policy.config.device).startswith("cuda")
        self.seed: int | None = None

    def begin(self, seed: int) -> None:
        """Begins an episode; the random numbers are those of `run_policy_episode`."""
        import torch

        self.seed, self._length, self._reward = seed, 0, 0.0
        torch.manual_seed(seed)
        self._actor.reset()
        self._random = self._state()

    def action(self, observation: Observation) -> Vector:
        """Acts, with the random numbers of this episode alone."""
        import torch

        torch.set_rng_state(self._random[0])
        if self._on_gpu:
            torch.cuda.set_rng_state(self._random[1])
        chosen = self._actor.action(observation)
        self._random = self._state()
        return chosen

    def count(self, reward: float) -> None:
        """Counts a step."""
        self._length += 1
        self._reward += reward

    def end(self, success: bool) -> Episode:
        """Ends the episode."""
        assert self.seed is not None
        episode = Episode(self.seed, success, self._length, self._reward)
        self.seed = None
        return episode

    def _state(self) -> list[torch.Tensor]:
        import torch

        return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if self._on_gpu else [])]


def _make_environment(environment: EnvironmentArguments, videos: Path | None, filmed: Collection[int]) -> RestingEnv:
    env = RobosuiteEnv(environment, "rgb_array" if videos is not None else None)
    return RestingEnv(film(env, videos, filmed))


def _until_a_death(policy: Policy, make: partial[RestingEnv], left: deque[int], count: int) -> Iterator[Episode]:
    with processes_ignore_stop_signal():
        environments = gymnasium.vector.AsyncVectorEnv(
            [make] * count, context="forkserver", autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED
        )
    try:
        with undisturbed(policy.model):
            yield from _play(policy, environments, left)
    finally:
        _end(environments)


def _end(environments: gymnasium.vector.AsyncVectorEnv) -> None:
    """Ends all processes: gymnasium's `close` asks the dead for an answer, and then leaves the living.

    What those that are well were at is done again, or was not asked for.
    """
    for process in environments.processes:
        process.kill()
    for process in environments.processes:
        process.join()
    for pipe in environments.parent_pipes:
        pipe.close()
    environments.error_queue.close()
    environments.closed = True


def _play(policy: Policy, environments: gymnasium.vector.AsyncVectorEnv, left: deque[int]) -> Iterator[Episode]:
    count = environments.num_envs
    (task_description, *_) = environments.get_attr("task_description")
    seats = [_Seat(policy, task_description) for _ in range(count)]
    actions = np.zeros((count, *environments.single_action_space.shape), np.float32)  # type: ignore[misc]
    observations: dict[str, Any] = {}
    ended: npt.NDArray[np.bool_] = np.ones(count, dtype=np.bool_)
    while True:
        starting = [index for index in range(count) if ended[index]][: len(left)]
        if starting:
            for index in starting:
                seats[index].begin(left.popleft())
            mask = np.isin(np.arange(count), starting)
            observations, _ = environments.reset(seed=[seat.seed for seat in seats], options={"reset_mask": mask})
        playing = [index for index, seat in enumerate(seats) if seat.seed is not None]
        if not playing:
            return
        for index in playing:
            actions[index] = seats[index].action({key: value[index] for key, value in observations.items()})
        observations, rewards, terminated, truncated, info = environments.step(actions)
        ended = terminated | truncated
        for index in playing:
            seats[index].count(float(rewards[index]))
            if ended[index]:
                yield seats[index].end(bool(info["is_success"][index]))
