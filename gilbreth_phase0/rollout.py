"""Episodes: what acts (an expert, a policy) in an environment from a seed to the end, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.acting import PolicyActor
from gilbreth_phase0.environments import Observation, RobosuiteEnv, Vector

if TYPE_CHECKING:
    from gilbreth_phase0.policies import Policy
    from gilbreth_phase0.videos import FilmedEnv


@dataclass(frozen=True)
class Episode:
    """How one episode went.

    Attributes:
        seed: What it started from.
        success: Whether the task was solved within the horizon.
        length: Steps taken.
        reward: Sum of the shaped reward over the steps.
    """

    seed: int
    success: bool
    length: int
    reward: float


def run_episode(env: RobosuiteEnv | FilmedEnv, act: Callable[[Observation], Vector], seed: int) -> Episode:
    """Runs one full episode.

    Args:
        env: Where.
        act: Chooses the action, shape (7,), for an observation.
        seed: Decides the start.
    """
    observation, _ = env.reset(seed=seed)
    length, total = 0, 0.0
    while True:
        observation, reward, terminated, truncated, info = env.step(act(observation))
        length += 1
        total += reward
        if terminated or truncated:
            return Episode(seed, info["is_success"], length, total)


def run_policy_episode(policy: Policy, env: RobosuiteEnv | FilmedEnv, seed: int) -> Episode:
    """Runs a policy over one full episode, which follows from the policy and the seed alone.

    The caller's random numbers, thread count and training mode are left as they were.
    """
    import torch

    actor = PolicyActor(policy, env.task_description)
    with undisturbed(policy.model):
        torch.manual_seed(seed)
        actor.reset()
        return run_episode(env, actor.action, seed)


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """One thread (results must not depend on how many there are) and evaluation mode; all back as it was after it."""
    import torch

    threads, training = torch.get_num_threads(), model.training
    with torch.random.fork_rng():
        torch.set_num_threads(1)
        model.eval()
        try:
            yield
        finally:
            model.train(training)
            torch.set_num_threads(threads)
