"""What there is to push below a folder, found by names, sizes and times: an idle look must cost next to nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tracking.errors import UserError
from tracking.intents import pending_intents
from tracking.store.pending import may_need_push, needs_push
from tracking.store.root import Store
from tracking.sync.claims import Observer
from tracking.sync.plain.push import plain_folders, plain_state_folder
from tracking.sync.pushed import journal_position, read_push_state

# Runs stand directly below a root, or grouped in folders.
_DEPTH = 3
# An upload by hand may have been under way when a run was pushed: the server is asked once more.
_SETTLE_S = 60.0
WANDB = "wandb"
_STORE = "store.json"
_UNWANTED = "no-wandb"

_Signature = tuple[object, ...]


def find(roots: Sequence[Path]) -> Iterator[Path]:
    """The run folders and model stores below some roots, and W&B's own folders (`…/wandb`); a root may be one itself.

    Args:
        roots: Folders; those that do not exist hold nothing.
    """
    for root in roots:
        yield from _below(root, _DEPTH)


def is_store(path: Path) -> bool:
    """Whether a folder is a model store."""
    return (path / _STORE).is_file()


class Scanner:
    """Looks again and again, and reads nothing of what has not changed since it was pushed."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = list(roots)
        self._observer = Observer()
        self._settled: dict[Path, _Signature] = {}
        # What was read of a store's records is not read again.
        self._stores: dict[Path, Store] = {}

    def add(self, root: Path) -> None:
        """Looks below another root from now on."""
        self._roots.append(root)

    def due(self, *, again: bool = False) -> list[Path]:
        """The folders that somebody should push now.

        Args:
            again: Also those that have failed and would be tried later, and those that another process holds: what
                became of a holder on another host shows only when its heart is watched.
        """
        now = time.time()
        found = list(find(self._roots))
        self._settled = {path: self._settled[path] for path in found if path in self._settled}
        return [path for path in found if self._is_due(path, now, again)]

    def _is_due(self, path: Path, now: float, again: bool) -> bool:
        if is_store(path):
            when = store_due_at(self._stores.setdefault(path, Store(path)), again=again)
            return when is not None and when <= now and (again or self._observer.holder(path) is None)
        try:
            signature = _signature(path)
            if signature == self._settled.get(path):
                return False
            when = wandb_due_at(path, again=again) if path.name == WANDB else run_due_at(path, again=again)
        except OSError:
            return False  # it went away meanwhile
        if when is None:
            self._settled[path] = signature
            return False
        claimed = path / ".sync" if path.name == WANDB else path
        return when <= now and (again or self._observer.holder(claimed) is None)


def mark_wanted(run_dir: Path, wanted: bool) -> None:
    """Says in a run's folder whether W&B is to get the run; by hand it can be pushed in any case.

    Raises:
        OSError: The folder cannot be written.
    """
    mark = run_dir / _UNWANTED
    mark.unlink(missing_ok=True) if wanted else mark.touch()


def run_due_at(run_dir: Path, *, again: bool = False) -> float | None:
    """When a run should be pushed, seconds since the epoch; None where the server has all of it, or is to have none."""
    if (run_dir / _UNWANTED).exists():
        return None
    position = journal_position(run_dir)
    if position is None:
        return None
    state = read_push_state(run_dir)
    if state is None:
        return 0.0
    if state.next_try is not None:
        return 0.0 if again else state.next_try
    if state.seen != position or state.closed is None or pending_intents(run_dir):
        return 0.0
    return None if state.settled else state.time + _SETTLE_S


def store_due_at(store: Store, *, again: bool = False) -> float | None:
    """When a model store should be pushed; None where W&B has all of it, or where only others may write it."""
    try:
        if not os.access(store.root, os.W_OK):
            return None
        # Before runs are pushed nothing of theirs may be left to do, and behind them there is.
        if not needs_push(store) and not (again and may_need_push(store)):
            return None
    except (UserError, OSError, ValueError):
        pass  # whoever pushes it says what is wrong
    state = read_push_state(store.root)
    return 0.0 if again or state is None or state.next_try is None else state.next_try


def wandb_due_at(folder: Path, *, again: bool = False) -> float | None:
    """When something in one of W&B's own folders should be pushed; None where there is nothing."""
    times = []
    for run in plain_folders(folder):
        state = read_push_state(plain_state_folder(run))
        times.append(0.0 if again or state is None or state.next_try is None else state.next_try)
    return min(times, default=None)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            marks = ("run.json", _STORE)
            names = {entry.name for entry in entries if entry.name in marks or entry.is_dir(follow_symlinks=False)}
    except OSError:
        return
    if not names.isdisjoint(marks):
        yield folder
        return
    if folder.name == WANDB:
        yield folder
        return
    for name in sorted(names):
        if name == WANDB or (depth > 0 and not name.startswith(".")):
            yield from _below(folder / name, depth - 1)


def _signature(path: Path) -> _Signature:
    """Changes when a file in the folder is made or replaced, the journal grows, or an upload is put aside."""
    if path.name == WANDB:
        return (path.stat().st_mtime_ns,)
    intents = path / "intents"
    return path.stat().st_mtime_ns, journal_position(path), intents.stat().st_mtime_ns if intents.exists() else 0
