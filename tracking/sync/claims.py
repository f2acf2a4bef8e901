"""Who pushes a run: numbered records in `RUN/claims/`, the highest of which holds, and a heartbeat beside each.

```
RUN/claims/
  000007.json      role, host, process: made once, exclusively, never changed
  000007.beat      touched by the holder every few seconds
  000007.released  the holder has let go
```
Nothing here is a lock: rows may be pushed twice without harm, and a claim keeps two processes from doing so for long. A
holder on this machine is asked for by its process. One on another host counts as dead when its heartbeat has not moved
for half a minute by the observer's own clock; the clocks of two hosts are never compared.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tracking.exclusive import create_exclusive
from tracking.files import read_json

_BEAT_S = 5.0
_DEAD_S = 30.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a claim.

    Attributes:
        role: `child` (of the training process), `daemon`, `once` or `run`.
        host: Where it runs.
        table: Which process table its number belongs to: the machine's boot and the process namespace.
        pid: Its number there.
        started: When it began, in the kernel's ticks; a number that was given out again has another beginning.
        time: When it took the claim, seconds since the epoch.
    """

    role: str
    host: str
    table: str
    pid: int
    started: int
    time: float

    @classmethod
    def this_process(cls, role: str) -> Holder:
        """The present process."""
        return cls(role, os.uname().nodename, _table(), os.getpid(), _started(os.getpid()) or 0, time.time())

    def is_here(self) -> bool:
        """True for a process of this host, of which the kernel says whether it is alive."""
        return self.table == _table()

    def is_alive(self) -> bool | None:
        """Whether the process lives; None for one of another host, of which only its heartbeat tells."""
        return _started(self.pid) == self.started if self.is_here() else None

    def is_this_process(self) -> bool:
        """True also for a claim that this process took before it replaced its program."""
        return (self.table, self.pid, self.started) == (_table(), os.getpid(), _started(os.getpid()))

    def __str__(self) -> str:
        """For messages: `daemon on login1, process 4711`."""
        return f"{self.role} on {self.host}, process {self.pid}"


class Observer:
    """What one process has seen of others' claims; a heartbeat of another host is judged by watching it."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float]] = {}

    def holder(self, folder: Path) -> Holder | None:
        """The living holder of a folder's claim.

        Args:
            folder: The run folder, or whatever else is pushed as one.

        Returns:
            None where nobody holds it, or where the holder is known to be dead.
        """
        number = _highest(folder)
        if number is None or _file(folder, number, "released").exists():
            return None
        holder = _read(folder, number)
        if holder is None or holder.is_this_process():
            return None
        alive = holder.is_alive()
        return holder if alive or (alive is None and self._beats(_file(folder, number, "beat"))) else None

    def _beats(self, path: Path) -> bool:
        now = time.monotonic()
        try:
            # A network file system answers a plain stat from its cache, and an open from the server.
            with path.open("rb") as file:
                beat = os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            beat = 0
        last, since = self._seen.get(path, (None, now))
        if beat != last:
            since = now
        self._seen[path] = (beat, since)
        return now - since < _DEAD_S


@dataclass(frozen=True)
class Claim:
    """A claim of this process.

    Attributes:
        folder: What is claimed.
        number: Its number; a higher one ends it.
    """

    folder: Path
    number: int

    @classmethod
    def take(cls, folder: Path, role: str, observer: Observer) -> Claim | None:
        """Claims a folder, unless somebody alive holds it.

        Args:
            folder: The run folder, or whatever else is pushed as one.
            role: What this process is, as `Holder` has it.
            observer: Judges the present holder.

        Returns:
            None where another process holds it, or was faster.

        Raises:
            OSError: The folder cannot be written.
        """
        # Before the holder is looked for: who takes the claim meanwhile takes this number.
        number = (_highest(folder) or 0) + 1
        if observer.holder(folder) is not None:
            return None
        (folder / "claims").mkdir(exist_ok=True)
        # The heart beats before the claim stands, so that nobody sees a claim without one.
        _file(folder, number, "beat").touch()
        content = json.dumps(asdict(Holder.this_process(role))) + "\n"
        if not create_exclusive(_file(folder, number, "json"), content.encode()):
            return None
        _forget_before(folder, number)
        claim = cls(folder, number)
        # Between the look and the record others may have come and gone, and the number with them.
        return claim if claim.is_mine() else None

    def is_mine(self) -> bool:
        """False when another process has taken over, or when the folder is gone."""
        return _highest(self.folder) == self.number

    def beat(self) -> None:
        """Says that this process is alive; a folder that is gone needs no heartbeat."""
        with suppress(OSError):
            os.utime(_file(self.folder, self.number, "beat"))

    def beaten_at(self) -> float:
        """When this process last said so, by the clock of the disk; seconds since the epoch."""
        self.beat()
        return _file(self.folder, self.number, "beat").stat().st_mtime

    def release(self) -> None:
        """Lets go; where the disk does not take that, the process's end says it."""
        with suppress(OSError):
            _file(self.folder, self.number, "released").touch()


class Heart:
    """Keeps this process's claims alive from a thread of its own, whatever its other threads wait for.

    Attributes:
        lost: Set when another process has taken one of the claims over: this one was not seen alive for too long.
    """

    def __init__(self) -> None:
        self.lost = threading.Event()
        self._claims: set[Claim] = set()
        self._guard = threading.Lock()
        threading.Thread(target=self._beat, daemon=True).start()

    def keep(self, claim: Claim) -> None:
        """Beats for a claim from now on."""
        with self._guard:
            self._claims.add(claim)

    def release(self, claim: Claim) -> None:
        """Lets go of a claim."""
        with self._guard:
            self._claims.discard(claim)
        claim.release()

    def release_all(self) -> None:
        """Lets go of every claim."""
        for claim in self.kept():
            self.release(claim)

    def kept(self) -> list[Claim]:
        """The claims that are kept alive."""
        with self._guard:
            return list(self._claims)

    def _beat(self) -> None:
        while True:
            for claim in self.kept():
                if claim.is_mine():
                    claim.beat()
                    continue
                with suppress(OSError):  # a folder that another host removed can be a stale handle
                    if claim.folder.exists() and claim in self.kept():
                        self.lost.set()
            time.sleep(_BEAT_S)


def _highest(folder: Path) -> int | None:
    try:
        names = [path.name for path in (folder / "claims").iterdir()]
    except OSError:
        return None
    return max((int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit()), default=None)


def _read(folder: Path, number: int) -> Holder | None:
    try:
        fields: Mapping[str, Any] | None = read_json(_file(folder, number, "json"))
        return Holder(**fields) if fields is not None else None
    except (OSError, ValueError, TypeError):
        return None  # of a version to come: its heartbeat cannot be judged, and rows may be pushed twice


def _forget_before(folder: Path, number: int) -> None:
    for path in (folder / "claims").iterdir():
        earlier = path.name.split(".")[0]
        if earlier.isdigit() and int(earlier) < number:
            path.unlink(missing_ok=True)


def _file(folder: Path, number: int, suffix: str) -> Path:
    return folder / "claims" / f"{number:06d}.{suffix}"


@cache
def _table() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the machine's boot; None for one that has ended."""
    try:
        # The program's name, in parentheses, may hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
