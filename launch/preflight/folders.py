"""Folders that a job writes to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.config import Config
from launch.models import store_of
from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.render import check_log_folder
from launch.spec import JobSpec
from tracking.errors import UserError


def folder_findings(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Yields what is wrong with the folders of a stage's job; writes nothing."""
    try:
        check_log_folder(spec.log_dir)
    except UserError as error:
        what, _, fix = str(error).partition("\n")
        yield rules.LOG_FOLDER(what, fix.strip())
    for key, folder in (("cluster.run_root", spec.run_dir.parent), ("the log folder", spec.log_dir.parent)):
        fix = "choose a shared disk: --set cluster.run_root=FOLDER"
        if key == "the log folder":
            fix = f"move the project ({spec.root}) to a shared disk of yours"
        yield from _shared(key, folder, spec.cluster.node_local, fix)
        yield from _writable(key, folder, fix)
    for folder in (spec.run_dir, spec.log_dir):
        if os.access(folder, os.F_OK):
            yield rules.FOLDER_TAKEN(f"{str(folder)!r} is there already, from another run", "--set name=NAME")
    yield from _store(config, spec)


def _store(config: Config, spec: JobSpec) -> Iterator[Finding]:
    store = store_of(spec)
    if store is None:
        return
    fix = "choose another: --set cluster.store_root=FOLDER"
    yield from _shared("cluster.store_root", store.root, spec.cluster.node_local, fix)
    is_open = os.access(store.root, os.R_OK | os.X_OK)
    if is_open and store.exists and config.stage.models == "loads":
        return  # others' models will do: what cannot be recorded there is said, and the job runs
    unwritable = list(_writable("cluster.store_root", store.root, fix))
    yield from unwritable
    if is_open and not unwritable and (others := store.strangers()):
        yield rules.STORE_STRANGERS(
            f"cluster.store_root {str(store.root)!r} is no model store: it holds {', '.join(others[:3])}", fix
        )


def _shared(key: str, folder: Path, node_local: Sequence[str], fix: str) -> Iterator[Finding]:
    for local in node_local:
        if folder.is_relative_to(local):
            yield rules.NODE_LOCAL(f"{key} {str(folder)!r} is below {local}, which every node has for itself", fix)


def _writable(key: str, folder: Path, fix: str) -> Iterator[Finding]:
    existing = existing_part(folder)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield rules.NOT_WRITABLE(
            f"{key} {str(folder)!r} cannot be written ({existing})", f"{fix}, or mend the permissions"
        )


def existing_part(folder: Path) -> Path:
    """The folder, or the nearest one above it that there is, as far as this user may look."""
    return next(path for path in (folder, *folder.parents) if os.access(path, os.F_OK))
