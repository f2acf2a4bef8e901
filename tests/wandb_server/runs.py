"""Runs as the server keeps them: history, events and console output by line offset, and everything set by upsert."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb_server.artifacts import Artifact, Collection

HISTORY = "wandb-history.jsonl"
EVENTS = "wandb-events.jsonl"
SUMMARY = "wandb-summary.json"
OUTPUT = "output.log"


def timestamp(seconds: float) -> str:
    """The time as W&B writes it in JSON."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@dataclass(frozen=True)
class Upload:
    """One write to a file of lines.

    Attributes:
        offset: Line number of the first line.
        count: Number of lines.
        overwritten: How many of them stood there before.
        changed: How many of those held something else before.
        time: When it arrived, in seconds since 1970.
    """

    offset: int
    count: int
    overwritten: int
    changed: int
    time: float


class LineFile:
    """A file addressed by line number, as W&B's file stream writes it.

    A write at an offset replaces the lines that stand there: sent twice, the same lines stand once; a second
    writer that begins at 0 destroys what the first one wrote; lines that were never sent stay gaps.
    """

    def __init__(self) -> None:
        self.lines: list[str | None] = []
        self.uploads: list[Upload] = []
        self._parsed: list[Any] = []
        self._lock = threading.Lock()

    def write(self, offset: int, content: list[str]) -> None:
        """Puts the lines at the offset, over what stands there."""
        with self._lock:
            before = self.lines[offset : offset + len(content)]
            present = [(old, new) for old, new in zip(before, content, strict=False) if old is not None]
            changed = sum(old != new for old, new in present)
            self.uploads.append(Upload(offset, len(content), len(present), changed, time.time()))
            gap = [None] * (offset - len(self.lines))
            self.lines[offset : offset + len(content)] = [*gap, *content]
            del self._parsed[offset:]

    def rows(self) -> list[dict[str, Any]]:
        """The lines that are there, as objects, in the order of the file."""
        with self._lock:
            for line in self.lines[len(self._parsed) :]:
                self._parsed.append(None if line is None else json.loads(line))
            return [row for row in self._parsed if row is not None]

    def present(self) -> list[str]:
        """The lines that are there, in the order of the file."""
        return [line for line in self.lines if line is not None]

    def gaps(self) -> list[int]:
        """Line numbers that were passed over and never written."""
        return [number for number, line in enumerate(self.lines) if line is None]

    def tail(self) -> str:
        """The last line as W&B's resume status gives it: a JSON list of at most one JSON string."""
        return json.dumps([line for line in self.lines[-1:] if line is not None])


@dataclass
class Project:
    """A project of an entity, with its runs and artifact collections by name."""

    number: int
    entity_name: str
    name: str
    created: float
    description: str | None = None
    runs: dict[str, Run] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)
    artifact_types: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """One run. `name` is its id in the client's words, `id` is the id of the server's own.

    Attributes:
        declared_state: What the last client said; `state` may find it crashed.
        crash_after: Seconds without a sign of life after which a running run counts as crashed.
        exit_code: What the client ended with, None while it runs.
        values: What `upsertBucket` set, by its field name: displayName, notes, groupName, jobType, host, commit, …
    """

    id: str
    name: str
    project: Project
    created: float
    crash_after: float
    declared_state: str = "running"
    heartbeat: float = 0.0
    exit_code: int | None = None
    stopped: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    raw_config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    line_files: dict[str, LineFile] = field(default_factory=dict)
    logged: list[Artifact] = field(default_factory=list)
    used: list[Artifact] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def state(self) -> str:
        """The state that W&B shows: running, finished, failed, crashed, preempting, preempted or pending."""
        silent = time.time() - self.heartbeat > self.crash_after
        return "crashed" if silent and self.declared_state in ("running", "preempting") else self.declared_state

    @property
    def config(self) -> dict[str, Any]:
        """The user's configuration, without W&B's own keys and wrapping."""
        return {
            key: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
            for key, entry in self.raw_config.items()
            if key not in ("_wandb", "wandb_version")
        }

    @property
    def history_file(self) -> LineFile:
        """History by line."""
        return self.lines_of(HISTORY)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the history that are there, in the order of the lines."""
        return self.history_file.rows()

    @property
    def output(self) -> list[str]:
        """Lines of the console log."""
        return self.lines_of(OUTPUT).present()

    def lines_of(self, name: str) -> LineFile:
        """The file of lines with this name, empty when nothing was sent."""
        return self.line_files.setdefault(name, LineFile())

    def upsert(self, given: dict[str, Any]) -> None:
        """Takes what an `upsertBucket` gives; what is null or absent stays."""
        for key, value in given.items():
            if value is None:
                continue
            if key == "config":
                self.raw_config = json.loads(value)
            elif key == "summaryMetrics":
                self.summary = json.loads(value)
            elif key == "tags":
                self.tags = list(value)
            elif key == "state":
                self.declared_state = value
            else:
                self.values[key] = value

    def begin(self, resumed: bool) -> None:
        """A client begins or goes on with the run: one that has ended runs again, and a resumed one in any case."""
        self.heartbeat = time.time()
        if resumed or self.declared_state != "preempting":
            self.declared_state, self.exit_code = "running", None

    def stream(self, body: dict[str, Any]) -> None:
        """Takes one request of the file stream."""
        self.heartbeat = time.time()
        for name, part in (body.get("files") or {}).items():
            if name == SUMMARY:
                self.summary = json.loads(part["content"][-1])
            else:
                self.lines_of(name).write(part["offset"], part["content"])
        if body.get("complete"):
            self._end(int(body.get("exitcode") or 0))
        elif body.get("preempting"):
            self.declared_state = "preempting"
        elif self.declared_state != "preempting":
            self.declared_state = "running"

    def _end(self, exit_code: int) -> None:
        self.exit_code = exit_code
        if exit_code == 0:
            self.declared_state = "finished"
        else:
            self.declared_state = "preempted" if self.declared_state == "preempting" else "failed"
