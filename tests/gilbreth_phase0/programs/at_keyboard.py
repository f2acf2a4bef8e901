"""A person at the keyboard, played by keys that are pressed on DISPLAY; prints what came of them as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from Xlib import X, display
from Xlib.protocol.event import ClientMessage

from gilbreth_phase0.environments import PROPRIOCEPTION, EnvironmentArguments, RobosuiteEnv, Vector, part
from gilbreth_phase0.experts.person import Person

from support import refusal, wait_until
from virtual_display import Keyboard

GRIPPER = 6


class Scene:
    """The person and the simulation that they act in."""

    def __init__(self) -> None:
        self.env = RobosuiteEnv(EnvironmentArguments(), render_mode="rgb_array")
        self.observation, _ = self.env.reset(seed=1)
        self.help: list[str] = []
        self.person = Person(self.env, "keyboard", self.help.append)
        self.person.reset()

    def seen(self, name: str) -> Vector:
        return np.array(part(self.observation["agent_pos"], PROPRIOCEPTION, name))

    def step(self) -> Vector:
        action = self.person.action(self.observation)
        self.observation, *_ = self.env.step(action)
        return action

    def act_until(self, reached: Callable[[Vector], bool]) -> list[float]:
        """The person acts until it is reached, as they do who look where the gripper is; returns the last action."""

        def acted() -> list[float]:
            action = self.step()
            return action.tolist() if reached(action) else []

        return wait_until(acted, 20, "the gripper to get there", interval=0)

    def told(self) -> list[str]:
        given = wait_until(self.person.commands, 10, "a command")
        return [command.name for command in given]


def picture_on(screen: display.Display, size: tuple[int, int]) -> Image.Image:
    found = screen.screen().root.get_image(0, 0, *size, X.ZPixmap, 0xFFFFFFFF)
    return Image.frombytes("RGB", size, found.data, "raw", "BGRX")


def main() -> None:
    keyboard, screen = Keyboard(os.environ["DISPLAY"]), display.Display()
    scene = Scene()
    person = scene.person
    facts: dict[str, Any] = {"help": scene.help}

    person.show("the policy acts")
    window = screen.screen().root.query_tree().children[-1]
    size = (window.get_geometry().width, window.get_geometry().height)
    drawn = Image.fromarray(scene.env.render()).resize(size)
    facts["title"] = window.get_wm_name()
    facts["picture"] = picture_on(screen, size).tobytes() == drawn.tobytes()
    facts["colours"] = len(drawn.getcolors(1 << 24))

    keyboard.hold("h")
    facts["takeover"] = scene.told()
    for _ in range(18):  # 0.9 s: X repeats a key from 0.7 s on
        person.show()
    facts["repeated"] = [command.name for command in person.commands()]
    keyboard.release("h")

    start = scene.seen("eef_pos")
    keyboard.hold("Up")
    facts["up"] = scene.act_until(lambda action: action[0] < 0 and scene.seen("eef_pos")[0] < start[0] - 0.02)
    keyboard.release("Up")
    keyboard.hold("period")
    facts["down"] = scene.act_until(lambda action: action[2] < 0 and scene.seen("eef_pos")[2] < start[2] - 0.02)
    keyboard.release("period")
    keyboard.press("u")
    facts["pitch"] = scene.act_until(lambda action: bool(action[3:6].any()))
    keyboard.press("space")
    scene.act_until(lambda action: action[GRIPPER] > 0)
    scene.act_until(lambda _: scene.seen("gripper_qpos")[0] < 0.01)

    keyboard.press("h")
    facts["hand_back"] = scene.told()
    keyboard.press("Left", "Left", "space", "n")
    facts["meanwhile"] = scene.told()
    person.show()
    keyboard.press("h")
    facts["again"] = scene.told()
    facts["after"] = scene.step().tolist()

    keyboard.press("1", "0", "n")
    wait_until(lambda: not person._held and person._pressed.qsize() == 3, 10, "three commands")
    facts["endings"] = [command.name for command in person.commands()]

    other = screen.screen().root.create_window(0, 0, 10, 10, 0, screen.screen().root_depth)
    other.map()
    other.set_input_focus(X.RevertToPointerRoot, X.CurrentTime)
    screen.sync()
    person.show()
    keyboard.press("1", "Left")
    window.set_input_focus(X.RevertToPointerRoot, X.CurrentTime)
    screen.sync()
    person.show()
    keyboard.press("0")
    facts["focus"] = [scene.told(), scene.step().tolist()]

    protocols, closing = (screen.intern_atom(name) for name in ("WM_PROTOCOLS", "WM_DELETE_WINDOW"))
    window.send_event(ClientMessage(window=window, client_type=protocols, data=(32, [closing, 0, 0, 0, 0])))
    screen.sync()
    facts["closed"] = refusal(person.show)
    person.close()
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
