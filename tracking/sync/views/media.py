"""A row's references as W&B's own media."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.journal import Row


def shown(run_dir: Path, row: Row) -> dict[str, Any]:
    """A row's data with media instead of references; what refers to a lost file is left out and said.

    Args:
        run_dir: The run folder.
        row: A row of its journal.
    """
    data: dict[str, Any] = {}
    for name, value in row.data.items():
        if not isinstance(value, Mapping):
            data[name] = value
            continue
        try:
            data[name] = _media(run_dir, value)
        except (OSError, KeyError, ValueError, TypeError) as error:
            print(f"row {row.n}: {name} is left out: {error!r}", flush=True)
    return data


def _media(run_dir: Path, reference: Mapping[str, Any]) -> Any:
    import numpy as np
    import wandb

    kind = reference["media"]
    if kind == "histogram":
        return wandb.Histogram(np_histogram=(np.asarray(reference["counts"]), np.asarray(reference["edges"])))
    path = run_dir / reference["path"]
    if kind == "image":
        return wandb.Image(str(path), caption=reference.get("caption"))
    if kind == "video":
        return wandb.Video(str(path), caption=reference.get("caption"), format=path.suffix[1:])
    if kind == "table":
        table = json.loads(path.read_text())
        return wandb.Table(columns=table["columns"], data=table["data"])
    raise ValueError(f"unknown media {kind!r}")
