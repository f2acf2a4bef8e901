"""Bringing the store's versions and aliases to W&B, from wherever there is a network."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.intents import acknowledgement, pending_intents, read_intent
from tracking.names import slug
from tracking.store import pending
from tracking.store.publish import check_target, default_target, put_upload, want
from tracking.store.reference import Reference
from tracking.store.remote import artifact_of, full_project, record_artifact, wandb_api
from tracking.store.resolve import Resolved, find
from tracking.store.root import Store, is_read_only
from tracking.store.state import LATEST, Version
from tracking.sync.views.client import confirm, drop_changed, foreign_settings, log_files

_RUN_NAME = "model store"


@dataclass
class Pushed:
    """What a push did.

    Attributes:
        uploaded: W&B's name of each version that was uploaded, by the store's (`act-lift:v3`).
        aliases: How many versions on W&B got other aliases.
        uses: How many runs W&B now shows as users of a version.
        elsewhere: Versions whose upload waits in the folder of their run.
        failed: What could not be done, and why.
    """

    uploaded: dict[str, str] = field(default_factory=dict)
    aliases: int = 0
    uses: int = 0
    elsewhere: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def push(store: Store, say: Callable[[str], None] = print, *, grace: float = 0.0) -> Pushed:
    """Uploads what waits in the store, puts W&B's aliases where the store's are, and shows which runs used what.

    Uploads that wait in a run's folder are left to whoever pushes that run. What a model's `keep_last_n` no longer
    keeps is deleted on W&B.

    Args:
        store: The store.
        say: Is told of each upload.
        grace: Seconds for which a publication may still be about to put its upload aside, and is left alone.

    Raises:
        Unreachable: W&B cannot be asked.
    """
    from tracking.models.remote import prune_mirrored

    done = Pushed()
    new = adopt(store)
    put_what_is_missing(store, done, grace)
    waiting = pending_intents(store.root)
    api = wandb_api()
    by_target: dict[str, list[Path]] = {}
    for path in waiting:
        name, version = _version_of(store, path)
        target = (version.target if version else None) or default_target()
        by_target.setdefault(full_project(api, target), []).append(path)
    for target, paths in by_target.items():
        _upload_all(store, target, paths, done, say)
    new += adopt(store)
    for name, uploaded in new:
        _ask_aliases(store, api, name, uploaded, done)
    for name in store.names():
        _move_aliases(store, api, name, done)
        _show_uses(store, api, name, done)
    done.failed += prune_mirrored(store, say)
    return done


def adopt(store: Store) -> list[tuple[str, pending.Acknowledged]]:
    """Records what W&B made of uploads that others have done: the mapping between the two numberings.

    Returns:
        What is new, with its name. Which of several uploads at once got an alias last is a guess until W&B is asked.
    """
    new = []
    try:
        for name in store.names():
            for done in pending.acknowledged(store.state(name)):
                aliases = [LATEST, *read_intent(done.intent).aliases]
                record_artifact(store, name, done.number, done.artifact, aliases, intent=str(done.intent))
                new.append((name, done))
    except OSError as error:
        if not is_read_only(error):  # a store of others, which is only read here
            raise
    return new


def want_upload(store: Store, found: Resolved, target: str) -> None:
    """Has a version uploaded that was published without that, or again into another project.

    Args:
        store: The store.
        found: The version.
        target: The W&B project, as `entity/project` or `project`.

    Raises:
        UserError: It is no version of the store, or the project is none.
    """
    if found.name is None or found.version is None:
        raise UserError(f"{found} is no version of the store\n  next: python -m tracking.models publish {found} NAME")
    adopt(store)
    number = found.version.number
    want(store, found.name, number, check_target(target))
    state = store.state(found.name)
    path = put_upload(store, found.name, state.versions[number], state.aliases_of(number))
    there = [place for place, project in state.projects.items() if number in project.artifacts]
    if not any(target in (place, place.partition("/")[2]) for place in there):
        acknowledgement(path).unlink(missing_ok=True)  # it was uploaded to another project


def link(store: Store, wanted: Reference, collection: str, aliases: list[str]) -> str:
    """Links a version into a registry or a portfolio of W&B.

    Args:
        store: The store.
        wanted: The version; it must be on W&B.
        collection: `wandb-registry-model/lift`, or `entity/project/portfolio`.
        aliases: Its aliases there, beside `latest`.

    Returns:
        W&B's name of the linked version.

    Raises:
        Unreachable: W&B cannot be asked.
        UserError: The version is not on W&B, or the server does not have such a thing.
    """
    import wandb

    adopt(store)
    if wanted.project is None:
        found = find(store, wanted)
        known = on_wandb(store, found)
        if known is None:
            raise UserError(f"{found} is not on W&B yet\n  next: python -m tracking.models push {found}")
        wanted = _reference(known)
    api = wandb_api()
    artifact = artifact_of(api, wanted)
    try:
        return str(artifact.link(collection, aliases=aliases).qualified_name)
    except (wandb.errors.CommError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{wanted} cannot be linked to {collection}: {error}\n"
            "  A registry (wandb-registry-NAME/COLLECTION) needs a server that has registries, and the right to write\n"
            "  into this one; servers of one's own may have none.\n"
            "  next: link to a portfolio of a project instead (ENTITY/PROJECT/NAME), or give an alias:\n"
            f"        python -m tracking.models alias {wanted.name}:{wanted.alias} prod"
        ) from error


def on_wandb(store: Store, found: Resolved) -> str | None:
    """W&B's name of a version, `entity/project/name:v5`; None where it is not there as far as the store knows."""
    if found.name is None or found.version is None:
        return None
    projects = store.state(found.name).projects.values()
    number = found.version.number
    return next((project.artifacts[number] for project in projects if number in project.artifacts), None)


def _reference(artifact: str) -> Reference:
    place, _, rest = artifact.rpartition("/")
    name, _, alias = rest.partition(":")
    return Reference(name, alias, place)


def put_what_is_missing(store: Store, done: Pushed, grace: float = 0.0) -> None:
    """Puts uploads aside that a killed publication did not, or whose run folder is gone; `grace` as in `push`."""
    for name in store.names():
        state = store.state(name)
        for version in list(pending.missing(state, grace)):
            put_upload(store, name, version, state.aliases_of(version.number))
        for number, version in state.versions.items():
            intents = pending.waiting(state, number)
            if (
                intents
                and pending.is_missing(state, version)
                and store.root not in [at.parent.parent for at in intents]
            ):
                done.elsewhere.append(f"{name}:v{number}")


def _version_of(store: Store, path: Path) -> tuple[str, Version | None]:
    intent = read_intent(path)
    number = int(str(intent.metadata["store"]["version"]).rpartition(":v")[2])
    return intent.name, store.state(intent.name).versions.get(number)


def _upload_all(store: Store, target: str, paths: list[Path], done: Pushed, say: Callable[[str], None]) -> None:
    import wandb

    entity, project = target.split("/")
    with tempfile.TemporaryDirectory(prefix="wandb-", ignore_cleanup_errors=True) as scratch:
        # One run for all of a store's uploads: W&B shows an artifact as some run's.
        run = wandb.init(
            id=slug(f"models-{store.identity}"),
            name=_RUN_NAME,
            project=project,
            entity=entity,
            job_type="publish",
            mode="online",
            dir=scratch,
            resume="allow",
            reinit="create_new",
            settings=foreign_settings(),
        )
        try:
            for path in paths:
                _upload(store, run, path, done, say)
        finally:
            run.finish()


def _upload(store: Store, run: Any, path: Path, done: Pushed, say: Callable[[str], None]) -> None:
    intent = read_intent(path)
    version = str(intent.metadata["store"]["version"])
    if (changed := drop_changed(store.root, path, intent)) is not None:
        done.failed.append(f"{version}: {changed} is not there any more")
        return
    files = {name: store.root / file for name, file in intent.files.items()}
    try:
        done.uploaded[version] = confirm(path, log_files(run, intent, files).wait())
    except Exception as error:  # noqa: BLE001 - whatever W&B raises, the upload stays put aside
        done.failed.append(f"{version}: {error}")
        return
    say(f"{version} is {done.uploaded[version]}")


def _ask_aliases(store: Store, api: Any, name: str, uploaded: pending.Acknowledged, done: Pushed) -> None:
    """Records which aliases an upload has on W&B: of several runs' uploads at once, the last one took them."""
    try:
        aliases = artifact_of(api, _reference(uploaded.artifact)).aliases
    except Exception as error:  # noqa: BLE001 - one name that fails must not hold the others
        done.failed.append(f"aliases of {uploaded.artifact}: {error}")
        return
    record_artifact(store, name, uploaded.number, uploaded.artifact, aliases)


def _move_aliases(store: Store, api: Any, name: str, done: Pushed) -> None:
    """Gives aliases on W&B to the versions that have them here."""
    for move in list(pending.moves(store.state(name))):
        try:
            _set_aliases(api, move)
        except Exception as error:  # noqa: BLE001 - one name that fails must not hold the others
            done.failed.append(f"aliases of {move.artifact}: {error}")
            continue
        record_artifact(store, name, move.number, move.artifact, move.aliases)
        done.aliases += 1


def note_shown(store: Store, name: str, number: int, run_id: str) -> None:
    """Records that W&B shows a run as a user of a version."""
    store.log(name).append(lambda _: {"kind": "shown", "version": number, "run": run_id})


def _set_aliases(api: Any, move: pending.Move) -> None:
    found = artifact_of(api, _reference(move.artifact))
    found.aliases = [*(alias for alias in found.aliases if alias not in move.removed), *sorted(move.added)]
    found.save()


def _show_uses(store: Store, api: Any, name: str, done: Pushed) -> None:
    """Shows on W&B which runs used a version, once both are there."""
    for use in list(pending.uses(store.state(name))):
        run = use.run
        place = f"{run['entity'] or api.default_entity}/{run['project']}/{run['id']}"
        try:
            api.run(place).use_artifact(artifact_of(api, _reference(use.artifact)))
        except Exception as error:  # noqa: BLE001 - one name that fails must not hold the others
            done.failed.append(f"the use of {use.artifact} by {place}: {error}")
            continue
        note_shown(store, name, use.number, run["id"])
        done.uses += 1
