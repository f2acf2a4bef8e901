"""A DeepSpeed checkpoint is whole or absent.

    checkpoints/
      latest                    the tag of the newest whole checkpoint (DeepSpeed's own convention)
      step-00000100/            one checkpoint
        manifest.json           what must be here: files, sizes, digests, step, world size, run id
        *_states.pt             DeepSpeed's shards
      .tmp-step-00000200-…/     a save under way, or what a killed one left; never read

A save goes: shards under the temporary tag → every rank syncs and digests its own → manifest → rename → `latest`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.files import fsync_dir, fsync_file, read_json, write_atomic, write_json

MANIFEST = "manifest.json"
LATEST = "latest"
TEMPORARY = ".tmp-"
_TAG = re.compile(r"step-(\d+)(?:-(\d+))?")


class NoWholeCheckpointError(UserError):
    """Checkpoints exist, none is whole: starting again at step 0 would hide the loss."""


class OtherLayoutError(UserError):
    """A checkpoint was saved by another number of ranks or ZeRO stage than this job has."""

    def __init__(self, checkpoint: Path, saved: Manifest, world_size: int, zero_stage: int) -> None:
        super().__init__(
            f"{checkpoint} was saved by {saved.world_size} ranks with ZeRO stage {saved.zero_stage};"
            f" this job has {world_size} with stage {zero_stage}."
            f"\n  Ask for the same again: --set resources.nodes=… --set resources.gpus_per_node=… with"
            f" {saved.world_size} GPUs in all, and zero_stage={saved.zero_stage}"
        )


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint: its size in bytes and SHA-256 digest."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        step: Optimizer steps done.
        world_size: Ranks that saved it.
        zero_stage: DeepSpeed's ZeRO stage.
        run_id: W&B run id, also in the checkpoint's `client_state`.
        git_commit: Commit of the code that trained it, None outside a git tree.
        files: Every file by its path relative to the checkpoint.
    """

    step: int
    world_size: int
    zero_stage: int
    run_id: str | None
    git_commit: str | None
    files: dict[str, FileRecord]

    @classmethod
    def read(cls, checkpoint: Path) -> Manifest:
        """Reads a checkpoint's manifest.

        Raises:
            ValueError: There is none, or it is not one.
        """
        value = read_json(checkpoint / MANIFEST)
        if value is None:
            raise ValueError(f"{checkpoint / MANIFEST} is missing")
        try:
            files = {name: FileRecord(**record) for name, record in value.pop("files").items()}
            return cls(files=files, **value)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{checkpoint / MANIFEST} is not a manifest: {error}") from error


def record_files(checkpoint: Path, names: list[str]) -> dict[str, FileRecord]:
    """Syncs files of a checkpoint to the disk and digests them.

    Every rank does this for the files that it wrote: an fsync reaches only what this host has written.
    """
    records = {}
    for name in names:
        path = checkpoint / name
        fsync_file(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        records[name] = FileRecord(path.stat().st_size, digest)
    return records


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
    source = folder / temporary
    write_json(source / MANIFEST, asdict(manifest))
    fsync_dir(source)
    before_rename()
    tag, again = step_tag(manifest.step), 1
    while (folder / tag).exists():
        again += 1
        tag = f"{step_tag(manifest.step)}-{again}"
    source.rename(folder / tag)
    fsync_dir(folder)
    before_rename()
    write_atomic(folder / LATEST, tag)
    return folder / tag


def candidates(folder: Path) -> list[Path]:
    """Lists the checkpoints of a run, newest step first, whole or not."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _TAG.fullmatch(path.name)), key=_age, reverse=True)


def _age(checkpoint: Path) -> tuple[int, int]:
    step, again = _TAG.fullmatch(checkpoint.name).groups()  # type: ignore[union-attr]
    return int(step), int(again or 1)


def verify(checkpoint: Path) -> Manifest:
    """Compares a checkpoint with its manifest, digests included.

    Raises:
        ValueError: A file is missing, has another size or other contents; the message names it.
    """
    manifest = Manifest.read(checkpoint)
    for name, record in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if path.stat().st_size != record.size:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, {record.size} were saved")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record.sha256:
                raise ValueError(f"{path} does not have the contents that were saved (SHA-256 differs)")
    return manifest


def newest_whole(folder: Path, say: Callable[[str], None]) -> tuple[Path, Manifest] | None:
    """Finds the checkpoint to resume from.

    Args:
        folder: The run's `checkpoints` folder; need not exist.
        say: Is told which newer checkpoints were passed over, and why.

    Returns:
        The newest checkpoint that verifies and its manifest, or None where the run has no checkpoint yet.

    Raises:
        NoWholeCheckpointError: There are checkpoints and none verifies.
    """
    faults = []
    for checkpoint in candidates(folder):
        try:
            manifest = verify(checkpoint)
        except ValueError as error:
            faults.append(str(error))
            say(f"passing over {checkpoint.name}: {error}")
            continue
        return checkpoint, manifest
    if faults:
        raise NoWholeCheckpointError(
            f"no checkpoint in {folder} is whole:\n    "
            + "\n    ".join(faults)
            + f"\n  Training is not started again at step 0. To do so on purpose: mv {folder} {folder}.broken"
        )
    return None


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint that has a manifest, 0 where there is none; digests are not read."""
    return next((_age(path)[0] for path in candidates(folder) if (path / MANIFEST).is_file()), 0)


def prune(folder: Path, keep_last: int) -> list[Path]:
    """Deletes what a run no longer needs: all but the newest whole checkpoints, and what killed saves left.

    A checkpoint is renamed to a temporary name before its files go, so that a kill in the middle leaves nothing
    that looks like a checkpoint.

    Args:
        folder: The run's `checkpoints` folder.
        keep_last: How many checkpoints with a manifest stay; at least 1.

    Returns:
        The checkpoints that are gone.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; at least the newest checkpoint must stay")
    whole = [path for path in candidates(folder) if (path / MANIFEST).is_file()]
    doomed = whole[keep_last:]
    for checkpoint in doomed:
        checkpoint.rename(folder / f"{TEMPORARY}{checkpoint.name}")
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover)
    return doomed


def client_state(run_id: str | None, state: dict[str, Any]) -> dict[str, Any]:
    """What goes into DeepSpeed's `client_state`.

    `wandb_run_id` stands at the top, where users look for it; all else is under one key, because DeepSpeed merges
    its own keys in and a clashing one is overridden without a word.
    """
    return {"wandb_run_id": run_id, "gilbreth": state}
