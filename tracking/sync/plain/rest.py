"""A copy of an offline folder that holds only what the server does not have of it.

The records that are whole, without the rows that are on the server, their `_step` moved behind what is there, and ended
with exit code 1 where the run was killed. Media and other files are the original folder's own, through a link. Console
lines and system metrics up to the first row that is missing are left out, because the server has most of them. What
the run's configuration, summary and tags have on the server is added: W&B's sync puts the folder's in their place.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracking.sync.plain.wandb_file import Scan, WandbFile, move_step, records, row_step, row_time, write_records

# What repeats on the server when it is sent again; configuration, summary, files and artifacts do not.
_REPEATING = {"output", "output_raw", "stats", "alert"}


@dataclass(frozen=True)
class There:
    """What the server has of a run.

    Attributes:
        times: The `_timestamp` of each row, in its order: the client sets it to the fraction of a microsecond.
        last_step: The last `_step`, -1 without rows.
        config: The configuration.
        summary: The summary.
        tags: The tags.
    """

    times: tuple[float | None, ...] = ()
    last_step: int = -1
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


def missing_rows(file: WandbFile, there: There) -> int:
    """How many rows of a file are not among those that the server has."""
    left = Counter(there.times)
    return sum(not _take(left, record) for record in records(Scan(file.path)) if _is_row(record))


def holds_last(path: Path, there: There) -> bool:
    """Whether the last row on the server is one of a file's."""
    last = there.times[-1]
    return any(_is_row(record) and row_time(record.history) == last for record in records(Scan(path)))


def write_rest(file: WandbFile, there: There, target: Path) -> None:
    """Makes the copy.

    Args:
        file: The file of the original folder.
        there: What the server has of the run.
        target: The folder to make; what stands there is replaced.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    if (file.path.parent / "files").is_dir():
        (target / "files").symlink_to((file.path.parent / "files").resolve())
    write_records(target / file.path.name, (record.SerializeToString() for record in _rest(file, there)))


def _rest(file: WandbFile, there: There) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    left, begun, by = Counter(there.times), not there.times, _distance(file, there)
    for record in records(Scan(file.path)):
        if _is_row(record):
            if _take(left, record):
                continue
            begun = True
            move_step(record, by)
        elif record.WhichOneof("record_type") == "summary":
            move_step(record, by)
        elif record.WhichOneof("record_type") in _REPEATING and not begun:
            continue
        elif record.WhichOneof("record_type") == "run":
            _add_what_is_there(record.run, there)
        yield record
        if record.WhichOneof("record_type") == "run" and there.summary:
            summary = wandb_internal_pb2.Record(summary=wandb_internal_pb2.SummaryRecord())
            _update(summary.summary.update, there.summary)
            yield summary
    if file.exit_code is None:
        yield wandb_internal_pb2.Record(exit=wandb_internal_pb2.RunExitRecord(exit_code=1))


def _distance(file: WandbFile, there: There) -> int:
    """How far the rows that are missing must be moved to come behind those that are there."""
    left = Counter(there.times)
    for record in records(Scan(file.path)):
        if _is_row(record) and not _take(left, record):
            return max(0, there.last_step + 1 - row_step(record.history))
    # All of them are there: the last one says how far they were moved.
    return max(0, there.last_step - file.last_step) if file.rows else 0


def _add_what_is_there(run: Any, there: There) -> None:
    """Adds what another folder of the run has brought and this one does not mention."""
    run.tags.extend(tag for tag in there.tags if tag not in run.tags)
    known = {item.key or "/".join(item.nested_key) for item in run.config.update}
    _update(run.config.update, {key: value for key, value in there.config.items() if key not in known})


def _update(items: Any, given: Mapping[str, Any]) -> None:
    """Adds values, but for those that W&B keeps for itself."""
    for key, value in given.items():
        if not key.startswith("_"):
            items.add(key=key, value_json=json.dumps(value))


def _is_row(record: Any) -> bool:
    return bool(record.WhichOneof("record_type") == "history")


def _take(left: Counter[float | None], record: Any) -> bool:
    """Takes a row out of those that are there; False where it is not among them."""
    time = row_time(record.history)
    if left[time] <= 0:
        return False
    left[time] -= 1
    return True
