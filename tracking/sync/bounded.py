"""Calls that must come back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class _Call(Generic[Result]):
    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self.result: Result | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self.error = error


def bounded(function: Callable[[], Result], seconds: float) -> Result:
    """Calls a function and gives up waiting for it after a while; it then goes on in a thread that ends with us.

    Args:
        function: What to call.
        seconds: How long to wait.

    Returns:
        What the function returned.

    Raises:
        TimeoutError: It has not come back; otherwise whatever it raised.
    """
    call = _Call(function)
    thread = threading.Thread(target=call.run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if call.error is not None:
        raise call.error
    return call.result  # type: ignore[return-value]
