"""Run folders as launch, the batch script and the tracker leave them, without a job behind them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from gilbreth_phase0.attempt import AttemptRecord, Outcome, keep
from gilbreth_phase0.run_folder import write_done
from launch.config import resolve
from launch.spec import make_spec
from tracking.files import write_atomic, write_json
from tracking.journal.reader import read_journal
from tracking.journal.writer import JournalWriter
from tracking.pace import Pace

TOTAL = 6000
"""Steps that these runs were asked for."""


def make_run(
    root: Path,
    name: str,
    job_id: str | None = "12",
    *,
    rows: int = 0,
    cluster: str = "lab",
    asked: Sequence[str] = (),
) -> Path:
    """A run that was submitted.

    Args:
        root: The run root.
        name: The run's name.
        job_id: Its job; None is a submission that was interrupted.
        rows: How many rows its first job has logged, one a step.
        cluster: The profile.
        asked: Settings beside.
    """
    settings = [f"name={name}", f"cluster.run_root={root}", f"smoke.steps={TOTAL}", "resources.time=60", *asked]
    config = resolve("smoke", cluster, settings)
    spec = make_spec(config, datetime.now())
    spec.run_dir.mkdir(parents=True)
    write_atomic(spec.run_dir / "config.yaml", config.dump(name))
    state = "submitted" if job_id else "submitting"
    record: dict[str, object] = {"key": f"gilbreth:{name}:0a", "stage": "smoke", "executor": config.cluster.executor}
    record |= {"command": "python -m launch.submit --stage smoke", "minutes": 60, "steps": TOTAL}
    record |= {"log_dir": str(root / "logs" / name), "time": time.time()}
    write_json(spec.run_dir / "submission.json", {"state": state, "job_id": job_id, **record})
    if rows:
        log_rows(spec.run_dir, rows)
    return spec.run_dir


def log_rows(run_dir: Path, count: int) -> None:
    """A further job of the run, which logs rows, a step each, and ends."""
    journal = read_journal(run_dir)
    writer = JournalWriter.begin(run_dir, "a1b2c3d4", journal)
    for step in range(journal.next_row + 1, journal.next_row + count + 1):
        writer.row(step, {"loss/total": 1 / step, "train/lr": 1e-4, "perf/steps_per_sec": 25.0})
    writer.close()


def end_attempt(run_dir: Path, key: str, outcome: Outcome, exit_code: int | None = 1) -> None:
    """What the batch script leaves at the end of an attempt."""
    reason = "planned stop" if exit_code is None else f"exit code {exit_code}"
    keep(run_dir, AttemptRecord(key, exit_code, 600, outcome, reason, time.time()))


def measure_pace(run_dir: Path, step: int) -> None:
    """What the trainer measures: 0.5 steps a second, so 1,700 steps in an hour's job."""
    Pace(0.5, 2.0, 2.0, 60.0, 100, step, TOTAL).write(run_dir)


def finish(run_dir: Path) -> None:
    """The done record."""
    write_done(run_dir, TOTAL)


def copy_run(run_dir: Path, name: str, job_id: str) -> Path:
    """The same run under another name."""
    copy = run_dir.with_name(name)
    shutil.copytree(run_dir, copy)
    for file in ("submission.json", "config.yaml"):
        text = (copy / file).read_text().replace(run_dir.name, name)
        (copy / file).write_text(text.replace('"job_id": "12"', f'"job_id": "{job_id}"'))
    return copy
