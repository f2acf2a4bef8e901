"""A person as the expert: watches the scene in a window and moves the gripper with one of robosuite's devices."""

from __future__ import annotations

import io
import queue
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from enum import Enum
from typing import Any, Literal

import numpy as np

from gilbreth_phase0.environments import ACTION, PICTURE, Observation, RobosuiteEnv, Vector, import_robosuite
from gilbreth_phase0.experts.display import Window, check_display
from gilbreth_phase0.videos import check_rendering
from tracking.errors import UserError

Device = Literal["keyboard", "spacemouse"]


class Command(Enum):
    """What a person says about a roll-out; the value is the key."""

    TAKE_OVER = "h"
    SUCCESS = "1"
    DISCARD = "0"
    NEXT = "n"


_COMMANDS = {command.value: command for command in Command}
_HELP = """\
keys, while the window has the focus (commands are the same with both devices):
  h            take over, and hand back
  1            end this roll-out and keep it as a success
  0            end this roll-out and discard it
  n            end this roll-out and go on to the next"""
_MOVES = {
    "keyboard": """\
  arrows       move the gripper as you see it: up is away from you
  .  ;         lower it, raise it
  space        close or open it (it stays as it is when you take over)
  o p, e r     turn it: yaw, roll
  y u          turn it: pitch""",
    "spacemouse": """\
  the knob     moves and turns the gripper as you move and turn it
  left button  closes the gripper while it is held""",
}
# robosuite has pitch on y and h, and h takes over here.
_ELSEWHERE = {"u": "h"}
# It resets the device, which would then be silent.
_SWALLOWED = "q"
# A key that is held repeats: X says that it was pressed again, on some servers that it was released just before.
_REPEAT_SECONDS = 0.03
_ENLARGED = 3


def check_device(device: Device) -> None:
    """Refuses where a person could not see or steer, before anything else is done.

    Raises:
        UserError: No display answers, nothing can render, or there is no such device; with what to do.
    """
    check_display()
    check_rendering(f"--expert {device}")
    if device == "spacemouse":
        _check_spacemouse()


def _check_spacemouse() -> None:
    try:
        import hid
    except ImportError as missing:
        raise UserError(
            f"a SpaceMouse needs hidapi: {missing}\n"
            "  next: uv pip install --python .venv/bin/python hidapi   (or take the keyboard)"
        ) from missing
    import_robosuite()
    from robosuite import macros

    wanted = (macros.SPACEMOUSE_VENDOR_ID, macros.SPACEMOUSE_PRODUCT_ID)
    mouse = hid.device()
    try:
        mouse.open(*wanted)
    except OSError as fault:
        found = [f"{each['vendor_id']}:{each['product_id']}" for each in hid.enumerate()]
        raise UserError(
            f"the SpaceMouse {wanted[0]}:{wanted[1]} cannot be opened: {fault}. Devices that are there:"
            f" {', '.join(found) or 'none'}\n"
            "  next: plug it in; let users read it (a udev rule for /dev/hidraw*); for another model set"
            " SPACEMOUSE_PRODUCT_ID in robosuite/macros_private.py; or take the keyboard"
        ) from fault
    mouse.close()


class Person:
    """An expert at a device. Keys count only while the window has the focus.

    Args:
        env: Where the roll-outs are, with the render mode `rgb_array`.
        device: What the gripper is moved with.
        say: Gets what the keys do, once.

    Raises:
        UserError: See `check_device`.
    """

    def __init__(self, env: RobosuiteEnv, device: Device = "keyboard", say: Callable[[str], None] = print) -> None:
        check_device(device)
        from pynput.keyboard import Listener

        self._env = env
        self._device = _open(env, device)
        self._pressed: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._held: set[str] = set()
        self._released_at: dict[str, float] = {}
        self._due = 0.0
        self._window = Window(env.task_description, _ENLARGED * PICTURE[0], _ENLARGED * PICTURE[1])
        # In the place of the device's own: some of its keys mean something else here.
        self._device.listener.wait()  # one that is stopped while it begins raises
        self._device.listener.stop()
        self._listener = Listener(on_press=self._on_press, on_release=self._on_release)
        self._listener.start()
        self._listener.wait()
        self._device.start_control()
        say(f"{_HELP}\n{_MOVES[device]}")

    def reset(self) -> None:
        """Forgets what was pressed and moved before: an episode begins."""
        self.commands()
        self._device.start_control()
        self._due = 0.0

    def commands(self) -> list[Command]:
        """The commands that were given since this was last asked, in order."""
        given = []
        while not self._pressed.empty():
            given.append(self._pressed.get())
        if Command.TAKE_OVER in given:
            self._take_over()
        return given

    def action(self, observation: Observation) -> Vector:
        """What the device says now.

        Args:
            observation: Not looked at; the person looks at the window.

        Returns:
            Shape (7,), float32, within ±1.
        """
        del observation
        said = self._device.input2action()
        if said is None:  # the SpaceMouse's right button, which resets it
            self._device.start_control()
            said = self._device.input2action()
        action = np.zeros(len(ACTION), dtype=np.float32)
        arm = self._device.active_arm
        action[:6], action[6] = said[f"{arm}_delta"], said[f"{arm}_gripper"][0]
        return action

    def show(self, title: str = "") -> None:
        """Shows the scene as it is and waits until the next step is due: simulated time is real time for a person.

        Args:
            title: Of the window; the task where it is empty.

        Raises:
            UserError: The window was closed.
        """
        picture = self._env.render()
        assert picture is not None, "the environment has no render mode"
        self._window.show(picture, title or self._env.task_description)
        now = time.monotonic()
        time.sleep(max(0.0, self._due - now))
        self._due = max(now, self._due) + 1 / self._env.arguments.control_hz

    def close(self) -> None:
        """Stops listening and takes the window away."""
        self._listener.stop()
        self._window.close()

    def _take_over(self) -> None:
        """Makes the device go on where the policy is: no movement from before, and the gripper as it is."""
        self._device.get_controller_state()
        gripper = self._env.simulation.robots[0].gripper[self._device.active_arm]
        # Of the two fingers the last one goes to +1 to close. (Before the first step there is a single 0.)
        self._device.grasp_states[0][0] = bool(gripper.current_action[-1] > 0)

    def _on_press(self, key: Any) -> None:
        name = _name(key)
        if not self._window.focused or name == _SWALLOWED:
            return
        if name not in _COMMANDS:
            self._device.on_press(_as_robosuite_has_it(key))
        elif name not in self._held and time.monotonic() - self._released_at.get(name, 0.0) > _REPEAT_SECONDS:
            self._held.add(name)
            self._pressed.put(_COMMANDS[name])

    def _on_release(self, key: Any) -> None:
        name = _name(key)
        if name in _COMMANDS:
            self._held.discard(name)
            self._released_at[name] = time.monotonic()
        elif self._window.focused and name != _SWALLOWED:
            self._device.on_release(_as_robosuite_has_it(key))


def _open(env: RobosuiteEnv, device: Device) -> Any:
    """Opens a device of robosuite's without its own words about keys, which are others here."""
    with redirect_stdout(io.StringIO()):
        if device == "spacemouse":
            from robosuite.devices.spacemouse import SpaceMouse

            return SpaceMouse(env.simulation)
        from robosuite.devices import Keyboard

        return Keyboard(env.simulation)


def _name(key: Any) -> str:
    """The character of a key; empty for arrows and the like."""
    return (getattr(key, "char", None) or "").lower()


def _as_robosuite_has_it(key: Any) -> Any:
    from pynput.keyboard import KeyCode

    other = _ELSEWHERE.get(_name(key))
    return key if other is None else KeyCode.from_char(other)
