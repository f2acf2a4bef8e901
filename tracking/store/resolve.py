"""From what a user asks for to a folder with a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tracking.errors import UserError, unknown
from tracking.store.log import Record
from tracking.store.reference import Old, Reference, old_form, parse
from tracking.store.root import Absent, Store
from tracking.store.state import LATEST, State, Version
from tracking.words import when

Found = TypeVar("Found")


@dataclass(frozen=True)
class Resolved:
    """A model that was found.

    Attributes:
        path: Its folder, or the file or folder that was given.
        name: Its name in the store; None for a path.
        version: Its version in the store; None for a path.
        note: What the user should know about how it was found.
    """

    path: Path
    name: str | None = None
    version: Version | None = None
    note: str | None = None

    def __str__(self) -> str:
        return f"{self.name}:v{self.version.number}" if self.version else str(self.path)


def resolve(
    text: str | Path, store: Store, *, pull: bool = True, project: str | None = None, into: Store | None = None
) -> Resolved:
    """Finds a model: in the store, then in W&B, whose version goes into the store; else as a path.

    Args:
        text: `act-lift`, `act-lift:best`, `act-lift:v3` (the store's own number, which W&B is not asked for),
            `entity/project/act-lift:v3` (W&B's), a path, or a name of the old forms.
        store: The store.
        pull: False to ask nobody but the store.
        project: The W&B project, as `entity/project` or `project`, in which a name is looked for that the store does
            not have; by `WANDB_ENTITY` and `WANDB_PROJECT` where it is None.
        into: Where W&B's versions go, in place of the store.

    Raises:
        UserError: There is no such model; the message says where it was looked for, and what there is.
    """
    wanted = Path(text) if isinstance(text, Path) else parse(text)
    if isinstance(wanted, Path):
        return _path(wanted)
    if wanted.project is not None:
        return _in_full(into or store, wanted, pull=pull)
    try:
        return find(store, wanted)
    except Absent as absent:
        if Path(str(text)).exists():
            return _path(Path(str(text)))
        if not pull:
            raise
        return _elsewhere(store, wanted, project, absent, lambda full: _instead(wanted, full, into or store))


def check(wanted: Reference, store: Store, *, project: str | None = None) -> Resolved | None:
    """Finds a model by a bare name as `resolve` does, but only asks W&B whether it has what is not in the store.

    Returns:
        The model; None where it is on W&B.

    Raises:
        UserError: It is in neither of them.
    """
    try:
        return find(store, wanted)
    except Absent as absent:
        return _elsewhere(store, wanted, project, absent, lambda full: _is_on_wandb(store, full))


def find(store: Store, wanted: Reference) -> Resolved:
    """Finds a model of the store by name.

    Raises:
        Absent: There is no such name, version or alias.
        UserError: The version was deleted, or a record cannot be read.
    """
    old = old_form(wanted)
    # A name that somebody has published under wins over what it would mean as an old form.
    if old is not None and store.exists and not store.state(wanted.name).next_number:
        version = _old_version(store.known(old.reference.name), old, wanted)
        note = f"{wanted} is an old name for {old.reference.name}:v{version.number}"
        return _found(store, old.reference.name, version, note)
    return _found(store, wanted.name, _version(store.known(wanted.name), wanted))


def pin(store: Store, found: Resolved, reason: str, seconds: float | None = None) -> None:
    """Keeps a version from being deleted, for example until a job that waits in the queue has loaded it.

    A store that this user may only read goes without, which is said.

    Args:
        store: The store.
        found: The version.
        reason: Why; the same reason replaces the pin before.
        seconds: How long; None until `unpin`.
    """
    until = time.time() + seconds if seconds is not None else None
    _note(store, found, {"kind": "pin", "reason": reason, "until": until})


def unpin(store: Store, found: Resolved, reason: str) -> None:
    """Takes a pin away."""
    _note(store, found, {"kind": "unpin", "reason": reason})


def move_aliases(
    store: Store,
    name: str,
    moves: Mapping[str, int | None],
    *,
    expected: Mapping[str, int | None] | None = None,
) -> None:
    """Puts aliases at versions, or takes them away (None).

    Args:
        store: The store.
        name: The model's name.
        moves: The version that each alias goes to.
        expected: The version that an alias must be at (None: at none) for anything to be moved.

    Raises:
        AliasMoved: An alias is elsewhere than `expected` says.
        UserError: A version is not there, or an alias that should go is nowhere.
    """

    def make(records: Sequence[Record]) -> Record | None:
        state = State.of(records)
        state.expect(name, expected or {})
        for alias, number in moves.items():
            if number is None and alias not in state.aliases:
                raise unknown(f"alias of {name}", alias, state.aliases)
            if number is not None:
                _version(state, Reference(name, f"v{number}"))
        changed = {alias: number for alias, number in moves.items() if state.aliases.get(alias) != number}
        return {"kind": "alias", "set": changed} if changed else None

    store.log(name).append(make)


def remove_aliases(store: Store, found: Resolved, aliases: Sequence[str]) -> None:
    """Takes aliases away from a version of the store that has them.

    Raises:
        UserError: One is at another version or nowhere, or it is `latest`, which a bare name stands for.
    """
    assert found.name is not None and found.version is not None
    there = store.state(found.name).aliases
    for alias in aliases:
        if alias not in there:
            raise unknown(f"alias of {found.name}", alias, there)
        at = f"{found.name}:v{there[alias]}"
        if alias == LATEST:
            raise UserError(
                f"{alias!r} cannot be taken away: {found.name!r} alone stands for the version that has it, {at}\n"
                f"  next: move it: python -m tracking.models alias {found.name}:vN {alias}"
            )
        if at != str(found):
            raise UserError(
                f"{found} does not have {alias!r}: it is at {at}\n"
                f"  next: python -m tracking.models alias {at} {alias} --remove"
            )
    expected = dict.fromkeys(aliases, found.version.number)
    move_aliases(store, found.name, dict.fromkeys(aliases), expected=expected)


def _note(store: Store, found: Resolved, record: Record) -> None:
    if found.name is None or found.version is None:
        return  # what lies elsewhere is not the store's to delete
    name, number = found.name, found.version.number

    def make(records: Sequence[Record]) -> Record:
        _version(State.of(records), Reference(name, f"v{number}"))
        return {**record, "version": number}

    with store.noting(f"the {record['kind']} of {found}"):
        store.log(name).append(make)


def _path(path: Path) -> Resolved:
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder\n  next: python -m tracking.models list")
    return Resolved(path.absolute())


def _found(store: Store, name: str, version: Version, note: str | None = None) -> Resolved:
    return Resolved(store.folder(name, version), name, version, note)


def _version(state: State, wanted: Reference) -> Version:
    number = wanted.number if wanted.number is not None else state.aliases.get(wanted.alias)
    if number is None:
        there = [*state.aliases, *(f"v{version}" for version in state.versions)]
        raise Absent(str(unknown(f"alias or version of {wanted.name}", wanted.alias, there)))
    if number in state.gone:
        raise UserError(f"{wanted.name}:v{number} was deleted\n  next: python -m tracking.models list {wanted.name}")
    if number not in state.versions:
        there = [f"v{version}" for version in state.versions]
        raise Absent(str(unknown(f"version of {wanted.name}", f"v{number}", there)))
    return state.versions[number]


def _old_version(state: State, old: Old, wanted: Reference) -> Version:
    if old.step is None:
        return _version(state, old.reference)
    of_step = [version for version in state.versions.values() if _is_of_step(version, old.step)]
    if old.was_best:
        been = state.been.get("best", [])
        best = [version for version in of_step if version.number in been]
        # Of what came from W&B the store does not know whether it was the best one there.
        best = best or [version for version in of_step if _is_pulled(state, version)]
        if of_step and not best:
            raise UserError(
                f"{wanted}: no version of {old.reference.name} was the best one at step {old.step}\n"
                f"  next: ask for that step as it is: {old.reference}"
            )
        of_step = best
    if not of_step:
        steps = sorted({f"step-{version.step}" for version in state.versions.values() if version.step is not None})
        raise Absent(str(unknown(f"step of {old.reference.name}", f"step-{old.step}", steps)))
    return of_step[-1]


def _is_pulled(state: State, version: Version) -> bool:
    return version.target is None and any(version.number in project.artifacts for project in state.projects.values())


def _is_of_step(version: Version, step: int) -> bool:
    return version.step == step or f"step-{step}" in version.aliases


def _elsewhere(
    store: Store, wanted: Reference, project: str | None, absent: Absent, ask: Callable[[Reference], Found]
) -> Found:
    """Asks W&B for a name that the store does not have."""
    from tracking.store.publish import default_target
    from tracking.store.remote import Unreachable

    full = replace(wanted, project=project or default_target())
    if wanted.number is not None:
        raise Absent(
            f"{absent}\n  {wanted} is a number of the store, so W&B is not asked for it\n"
            f"  next: python -m tracking.models list; W&B's {wanted.alias} is {full}"
        ) from absent
    try:
        return ask(full)
    except Unreachable as error:
        raise Absent(f"{absent}\n  looked for in {store.root}; {error}\n  next: {_login_node(full)}") from error
    except UserError as error:
        raise Absent(f"{absent}\n  looked for in {store.root}; {error}") from error


def _in_full(store: Store, wanted: Reference, *, pull: bool) -> Resolved:
    from tracking.store.remote import Unreachable

    try:
        return _from_wandb(store, wanted, pull=pull)
    except Unreachable as error:
        raise UserError(
            f"{wanted} is not in the model store {store.root}, and {error}\n  next: {_login_node(wanted)}"
        ) from error


def _from_wandb(store: Store, wanted: Reference, *, pull: bool = True) -> Resolved:
    """Takes a version from W&B; without a network the one that was taken before.

    Raises:
        Unreachable: W&B cannot be asked, and the store never had it.
    """
    from tracking.store.remote import Unreachable, fetch

    fault = Unreachable("nobody but the store is asked")
    if pull:
        try:
            name, number = fetch(store, wanted)
            return _found(store, name, store.state(name).versions[number])
        except Unreachable as error:
            fault = error
    known = _known_of_wandb(store, wanted)
    if known is None:
        raise fault
    name, version, asked = known
    return _found(store, name, version, f"{wanted} as W&B had it at {when(asked)}: {fault.reason}")


def _instead(wanted: Reference, full: Reference, store: Store) -> Resolved:
    found = _from_wandb(store, full)
    return replace(found, note=found.note or f"{wanted} was not in the model store: taken from W&B, {full}")


def _is_on_wandb(store: Store, wanted: Reference) -> None:
    from tracking.store.remote import Unreachable, look_up

    try:
        look_up(wanted)
    except Unreachable:
        if _known_of_wandb(store, wanted) is None:
            raise


def _login_node(wanted: Reference) -> str:
    return f"where there is internet (a login node): python -m tracking.models pull {wanted}"


def _known_of_wandb(store: Store, asked: Reference) -> tuple[str, Version, float] | None:
    """The version of the store that a W&B name stood for when W&B was last asked."""
    old = old_form(asked)
    known = (_as_recorded(store, wanted) for wanted in [asked] + ([old.reference] if old else []))
    return next((found for found in known if found is not None), None)


def _as_recorded(store: Store, wanted: Reference) -> tuple[str, Version, float] | None:
    for name in store.names():
        state = store.state(name)
        for place, project in state.projects.items():
            if place != wanted.project and place.partition("/")[2] != wanted.project:
                continue
            for number, artifact in project.artifacts.items():
                if number not in state.versions or artifact.rpartition("/")[2].partition(":")[0] != wanted.name:
                    continue
                if artifact.endswith(f":{wanted.alias}") or project.aliases.get(wanted.alias) == number:
                    return name, state.versions[number], project.asked
    return None
