"""Pushing while the user waits: `once`, `run PATH…`, and the closing step of a job."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.errors import UserError
from tracking.identity import read_identity
from tracking.intents import pending_intents
from tracking.sync.pushed import journal_position, read_push_state
from tracking.sync.scan import WANDB, Scanner
from tracking.sync.views.offline import run_dir_of

if TYPE_CHECKING:
    from tracking.sync.pusher import Outcome, Pusher, Result

# Longer than a heartbeat of another host must stand still before its holder counts as dead.
_HELD_S = 40.0
# Whoever names a run wants it pushed, and waits for the process that does it already.
_HELD_NAMED_S = 600.0
_LOOK_S = 2.0
_SHOW_S = 0.5
_SAY_S = 10.0


def push_all(roots: Sequence[Path]) -> int:
    """Pushes whatever the roots hold that the server does not have; returns the exit code.

    Args:
        roots: Existing folders.

    Raises:
        UserError: The server cannot be used.
    """
    paths = Scanner(roots).due(again=True)
    if not paths:
        print("Everything is on the server already.")
        return 0
    return _report(paths, _push(paths, "once", held=_HELD_S))


def push_named(paths: Sequence[Path], *, closing: bool) -> int:
    """Pushes the named runs; returns the exit code.

    Args:
        paths: Run folders, or W&B's offline folders.
        closing: This is the end of a job: what cannot be pushed now is left with a line that says how to, and the exit
            code is always 0.

    Raises:
        UserError: A path is neither, or the server cannot be used.
    """
    if not closing:
        wanted = [_pushable(path) for path in paths]
        return _report(wanted, _push(wanted, "run", held=_HELD_NAMED_S))
    folders: dict[Path, Path] = {}
    for path in paths:
        with _said():
            folders[path] = _pushable(path)
    if left := [folder for folder in folders.values() if not _is_on_server(folder)]:
        with _said():
            _push(left, "run", held=0.0)
    if left := [path for path, folder in folders.items() if not _is_on_server(folder)]:
        command = shlex.join([_python(), "-m", "tracking.sync", "run", *map(str, left)])
        print(f"to push this run, on a login node: cd {shlex.quote(str(Path.cwd()))} && {command}", flush=True)
    return 0


@contextmanager
def _said() -> Iterator[None]:
    """Turns a fault into a line of a job's log."""
    try:
        yield
    except UserError as error:
        print(f"[sync] {str(error).splitlines()[0]}")


def _push(paths: Sequence[Path], role: str, *, held: float) -> Result:
    from tracking.sync.pusher import Pusher
    from tracking.sync.services import forget_foreign_settings, send_within

    forget_foreign_settings()
    send_within(_LOOK_S)
    pusher = Pusher(role, _LOOK_S, _say, stay=False, held=held, wait=role == "run" and held > 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: pusher.stop())
    for path in dict.fromkeys(paths):
        pusher.add(path)
    with _progress(pusher, paths):
        result = pusher.run()
    if result.verdict is not None:
        raise UserError(_server_words(result))
    return result


def _server_words(result: Result) -> str:
    assert result.verdict is not None
    if result.verdict.refused:
        return f"the key was refused: {result.verdict.reason}\n  next: `wandb login`, or set WANDB_API_KEY"
    return f"{result.verdict.reason}; nothing is lost\n  next: the same command where there is internet"


def _report(paths: Sequence[Path], result: Result) -> int:
    words: dict[Outcome, str] = {
        "done": "on the server",
        "live": "on the server as far as written",
        "later": "left until nobody writes it",
        "held": "pushed by another process",
        "failed": "not pushed",
    }
    counts = {outcome: list(result.outcomes.values()).count(outcome) for outcome in words}
    print(", ".join(f"{count} {words[outcome]}" for outcome, count in counts.items() if count) or "Nothing to push.")
    for path, error in result.errors.items():
        print(f"error: {path}: {error}", file=sys.stderr)
    unfinished = [path for path in paths if path not in result.outcomes]
    for path in unfinished:
        print(f"error: {path}: interrupted; the same command goes on from there", file=sys.stderr)
    return 1 if result.errors or unfinished else 0


def _pushable(path: Path) -> Path:
    """The folder that is pushed for a path that a user gives.

    Raises:
        UserError: There is nothing to push.
    """
    path = path.absolute()
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder\n  next: python -m tracking.sync status")
    if read_identity(path) is not None:
        return path
    if any(path.glob("run-*.wandb")):
        return run_dir_of(path) or path
    if path.name == WANDB:
        return path
    raise UserError(
        f"{path} is neither a run folder (with run.json) nor one of W&B's offline folders (offline-run-…)\n"
        f"  next: python -m tracking.sync once --root {shlex.quote(str(path))}, for all that is below it"
    )


def _python() -> str:
    """This Python as a user names it in the current folder."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _is_on_server(path: Path) -> bool:
    """True for a run whose every line and upload is on the server, as far as is known here, and whose end is too."""
    if not path.exists():
        return True  # the folder has moved, or is gone
    state = read_push_state(path)
    if state is None or state.closed is None or pending_intents(path):
        return False
    return state.seen == journal_position(path)


@contextmanager
def _progress(pusher: Pusher, paths: Sequence[Path]) -> Iterator[None]:
    """Shows how much of the journals was read: a bar in a terminal, else a line now and then."""
    total = sum(_size(path) for path in paths)
    done = threading.Event()
    thread = threading.Thread(target=_show_bar if sys.stdout.isatty() else _say_rate, args=[pusher, total, done])
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show_bar(pusher: Pusher, total: int, done: threading.Event) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = [BarColumn(20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("", total=total)
        while not done.wait(_SHOW_S):
            progress.update(task, completed=min(total, pusher.read_bytes()))


def _say_rate(pusher: Pusher, total: int, done: threading.Event) -> None:
    began = time.monotonic()
    while not done.wait(_SAY_S):
        read = pusher.read_bytes()
        rate = read / (time.monotonic() - began)
        left = f", {(total - read) / rate:.0f} s left" if rate > 0 and total > read else ""
        _say(f"{read / 1e6:.1f} of {total / 1e6:.1f} MB of journals, {rate / 1e6:.2f} MB/s{left}")


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("journal-*.jsonl"))


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
