"""Which checkpoints of a run stay, and how the others go."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tracking.checkpoints.choice import age, candidates, has_all_files, verify
from tracking.checkpoints.manifest import BEST, MANIFEST
from tracking.checkpoints.saving import TEMPORARY
from tracking.errors import UserError
from tracking.files import fsync_dir, write_atomic
from tracking.intents import pinned_files

_PIN = re.compile(r"\.pin-(?P<tag>step-\d+(?:-\d+)?)\.(?P<holder>.+)")
_COPY = re.compile(r"universal-step-\d+(?:-\d+)?")
# Whoever pinned it was killed, or would have pinned it again.
_PIN_LASTS_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay beside the best one and those that somebody reads.

    Attributes:
        last: So many of the newest whole ones; at least 1.
        every: And those of each step that this divides; 0 for none.

    Raises:
        ValueError: `last` is less than 1, or `every` negative.
    """

    last: int
    every: int = 0

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"last is {self.last}; at least the newest checkpoint must stay")
        if self.every < 0:
            raise ValueError(f"every is {self.every}; expected a number of steps, or 0")


def mark_best(checkpoint: Path) -> None:
    """Makes a checkpoint the best one of its run, which stays until another one is better."""
    write_atomic(checkpoint.parent / BEST, checkpoint.name)


@contextmanager
def pinned(checkpoint: Path, holder: str | None = None) -> Iterator[None]:
    """Keeps a checkpoint from being deleted while the block runs, whoever prunes, on whatever host.

    Args:
        checkpoint: The checkpoint.
        holder: Who pins it; this process where it is None. A pin of a name goes with the last block of that name, also
            where an earlier process was killed in one.
    """
    pin = checkpoint.with_name(f".pin-{checkpoint.name}.{holder or f'{os.uname().nodename}.{os.getpid()}'}")
    write_atomic(pin, "")
    try:
        yield
    finally:
        pin.unlink(missing_ok=True)


def prune(
    folder: Path, retention: Retention, *, trusted: Path | None = None, say: Callable[[str], None] = print
) -> list[Path]:
    """Deletes what a run no longer needs: older checkpoints, and what killed saves left.

    What stays: the newest whole ones, every K-th, the best, and what an upload that waits or a pin needs. Nothing goes
    before one of those that stay has proven whole, digests included. A checkpoint is renamed to a temporary name before
    its files go, so that a kill in the middle leaves nothing that looks like a checkpoint.

    Args:
        folder: The run's `checkpoints` folder.
        retention: What stays.
        trusted: The checkpoint that this process has just saved: its digests are those of a moment ago.
        say: Is told why nothing is deleted where that is so.

    Returns:
        The checkpoints that are gone.
    """
    clear_leftovers(folder)
    saved = [path for path in candidates(folder) if (path / MANIFEST).is_file()]
    try:
        needed = _needed(folder, retention, saved)
    except (UserError, OSError) as error:
        say(f"no checkpoint is deleted: what is still to be uploaded cannot be told: {error}")
        return []
    doomed = [path for path in saved if path not in needed]
    if doomed and not any(_is_whole(path, trusted) for path in saved if path in needed):
        say(f"no checkpoint is deleted: none of those that would stay in {folder} is whole")
        return []
    copies = _copies_behind(folder, saved)
    for path in [*doomed, *copies]:
        path.rename(folder / f"{TEMPORARY}{path.name}")
    if doomed or copies:
        # Before their files go: a power cut must not bring the name back without them.
        fsync_dir(folder)
        clear_leftovers(folder)
    return doomed


def _needed(folder: Path, retention: Retention, saved: list[Path]) -> set[Path]:
    needed = set([path for path in saved if has_all_files(path)][: retention.last])
    if retention.every:
        needed |= {path for path in saved if age(path)[0] % retention.every == 0}
    best = folder / BEST
    if best.is_file():
        needed.add(folder / best.read_text().strip())
    uploads = {file.resolve() for file in pinned_files(folder.parent)}
    needed |= {path for path in saved if any(file.is_relative_to(path.resolve()) for file in uploads)}
    return needed | {folder / tag for tag in _pins(folder)}


def _pins(folder: Path) -> Iterator[str]:
    for path in folder.glob(".pin-*"):
        found = _PIN.fullmatch(path.name)
        if found is None:
            continue
        try:
            if time.time() - path.stat().st_mtime < _PIN_LASTS_SECONDS:
                yield found["tag"]
            else:
                path.unlink()
        except FileNotFoundError:
            continue


def _is_whole(checkpoint: Path, trusted: Path | None) -> bool:
    if checkpoint == trusted:
        return has_all_files(checkpoint)
    try:
        verify(checkpoint)
    except (ValueError, OSError):
        return False
    return True


def _copies_behind(folder: Path, saved: list[Path]) -> list[Path]:
    """Copies for another number of ranks that a newer save has replaced."""
    newest = next((age(path) for path in saved if has_all_files(path)), None)
    if newest is None:
        return []
    copies = [path for path in folder.glob("universal-step-*") if _COPY.fullmatch(path.name)]
    return [path for path in copies if age(path.with_name(path.name.removeprefix("universal-"))) < newest]


def clear_leftovers(folder: Path) -> None:
    """Deletes what killed saves, deletions and conversions left; only whoever owns the run may."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        # What cannot be deleted now (NFS keeps files that somebody has open) is tried again after the next save.
        shutil.rmtree(leftover, ignore_errors=True)
