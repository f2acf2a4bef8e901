"""Run folders for the tests of the report, written by the journal's own writer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracking import checkpoints
from tracking.checkpoints import Manifest
from tracking.files import write_json
from tracking.identity import claim_identity
from tracking.journal import JournalWriter, read_journal

NOW = 1_800_000_000.0


def training_row(step: int) -> dict[str, float]:
    return {
        "loss/total": math.exp(-step / 500),
        "train/lr": 1e-4,
        "perf/samples_per_sec": 600.0 + step % 7,
        "gpu/0/utilization": 90.0,
        "gpu/1/utilization": 80.0,
    }


def write_segment(
    folder: Path,
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    *,
    restart: int = 0,
    resumed_step: int | None = None,
    end: str | None = "finished",
    config: Mapping[str, Any] | None = None,
) -> None:
    journal = read_journal(folder)
    job = {"job_id": "4711", "restart_count": restart}
    writer = JournalWriter.begin(folder, "ab12cd34", journal, job=job, resumed_step=resumed_step)
    if config:
        writer.config(config)
    writer.metadata({"git": {"commit": "0123abc", "dirty": True}, "host": {"name": f"node{restart + 1}"}})
    for step, data in rows:
        writer.row(step, data)
    if end is not None:
        writer.end(end, 0 if end == "finished" else 1)  # type: ignore[arg-type]
    writer.close()


def make_run(folder: Path, name: str = "act_bc_lift", *, lr: float = 1e-4) -> Path:
    """A run of three attempts: stopped, killed and rolled back, finished; with evaluations, NaN and inf."""
    folder.mkdir(parents=True)
    claim_identity(folder, "ab12cd34", name, "vla-lego", None)
    rows = {step: training_row(step) for step in range(10, 1001, 10)}
    rows[520] = {**rows[520], "loss/total": math.nan}
    rows[530] = {**rows[530], "loss/total": math.inf}
    for step, successes in ((500, 20), (1000, 45)):
        low, high = successes / 50 - 0.1, min(successes / 50 + 0.1, 1.0)
        bounds = {"eval/success_rate_low": low, "eval/success_rate_high": high, "eval/episodes": 50.0}
        rows[step] = {**rows[step], "eval/success_rate": successes / 50, **bounds}
    config = {"bc": {"lr": lr, "seed": 0}, "wandb_api_key": "0123456789abcdef"}
    write_segment(folder, [(s, rows[s]) for s in range(10, 401, 10)], end="preempted", config=config)
    write_segment(folder, [(s, rows[s]) for s in range(410, 661, 10)], restart=1, resumed_step=400, end=None)
    write_segment(folder, [(s, rows[s]) for s in range(610, 1001, 10)], restart=2, resumed_step=600)
    for restart, (outcome, reason) in enumerate(
        (("requeue", "stopped at a step boundary"), ("requeue", "exit code 137"))
    ):
        record = {"key": f"4711-{restart:03d}", "exit_code": None, "step": 400, "time": NOW + restart}
        (folder / "attempts").mkdir(exist_ok=True)
        write_json(folder / "attempts" / f"{restart}.json", {**record, "outcome": outcome, "reason": reason})
    save_checkpoint(folder / "checkpoints", 600)
    save_checkpoint(folder / "checkpoints", 1000)
    return folder


def save_checkpoint(folder: Path, step: int) -> Path:
    tag = checkpoints.temporary_tag(step, "4711-000")
    (folder / tag).mkdir(parents=True)
    (folder / tag / "mp_rank_00_model_states.pt").write_bytes(b"x" * 5000)
    files = checkpoints.record_files(folder / tag, checkpoints.files_of_rank(folder / tag, 0))
    return checkpoints.commit(folder, tag, Manifest(step, 1, 1, "ab12cd34", None, files), lambda: None)
