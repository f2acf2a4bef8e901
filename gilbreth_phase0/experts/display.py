"""The X display of a person who watches: whether it answers, and a window on it.

python-xlib, which listens to the keys (through pynput), draws the window too. OpenCV would bring a second toolkit that
ends the process when it finds no display.
"""

from __future__ import annotations

import os
import queue
from threading import Thread

import numpy as np
import numpy.typing as npt

from tracking.errors import UserError

_ANSWER_SECONDS = 5.0
_NEXT = "  next: run it on a desktop, or through one: ssh -X to the login node, then salloc --x11"


def check_display() -> None:
    """Refuses where no window can be shown and no key be heard, within seconds.

    Raises:
        UserError: DISPLAY is not set, nothing answers there, or it cannot record keys.
    """
    name = os.environ.get("DISPLAY", "")
    if not name:
        raise UserError(f"a person needs a display, and there is none here (DISPLAY is not set)\n{_NEXT}")
    answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    # A server that takes the connection and says nothing would be waited for without end.
    Thread(target=lambda: answer.put(_fault_of(name)), daemon=True).start()
    try:
        fault = answer.get(timeout=_ANSWER_SECONDS)
    except queue.Empty:
        fault = f"no answer within {_ANSWER_SECONDS:.0f} s"
    if fault is not None:
        raise UserError(f"a person needs a display, and DISPLAY={name} cannot be used: {fault}\n{_NEXT}")


def _fault_of(name: str) -> str | None:
    from Xlib import display, error

    refusals = (error.DisplayError, error.ConnectionClosedError, error.XauthError, error.XNoAuthError, OSError)
    try:
        connection = display.Display(name)
        try:
            recorded = connection.has_extension("RECORD")
        finally:
            connection.close()
    except refusals as refusal:
        return str(refusal).strip()
    return None if recorded else "it has no RECORD extension, which tells what keys are pressed"


class Window:
    """A window that pictures are put into.

    Attributes:
        focused: Whether what is typed is meant for it, as of the last picture.
    """

    def __init__(self, title: str, height: int, width: int) -> None:
        """Opens the window, in pixels."""
        from Xlib import X, display

        self._display = display.Display()
        screen = self._display.screen()
        self._window = screen.root.create_window(0, 0, width, height, 0, screen.root_depth, event_mask=0)
        self._closing = self._display.intern_atom("WM_DELETE_WINDOW")
        self._window.set_wm_protocols([self._closing])
        self._size = (width, height)
        self._gc = self._window.create_gc()
        self._title = ""
        self._nobody = (X.NONE, X.PointerRoot)
        self._entitle(title)
        self._window.map()
        self._display.sync()
        self.focused = True

    def show(self, picture: npt.NDArray[np.uint8], title: str) -> None:
        """Puts a picture, shape (h, w, 3), into the whole window.

        Raises:
            UserError: The person has closed the window, or the display is gone.
        """
        from PIL import Image
        from Xlib import X, error

        try:
            self._entitle(title)
            image = Image.fromarray(picture).resize(self._size)
            self._window.put_pil_image(self._gc, 0, 0, image)
            focus = self._display.get_input_focus().focus
            # Without a window manager nobody gives the focus to anyone.
            self.focused = focus == self._window or focus in self._nobody
            closed = False
            while self._display.pending_events():
                event = self._display.next_event()
                closed |= event.type == X.ClientMessage and event.data[1][0] == self._closing
        except (error.ConnectionClosedError, OSError) as fault:
            raise UserError(f"the display is gone: {fault}\n  next: start again; what was recorded is kept") from fault
        if closed:
            raise UserError("the window was closed\n  next: start again; what was recorded is kept")

    def close(self) -> None:
        """Takes the window away."""
        self._display.close()

    def _entitle(self, title: str) -> None:
        if title != self._title:
            self._window.set_wm_name(title)
            self._title = title
