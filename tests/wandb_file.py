"""What a test compares of W&B's offline files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracking.sync.plain.wandb_file import Scan, records


@dataclass
class OfflineRun:
    """What a `run-<id>.wandb` file says."""

    run_id: str = ""
    name: str = ""
    project: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    step_metrics: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False


def read_offline_run(folder: Path) -> OfflineRun:
    """Reads the one `.wandb` file in an offline run's folder."""
    (path,) = folder.glob("*.wandb")
    scan = Scan(path)
    run = OfflineRun()
    for record in records(scan):
        match record.WhichOneof("record_type"):
            case "run":
                run.run_id, run.name, run.project = record.run.run_id, record.run.display_name, record.run.project
                run.tags = list(record.run.tags)
            case "config":
                run.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            case "history":
                items = record.history.item
                run.history.append({"/".join(item.nested_key): json.loads(item.value_json) for item in items})
            case "metric" if record.metric.glob_name:
                run.step_metrics[record.metric.glob_name] = record.metric.step_metric
            case "preempting":
                run.preempting = True
            case "exit":
                run.exit_code = record.exit.exit_code
    assert scan.damage is None, f"{path}: {scan.damage}"
    return run
