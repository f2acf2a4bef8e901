"""A person who watches a roll-out and takes over with a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gilbreth_phase0.acting import PolicyActor
from gilbreth_phase0.dagger.collection import Item, Setup
from gilbreth_phase0.dagger.gates import Ending, View
from gilbreth_phase0.dagger.machine import Event, State
from gilbreth_phase0.dagger.rollout import RollOut, roll_out
from gilbreth_phase0.environments import RobosuiteEnv
from gilbreth_phase0.rollout import undisturbed

if TYPE_CHECKING:
    from gilbreth_phase0.experts.person import Device, Person


@dataclass
class PersonGate:
    """Does what the person's keys say; shows them the scene before each step."""

    person: Person
    needs_label: bool = False
    relabels: bool = False

    def begin(self, seed: int) -> None:
        """Begins a roll-out; nothing is drawn."""
        del seed
        self.person.reset()

    def event(self, view: View) -> Event | Ending | None:
        """Shows the scene and takes the keys that were pressed since the step before."""
        from gilbreth_phase0.experts.person import Command

        person_acts = view.state is State.TAKEOVER
        self.person.show("you act, h hands back" if person_acts else "the policy acts, h takes over")
        endings = {Command.SUCCESS: Ending.SUCCESS, Command.DISCARD: Ending.DISCARD, Command.NEXT: Ending.NEXT}
        presses = 0
        for command in self.person.commands():
            if command in endings:
                return endings[command]
            presses += 1
        if presses % 2 == 0:
            return None
        return Event.HAND_BACK if view.state is State.TAKEOVER else Event.TAKE_OVER


class PersonWorker:
    """Makes roll-outs with a person at a device, in this process."""

    def __init__(self, setup: Setup, device: Device) -> None:
        """Builds the environment, loads the policy and opens the device.

        Raises:
            UserError: There is no display, or the device is not there.
        """
        from gilbreth_phase0.experts.person import Person
        from gilbreth_phase0.policies import load_bundle

        self._env = RobosuiteEnv(setup.environment, render_mode="rgb_array")
        self._policy = load_bundle(setup.policy)
        self._person = Person(self._env, device)

    def __call__(self, item: Item) -> RollOut:
        """Makes one roll-out."""
        import torch

        seed, budget = item
        actor = PolicyActor(self._policy, self._env.task_description)
        gate = PersonGate(self._person)
        with undisturbed(self._policy.model):
            torch.manual_seed(seed)
            return roll_out(self._env, actor, self._person, gate, seed=seed, budget=budget)

    def close(self) -> None:
        """Takes the window away."""
        self._person.close()
        self._env.close()
