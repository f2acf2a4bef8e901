"""What a pipeline is and how far it has been submitted: pipeline.json."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tracking.errors import UserError, unknown
from tracking.files import read_json, write_json
from tracking.redact import redact_arguments
from tracking.sync.claims import Claim, Heart, Observer

FOLDER = "pipelines"
"""Where pipelines stand in a run root."""

_FILE = "pipeline.json"


@dataclass
class GateRecord:
    """The gate behind a stage.

    Attributes:
        key: Tells it from an earlier gate behind the same stage.
        folder: Where its script and logs are.
        conditions: What it asks for, as `tracking.gate.Condition` has it.
        job_id: Its first job; None while that is being submitted.
        time: When it was to be submitted, seconds since the epoch.
        unanswered: Whether Slurm's answer was lost.
    """

    key: str
    folder: str
    conditions: list[dict[str, Any]]
    job_id: str | None = None
    time: float = 0.0
    unanswered: bool = False


@dataclass
class StepRecord:
    """A stage of a pipeline.

    Attributes:
        run: Its run, which is in the same run root.
        job_id: The job that it was last submitted as; None where it was not yet.
        takes: The run that each input comes from, by the earlier stage.
        gate: The gate behind it; None where there is none yet.
    """

    run: str
    job_id: str | None = None
    takes: dict[str, str] = field(default_factory=dict)
    gate: GateRecord | None = None


@dataclass
class Record:
    """A pipeline.

    Attributes:
        name: Its name, the alias of its models.
        cluster: The profile.
        stages: The stages, in order.
        settings: What `--set` gave.
        conditions: Conditions by stage.
        steps: What became of each stage so far.
        time: When it was made, seconds since the epoch.
    """

    name: str
    cluster: str
    stages: list[str]
    settings: list[str]
    conditions: dict[str, list[dict[str, Any]]]
    steps: dict[str, StepRecord] = field(default_factory=dict)
    time: float = field(default_factory=time.time)


def folder_of(run_root: Path, name: str) -> Path:
    """The folder of a pipeline."""
    return run_root / FOLDER / name


def names(run_root: Path) -> list[str]:
    """The pipelines of a run root, the newest first."""
    found = sorted((run_root / FOLDER).glob(f"*/{_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent.name for path in found]


def read(run_root: Path, name: str) -> Record | None:
    """Reads a pipeline; None where there is none of this name."""
    fields = read_json(folder_of(run_root, name) / _FILE)
    if fields is None:
        return None
    steps = {}
    for stage, step in fields.pop("steps").items():
        gate = step.pop("gate")
        steps[stage] = StepRecord(**step, gate=GateRecord(**gate) if gate is not None else None)
    return Record(**fields, steps=steps)


def known(run_root: Path, name: str | None) -> Record:
    """A pipeline by name; without one, the one that was submitted last.

    Raises:
        UserError: There is none.
    """
    there = names(run_root)
    if not there:
        raise UserError(f"there is no pipeline in {run_root}\n  next: python -m launch.pipeline run collect bc eval")
    if name is not None and name not in there:
        raise unknown("pipeline", name, there)
    record = read(run_root, name or there[0])
    assert record is not None
    return record


def write(run_root: Path, record: Record) -> None:
    """Writes a pipeline.

    Raises:
        UserError: The run root cannot be written.
    """
    folder = folder_of(run_root, record.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Secrets do not go to a file; who resumes it is asked for them again.
        write_json(folder / _FILE, {**asdict(record), "settings": redact_arguments(record.settings)})
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; set cluster.run_root to a folder of yours") from None


@contextmanager
def claimed(run_root: Path, name: str) -> Iterator[None]:
    """Keeps other commands from working on a pipeline.

    Raises:
        UserError: One does, or the run root cannot be written.
    """
    folder = folder_of(run_root, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        observer = Observer()
        claim = Claim.take(folder, "pipeline", observer)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; set cluster.run_root to a folder of yours") from None
    if claim is None:
        raise UserError(
            f"another command is at the pipeline {name} now: {observer.holder(folder) or 'it has just ended'}"
        )
    heart = Heart()
    heart.keep(claim)
    try:
        yield
    finally:
        heart.release(claim)


def new_key() -> str:
    """A key for a gate."""
    return secrets.token_hex(4)
