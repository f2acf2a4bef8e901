"""What W&B does not have of a store yet, as far as the store's own records and the run folders tell; asks nobody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.files import read_json
from tracking.intents import acknowledgement, pending_intents
from tracking.store.root import Store
from tracking.store.state import State, Version
from tracking.sync.pushed import read_push_state

GRACE_S = 60.0


@dataclass(frozen=True)
class Move:
    """Aliases of a version on W&B that are not the store's.

    Attributes:
        number: The version.
        artifact: W&B's name of it.
        added: What it should get.
        removed: What it should lose; what somebody set there by hand stays.
        aliases: What it has then.
    """

    number: int
    artifact: str
    added: frozenset[str]
    removed: frozenset[str]
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Use:
    """A run on W&B that has not been shown there as a user of a version on W&B.

    Attributes:
        number: The version.
        artifact: W&B's name of it.
        run: The run, as the record of the use has it.
    """

    number: int
    artifact: str
    run: dict[str, Any]


@dataclass(frozen=True)
class Acknowledged:
    """An upload that W&B has committed, and the store has not taken note of.

    Attributes:
        number: The version.
        intent: Its upload intent.
        artifact: W&B's name of it.
        time: When it was committed, seconds since the epoch.
    """

    number: int
    intent: Path
    artifact: str
    time: float


def needs_push(store: Store) -> bool:
    """Whether a push would find something to do: an upload, an acknowledgement, an alias or a use."""
    if pending_intents(store.root):
        return True
    for name in store.names():
        state = store.state(name)
        found = (acknowledged(state), missing(state, GRACE_S), moves(state), uses(state))
        if any(next(iter(some), None) is not None for some in found):
            return True
    return False


def may_need_push(store: Store) -> bool:
    """Whether a push would find something to do once the runs that made or used its versions are on W&B."""
    for name in store.names():
        state = store.state(name)
        if any(is_missing(state, version) for version in state.versions.values()):
            return True
        for number, runs in state.uses.items():
            unshown = [run for run in runs if run["id"] not in state.shown.get(number, [])]
            if any(run.get("folder") and Path(run["folder"]).is_dir() for run in unshown):
                return True
    return False


def acknowledged(state: State) -> list[Acknowledged]:
    """What was uploaded from the store or from a run's folder, in the order in which W&B got it."""
    found = []
    for number, intents in state.waiting.items():
        for intent in map(Path, intents):
            outcome = read_json(acknowledgement(intent))
            if outcome and "artifact" in outcome:
                found.append(Acknowledged(number, intent, outcome["artifact"], outcome.get("time", 0.0)))
    return sorted(found, key=lambda one: one.time)


def missing(state: State, grace: float) -> Iterator[Version]:
    """The versions that should be on W&B and whose upload nobody has put aside, or whose run folder is gone.

    Args:
        state: The name.
        grace: Seconds for which a publication may still be about to put its upload aside.
    """
    for number, version in state.versions.items():
        if version.time > time.time() - grace:
            continue
        if is_missing(state, version) and not waiting(state, number):
            yield version


def is_missing(state: State, version: Version) -> bool:
    """Whether a version should be on W&B and is not, as far as is known."""
    there = any(version.number in project.artifacts for project in state.projects.values())
    return version.target is not None and not there


def waiting(state: State, number: int) -> list[Path]:
    """The upload intents of a version that nobody has acknowledged."""
    intents = map(Path, state.waiting.get(number, []))
    return [intent for intent in intents if intent.exists() and not acknowledgement(intent).exists()]


def moves(state: State) -> Iterator[Move]:
    """The aliases that W&B has elsewhere than the store."""
    for project in state.projects.values():
        for number, artifact in project.artifacts.items():
            version = state.versions.get(number)
            if version is None or version.target is None:
                continue
            here = set(state.aliases_of(number))
            there = {alias for alias, at in project.aliases.items() if at == number}
            gone = {alias for alias in there - here if alias not in state.aliases}
            if here - there or gone:
                aliases = tuple(sorted(there - gone | here))
                yield Move(number, artifact, frozenset(here - there), frozenset(gone), aliases)


def uses(state: State) -> Iterator[Use]:
    """The uses that W&B does not show, of versions that it has by runs that it has."""
    for number, runs in state.uses.items():
        artifacts = [project.artifacts[number] for project in state.projects.values() if number in project.artifacts]
        for run in runs:
            if artifacts and run["id"] not in state.shown.get(number, []) and _is_on_wandb(run):
                yield Use(number, artifacts[0], dict(run))


def _is_on_wandb(run: Any) -> bool:
    folder = run.get("folder")
    pushed = read_push_state(Path(folder)) if folder else None
    return pushed is not None and pushed.confirmed is not None
