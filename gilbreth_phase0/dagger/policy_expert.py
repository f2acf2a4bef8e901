"""Another policy as the expert, or as a member of an ensemble."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gilbreth_phase0.acting import PolicyActor
from gilbreth_phase0.environments import Observation, Vector


@dataclass(frozen=True)
class PolicyExpert:
    """Says what a policy would do in a state, whatever it had planned before; loaded when it is first asked.

    Attributes:
        bundle: The policy's folder.
        task_description: What policies that read language are told.
    """

    bundle: Path
    task_description: str

    def action(self, observation: Observation) -> Vector:
        """The first action of a new chunk, shape (7,)."""
        self._actor.reset()
        return self._actor.action(observation)

    @cached_property
    def _actor(self) -> PolicyActor:
        from gilbreth_phase0.policies import load_bundle

        policy = load_bundle(self.bundle)
        policy.model.eval()
        return PolicyActor(policy, self.task_description)
