"""The store and W&B: asking it, and taking versions from it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.mode import decide_mode
from tracking.store.card import CARD
from tracking.store.contents import check_contents, discard, file_digest, folder_digest, refuse_names
from tracking.store.log import Record
from tracking.store.publish import add_version
from tracking.store.reference import Reference, old_form
from tracking.store.root import VARIABLE, Store, is_read_only
from tracking.store.state import State
from tracking.sync.probe import probe

_CALLER = "pull"
_PROBE_S = 5.0
_TIMEOUT_S = 30


class Unreachable(UserError):
    """W&B cannot be asked now.

    Attributes:
        reason: Why, in one sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"W&B cannot be asked: {reason}")
        self.reason = reason


def wandb_api() -> Any:
    """W&B's public interface.

    Returns:
        A `wandb.Api`.

    Raises:
        Unreachable: `WANDB_MODE` forbids it, or the server does not answer or refuses the key.
    """
    mode = decide_mode(None)
    if mode != "online":
        raise Unreachable(f"WANDB_MODE is {mode}")
    os.environ.setdefault("WANDB_SILENT", "true")
    verdict = probe(_PROBE_S)
    if verdict.mode != "online":
        raise Unreachable(verdict.reason)
    import wandb

    return wandb.Api(timeout=_TIMEOUT_S)


def full_project(api: Any, project: str) -> str:
    """A W&B project with its entity: the API key's own where none is given."""
    return project if "/" in project else f"{api.default_entity}/{project}"


def fetch(store: Store, wanted: Reference, name: str | None = None) -> tuple[str, int]:
    """Takes a version from W&B into the store; what is there already is not fetched again.

    The version gets the store's next number; its number on W&B is recorded with it. It takes the aliases that it has
    on W&B, but for those that are at another version of the store.

    Args:
        store: The store; made where there is none yet.
        wanted: The version.
        name: What it is called in the store; as on W&B where it is None.

    Returns:
        Its name and number in the store.

    Raises:
        Unreachable: W&B cannot be asked.
        UserError: There is no such version, it holds what is not loaded from other people, or the store does not have
            it and may only be read here.
    """
    artifact = look_up(wanted)
    place = str(artifact.source_qualified_name)
    name = name or str(artifact.source_name).partition(":")[0]
    store.make()
    state = store.state(name)
    project = state.projects.get(place.rpartition("/")[0])
    known = next((n for n, known in project.artifacts.items() if known == place), None) if project else None
    try:
        if known is None or known not in state.versions:
            known = _download(store, artifact, name)
        record_artifact(store, name, known, place, artifact.aliases)
    except OSError as error:
        if not is_read_only(error):
            raise
        if known is None or known not in state.versions:
            raise UserError(
                f"{place} is not in the model store {store.root}, which may only be read here\n"
                f"  next: name a store of yours with --store FOLDER or {VARIABLE}=FOLDER"
            ) from error
    return name, known


def look_up(wanted: Reference) -> Any:
    """Finds a version on W&B; its project may be named without the entity.

    Returns:
        A `wandb.Artifact`.

    Raises:
        Unreachable: W&B cannot be asked.
        UserError: There is no such version.
    """
    api = wandb_api()
    return artifact_of(api, replace(wanted, project=full_project(api, wanted.project or "")))


def artifact_of(api: Any, wanted: Reference) -> Any:
    """Finds a version on W&B by its full name, also by a name of the old forms.

    Returns:
        A `wandb.Artifact`.

    Raises:
        UserError: There is none.
    """
    import wandb

    old = old_form(wanted)
    for reference in [wanted] + ([old.reference] if old else []):
        try:
            return api.artifact(str(reference))
        except (wandb.errors.CommError, ValueError) as error:
            fault = error
    raise UserError(
        f"W&B has no {wanted}: {fault}\n"
        f"  next: look at {api.settings['base_url']}/{wanted.project}/artifacts for the names that there are"
    ) from fault


def record_artifact(
    store: Store, name: str, number: int, artifact: str, aliases: Sequence[str], *, intent: str | None = None
) -> None:
    """Records what W&B calls a version of the store, and which aliases it has there."""
    record = {"kind": "wandb", "version": number, "artifact": artifact, "aliases": sorted(aliases), "intent": intent}

    def make(records: Sequence[Record]) -> Record | None:
        state = State.of(records)
        project = state.projects.get(artifact.rpartition("/")[0])
        there = sorted(alias for alias, at in project.aliases.items() if at == number) if project else []
        is_known = project is not None and project.artifacts.get(number) == artifact
        is_waiting = intent in state.waiting.get(number, [])
        return None if is_known and there == record["aliases"] and not is_waiting else record

    store.log(name).append(make)


def _download(store: Store, artifact: Any, name: str) -> int:
    refuse_names(artifact.manifest.entries, _CALLER)
    folder = store.incoming()
    try:
        # W&B would keep a second copy in the home folder's cache.
        artifact.download(root=str(folder), skip_cache=True)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        metadata = dict(artifact.metadata)
        made_here = metadata.pop("store", None)
        if isinstance(made_here, dict):
            _drop_card(files, str(made_here.get("digest")))
        check_contents(files, _CALLER)
        run = artifact.logged_by()
        draft = {
            "type": artifact.type,
            "metadata": metadata,
            "description": artifact.description,
            "run": None
            if run is None
            else {"id": run.id, "name": run.name, "project": run.project, "entity": run.entity},
            "inputs": list(metadata.get("inputs") or []),
            "target": None,
            "aliases": list(artifact.aliases),
        }
        version, _ = add_version(store, name, files, draft, only_free=True)
        return version.number
    finally:
        discard(folder)


def _drop_card(files: dict[str, Path], digest: str) -> None:
    """Leaves out the model card that a store's upload added, so that the files are the same as they were there.

    Raises:
        UserError: They are not.
    """
    rest = {name: path for name, path in files.items() if name != CARD}
    for names in (rest, files):
        if folder_digest({name: {"sha256": file_digest(path)} for name, path in names.items()}) == digest:
            for name in set(files) - set(names):
                del files[name]
            return
    raise UserError(
        f"{_CALLER}: the files are not the ones that were published (their digest is not {digest})\n"
        "  next: try again; where it stays so, publish the model again"
    )
