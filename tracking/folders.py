"""Where a run's files go."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tracking.identity import find_run
from tracking.metadata import git_facts
from tracking.names import run_name, slug


def run_folder(run_dir: Path | str | None, resume_id: str | None, name: str | None, tags: Any) -> Path:
    """Finds the folder of a run, which need not exist.

    Args:
        run_dir: What the caller asked for; it decides.
        resume_id: The run to continue: its folder is looked for in `./runs`.
        name: The display name of a new run.
        tags: What a name is made of where there is none.
    """
    if run_dir is not None:
        return Path(run_dir).absolute()
    runs = Path.cwd() / "runs"
    if resume_id is not None and (found := find_run(runs, resume_id)) is not None:
        return found
    if resume_id is not None:
        print(f"[ExperimentTracker] No run {resume_id} in {runs}: its journal begins anew here.", file=sys.stderr)
    return runs / (slug(name) if name else _made_name(tags))


def _made_name(tags: Any) -> str:
    commit = git_facts(Path.cwd())["commit"]
    parts = tags if isinstance(tags, Mapping) else {}
    return run_name(
        str(parts.get("model", "model")),
        str(parts.get("objective", "objective")),
        str(parts.get("dataset", "dataset")),
        commit[:7] if commit else None,
        datetime.now(),
    )


def wandb_folder(run_dir: Path, *, given: bool) -> Path:
    """The folder in which W&B makes its `wandb`: `WANDB_DIR`, else the given run folder, else the current one."""
    if folder := os.environ.get("WANDB_DIR"):
        return Path(folder).absolute()
    return run_dir if given else Path.cwd()
