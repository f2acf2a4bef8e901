"""One demonstration: a scripted expert in an environment, from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gilbreth_phase0.environments import ARM, EnvironmentArguments, Observation, RobosuiteEnv, Vector
from gilbreth_phase0.experts import EXPERTS
from gilbreth_phase0.rollout import Episode, run_episode


@dataclass(frozen=True)
class Demonstration:
    """What happened, and a row a step of what is recorded.

    Attributes:
        episode: How it went.
        columns: float32 arrays with one row a step, by the dataset's feature names.
    """

    episode: Episode
    columns: dict[str, Vector]


class Demonstrator:
    """Makes demonstrations, each from its seed alone."""

    def __init__(self, environment: EnvironmentArguments, action_noise: float) -> None:
        """Builds the environment.

        Args:
            environment: What to demonstrate in.
            action_noise: Standard deviation of what is added to the arm's executed actions (not to the gripper's); the
                expert's own action is what is recorded, so that the policy learns to come back from where noise leads.
        """
        self._env = RobosuiteEnv(environment)
        self._expert = EXPERTS[environment.task]()
        self._noise = action_noise

    def __call__(self, seed: int) -> Demonstration:
        """Runs the expert over one full episode, whether it succeeds or not."""
        noise = np.random.default_rng(seed)
        observations: list[Observation] = []
        actions: list[Vector] = []

        def act(observation: Observation) -> Vector:
            observations.append(observation)
            actions.append(self._expert.action(observation))
            executed = actions[-1].copy()
            executed[ARM] += self._noise * noise.standard_normal(len(executed[ARM]))
            return np.clip(executed, -1.0, 1.0)

        episode = run_episode(self._env, act, seed)
        columns = {
            "observation.state": np.stack([observation["agent_pos"] for observation in observations]),
            "observation.environment_state": np.stack([item["environment_state"] for item in observations]),
            "action": np.stack(actions),
        }
        return Demonstration(episode, columns)
