"""Reading W&B's offline files back, with W&B's own reader."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (path,) = folder.glob("*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    run = OfflineRun()
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
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
    return run
