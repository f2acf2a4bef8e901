"""Saving a checkpoint so that a kill or a power cut at any moment leaves it whole or absent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tracking.checkpoints.manifest import LATEST, MANIFEST, FileRecord, Manifest
from tracking.files import fsync_dir, fsync_file, named, write_atomic, write_json

TEMPORARY = ".tmp-"
_WORKERS = 4


def record_files(checkpoint: Path, names: list[str]) -> dict[str, FileRecord]:
    """Syncs files of a checkpoint to the disk and digests them, both at a time.

    Every rank does this for the files that it wrote: an fsync reaches only what this host has written.
    """
    with ThreadPoolExecutor(_WORKERS) as pool:
        # Largest first: the last one to start decides how long it takes.
        paths = sorted((checkpoint / name for name in names), key=lambda path: path.stat().st_size, reverse=True)
        synced = [pool.submit(fsync_file, path) for path in paths]
        digested = {path: pool.submit(_digest, path) for path in paths}
        for sync in synced:
            sync.result()
        return {
            name: FileRecord((checkpoint / name).stat().st_size, digested[checkpoint / name].result()) for name in names
        }


def _digest(path: Path) -> str:
    with named(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of_rank(checkpoint: Path, rank: int) -> list[str]:
    """Lists the files of a checkpoint under way that a rank wrote; what no rank's name is on is rank 0's."""
    names = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()]
    return sorted(name for name in names if _writer(name) == rank)


def _writer(name: str) -> int:
    _, found, rest = name.partition("zero_pp_rank_")
    return int(rest.split("_", 1)[0]) if found else 0


def temporary_tag(step: int, attempt: str) -> str:
    """The tag that a save is written under; the attempt in it keeps a killed save's files apart from the next one's."""
    return f"{TEMPORARY}{step_tag(step)}-{attempt}"


def step_tag(step: int) -> str:
    """The tag of a whole checkpoint."""
    return f"step-{step:08d}"


def universal_copy(checkpoint: Path) -> Path:
    """Where a checkpoint's copy for another number of ranks stands."""
    return checkpoint.with_name(f"universal-{checkpoint.name}")


def publish_folder(source: Path, target: Path, manifest: Manifest, before_rename: Callable[[], None]) -> None:
    """Gives a folder whose files are written and synced its manifest and its final name.

    Args:
        source: The folder under its temporary name.
        target: Its final name; nothing is there.
        manifest: What it holds.
        before_rename: Raises when this attempt no longer owns the run.
    """
    for folder in {(source / name).parent for name in manifest.files} - {source}:
        fsync_dir(folder)
    write_json(source / MANIFEST, asdict(manifest))
    fsync_dir(source)
    before_rename()
    source.rename(target)
    fsync_dir(target.parent)


def commit(folder: Path, temporary: str, manifest: Manifest, before_rename: Callable[[], None]) -> Path:
    """Makes a save that every rank has written and synced the newest checkpoint.

    The order is what makes it whole or absent: manifest, sync, rename, sync, `latest`.

    Args:
        folder: The run's `checkpoints` folder.
        temporary: The tag that the save was written under.
        manifest: What it holds.
        before_rename: Raises when this attempt no longer owns the run.

    Returns:
        The checkpoint under its final name. A tag is never used twice: where an earlier, broken checkpoint of
        this step stands, the name gets a suffix.
    """
    tag, again = step_tag(manifest.step), 1
    while (folder / tag).exists():
        again += 1
        tag = f"{step_tag(manifest.step)}-{again}"
    publish_folder(folder / temporary, folder / tag, manifest, before_rename)
    before_rename()
    write_atomic(folder / LATEST, tag)
    return folder / tag


def client_state(run_id: str | None, state: dict[str, Any]) -> dict[str, Any]:
    """What goes into DeepSpeed's `client_state`.

    `wandb_run_id` stands at the top, where users look for it; all else is under one key, because DeepSpeed merges
    its own keys in and a clashing one is overridden without a word.
    """
    return {"wandb_run_id": run_id, "gilbreth": state}
