"""Deleting old versions on W&B: only such as have no alias, and only after they were named."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tracking.errors import UserError
from tracking.store.remote import full_project, wandb_api

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
