"""What a report shows of a run: read from its folder, which may be written meanwhile."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracking.errors import UserError
from tracking.identity import read_identity
from tracking.journal import Config, End, Event, Follower, Metadata, Row, Segment
from tracking.redact import redact
from tracking.report.folder import (
    AttemptRecord,
    Checkpoint,
    Level,
    Sync,
    read_attempts,
    read_checkpoints,
    read_plain,
    sync_in_words,
)
from tracking.words import duration

Floats = NDArray[np.float64]

# A training process that logs nothing for so long is said to be silent.
_SILENT_S = 900.0

_MARKS = ("run.json", "journal-000.jsonl", "submission.json")


@dataclass(frozen=True)
class Series:
    """One metric of a run, in the order in which it was logged.

    Attributes:
        name: The metric.
        rows: Row numbers, shape [n].
        steps: Training steps, shape [n]; a rollback goes back.
        values: Values, shape [n]; NaN and the infinities as they were logged.
    """

    name: str
    rows: Floats
    steps: Floats
    values: Floats

    @property
    def finite(self) -> Floats:
        """The finite values."""
        kept: Floats = self.values[np.isfinite(self.values)]
        return kept


@dataclass(frozen=True)
class Attempt:
    """One attempt at the run: what its journal segment says, and what the batch script recorded.

    Attributes:
        label: Job and restart (`1234-001`), or `segment 1` outside Slurm.
        host: Where rank 0 ran; None for an attempt that died before its journal began.
        began: Seconds since the epoch, or None.
        resumed_step: The step of the checkpoint that it continued from.
        first_step: The first step that it logged, or None.
        last_step: The last step that it logged, or None.
        rows: How many rows it logged.
        seconds: From its beginning to its last line.
        ended: How its journal ends: `finished`, `preempted`, `crashed` or `no end`.
        exit_code: What its journal's end says, or None.
        outcome: What the batch script decided: `done`, `end`, `requeue`, or None.
        reason: Why.
    """

    label: str
    host: str | None = None
    began: float | None = None
    resumed_step: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    rows: int = 0
    seconds: float = 0.0
    ended: str = "no end"
    exit_code: int | None = None
    outcome: str | None = None
    reason: str | None = None

    @property
    def border(self) -> int | None:
        """The training step at which it took over."""
        return self.resumed_step if self.resumed_step is not None else self.first_step


@dataclass(frozen=True)
class State:
    """How a run stands: a word, a sentence, and how it is to be taken."""

    word: str
    text: str
    level: Level


@dataclass(frozen=True)
class Run:
    """Everything that a report shows of a run.

    Attributes:
        folder: The run folder.
        name: Display name.
        run_id: W&B's id, or None before the first segment.
        project: W&B project, or None before the first segment.
        state: How it stands.
        series: Numeric metrics by name.
        texts: The last value of each metric that is text, and the file of the last image, video or table.
        attempts: In the order in which they began.
        checkpoints: Newest first.
        sync: How far W&B is.
        config: The configuration, without secrets.
        metadata: What each segment knew of its process.
        problems: Lines and files that could not be read as they should, one sentence each.
        rows: How many rows the journal has.
        last_step: The highest step logged, or None.
        last_time: When the last row was logged, seconds since the epoch, or None.
    """

    folder: Path
    name: str
    run_id: str | None
    project: str | None
    state: State
    series: dict[str, Series]
    texts: dict[str, str]
    attempts: list[Attempt]
    checkpoints: list[Checkpoint]
    sync: Sync
    config: dict[str, Any]
    metadata: list[dict[str, Any]]
    problems: list[str]
    rows: int
    last_step: int | None
    last_time: float | None


@dataclass
class _Part:
    """A segment while it is read."""

    segment: Segment | None
    rows: int = 0
    first_step: int | None = None
    last_step: int | None = None
    last_time: float | None = None
    end: End | None = None

    def add(self, row: Row) -> None:
        self.rows += 1
        self.first_step = row.step if self.first_step is None else self.first_step
        self.last_step = row.step if self.last_step is None else max(self.last_step, row.step)
        self.last_time = row.time


@dataclass
class _Collected:
    """A journal while it is read; columns are compact, so that 100,000 rows take tens of megabytes."""

    parts: list[_Part] = field(default_factory=list)
    columns: dict[str, tuple[array[float], array[float], array[float]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metadata: list[dict[str, Any]] = field(default_factory=list)

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Row():
                    self._part().add(event)
                    self._values(event)
                case Segment():
                    self.parts.append(_Part(event))
                case End():
                    self._part().end = event
                case Config():
                    self.config.update(event.config)
                case Metadata():
                    self.metadata.append(event.metadata)

    def _part(self) -> _Part:
        if not self.parts:  # the first line was torn
            self.parts.append(_Part(None))
        return self.parts[-1]

    def _values(self, row: Row) -> None:
        for name, value in row.data.items():
            if isinstance(value, str):
                self.texts[name] = value
            elif isinstance(value, dict):
                self.texts[name] = f"{value.get('media', 'media')} {value.get('path') or ''}".strip()
            if not isinstance(value, int | float):
                continue
            if name not in self.columns:
                self.columns[name] = (array("d"), array("d"), array("d"))
            rows, steps, values = self.columns[name]
            rows.append(row.n)
            steps.append(row.step)
            values.append(_as_float(value))


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON has integers without a bound
        return math.inf if value > 0 else -math.inf


def read_run(folder: Path, now: float) -> Run:
    """Reads a run folder.

    Args:
        folder: The run folder.
        now: Seconds since the epoch, for what is said about a run that is silent.

    Raises:
        UserError: The folder holds no run, or a file in it cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}.\n  expected a run folder, as in runs/<run name>")
    if not any((folder / mark).is_file() for mark in _MARKS):
        inside = [path.parent.name for path in sorted(folder.glob("*/run.json"))]
        found = f" It holds run folders: {', '.join(inside[:3])}{', …' if len(inside) > 3 else ''}." if inside else ""
        raise UserError(f"{folder} is not a run folder: none of {', '.join(_MARKS)} is in it.{found}")
    try:
        return _read(folder.absolute(), now)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read: {error.strerror}\n  next: ask its owner for read access"
        ) from error


def _read(folder: Path, now: float) -> Run:
    follower, collected = Follower(folder), _Collected()
    collected.add(follower.poll())
    torn = follower.torn()
    records, problems = read_attempts(folder)
    problems = [*follower.problems, *([torn] if torn else []), *problems]
    identity = read_identity(folder)
    rows = sum(part.rows for part in collected.parts)
    attempts = join_attempts(collected.parts, records)
    steps = [part.last_step for part in collected.parts if part.last_step is not None]
    times = [part.last_time for part in collected.parts if part.last_time is not None]
    return Run(
        folder=folder,
        name=identity.run_name if identity is not None else folder.name,
        run_id=identity.run_id if identity is not None else None,
        project=identity.project if identity is not None else None,
        state=_state(folder, collected.parts, attempts, now, problems),
        series={
            name: Series(name, *(np.frombuffer(column) for column in columns))
            for name, columns in collected.columns.items()
        },
        texts=collected.texts,
        attempts=attempts,
        checkpoints=read_checkpoints(folder),
        sync=sync_in_words(folder, rows, now),
        config=redact(collected.config),
        metadata=collected.metadata,
        problems=problems,
        rows=rows,
        last_step=max(steps, default=None),
        last_time=max(times, default=None),
    )


def join_attempts(parts: list[_Part], records: list[AttemptRecord]) -> list[Attempt]:
    """Puts segments and the batch script's records together; an attempt may have left only one of the two."""
    by_key = {record.key: record for record in records}
    attempts = []
    for number, part in enumerate(parts):
        segment = part.segment
        label = _job_key(segment) or f"segment {segment.segment if segment is not None else number}"
        record = by_key.pop(label, None)
        began = segment.time if segment is not None else None
        last = part.end.time if part.end is not None else part.last_time
        attempts.append(
            Attempt(
                label=label,
                host=segment.host if segment is not None else None,
                began=began,
                resumed_step=segment.resumed_step if segment is not None else None,
                first_step=part.first_step,
                last_step=part.last_step,
                rows=part.rows,
                seconds=last - began if last is not None and began is not None else 0.0,
                ended=part.end.state if part.end is not None else "no end",
                exit_code=part.end.exit_code if part.end is not None else None,
                outcome=record.outcome if record is not None else None,
                reason=record.reason if record is not None else None,
            )
        )
    silent = [
        Attempt(label=record.key, began=record.time, ended="no journal", outcome=record.outcome, reason=record.reason)
        for record in by_key.values()
    ]
    return sorted([*attempts, *silent], key=lambda attempt: attempt.began or 0.0)


def _job_key(segment: Segment | None) -> str | None:
    job = segment.job if segment is not None else None
    if not job or not job.get("job_id"):
        return None
    return f"{job['job_id']}-{int(job.get('restart_count') or 0):03d}"


def _state(folder: Path, parts: list[_Part], attempts: list[Attempt], now: float, problems: list[str]) -> State:
    done = read_plain(folder / "done.json", problems)
    if done:
        step = done.get("step")
        return State("complete", f"The run is complete{f' at step {step:,}' if isinstance(step, int) else ''}.", "good")
    if not parts:
        submission = read_plain(folder / "submission.json", problems)
        job = f" It was submitted as job {submission['job_id']}." if submission.get("job_id") else ""
        return State("not begun", f"No attempt has begun its journal yet.{job}", "plain")
    end, attempt = parts[-1].end, attempts[-1]
    if end is not None and end.state == "finished":
        return State("finished", "The last attempt finished.", "good")
    follows = f" The batch script decided: {attempt.outcome} ({attempt.reason})." if attempt.outcome else ""
    if end is not None and end.state == "preempted":
        return State("preempted", f"The last attempt stopped at a step boundary and can be continued.{follows}", "warn")
    if end is not None:
        return State("crashed", f"The last attempt crashed with exit code {end.exit_code}.{follows}", "bad")
    if attempt.outcome:
        return State("killed", f"The last attempt was killed without a last word.{follows}", "bad")
    heard = parts[-1].last_time or (parts[-1].segment.time if parts[-1].segment is not None else now)
    ago = duration(now - heard)
    if now - heard < _SILENT_S:
        return State("running", f"The last row was logged {ago} before this report.", "plain")
    return State("silent", f"Nothing was logged for {ago}, and no end was written: it was killed, or it hangs.", "warn")
