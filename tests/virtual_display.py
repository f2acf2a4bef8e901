"""An X server without a screen, and a keyboard on it: keys that are pressed here are real to every program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from Xlib import XK, X, display
from Xlib.ext import xtest


class Keyboard:
    """Presses keys by their X names: h, 1, Up, space, period."""

    def __init__(self, name: str) -> None:
        self._display = display.Display(name)

    def hold(self, key: str) -> None:
        self._send(X.KeyPress, key)

    def release(self, key: str) -> None:
        self._send(X.KeyRelease, key)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.hold(key)
            self.release(key)

    def close(self) -> None:
        self._display.close()

    def _send(self, event: int, key: str) -> None:
        xtest.fake_input(self._display, event, self._display.keysym_to_keycode(XK.string_to_keysym(key)))
        self._display.sync()


@contextmanager
def virtual_display() -> Iterator[tuple[str, Keyboard]]:
    """Starts a server on a display number that is free; yields its name and a keyboard on it."""
    read, write = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x1024x24", "-nolisten", "tcp"],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )
    try:
        os.close(write)
        with os.fdopen(read) as said:
            name = f":{said.readline().strip()}"
        keyboard = Keyboard(name)
        yield name, keyboard
        keyboard.close()
    finally:
        server.terminate()
        server.wait(timeout=10)
