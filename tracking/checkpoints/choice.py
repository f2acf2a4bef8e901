"""Which checkpoint of a run is whole, and the newest of them."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from tracking.checkpoints.manifest import MANIFEST, Manifest
from tracking.errors import UserError

_TAG = re.compile(r"step-(\d+)(?:-(\d+))?")


class NoWholeCheckpointError(UserError):
    """Checkpoints exist, none is whole: starting again at step 0 would hide the loss."""


def candidates(folder: Path) -> list[Path]:
    """Lists the checkpoints of a run, newest step first, whole or not."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _TAG.fullmatch(path.name)), key=age, reverse=True)


def age(checkpoint: Path) -> tuple[int, int]:
    """Step and repetition of a checkpoint, by its tag."""
    step, again = _TAG.fullmatch(checkpoint.name).groups()  # type: ignore[union-attr]
    return int(step), int(again or 1)


def has_all_files(checkpoint: Path) -> bool:
    """Whether every file of the manifest is there in its full size; digests are not read."""
    try:
        manifest = Manifest.read(checkpoint)
        return all((checkpoint / name).stat().st_size == record.size for name, record in manifest.files.items())
    except (OSError, ValueError):
        return False


def verify(checkpoint: Path) -> Manifest:
    """Compares a checkpoint with its manifest, digests included.

    Raises:
        ValueError: A file is missing, has another size or other contents; the message names it.
        OSError: A file cannot be read.
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
        except (OSError, ValueError) as error:  # also a file that the disk does not give back
            faults.append(str(error))
            say(f"passing over {checkpoint.name}: {error}")
            continue
        return checkpoint, manifest
    if faults:
        raise NoWholeCheckpointError(
            f"no checkpoint in {folder} is whole:\n    "
            + "\n    ".join(faults)
            + "\n  Training is not started again at step 0. To do so on purpose: "
            + shlex.join(["mv", str(folder), f"{folder}.broken"])
        )
    return None


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint that has a manifest, 0 where there is none; digests are not read."""
    return next((age(path)[0] for path in candidates(folder) if (path / MANIFEST).is_file()), 0)
