"""What `python -m tracking.models` says and deletes on W&B."""

from __future__ import annotations

from pathlib import Path

from tracking.errors import UserError
from tracking.gate.rules import read_rules
from tracking.intents import pending_intents, read_intent
from tracking.models.remote import RemoteRules, choose, prune_mirrored, remove
from tracking.store.publish import default_target
from tracking.store.push import adopt
from tracking.store.root import Store
from tracking.words import many


def keep_by(given: int | None, config: Path | None) -> int:
    """How many versions stay: as given, else as a configuration says, else 1.

    Raises:
        UserError: The configuration does not say it.
    """
    if given is not None:
        return given
    if config is None:
        return 1
    found = read_rules(config).keep_last_n
    if found is None:
        raise UserError(f"{config} has no model_management.keep_last_n\n  next: --keep-last N")
    return found


def prune_there(store: Store, names: list[str], rules: RemoteRules, project: str | None, dry_run: bool) -> None:
    """Says of every version whether it goes, and deletes those that do.

    Raises:
        UserError: A name is not there, or W&B kept a version.
    """
    adopt(store)  # what is not known to be on W&B could not be recorded as deleted
    versions = choose(project or default_target(), names, rules)
    doomed = [version for version in versions if version.held is None]
    for version in versions:
        print(f"{version.name} {'goes' if version.held is None else f'stays: {version.held}'}", flush=True)
    if dry_run:
        print(f"{many(len(doomed), 'version')} would go")
        return
    failed = {version.name: why for version in doomed if (why := remove(store, version, rules)) is not None}
    print(f"{many(len(doomed) - len(failed), 'version')} deleted")
    if failed:
        raise UserError("\n  ".join(["W&B kept:", *(f"{name}: {why}" for name, why in failed.items())]))


def say_push(store: Store, asked: list[str]) -> None:
    """Says what a push would upload, and what it would delete by `keep_last_n`.

    Args:
        store: The store.
        asked: Versions that would be uploaded because they were named.

    Raises:
        UserError: W&B could not be asked about everything.
    """
    adopt(store)
    waiting = [str(read_intent(path).metadata["store"]["version"]) for path in pending_intents(store.root)]
    for version in dict.fromkeys([*asked, *waiting]):
        print(f"{version} would be uploaded")
    if failed := prune_mirrored(store, print, dry_run=True):
        raise UserError("\n  ".join(["W&B could not be asked about everything:", *failed]))
