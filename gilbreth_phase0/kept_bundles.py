"""The policy bundles that stay in a run folder: hard links to what was saved once."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gilbreth_phase0.publishing import BEST
from tracking import checkpoints
from tracking.files import fsync_dir

BUNDLE = "bundle"
"""The folder in a run folder that the trained policy ends up in."""

BEST_MODEL, FINAL_MODEL = "best_model", "final_model"
"""Where users look for the best policy of a run, and for that of its last step."""


def keep_best(run_dir: Path, step: int, bundle: Path) -> None:
    """Keeps a bundle as that of the best step; the one before it goes."""
    folder = run_dir / BEST
    folder.mkdir(exist_ok=True)
    target = folder / checkpoints.step_tag(step)
    take_bundle(bundle, target)
    take_bundle(target, run_dir / BEST_MODEL)
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def take_bundle(bundle: Path, target: Path) -> None:
    """Has a bundle in another place too, whole or not at all, without a second copy of its files where that can be."""
    temporary = target.with_name(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    # A bundle's files are never written again: the next bundle is a new folder.
    shutil.copytree(bundle, temporary, copy_function=_link_or_copy)
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    fsync_dir(target.parent)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the model store may be on another disk
        shutil.copy2(source, target)


def best_bundle(run_dir: Path, step: int | None) -> Path | None:
    """The bundle of the best step so far, where it was kept."""
    folder = run_dir / BEST / checkpoints.step_tag(step) if step is not None else None
    return folder if folder is not None and folder.is_dir() else None
