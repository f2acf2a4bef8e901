"""Deleting what nothing holds, so that a kill at any moment leaves every other version whole."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tracking.store.contents import discard
from tracking.store.log import Record
from tracking.store.pending import waiting
from tracking.store.push import adopt
from tracking.store.root import Store
from tracking.store.state import State, is_step

GRACE_S = 24 * 3600.0


@dataclass(frozen=True)
class Rules:
    """What stays.

    Attributes:
        grace: Seconds for which everything stays that was made, moved or used.
        keep_last: How many of the newest versions of a name stay.
        steps_hold: Whether an alias `step-N` alone holds a version.
        uses_hold: Whether a version stays because a run used it or another version was made from it.
        leftovers: Seconds after which what a publication is writing counts as left behind by a killed one.
    """

    grace: float = GRACE_S
    keep_last: int = 1
    steps_hold: bool = True
    uses_hold: bool = True
    leftovers: float = GRACE_S


@dataclass
class Pruned:
    """What was deleted, or would be.

    Attributes:
        versions: Such as `act-lift:v3`.
        held: Why each other version stays.
        bytes: Size of the contents that went.
    """

    versions: list[str] = field(default_factory=list)
    held: dict[str, str] = field(default_factory=dict)
    bytes: int = 0


def prune(store: Store, names: Sequence[str], rules: Rules, *, dry_run: bool = False) -> Pruned:
    """Deletes the versions that nothing holds, then contents that no version has any more.

    A version is first recorded as gone, in the same order in which aliases, pins and uses are recorded: none of them
    can be given to it meanwhile. Its files go after that; what a kill leaves of them goes the next time.

    Args:
        store: The store.
        names: The names to look at.
        rules: What stays.
        dry_run: Whether to tell only.
    """
    done = Pruned()
    adopt(store)
    for name in names:
        inputs = _made_from(store) if rules.uses_hold else set()
        if dry_run:
            _choose(name, store.state(name), rules, inputs, done)
        else:
            _prune_name(store, name, rules, inputs, done)
    if not dry_run:
        _sweep(store, rules.leftovers, done)
    return done


def _holder(name: str, number: int, state: State, rules: Rules, *, inputs: set[str], now: float) -> str | None:
    """Why a version stays; None where nothing holds it."""
    aliases = [alias for alias in state.aliases_of(number) if rules.steps_hold or not is_step(alias)]
    pins = [reason for reason, until in state.pins.get(number, {}).items() if until is None or until > now]
    if aliases:
        return f"alias {', '.join(aliases)}"
    if pins:
        return f"pinned: {', '.join(pins)}"
    if rules.uses_hold and number in state.uses:
        return f"used by {', '.join(str(run['name']) for run in state.uses[number][:3])}"
    if f"{name}:v{number}" in inputs:
        return "another model was made from it"
    if waiting(state, number):
        return "its upload waits"
    if now - state.touched[number] < rules.grace:
        return "younger than the grace period"
    if number in sorted(state.versions, reverse=True)[: rules.keep_last]:
        return f"among the last {rules.keep_last}"
    return None


def _choose(name: str, state: State, rules: Rules, inputs: set[str], done: Pruned) -> list[int]:
    now = time.time()
    doomed = []
    for number in state.versions:
        why = _holder(name, number, state, rules, inputs=inputs, now=now)
        if why is None:
            doomed.append(number)
        else:
            done.held[f"{name}:v{number}"] = why
    done.versions += [f"{name}:v{number}" for number in doomed]
    return doomed


def _prune_name(store: Store, name: str, rules: Rules, inputs: set[str], done: Pruned) -> None:
    def make(records: Sequence[Record]) -> Record | None:
        done.versions[:] = [known for known in done.versions if known.rpartition(":")[0] != name]
        doomed = _choose(name, State.of(records), rules, inputs, done)
        return {"kind": "gone", "versions": doomed} if doomed else None

    store.log(name).append(make)
    state = store.state(name)
    for version in state.gone.values():
        discard(store.folder(name, version))
        store.card(name, version).unlink(missing_ok=True)
    known = {version.folder for version in state.versions.values()}
    files = store.root / "names" / name / "files"
    for folder in files.iterdir() if files.is_dir() else []:
        # What a publication made that was killed before its record.
        if folder.name not in known and _age(folder) > rules.leftovers:
            discard(folder)


def _made_from(store: Store) -> set[str]:
    """What the versions that are there were made from."""
    return {
        source for name in store.names() for version in store.state(name).versions.values() for source in version.inputs
    }


def _sweep(store: Store, leftovers: float, done: Pruned) -> None:
    incoming = store.root / "incoming"
    for folder in incoming.iterdir() if incoming.is_dir() else []:
        if _age(folder) > leftovers:
            discard(folder)
    for path in (store.root / "objects").glob("*/*"):
        status = path.stat()
        # The only link left: no version has it. A publication that wants it now has made a link of its own, or copies.
        if status.st_nlink == 1:
            path.unlink(missing_ok=True)
            done.bytes += status.st_size


def _age(folder: Path) -> float:
    """Seconds since something in a folder was written last."""
    try:
        newest = max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])
    except FileNotFoundError:
        return 0.0
    return time.time() - newest
