"""Roll-outs that a person corrects, played by keys that are pressed on DISPLAY; prints what came of them as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import numpy as np

from gilbreth_phase0.dagger.aggregate import stretches
from gilbreth_phase0.dagger.gates import Ending, View
from gilbreth_phase0.dagger.human import PersonGate
from gilbreth_phase0.dagger.machine import Event
from gilbreth_phase0.dagger.rollout import roll_out
from gilbreth_phase0.environments import EnvironmentArguments, Observation, RobosuiteEnv, Vector
from gilbreth_phase0.experts.person import Person

from support import wait_until
from virtual_display import Keyboard


class Rest:
    """A policy that does nothing."""

    def reset(self) -> None:
        pass

    def action(self, observation: Observation) -> Vector:
        return np.zeros(7, dtype=np.float32)


@dataclass
class Played(PersonGate):
    """The person's gate, with keys pressed before it looks at them."""

    keyboard: Keyboard | None = None
    keys: dict[int, str] | None = None

    def begin(self, seed: int) -> None:
        super().begin(seed)
        self.step = 0

    def event(self, view: View) -> Event | Ending | None:
        self.step += 1
        if key := self.keys.get(self.step):
            self.keyboard.press(key)
            wait_until(lambda: self.person._pressed.qsize() == 1, 10, f"the key {key}")
        return super().event(view)


def main() -> None:
    keyboard = Keyboard(os.environ["DISPLAY"])
    env = RobosuiteEnv(EnvironmentArguments(horizon=12), render_mode="rgb_array")
    person = Person(env, "keyboard", lambda _: None)
    person.show()
    facts = []
    for seed, keys, budget in (
        (5_000_000, {4: "h", 7: "h", 9: "1"}, None),
        (5_000_001, {2: "h", 5: "0"}, None),
        (5_000_002, {2: "h", 3: "n"}, 0),
        (5_000_003, {}, None),
    ):
        gate = Played(person, keyboard=keyboard, keys=keys)
        found = roll_out(env, Rest(), person, gate, seed=seed, budget=budget)
        facts.append(
            {
                "by_expert": found.by_expert.tolist(),
                "success": found.success,
                "discarded": found.discarded,
                "takeovers": found.takeovers,
                "episodes": [(each.source, each.success, len(each.columns["action"])) for each in stretches(found)],
            }
        )
    person.close()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
