"""The daemon: it looks for runs to push, which costs next to nothing, and has another process push them.

```
ROOT/.sync/
  daemon-login1.json   who looks after this root from that host, and how it is
  daemon-login1.pid    its process, for `kill $(cat …)`
  daemon-login1.log    what it says, after --detach
  server-login1.json   why the server could not be used
```
One daemon a root and host. Daemons on several hosts do no harm: claims keep them apart.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

from tracking.errors import UserError
from tracking.files import read_json, write_atomic, write_json
from tracking.sync.scan import Scanner

_UNREACHABLE = 75
_REFUSED = 77
_FIRST_PAUSE_S = 30.0
_LAST_PAUSE_S = 600.0
_LEAVE_S = 30.0


@dataclass(frozen=True)
class DaemonState:
    """What a daemon says of itself.

    Attributes:
        host: Where it runs.
        pid: Its process.
        interval: Seconds between two looks.
        started: When it began, seconds since the epoch.
        looked: When it looked last, seconds since the epoch.
        pushing: Whether its pushing process is at work.
        error: Why the server cannot be used, in plain words.
        next_try: When it is tried again, seconds since the epoch.
        ended: Why it has ended; None while it runs.
    """

    host: str
    pid: int
    interval: float
    started: float = field(default_factory=time.time)
    looked: float = 0.0
    pushing: bool = False
    error: str | None = None
    next_try: float | None = None
    ended: str | None = None


class Daemon:
    """Looks after some roots until it is ended."""

    def __init__(
        self, roots: Sequence[Path], interval: float, max_hours: float | None, awaited: Sequence[Path] = ()
    ) -> None:
        """Takes the roots for this host.

        Args:
            roots: Existing folders.
            interval: Seconds between two looks.
            max_hours: After how many hours it ends by itself.
            awaited: Roots that somebody may make later; then it looks after them too.

        Raises:
            UserError: A daemon of this host looks after one of them, or a folder cannot be written.
        """
        self._roots = list(roots)
        self._awaited = list(awaited)
        self._locks = [_lock(root) for root in roots]
        self._scanner = Scanner(roots)
        self._deadline = time.monotonic() + max_hours * 3600 if max_hours is not None else float("inf")
        self._state = DaemonState(os.uname().nodename, os.getpid(), interval)
        self._pusher: subprocess.Popen[str] | None = None
        self._began = 0.0
        self._pause = 0.0
        self._stop = threading.Event()

    def run(self) -> None:
        """Looks and has pushed until it is ended.

        Raises:
            UserError: The key was refused.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: self._stop.set())
        self._state = replace(self._state, pid=os.getpid())
        for root in self._roots:
            write_atomic(_file(root, "daemon", "pid"), f"{os.getpid()}\n")
        why = "a signal"
        try:
            while not self._stop.is_set():
                if time.monotonic() >= self._deadline:
                    why = "--max-hours"
                    break
                self._look()
                self._stop.wait(self._state.interval)
        except UserError as error:
            why = str(error).splitlines()[0]
            raise
        finally:
            self._end_pusher()
            self._note(ended=why, pushing=False)
            for root in self._roots:
                _file(root, "daemon", "pid").unlink(missing_ok=True)
        _say(f"the daemon ends: {why}")

    def _look(self) -> None:
        for root in [root for root in self._awaited if root.is_dir()]:
            self._awaited.remove(root)
            self._adopt(root)
        self._reap()
        due = self._scanner.due()
        waits = self._state.next_try is not None and time.time() < self._state.next_try
        if due and self._pusher is None and not waits:
            self._pusher = self._start_pusher()
        if self._pusher is not None:
            self._tell(self._pusher, due)
        self._note(looked=time.time(), pushing=self._pusher is not None)

    def _adopt(self, root: Path) -> None:
        try:
            self._locks.append(_lock(root))
            write_atomic(_file(root, "daemon", "pid"), f"{os.getpid()}\n")
        except (UserError, OSError) as error:  # another daemon was faster, or only others may write there
            _say(f"{root} is left alone: {str(error).splitlines()[0]}")
            return
        self._roots.append(root)
        self._scanner.add(root)
        _say(f"{root} is there now, and looked after too")

    def _start_pusher(self) -> subprocess.Popen[str]:
        self._began = time.monotonic()
        verdict = _file(self._roots[0], "server", "json")
        verdict.unlink(missing_ok=True)
        command = [sys.executable, "-P", "-m", "tracking.sync.pushing"]
        command += [f"--interval={self._state.interval}", f"--verdict={verdict}"]
        root = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        # A session of its own: a Ctrl-C in the terminal is the daemon's to pass on.
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, text=True, start_new_session=True)

    @staticmethod
    def _tell(pusher: subprocess.Popen[str], due: Sequence[Path]) -> None:
        stdin = _stdin(pusher)
        with suppress(BrokenPipeError):  # it has left meanwhile, and what is due now is due at the next look
            for path in due:
                stdin.write(json.dumps(str(path)) + "\n")
            stdin.flush()

    def _reap(self) -> None:
        if self._pusher is None or (code := self._pusher.poll()) is None:
            return
        with suppress(BrokenPipeError):
            _stdin(self._pusher).close()
        self._pusher = None
        reason = (read_json(_file(self._roots[0], "server", "json")) or {}).get("reason")
        if code == _REFUSED:
            raise UserError(
                f"W&B does not take the key, so nothing can be pushed: {reason}\n"
                "  next: `wandb login` (or WANDB_API_KEY), then start the daemon again"
            )
        if code == _UNREACHABLE or (code > 0 and time.monotonic() - self._began < _FIRST_PAUSE_S):
            error = str(reason or f"the pushing process ended with {code}; see the lines above")
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE_S), _LAST_PAUSE_S)
            self._note(error=error, next_try=time.time() + self._pause)
            _say(f"{error}; next try in {self._pause:.0f} s")
            return
        self._pause = 0.0
        self._note(error=None, next_try=None)

    def _end_pusher(self) -> None:
        if self._pusher is None:
            return
        with suppress(BrokenPipeError):
            _stdin(self._pusher).close()
        try:
            self._pusher.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            self._pusher.kill()
            self._pusher.wait()
        self._pusher = None

    def _note(self, **changes: str | float | None) -> None:
        self._state = DaemonState(**{**asdict(self._state), **changes})
        for root in self._roots:
            with suppress(OSError):  # a full disk, or no such root now; what matters is in the run folders
                (root / ".sync").mkdir(exist_ok=True)  # a root may be removed and made again
                write_json(_file(root, "daemon", "json"), asdict(self._state), durable=False)


def detach(roots: Sequence[Path]) -> None:
    """Goes on as a process that survives the logout; the present one prints where it is and ends.

    Args:
        roots: The log is in the first one.
    """
    log = _file(roots[0], "daemon", "log")
    sys.stdout.flush()
    # Before the fork: the terminal may hang up before the new process has come to leave it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if pid := os.fork():
        print(
            f"The daemon runs as process {pid} on {os.uname().nodename}.\n  log: {log}\n  end it: kill {pid}",
            flush=True,
        )
        os._exit(0)
    os.setsid()
    with Path(os.devnull).open("rb") as nothing, log.open("ab") as out:
        os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)


def read_daemons(root: Path) -> list[DaemonState]:
    """The daemons that look, or looked, after a root."""
    states = []
    for path in sorted((root / ".sync").glob("daemon-*.json")):
        with suppress(ValueError, TypeError):  # of a version to come
            states.append(DaemonState(**read_json(path)))
    return states


def _lock(root: Path) -> IO[str]:
    """Takes a root for this host; the kernel gives it back when the process ends, whatever ends it."""
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    # On the host's own disk: locks of a network file system are not to be relied on.
    file = Path(f"/tmp/gilbreth-sync-{os.getuid()}-{digest}.lock").open("a", encoding="utf-8")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        state = read_json(_file(root, "daemon", "json")) or {}
        raise UserError(
            f"a daemon looks after {root} on {os.uname().nodename} already: process {state.get('pid', '?')}, since "
            f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(state.get('started', 0)))}\n"
            f"  next: python -m tracking.sync status, or end it with kill {state.get('pid', 'PID')}"
        ) from error
    try:
        (root / ".sync").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{root} cannot be written: {error.strerror}\n  next: give a folder of yours as --root"
        ) from error
    return file


def _file(root: Path, name: str, suffix: str) -> Path:
    return root / ".sync" / f"{name}-{os.uname().nodename}.{suffix}"


def _stdin(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdin is not None
    return process.stdin


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
