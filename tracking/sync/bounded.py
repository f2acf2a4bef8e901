"""Calls that must not hold their caller."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Background(Generic[Result]):
    """A call in a thread that ends with the process."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def is_done(self, wait: float = 0.0) -> bool:
        """Tells whether the call has come back, after at most `wait` seconds."""
        self._thread.join(wait)
        return not self._thread.is_alive()

    def result(self) -> Result:
        """What the call that has come back returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            self._error = error


def bounded(function: Callable[[], Result], seconds: float) -> Result:
    """Calls a function and gives up waiting for it after a while; it then goes on in its thread.

    Args:
        function: What to call.
        seconds: How long to wait.

    Returns:
        What the function returned.

    Raises:
        TimeoutError: It has not come back; otherwise whatever it raised.
    """
    call = Background(function)
    if not call.is_done(max(0.0, seconds)):
        raise TimeoutError(f"no answer within {seconds:.1f} s")
    return call.result()
