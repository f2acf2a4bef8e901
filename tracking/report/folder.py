"""What stands in a run folder beside the journal: attempts, checkpoints, and how far W&B is."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tracking.checkpoints import LATEST, MANIFEST, Manifest, candidates
from tracking.files import read_json
from tracking.sync.child.status import SyncStatus, read_status
from tracking.sync.pushed import PushState, read_push_state
from tracking.words import duration, many, when

Level = Literal["good", "plain", "warn", "bad"]

# A sync process says something every few seconds.
_SILENT_S = 120.0


@dataclass(frozen=True)
class AttemptRecord:
    """What the batch script recorded of an attempt.

    Attributes:
        key: Job and restart, `1234-001`.
        outcome: `done`, `end` or `requeue`.
        reason: Why, in plain words.
        step: The newest checkpoint's when it ended.
        time: When it ended, seconds since the epoch.
    """

    key: str
    outcome: str
    reason: str
    step: int
    time: float


def read_attempts(run_dir: Path) -> tuple[list[AttemptRecord], list[str]]:
    """Reads `RUN/attempts`, and a sentence about each file there that is no record."""
    records, problems = [], []
    for path in sorted((run_dir / "attempts").glob("*.json")):
        try:
            fields = read_json(path)
            record = AttemptRecord(
                key=str(fields["key"]),
                outcome=str(fields["outcome"]),
                reason=str(fields["reason"]),
                step=int(fields["step"]),
                time=float(fields["time"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            problems.append(f"attempts/{path.name} is not an attempt's record: {error!r}")
            continue
        records.append(record)
    return sorted(records, key=lambda record: record.time), problems


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        name: Its folder.
        step: Optimizer steps done.
        size: Bytes of all its files.
        saved: When, seconds since the epoch; None without a manifest.
        fault: Why it is not whole; None when every file is there with the size that was saved.
        latest: Whether `latest` names it.
    """

    name: str
    step: int
    size: int
    saved: float | None
    fault: str | None
    latest: bool


def read_checkpoints(run_dir: Path) -> list[Checkpoint]:
    """Lists the checkpoints, newest first. Sizes are compared; digests are not, which would read every byte."""
    folder = run_dir / "checkpoints"
    try:
        latest = (folder / LATEST).read_text().strip()
    except OSError:
        latest = ""
    found = (_checkpoint(path, latest) for path in candidates(folder))
    return [checkpoint for checkpoint in found if checkpoint is not None]


def _checkpoint(path: Path, latest: str) -> Checkpoint | None:
    try:
        manifest = Manifest.read(path)
        saved = (path / MANIFEST).stat().st_mtime
        sizes = {name: record.size for name, record in manifest.files.items()}
        fault = next(filter(None, (_fault(path, name, bytes_) for name, bytes_ in sizes.items())), None)
        step, total = manifest.step, sum(sizes.values())
    except (ValueError, OSError) as error:
        if not path.is_dir():
            return None  # a training process has pruned it meanwhile
        saved, fault = None, str(error).removeprefix(f"{path}/")
        step, total = int(path.name.split("-")[1]), 0
    return Checkpoint(path.name, step, total, saved, fault, path.name == latest)


def _fault(path: Path, name: str, expected: int) -> str | None:
    try:
        size = (path / name).stat().st_size
    except FileNotFoundError:
        return f"{name} is missing"
    return None if size == expected else f"{name} has {size:,} bytes, {expected:,} were saved"


@dataclass(frozen=True)
class Sync:
    """How far W&B is, in words.

    Attributes:
        level: How it is to be taken.
        title: In two or three words.
        text: In a sentence or two.
        command: What to run next, or None.
        url: The run's page, or None.
    """

    level: Level
    title: str
    text: str
    command: str | None = None
    url: str | None = None


def sync_in_words(run_dir: Path, rows: int, now: float) -> Sync:
    """Says how far W&B is.

    Args:
        run_dir: The run folder.
        rows: How many rows the journal has.
        now: Seconds since the epoch.
    """
    push = f"python -m tracking.sync run {shlex.quote(str(run_dir))}"
    if (pushed := read_push_state(run_dir)) is not None:
        return _pushed(pushed, rows, push)
    status = read_status(run_dir)
    if status is None:
        return Sync("plain", "Not sent", "Nothing has been given to W&B from this folder.", push if rows else None)
    if status.state == "failed":
        return Sync("bad", "Failed", f"The last attempt failed: {status.error}. The journal has every row.", push)
    silent = now - status.time > _SILENT_S
    if status.state == "running" and silent:
        text = (
            f"The sync process was last heard of {duration(now - status.time)} before this report "
            f"({when(status.time)}), with {status.rows:,} of {many(rows, 'row')} read. It has probably died with its "
            "node. The journal has every row."
        )
        return Sync("warn", "Interrupted", text, push, _web(status.url))
    if status.mode == "online":
        return Sync("plain", "Opening", "The sync process has begun to ask W&B's server.")
    return _offline(status, rows, push)


def _pushed(state: PushState, rows: int, push: str) -> Sync:
    url, confirmed = _web(state.url), state.confirmed or 0
    if confirmed >= rows and state.closed is not None:
        return Sync("good", "Synced", f"W&B's server says that it has all {many(rows, 'row')}.", url=url)
    said = f"W&B's server confirmed {confirmed:,} of {many(rows, 'row')}"
    if state.error is not None:
        return Sync("bad", "Not synced", f"{said}. The last fault: {state.error}.", push, url)
    if state.closed is None and state.phase != "waiting":
        return Sync("good", "Live", f"{said} ({when(state.time)}).", url=url)
    return Sync("warn", "Behind", f"{said}.", push, url)


def _offline(status: SyncStatus, rows: int, push: str) -> Sync:
    reason = f" Why it is not on the server: {status.error}." if status.error else ""
    if status.state == "running":
        text = f"This attempt runs offline; W&B's folder appears when it has ended.{reason}"
        return Sync("plain", "Offline, running", text)
    folder = Path(status.folder) if status.folder else None
    if folder is None or not folder.is_dir():
        text = f"W&B's offline folder {folder or ''} is gone. The journal has every row, and makes it anew."
        return Sync("warn", "Folder gone", text, push)
    if status.rows < rows:
        text = f"W&B's offline folder holds {status.rows:,} of {many(rows, 'row')}: the run went on after it was made."
        return Sync("warn", "Behind", text, push)
    if any(folder.glob("*.wandb.synced")):
        text = (
            f"`wandb sync` has uploaded all {many(rows, 'row')}. It marks a folder as uploaded also when the server "
            "refused the history: look at the run's page before you delete anything."
        )
        return Sync("plain", "Uploaded", text)
    text = f"All {many(rows, 'row')} are in an offline folder, to be uploaded from a host with internet.{reason}"
    return Sync("warn", "Offline", text, push)


def _web(url: str | None) -> str | None:
    """A link that a browser may follow: nothing but http and https."""
    return url if url is not None and url.startswith(("http://", "https://")) else None


def read_plain(path: Path, problems: list[str]) -> dict[str, Any]:
    """Reads a JSON object that may be absent or broken; says so where it is broken."""
    try:
        value = read_json(path)
    except (ValueError, OSError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    return value if isinstance(value, dict) else {}
