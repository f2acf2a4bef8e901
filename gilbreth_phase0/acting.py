"""A policy at the controls: from an observation of the environment to an action that it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gilbreth_phase0.environments import Observation, Vector

if TYPE_CHECKING:
    from gilbreth_phase0.policies import Policy


class PolicyActor:
    """Acts for one environment; the policy's queue of actions belongs to it alone.

    Args:
        policy: With the processors that belong to it.
        task_description: What policies that read language are told.
    """

    def __init__(self, policy: Policy, task_description: str) -> None:
        self._policy = policy
        self._task = [task_description]

    def reset(self) -> None:
        """Drops the actions that are queued: the next one follows from the next observation."""
        self._policy.model.reset()

    def action(self, observation: Observation) -> Vector:
        """The next action: the queue's or, where that is empty, the first one of a new chunk.

        Args:
            observation: Of `RobosuiteEnv`.

        Returns:
            Shape (7,), float32, within ±1.
        """
        import torch
        from lerobot.envs.utils import preprocess_observation

        policy = self._policy
        with torch.inference_mode():
            batch: dict[str, Any] = preprocess_observation(dict(observation))
            batch["task"] = self._task
            action = policy.postprocessor(policy.model.select_action(policy.preprocessor(batch)))
        # A policy may overshoot what the controller takes.
        return np.asarray(np.clip(action.squeeze(0).cpu().numpy(), -1.0, 1.0), dtype=np.float32)
