"""What a checkpoint must hold, and the names of the files that say so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tracking.files import read_json

MANIFEST = "manifest.json"
LATEST = "latest"
BEST = "best"


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
        save_seconds: How long the save took up to here; None where that was not measured.
    """

    step: int
    world_size: int
    zero_stage: int
    run_id: str | None
    git_commit: str | None
    files: dict[str, FileRecord]
    save_seconds: float | None = None

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
