"""A model store on its way to W&B: what the runs' own uploads leave to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tracking.store.pending import GRACE_S
from tracking.store.push import push
from tracking.store.root import Store
from tracking.sync.claims import Claim
from tracking.sync.push import Tools, Visit, held
from tracking.sync.pushed import PushState, read_push_state, write_push_state


class StorePush:
    """A model store: the versions of no run, the aliases, and which runs used what.

    Attributes:
        path: Its folder.
        bytes_read: Nothing: there is no journal.
    """

    bytes_read = 0

    def __init__(self, path: Path, tools: Tools) -> None:
        self.path = path
        self._tools = tools

    def visit(self) -> Visit:
        """Pushes all of it.

        Raises:
            UserError: A record cannot be read, or W&B cannot be asked.
            OSError: The disk.
            StoreError: Some could not be pushed; the message says what and why.
        """
        claim = Claim.take(self.path, self._tools.holder.role, self._tools.observer)
        if claim is None:
            return held(self.path, self._tools.observer)
        self._tools.heart.keep(claim)
        try:
            done = push(Store(self.path), lambda text: self._tools.say(f"{self.path.name}: {text}"), grace=GRACE_S)
            if done.aliases or done.uses:
                self._tools.say(f"{self.path.name}: aliases of {done.aliases} versions, {done.uses} uses")
            if done.failed:
                raise StoreError("; ".join(done.failed))
            write_push_state(self.path, PushState(waiting=len(done.elsewhere), by=str(self._tools.holder)))
        finally:
            self._tools.heart.release(claim)
        return Visit("done")

    def fail(self, error: str) -> PushState:
        """Records that a push went wrong; the next one comes after twice the time."""
        before = read_push_state(self.path) or PushState()
        state = replace(before, by=str(self._tools.holder)).failed(error)
        try:
            write_push_state(self.path, state)
        except OSError as fault:
            self._tools.say(f"{self.path.name}: push.json cannot be written: {fault.strerror}")
        return state


class StoreError(Exception):
    """Some of a model store could not be pushed."""
