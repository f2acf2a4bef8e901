"""What tests compare: the rows of a journal, of an offline folder and of a server, in one form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tracking import read_journal

from wandb_file import read_offline_run

TAGS = {"model": "act", "dataset": "lift", "objective": "bc", "experiment_group": "demo"}


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """What W&B must hold of a journal, row by row."""
    return [
        {**row.data, "train/step": row.step, "_step": row.n, "_timestamp": row.time}
        for row in read_journal(run_dir).rows
    ]


def without_runtime(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without W&B's own stopwatch, which starts anew in each process."""
    return [{key: row[key] for key in row if key != "_runtime"} for row in rows]


def history_of(folder: Path) -> list[dict[str, Any]]:
    """The rows in an offline folder."""
    return without_runtime(read_offline_run(folder).history)


def offline_folders(wandb_dir: Path) -> list[Path]:
    """What the documented `wandb sync ./wandb/offline-run-*` would upload."""
    return sorted((wandb_dir / "wandb").glob("offline-run-*"))


def children_on(run_dir: Path) -> list[int]:
    """The processes of `tracking.sync.child` whose command line names the run folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"tracking.sync.child" in words and str(run_dir).encode() in words:
            found.append(int(entry.name))
    return found
