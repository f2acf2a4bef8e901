"""Pushing many runs at once, in turn, until nothing is left to push."""

from __future__ import annotations

import math
import os
import queue
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

from tracking.errors import UserError
from tracking.sync.claims import Heart, Holder, Observer
from tracking.sync.jobs import JobWatch
from tracking.sync.plain.push import PlainPush
from tracking.sync.probe import Verdict, probe
from tracking.sync.push import RunPush, Tools, Visit
from tracking.sync.pushed import PushState
from tracking.sync.scan import WANDB, is_store
from tracking.sync.services import end_services
from tracking.sync.store_push import StorePush

_PROBE_S = 10.0
_WORKERS = 8
# What an open run may still need after its last row was given.
_LEAVE_S = 20.0
_LINGER_S = 2.0
_SCRATCH = "gilbreth-sync"


class Push(Protocol):
    """Something that is pushed in steps.

    Attributes:
        bytes_read: How much of a journal was read, for a progress line.
    """

    bytes_read: int

    def visit(self) -> Visit:
        """Takes the next step; raises whatever went wrong."""

    def fail(self, error: str) -> PushState:
        """Records that a step went wrong."""


Outcome = Literal["done", "live", "later", "held", "failed"]


@dataclass(frozen=True)
class Result:
    """What a pushing process came to.

    Attributes:
        outcomes: What became of each folder: `done` (on the server, and ended), `live` (on the server as far as it is
            written), `later` (W&B's own folders that may still be written), `held` (another process pushes it) or
            `failed`; folders that it did not come to are absent.
        errors: Why folders failed, and what is left of those that are done.
        verdict: The server's word, where that ended it.
    """

    outcomes: dict[Path, Outcome] = field(default_factory=dict)
    errors: dict[Path, str] = field(default_factory=dict)
    verdict: Verdict | None = None


@dataclass
class _Item:
    push: Push
    due: float = 0.0
    in_flight: bool = False
    held_since: float | None = None


@dataclass(frozen=True)
class _Visited:
    path: Path
    visit: Visit | None = None
    error: str | None = None
    verdict: Verdict | None = None


class Pusher:
    """Pushes run folders, W&B's own folders (`…/wandb`) and model stores, with a few threads.

    The process ends right after `run`: the runs that it has left open must not be ended by W&B's exit handlers.
    """

    def __init__(
        self,
        role: str,
        interval: float,
        say: Callable[[str], None],
        *,
        stay: bool,
        held: float = 0.0,
        wait: bool = False,
    ) -> None:
        """Opens nothing yet.

        Args:
            role: What this process is, as claims name it.
            interval: Seconds between two looks at a run that is being written.
            say: Prints a line.
            stay: Whether runs that are being written are followed, and more folders awaited for a moment.
            held: How many seconds a folder is waited for that another process pushes. Of a holder on another host
                nothing is known before its heart was watched for a while.
            wait: Wait so long also for a holder that is known to be alive.
        """
        self._held = held
        self._wait = wait
        self._stay = stay
        self._say = say
        self._scratch = scratch_folder()
        self._tools = Tools(
            Holder.this_process(role), self._scratch, Observer(), Heart(), JobWatch(interval), interval, say
        )
        self._events: queue.SimpleQueue[_Visited | Path | None] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(_WORKERS)
        self._items: dict[Path, _Item] = {}
        self._result = Result()
        self._retry_at = math.inf
        self._leave_at = math.inf
        self._busy_at = time.monotonic()

    def add(self, path: Path) -> None:
        """Asks for a folder to be pushed; may be called from any thread."""
        self._events.put(path)

    def stop(self) -> None:
        """Asks to leave soon; may be called from any thread, and by a signal's handler."""
        self._events.put(None)

    def read_bytes(self) -> int:
        """How much of the journals was read so far."""
        return sum(item.push.bytes_read for item in list(self._items.values()))

    def run(self) -> Result:
        """Pushes until nothing is left, until the server is away, or until it is asked to leave."""
        verdict = probe(_PROBE_S)
        if verdict.mode == "offline":
            return replace(self._result, verdict=verdict)
        while not self._is_over():
            self._start_due()
            try:
                event = self._events.get(timeout=self._pause())
            except queue.Empty:
                continue
            if isinstance(event, _Visited):
                self._take(event)
            elif event is not None:
                self._begin(event)
            else:
                self._leave_at = min(self._leave_at, time.monotonic() + _LEAVE_S)
        # First the service, which may still send, then the claims.
        end_services()
        self._tools.heart.release_all()
        shutil.rmtree(self._scratch, ignore_errors=True)
        return self._result

    def _begin(self, path: Path) -> None:
        outcome = self._result.outcomes.get(path)
        if path in self._items or outcome == "failed":
            return
        push: Push
        if is_store(path):
            push = StorePush(path, self._tools)
        elif path.name == WANDB:
            push = PlainPush(path, self._tools)
        elif any(path.glob("run-*.wandb")):
            push = PlainPush(path.parent, self._tools, only=path)
        else:
            push = RunPush(path, self._tools)
        self._items[path] = _Item(push)

    def _start_due(self) -> None:
        if self._leave_at < math.inf:
            return
        runs = any(path not in self._result.outcomes and not _is_store(item) for path, item in self._items.items())
        for path, item in self._items.items():
            # A store waits for the runs: their uploads make its versions on W&B, and its uses need the runs there.
            if not item.in_flight and item.due <= time.monotonic() and not (runs and _is_store(item)):
                item.in_flight = True
                self._pool.submit(self._visit, path, item.push)

    def _visit(self, path: Path, push: Push) -> None:
        try:
            self._events.put(_Visited(path, push.visit()))
        except Exception as error:  # noqa: BLE001 - one broken run must not hold up the others
            text = str(error).strip() or repr(error)
            if not isinstance(error, UserError | OSError):
                # A fault of the server is the server's, and not the run's that met it.
                verdict = probe(_PROBE_S)
                if verdict.mode == "offline":
                    self._events.put(_Visited(path, error=verdict.reason, verdict=verdict))
                    return
            state = push.fail(text.splitlines()[0])
            pause = (state.next_try or 0.0) - time.time()
            self._say(f"{path.name}: {text}; next try in {max(0.0, pause):.0f} s")
            self._retry_at = min(self._retry_at, time.monotonic() + pause)
            self._events.put(_Visited(path, error=text))

    def _take(self, visited: _Visited) -> None:
        self._busy_at = time.monotonic()
        item = self._items[visited.path]
        item.in_flight = False
        if visited.verdict is not None:
            self._result = replace(self._result, verdict=visited.verdict)
        if visited.visit is None:
            self._result.errors[visited.path] = visited.error or ""
            self._end(visited.path, "failed")
            return
        item.due = time.monotonic() + visited.visit.pause
        match visited.visit.outcome:
            case "done":
                if visited.visit.error is not None:
                    self._result.errors[visited.path] = visited.visit.error
                else:
                    self._result.errors.pop(visited.path, None)
                self._end(visited.path, "done")
            case "later":
                self._end(visited.path, "later")
            case "live":
                self._result.outcomes[visited.path] = "live"
            case "held":
                item.held_since = item.held_since or time.monotonic()
                is_sure = visited.visit.is_sure and not self._wait
                if is_sure or time.monotonic() - item.held_since >= self._held:
                    self._end(visited.path, "held")

    def _end(self, path: Path, outcome: Outcome) -> None:
        self._result.outcomes[path] = outcome
        del self._items[path]

    def _is_over(self) -> bool:
        now = time.monotonic()
        if self._result.verdict is not None or self._tools.heart.lost.is_set():
            return True
        flying = any(item.in_flight for item in self._items.values())
        if self._leave_at < math.inf:
            return now > self._leave_at or not flying
        if self._stay and now > self._retry_at:
            # Its client may still hold what failed: a process of its own begins afresh.
            return True
        open_items = {path for path in self._items if self._stay or self._result.outcomes.get(path) != "live"}
        waits = self._stay and now - self._busy_at < _LINGER_S
        return not (flying or open_items or waits or not self._events.empty())

    def _pause(self) -> float:
        due = min((item.due for item in self._items.values() if not item.in_flight), default=math.inf)
        return max(0.0, min(1.0, due - time.monotonic()))


def _is_store(item: _Item) -> bool:
    return isinstance(item.push, StorePush)


def scratch_folder() -> Path:
    """Makes a folder for W&B's client on this host's own disk, and removes those of dead processes."""
    parent = Path(tempfile.gettempdir())
    for folder in parent.glob(f"{_SCRATCH}-{os.getuid()}-*"):
        pid = folder.name.split("-")[3]
        if not Path("/proc", pid).exists():
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}-{os.getuid()}-{os.getpid()}-"))
