"""Faults that tests add: which requests fail, how, from when on and how often."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

Kind = Literal["http", "hang", "drop", "lose", "slow"]


@dataclass
class Fault:
    """One fault.

    Attributes:
        operation: Name of a GraphQL operation (`UpsertBucket`), `graphql` for all of them, `file_stream`,
            `file_stream/RUN_ID` for one run, `upload`, `download`, or a pattern such as `*`.
        kind: `http` answers with `status`; `hang` reads the request and never answers; `drop` closes the connection
            without an answer; `lose` does what was asked and closes the connection without an answer; `slow` answers
            after `seconds`.
        after: How many matching requests pass before the fault begins.
        times: How many requests it hits, None for all that follow.
        seen: How many requests matched so far.
        hits: How many it hit.
    """

    operation: str
    kind: Kind
    status: int = 500
    seconds: float = 0.0
    after: int = 0
    times: int | None = None
    seen: int = 0
    hits: int = 0
    lifted: threading.Event = field(default_factory=threading.Event)

    def takes(self, names: tuple[str, ...]) -> bool:
        """Counts a request with these names and says whether the fault hits it."""
        if self.lifted.is_set() or not any(fnmatchcase(name, self.operation) for name in names):
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.hits >= self.times):
            return False
        self.hits += 1
        return True


class Faults:
    """The faults that are in force."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(
        self,
        operation: str = "*",
        kind: Kind = "http",
        *,
        status: int = 500,
        seconds: float = 0.0,
        after: int = 0,
        times: int | None = None,
    ) -> Fault:
        """Puts a fault in force from now on; see `Fault` for the arguments."""
        fault = Fault(operation, kind, status, seconds, after, times)
        with self._lock:
            self._faults.append(fault)
        return fault

    @contextmanager
    def during(self, operation: str = "*", kind: Kind = "http", *, status: int = 500) -> Iterator[Fault]:
        """A fault that is lifted at the end of the block."""
        fault = self.add(operation, kind, status=status)
        try:
            yield fault
        finally:
            self.lift(fault)

    def lift(self, fault: Fault) -> None:
        """Takes one fault out of force; requests that hang in it lose their connection, slow ones go on."""
        fault.lifted.set()
        with self._lock:
            if fault in self._faults:
                self._faults.remove(fault)

    def clear(self) -> None:
        """Takes all faults out of force."""
        with self._lock:
            faults = list(self._faults)
        for fault in faults:
            self.lift(fault)

    def hit(self, *names: str) -> Fault | None:
        """The fault that this request runs into, if any; every fault counts the request."""
        with self._lock:
            hits = [fault for fault in self._faults if fault.takes(names)]
        return hits[0] if hits else None
