"""The lines of a journal, as values and as bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tracking.values import decode

State = Literal["finished", "preempted", "crashed"]


@dataclass(frozen=True, slots=True)
class Segment:
    """The first line of a file: which part of the run it is and who wrote it.

    Attributes:
        segment: Its number, from 0.
        first_row: The number of its first row in the whole run; no earlier segment has rows from here on.
        run_id: The W&B run that all segments make up.
        time: When it began, seconds since the epoch.
        host: The host that wrote it.
        job: The Slurm job, or None outside Slurm.
        resumed_step: The training step that it continued from, or None for a fresh start.
        tags: W&B tags.
        group: W&B group.
        job_type: W&B job type.
        notes: W&B notes.
    """

    segment: int
    first_row: int
    run_id: str
    time: float
    host: str
    job: dict[str, Any] | None
    resumed_step: int | None
    tags: tuple[str, ...] = ()
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration, to be merged over the earlier ones."""

    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Metadata:
    """What was known of the process: git, Slurm, versions, host, command line."""

    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One logged row.

    Attributes:
        n: Its number in the whole run, over all segments.
        step: The training step.
        time: When it was logged, seconds since the epoch.
        data: Metric names and values; a mapping refers to media (`tracking.media`).
    """

    n: int
    step: int
    time: float
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """How a segment ended."""

    state: State
    exit_code: int
    time: float


Event = Segment | Config | Metadata | Row | End


def segment_path(run_dir: Path, segment: int) -> Path:
    """The file of a segment: `RUN/journal-003.jsonl`."""
    return run_dir / f"journal-{segment:03d}.jsonl"


def dump(kind: str, **fields: Any) -> bytes:
    """One line, as bytes with its newline."""
    return json.dumps({"kind": kind, **fields}, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def parse(line: bytes) -> Event | None:
    """Reads one line, without its newline.

    Returns:
        What it says, or None for a kind that a newer version wrote.

    Raises:
        ValueError: The line is not whole.
    """
    try:
        fields = json.loads(line)
        return _event(fields)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a journal line: {error!r}") from error


def _event(fields: dict[str, Any]) -> Event | None:
    match fields["kind"]:
        case "row":
            data = {str(key): decode(value) for key, value in fields["data"].items()}
            return Row(int(fields["n"]), int(fields["step"]), float(fields["time"]), data)
        case "segment":
            return Segment(
                segment=int(fields["segment"]),
                first_row=int(fields["first_row"]),
                run_id=str(fields["run_id"]),
                time=float(fields["time"]),
                host=str(fields["host"]),
                job=fields.get("job"),
                resumed_step=fields.get("resumed_step"),
                tags=tuple(fields.get("tags") or ()),
                group=fields.get("group"),
                job_type=fields.get("job_type"),
                notes=fields.get("notes"),
            )
        case "config":
            return Config(dict(fields["config"]))
        case "metadata":
            return Metadata(dict(fields["metadata"]))
        case "end":
            return End(fields["state"], int(fields["exit_code"]), float(fields["time"]))
        case _:
            return None
