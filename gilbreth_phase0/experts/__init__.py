"""Who knows how a task is done: scripts (here) and a person at a device (`experts.person`).

An expert looks at the observation alone and has no memory: what it says is a label for this state, whoever led there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gilbreth_phase0.environments import Observation, Task, Vector
from gilbreth_phase0.experts.scripted import LiftExpert, StackExpert


class Expert(Protocol):
    """What says how to act in a state."""

    def action(self, observation: Observation) -> Vector:
        """What to do in this state: shape (7,), float32, within ±1, as `RobosuiteEnv` takes it."""


EXPERTS: dict[Task, Callable[[], Expert]] = {"Lift": LiftExpert, "Stack": StackExpert}
"""The scripted expert of each task."""
