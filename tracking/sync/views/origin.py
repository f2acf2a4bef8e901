"""Where a run was made, for a W&B page that is filled from another host: read from the journal's newest segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tracking.identity import read_identity
from tracking.journal import Metadata, Segment
from tracking.journal.lines import parse

# A segment's metadata follows its configuration, before the first row in any run that was not made by hand.
_HEAD_BYTES = 2**20


@dataclass(frozen=True)
class Origin:
    """The process that made a run; a field is None where it is not known.

    Attributes:
        host: The host of rank 0.
        commit: The git commit of the code.
        remote: The address that the code was cloned from.
        program: The script, or `-m package.module`.
        overview: What W&B's overview page reads, in the form of its `wandb-metadata.json`.
    """

    host: str | None = None
    commit: str | None = None
    remote: str | None = None
    program: str | None = None
    overview: Mapping[str, Any] = field(default_factory=dict)


def read_origin(run_dir: Path) -> Origin:
    """Reads the newest segment that says something; a run that began earlier keeps its beginning.

    Args:
        run_dir: The run folder; one without a journal gives an origin that knows nothing.

    Raises:
        OSError: A file is there and cannot be read.
        UserError: `run.json` is not what this package writes.
    """
    identity = read_identity(run_dir)
    for path in sorted(run_dir.glob("journal-*.jsonl"), reverse=True):
        segment, metadata = _head(path)
        if segment is not None:
            return _origin(segment, metadata, identity.created if identity is not None else segment.time)
    return Origin()


def _head(path: Path) -> tuple[Segment | None, dict[str, Any]]:
    segment = None
    with path.open("rb") as file:
        for line in file.readlines(_HEAD_BYTES):
            try:
                event = parse(line)
            except ValueError:
                continue
            if isinstance(event, Segment):
                segment = event
            elif isinstance(event, Metadata):
                return segment, event.metadata
    return segment, {}


def _origin(segment: Segment, metadata: Mapping[str, Any], created: float) -> Origin:
    # Runs of earlier versions, and of other writers, may lack any of this.
    git, host, versions = ({**(metadata.get(part) or {})} for part in ("git", "host", "versions"))
    slurm = metadata.get("slurm") or segment.job or {}
    python = versions.get("python")
    overview: dict[str, Any] = {
        "os": host.get("platform"),
        "python": f"CPython {python}" if python else None,
        "startedAt": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        "program": metadata.get("program"),
        "args": metadata.get("arguments"),
        "git": {"remote": git.get("remote"), "commit": git["commit"]} if git.get("commit") else None,
        "root": metadata.get("folder"),
        "host": host.get("name") or segment.host,
        "cpu_count": host.get("cpus"),
        "cudaVersion": versions.get("cuda"),
        "slurm": {key: str(value) for key, value in slurm.items() if value is not None} or None,
    }
    return Origin(
        host=overview["host"],
        commit=git.get("commit"),
        remote=git.get("remote"),
        program=overview["program"],
        overview={key: value for key, value in overview.items() if value is not None},
    )
