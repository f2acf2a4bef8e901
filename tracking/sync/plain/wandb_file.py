"""W&B's offline file `run-<id>.wandb`, read in whatever state it is in, and written.

A header of 7 bytes, then LevelDB's log: blocks of 32 KiB with records in them, each with a checksum; a record that does
not fit is continued in the next block. What is broken is passed over to the next block, as LevelDB does.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

_BLOCK = 32768
_FILE_HEADER = struct.Struct("<4sHB")
_RECORD_HEADER = struct.Struct("<IHB")
_IDENT = (b":W&B", 0xBEE1, 0)
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS = {kind: zlib.crc32(bytes([kind])) for kind in (_FULL, _FIRST, _MIDDLE, _LAST)}

Damage = Literal["empty", "header only", "foreign", "cut", "checksum", "unreadable"]


@dataclass
class WandbFile:
    """What a `.wandb` file says.

    Attributes:
        path: The file.
        size: Its bytes when it was read.
        run_id: The run; empty where the file ends before the run's record.
        entity: The run's entity; empty stands for the user's default one.
        project: The run's project; empty stands for W&B's default one.
        started: When the run began, seconds since the epoch.
        rows: How many history rows it holds.
        last_time: The `_timestamp` of the last one.
        last_step: The `_step` of the last one, -1 without rows.
        exit_code: What the run ended with; None where it was killed or is still being written.
        preempting: Whether the run said that it would be preempted.
        damage: How the file is broken, None where it is whole: `empty`, `header only`, `foreign` (not W&B's), `cut` in
            a record, `checksum` (in the middle of it), `unreadable`.
    """

    path: Path
    size: int = 0
    run_id: str = ""
    entity: str = ""
    project: str = ""
    started: float = 0.0
    rows: int = 0
    last_time: float | None = None
    last_step: int = -1
    exit_code: int | None = None
    preempting: bool = False
    damage: Damage | None = None


@dataclass
class Scan:
    """The whole records of a file, as bytes; a block at a time is in memory.

    Attributes:
        path: The file.
        first_block: Where to begin.
        damage: Once all records were read: how the file is broken.
        size: How many bytes were read.
    """

    path: Path
    first_block: int = 0
    damage: Damage | None = None
    size: int = 0
    _parts: list[bytes] | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.first_block * _BLOCK)
                offset = 0
                if self.first_block == 0:
                    offset = self._check_header(file.read(_FILE_HEADER.size))
                    file.seek(0)
                while self.damage not in ("empty", "header only", "foreign") and (block := file.read(_BLOCK)):
                    self.size += len(block)
                    yield from self._records(block, offset)
                    offset = 0
        except OSError:
            self.damage = "unreadable"
        if self._parts is not None:
            self.damage = self.damage or "cut"

    def _check_header(self, header: bytes) -> int:
        self.size = 0
        if not header:
            self.damage = "empty"
        elif len(header) < _FILE_HEADER.size:
            self.damage = "header only"
        elif _FILE_HEADER.unpack(header) != _IDENT:
            self.damage = "foreign"
        return _FILE_HEADER.size

    def _records(self, block: bytes, offset: int) -> Iterator[bytes]:
        while offset + _RECORD_HEADER.size <= len(block):
            checksum, length, kind = _RECORD_HEADER.unpack_from(block, offset)
            offset += _RECORD_HEADER.size
            data = block[offset : offset + length]
            offset += length
            if len(data) < length and len(block) < _BLOCK:
                return self._broken("cut")
            if kind not in _SEEDS or zlib.crc32(data, _SEEDS[kind]) != checksum:
                return self._broken("checksum")
            if kind == _FULL:
                yield data
            elif kind == _FIRST:
                self._parts = [data]
            elif self._parts is not None:
                self._parts.append(data)
                if kind == _LAST:
                    yield b"".join(self._parts)
                    self._parts = None
        if offset < len(block) < _BLOCK:
            return self._broken("cut")
        return None

    def _broken(self, damage: Damage) -> None:
        self.damage = self.damage or damage
        self._parts = None


def read_wandb_file(path: Path) -> WandbFile:
    """Reads a file to its end, whatever state it is in; raises nothing.

    Args:
        path: `run-<id>.wandb`.
    """
    found = WandbFile(path)
    scan = Scan(path)
    for record in records(scan):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found.run_id, found.entity, found.project = run.run_id, run.entity, run.project
                found.started = run.start_time.ToNanoseconds() / 1e9
            case "history":
                found.rows += 1
                found.last_time, found.last_step = row_time(record.history), row_step(record.history)
            case "preempting":
                found.preempting = True
            case "exit":
                found.exit_code = record.exit.exit_code
    found.size, found.damage = scan.size, scan.damage
    if found.damage is None and not found.run_id and found.size <= _FILE_HEADER.size:
        found.damage = "header only"
    return found


def records(scan: Scan) -> Iterator[Any]:
    """The records of a file as W&B's `Record` messages."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    for data in scan:
        record = wandb_internal_pb2.Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            scan.damage = scan.damage or "checksum"
            continue
        yield record


def has_exit(path: Path) -> bool:
    """Tells from the last two blocks of a file whether its run has ended by itself."""
    try:
        last = max(0, path.stat().st_size - 1) // _BLOCK
    except OSError:
        return False
    return any(record.WhichOneof("record_type") == "exit" for record in records(Scan(path, max(0, last - 1))))


def row_time(history: Any) -> float | None:
    """The `_timestamp` of a history record."""
    item = _item(history.item, "_timestamp")
    return None if item is None else float(json.loads(item.value_json))


def row_step(history: Any) -> int:
    """The `_step` of a history record."""
    item = _item(history.item, "_step")
    return int(history.step.num) if item is None else int(json.loads(item.value_json))


def move_step(record: Any, by: int) -> None:
    """Moves the `_step` in a record of a row, or of a summary."""
    if record.WhichOneof("record_type") == "history":
        record.history.step.num = row_step(record.history) + by
        items = record.history.item
    else:
        items = record.summary.update
    if (item := _item(items, "_step")) is not None:
        item.value_json = json.dumps(int(json.loads(item.value_json)) + by)


def write_records(path: Path, given: Iterable[bytes]) -> None:
    """Writes a file of W&B's form.

    Args:
        path: Where to; overwritten.
        given: The records.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    with path.open("wb") as file:
        position = file.write(_FILE_HEADER.pack(*_IDENT))
        for data in given:
            kind, begin = _FULL, 0
            while True:
                left = _BLOCK - position % _BLOCK
                if left < _RECORD_HEADER.size:
                    position += file.write(b"\0" * left)
                    left = _BLOCK
                part = data[begin : begin + left - _RECORD_HEADER.size]
                begin += len(part)
                ends = begin == len(data)
                if not ends:
                    kind = _FIRST if begin == len(part) and kind == _FULL else _MIDDLE
                elif kind != _FULL:
                    kind = _LAST
                position += file.write(_RECORD_HEADER.pack(zlib.crc32(part, _SEEDS[kind]), len(part), kind))
                position += file.write(part)
                if ends:
                    break


def _item(items: Any, name: str) -> Any:
    return next((item for item in items if item.key == name or list(item.nested_key) == [name]), None)
