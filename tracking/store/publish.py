"""Giving a model a name: at once and without a network; its upload to W&B is put aside."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.files import fsync_dir, read_json, write_atomic
from tracking.identity import read_identity
from tracking.intents import Intent, acknowledgement, put_intent, stamp
from tracking.mode import decide_mode
from tracking.models.files import check_alias, model_files, step_of
from tracking.names import check_name
from tracking.redact import redact
from tracking.store.card import CARD, model_card
from tracking.store.contents import check_contents, discard, folder_digest, take
from tracking.store.log import Record
from tracking.store.root import Store
from tracking.store.state import LATEST, AliasMoved, State, Version
from tracking.values import plain

POLICY = "policy"
_CALLER = "publish"
_PROJECT = "vla-lego"
_TARGET = re.compile(r"[^/:\s]+(/[^/:\s]+)?")


@dataclass(frozen=True)
class Published:
    """What a publication came to.

    Attributes:
        name: The model's name.
        version: Its version.
        folder: Its files.
        is_new: False where the store had the same files under this name: that version took the aliases.
        intent: The upload that was put aside; None where none is wanted.
    """

    name: str
    version: Version
    folder: Path
    is_new: bool
    intent: Path | None

    def __str__(self) -> str:
        return f"{self.name}:v{self.version.number}"


def publish(
    store: Store,
    path: Path,
    name: str,
    aliases: Sequence[str] | str = (),
    metadata: Mapping[str, Any] | None = None,
    *,
    type: str = POLICY,
    description: str | None = None,
    run_dir: Path | None = None,
    inputs: Sequence[str] = (),
    target: str | None = None,
    mirror: bool = True,
    expected: Mapping[str, int | None] | None = None,
) -> Published:
    """Makes a model the next version of a name, which takes `latest` and the aliases.

    Killed at any moment it has published nothing or everything but the upload, which `push` makes up for. The same
    files under the same name are the same version: it takes the aliases.

    Args:
        store: The store; made where there is none yet.
        path: A folder of safetensors and JSON, such as a policy bundle, or one safetensors file.
        name: For example `act-lift`.
        aliases: Names of this version beside `latest`; `step-N` is added where the metadata, an alias or the path's
            name tells the step.
        metadata: What is worth knowing; secrets in it are replaced.
        type: Its type on W&B.
        description: Free text for the card.
        run_dir: The folder of the run that made it: W&B shows it as that run's, and the run's child or the daemon
            uploads it.
        inputs: The models that it was made from, as `name:vN`.
        target: Without a run, the W&B project to upload it to, as `entity/project` or `project`; by `WANDB_ENTITY` and
            `WANDB_PROJECT` where it is None.
        mirror: False for no upload.
        expected: The version that an alias must be at (None: at none) for it to be moved, as whoever judged found it.

    Raises:
        AliasMoved: An alias is elsewhere than `expected` says; nothing was published.
        UserError: A file is not of a kind that is loaded from other people or not whole, a name cannot be one, or the
            store cannot be made there.
        OSError: The disk is full or the store cannot be written.
    """
    check_name("model", name)
    given = [aliases] if isinstance(aliases, str) else list(aliases)
    for alias in given:
        check_alias(alias, _CALLER)
    files = model_files(path, _CALLER)
    check_contents(files, _CALLER)
    facts = dict(redact(plain(metadata or {})))
    if (step := step_of(path, given, facts)) is not None:
        facts["step"] = step
        given.append(f"step-{step}")
    run = _run(run_dir) if run_dir is not None else None
    target = _target(run, target) if mirror and decide_mode(None) != "disabled" else None
    given = list(dict.fromkeys([LATEST, *given]))
    draft: dict[str, Any] = {"type": type, "metadata": facts, "description": description, "run": run}
    draft |= {"inputs": list(inputs), "target": target, "aliases": given}
    store.make()
    version, is_new = add_version(store, name, files, draft, expected=expected)
    if target and version.target is None:  # the same files were published before, and were not wanted on W&B
        want(store, name, version.number, target)
    intent = put_upload(store, name, version, given, run_dir) if target else None
    return Published(name, version, store.folder(name, version), is_new, intent)


def add_version(
    store: Store,
    name: str,
    files: Mapping[str, Path],
    draft: Mapping[str, Any],
    *,
    only_free: bool = False,
    expected: Mapping[str, int | None] | None = None,
) -> tuple[Version, bool]:
    """Takes files into the store as the next version of a name, or finds the version that has them.

    Args:
        store: The store.
        name: The name.
        files: Where each file is, by its name.
        draft: The record of the version without its number and files.
        only_free: Whether aliases that are at another version stay there.
        expected: As in `publish`.

    Returns:
        The version, and whether it is new.
    """
    incoming = store.incoming()
    try:
        taken = take(store, files, incoming, _CALLER)
        folder = store.root / "names" / name / "files" / incoming.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        incoming.rename(folder)
        fsync_dir(folder.parent)
    except BaseException:
        discard(incoming)
        raise
    digest = folder_digest(taken)
    version = {"kind": "version", "folder": folder.name, "digest": digest, "files": taken, **draft}

    number = -1

    def make(records: Sequence[Record]) -> Record:
        nonlocal number
        state = State.of(records)
        state.expect(name, expected or {})
        aliases = [alias for alias in draft["aliases"] if not (only_free and alias in state.aliases)]
        same = state.same(digest)
        number = same.number if same else state.next_number
        if same:
            return {"kind": "alias", "set": dict.fromkeys(aliases, number)}
        return {**version, "version": number, "aliases": aliases}

    try:
        made = store.log(name).append(make)
    except AliasMoved:
        discard(folder)
        raise
    is_new = made is not None and made["kind"] == "version"
    if not is_new:
        discard(folder)
    state = store.state(name)
    return {**state.gone, **state.versions}[number], is_new


def put_upload(store: Store, name: str, version: Version, aliases: Sequence[str], run_dir: Path | None = None) -> Path:
    """Puts the upload of a version aside: in the run that made it, else in the store.

    Returns:
        The intent's file.
    """
    folder = store.folder(name, version)
    files = {file: folder / file for file in version.files}
    if CARD not in files:
        card = store.card(name, version)
        if not card.exists():
            card.parent.mkdir(exist_ok=True)
            write_atomic(card, model_card(name, version))
        files[CARD] = card
    aside = run_dir if run_dir is not None else store.root
    root = aside.resolve()
    intent = Intent(
        name,
        version.type,
        {file: str(at.relative_to(root) if at.is_relative_to(root) else at) for file, at in files.items()},
        aliases=tuple(alias for alias in aliases if alias != LATEST),
        description=version.description,
        metadata={
            **version.metadata,
            "run_id": version.run["id"] if version.run else None,
            "bytes": version.bytes,
            "inputs": list(version.inputs),
            "store": {"version": f"{name}:v{version.number}", "digest": version.digest},
        },
        stamps={file: stamp(at) for file, at in files.items()},
    )
    path = put_intent(aside, intent)
    if _was_deleted(store, name, path):
        acknowledgement(path).unlink(missing_ok=True)

    def make(records: Sequence[Record]) -> Record | None:
        if str(path) in State.of(records).waiting.get(version.number, []):
            return None
        return {"kind": "waiting", "version": version.number, "intent": str(path)}

    store.log(name).append(make)
    return path


def _was_deleted(store: Store, name: str, intent: Path) -> bool:
    """Whether W&B had what an intent made, and it was deleted there since."""
    outcome = read_json(acknowledgement(intent)) or {}
    deleted = [record for record in store.log(name).read() if record["kind"] == "off_wandb"]
    return any(one["artifact"] == outcome.get("artifact") and one["time"] > outcome["time"] for one in deleted)


def want(store: Store, name: str, number: int, target: str) -> None:
    """Records that a version should be on W&B."""
    store.log(name).append(lambda _: {"kind": "target", "version": number, "target": target})


def _target(run: Mapping[str, Any] | None, given: str | None) -> str:
    """The W&B project of a version: its run's, where a run made it."""
    return f"{run['entity'] or ''}/{run['project']}".lstrip("/") if run else check_target(given or default_target())


def check_target(target: str) -> str:
    """Refuses what names no W&B project.

    Raises:
        UserError: It is neither `entity/project` nor `project`.
    """
    if _TARGET.fullmatch(target) is None:
        raise UserError(
            f"{target!r} is no W&B project: expected ENTITY/PROJECT or PROJECT\n"
            "  next: mend --project, or WANDB_ENTITY and WANDB_PROJECT"
        )
    return target


def default_target(environ: Mapping[str, str] = os.environ) -> str:
    """The W&B project by the environment, as `entity/project` or `project`."""
    project = environ.get("WANDB_PROJECT") or _PROJECT
    return f"{environ['WANDB_ENTITY']}/{project}" if environ.get("WANDB_ENTITY") else project


def _run(run_dir: Path) -> dict[str, Any]:
    identity = read_identity(run_dir)
    if identity is None:
        raise UserError(f"{run_dir} holds no run: there is no run.json in it\n  next: give a run folder, or none")
    return {
        "id": identity.run_id,
        "name": identity.run_name,
        "project": identity.project,
        "entity": identity.entity,
        "folder": str(run_dir.absolute()),
    }
