"""Files on a shared disk: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def fsync_dir(folder: Path) -> None:
    """Makes the names in a folder durable (a rename is safe only once its folder is synced)."""
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def fsync_file(path: Path) -> None:
    """Makes the contents of a file durable, whoever wrote it; an error names it."""
    _fsync(path, os.O_RDONLY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Has an error in the block that names no file, as that of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def beside(path: Path, suffix: str) -> Path:
    """A hidden name in the same folder that no other writer has; threads and containers may share host and pid."""
    return path.with_name(f".{path.name}.{os.urandom(8).hex()}.{suffix}")


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Writes a file by a temporary name in the same folder, fsync and rename.

    Args:
        path: Where the file ends up; its folder must exist.
        content: Text (written as UTF-8) or bytes.
        durable: False spares the syncing, for what is written often and may be lost, or empty, after a power cut.

    Raises:
        OSError: The disk is full, the quota is exceeded or the folder is read-only; the old file still stands.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = beside(path, "tmp")
    try:
        with named(path), temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        fsync_dir(path.parent)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Writes a value as indented JSON, atomically; `durable` as in `write_atomic`."""
    write_atomic(path, json.dumps(value, indent=2) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """Reads a JSON file, or returns None where there is none.

    Raises:
        ValueError: The file is there and is not JSON; the message names it.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
