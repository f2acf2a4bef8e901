"""Trackers of this process in front of the loopback W&B."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tracking import ExperimentTracker
from tracking.sync.child.status import read_status

from runs import TAGS, without_runtime
from wandb_server import WandbServer


@pytest.fixture
def online_environment(wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's W&B, and everything that the client writes in the test's folder."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_"))] + ["RANK"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("CACHE", "DATA", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(home / name.lower()))
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    monkeypatch.setenv("WANDB_API_KEY", wandb_server.api_key)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    # W&B's client sends every 15 s; the tests have less patience.
    monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")


def server_rows(server: WandbServer, run_id: str | None) -> list[dict[str, Any]]:
    assert run_id is not None
    return without_runtime(server.rows(server.entity, "vla-lego", run_id))


def tracker_for(run_dir: Path, **arguments: Any) -> ExperimentTracker:
    """A tracker with patience for a machine on which all of this runs at once."""
    patient = {"tags": TAGS, "run_dir": run_dir, "finish_timeout": 30.0, "probe_timeout": 10.0}
    return ExperimentTracker(**(patient | arguments))


def log(tracker: ExperimentTracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.log_metrics({"loss/total": 1 / step, "x": step}, step)


def given(run_dir: Path) -> int:
    status = read_status(run_dir)
    return status.rows if status is not None else 0
