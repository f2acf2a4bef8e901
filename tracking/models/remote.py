"""Deleting old versions on W&B: only such as have no alias, and only after they were named.

`choose` and `delete` are for whoever asks; `prune_mirrored` follows the `keep_last_n` of the run that made a model.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tracking.errors import UserError
from tracking.store.log import Record
from tracking.store.pending import waiting
from tracking.store.remote import Unreachable, full_project, wandb_api
from tracking.store.root import Store
from tracking.store.state import State, is_step

# What `log_checkpoint`, `publish` and our uploads make.
TYPES = ("policy", "model")
_STEP = re.compile(r"step-?\d+")


@dataclass(frozen=True)
class RemoteRules:
    """What stays on W&B, beside every version with an alias.

    Attributes:
        keep_last: How many of a name's newest versions stay.
        grace: Seconds for which a version stays that was made.
        steps_hold: Whether an alias `step-N` or `stepN` alone holds a version.
        uses_hold: Whether a version stays because a run used it.
    """

    keep_last: int
    grace: float
    steps_hold: bool = True
    uses_hold: bool = True


@dataclass(frozen=True)
class RemoteVersion:
    """A version on W&B.

    Attributes:
        name: Its full name, `entity/project/act-lift:v3`.
        artifact: W&B's object.
        held: Why it stays; None where nothing holds it.
    """

    name: str
    artifact: Any
    held: str | None


def choose(project: str, names: Sequence[str], rules: RemoteRules) -> list[RemoteVersion]:
    """Looks at the versions of models on W&B, and deletes nothing.

    Args:
        project: As `entity/project`, or `project` of the key's own entity.
        names: The models; all where it is empty.
        rules: What stays.

    Returns:
        Every version, the newest of a name first.

    Raises:
        Unreachable: W&B cannot be asked.
        UserError: A name is not there.
    """
    api = wandb_api()
    place = full_project(api, project)
    there = dict(_collections(api, place))
    for name in names:
        if name not in there:
            known = ", ".join(sorted(there)) or "(none)"
            raise UserError(f"{place} has no model {name!r} on W&B\n  valid: {known}")
    return [version for name in names or sorted(there) for version in _versions(api, place, name, there[name], rules)]


def delete(version: RemoteVersion, rules: RemoteRules) -> str | None:
    """Deletes a version, if it still has no alias: the server refuses one that got an alias meanwhile.

    Returns:
        Why it is still there, or None.
    """
    try:
        if not rules.steps_hold:
            version.artifact.aliases = [alias for alias in version.artifact.aliases if not _STEP.fullmatch(alias)]
            version.artifact.save()
        version.artifact.delete(delete_aliases=False)
    except Exception as error:  # noqa: BLE001 - whatever W&B raises, the others can go
        return str(error)
    return None


def prune_mirrored(store: Store, say: Callable[[str], None], *, dry_run: bool = False) -> list[str]:
    """Deletes on W&B what a model's own rule (`keep_last_n` in the metadata of its newest version) no longer keeps.

    Only versions that this store has uploaded and still has; they stay in the store. None that has an alias here or
    there, but for `step-N`, which every version has; that a run used; that is pinned; or whose upload waits.

    Args:
        store: The store; its mapping to W&B's numbers is up to date.
        say: Is told of each version before it is deleted.
        dry_run: Whether to tell only.

    Returns:
        What could not be deleted, and why.

    Raises:
        Unreachable: W&B cannot be asked.
    """
    failed = []
    for name in store.names():
        keep, doomed = _behind(store.state(name))
        rules = RemoteRules(keep, grace=0, steps_hold=False)
        for place in sorted({artifact.rpartition("/")[0] for artifact in doomed}):
            try:
                found = choose(place, [name], rules)
            except Unreachable:
                raise
            except UserError as error:
                failed.append(str(error))
                continue
            for version in found:
                if version.name not in doomed or version.held is not None:
                    continue
                say(f"{version.name} {'would go' if dry_run else 'goes'}: keep_last_n of {name} is {keep}")
                if not dry_run and (why := remove(store, version, rules)) is not None:
                    failed.append(f"{version.name} stays: {why}")
            # One that was killed between the deletion and its record.
            for artifact in doomed - {version.name for version in found}:
                if artifact.startswith(f"{place}/") and not dry_run:
                    forget(store, artifact)
    return failed


def _behind(state: State) -> tuple[int, set[str]]:
    """The rule of a name, and W&B's names of the versions that are behind it and that nothing in the store holds."""
    # What was taken from W&B is somebody else's.
    own = [number for number, version in sorted(state.versions.items()) if version.target is not None]
    keep = state.versions[own[-1]].metadata.get("keep_last_n") if own else None
    if not isinstance(keep, int) or keep < 1:
        return 0, set()
    doomed = set()
    for project in state.projects.values():
        there = [number for number in own if number in project.artifacts]
        doomed |= {project.artifacts[number] for number in there[:-keep] if _is_free(state, number)}
    return keep, doomed


def remove(store: Store, version: RemoteVersion, rules: RemoteRules) -> str | None:
    """Deletes a version as `delete` does, and has the store take note that it is not on W&B any more."""
    if (why := delete(version, rules)) is None:
        forget(store, version.name)
    return why


def forget(store: Store, artifact: str) -> None:
    """Takes note that a version is not on W&B any more; it is uploaded again only if somebody asks for it.

    Args:
        store: The store; one that does not know the version is left as it is.
        artifact: W&B's name of it, `entity/project/act-lift:v3`.
    """
    for name in store.names():

        def make(records: Sequence[Record]) -> Record | None:
            projects = State.of(records).projects.values()
            known = [number for one in projects for number, at in one.artifacts.items() if at == artifact]
            return {"kind": "off_wandb", "version": known[0], "artifact": artifact} if known else None

        store.log(name).append(make)


def _is_free(state: State, number: int) -> bool:
    """Whether nothing in the store speaks for keeping a version on W&B."""
    now = time.time()
    pins = [until for until in state.pins.get(number, {}).values() if until is None or until > now]
    words = [alias for alias in state.aliases_of(number) if not is_step(alias)]
    return not (pins or words or waiting(state, number) or state.uses.get(number))


def _collections(api: Any, place: str) -> Iterator[tuple[str, str]]:
    import wandb

    for kind in TYPES:
        try:
            for collection in api.artifact_collections(place, kind):
                yield collection.name, kind
        except (wandb.errors.CommError, ValueError):  # nothing of this type is there
            continue


def _versions(api: Any, place: str, name: str, kind: str, rules: RemoteRules) -> Iterator[RemoteVersion]:
    # A link in a portfolio is none of this name's own versions.
    found = [artifact for artifact in api.artifacts(kind, f"{place}/{name}") if not artifact.is_link]
    found.sort(key=lambda artifact: int(artifact.version[1:]), reverse=True)
    for place_in_line, artifact in enumerate(found):
        held = _holder(artifact, rules, is_last=place_in_line < rules.keep_last)
        yield RemoteVersion(f"{place}/{name}:{artifact.version}", artifact, held)


def _holder(artifact: Any, rules: RemoteRules, *, is_last: bool) -> str | None:
    aliases = [alias for alias in artifact.aliases if rules.steps_hold or not _STEP.fullmatch(alias)]
    if aliases:
        return f"alias {', '.join(aliases)}"
    if is_last:
        return f"among the last {rules.keep_last}"
    if time.time() - _seconds(artifact.created_at) < rules.grace:
        return "younger than the grace period"
    if rules.uses_hold and (users := [run.name for run in artifact.used_by()]):
        return f"used by {', '.join(users[:3])}"
    return None


def _seconds(time_: str) -> float:
    # W&B's times are UTC, with or without saying so.
    return datetime.fromisoformat(time_.removesuffix("Z") + "+00:00").timestamp()
