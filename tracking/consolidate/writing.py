"""Writes tensors as safetensors, one chunk at a time, whole or not at all."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from tracking.consolidate.dtypes import SIZES
from tracking.consolidate.plan import Entry
from tracking.errors import UserError
from tracking.files import beside, fsync_dir, write_json

MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.IGNORECASE)

Chunks = Callable[[Entry], Iterable[bytes | memoryview]]


class Progress(Protocol):
    """What is told how many bytes have been written."""

    def __call__(self, written: int) -> None:
        """Adds bytes."""


def parse_size(text: str) -> int:
    """Reads a size such as `5GB`, `500 MB`, `2GiB` or a number of bytes.

    Raises:
        UserError: It is not one.
    """
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if size < 1:
        raise UserError(f"size {text!r} is none; expected a number with a unit\n  try: 5GB, 500MB or 2GiB")
    return size


def files_of(entries: Sequence[Entry], out: Path, max_shard_size: int | None) -> dict[Path, list[Entry]]:
    """Shares tensors out over files.

    Args:
        entries: The tensors, in their order.
        out: A name in `.safetensors` is one file; anything else is a folder.
        max_shard_size: Bytes of tensors a file; a larger tensor has a file of its own. None for one file.

    Raises:
        UserError: One file was asked for and the size asks for several, or other weights are in the folder.
    """
    shards = _split(entries, max_shard_size)
    if out.suffix == ".safetensors":
        if len(shards) > 1:
            raise UserError(
                f"{out} is one file, and the size asks for {len(shards)} of them\n  next: name a folder, or leave out"
                " --max-shard-size"
            )
        return {out: shards[0]}
    count = len(shards)
    names = [MODEL] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    _refuse_mixture(out, names)
    return {out / name: shard for name, shard in zip(names, shards, strict=True)}


def _split(entries: Sequence[Entry], limit: int | None) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if limit is not None and shards[-1] and size + entry.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    # The wider types first, so that every tensor begins at a multiple of its element's size.
    return [sorted(shard, key=lambda entry: -SIZES[entry.dtype]) for shard in shards]


def _refuse_mixture(folder: Path, names: Sequence[str]) -> None:
    """Weights of another model beside these would be loaded in their place, or with them."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; expected a folder or a name in .safetensors\n  next: name another one")
    there = {path.name for path in folder.iterdir() if path.name in (MODEL, INDEX) or _SHARD.fullmatch(path.name)}
    # Without the index, shards are what a killed process left.
    if other := sorted(there - set(names) if INDEX not in there else there):
        raise UserError(
            f"{folder} holds weights already: {', '.join(other)}\n  next: name another folder, or remove them first"
        )


def write_model(
    files: Mapping[Path, Sequence[Entry]], tied: Mapping[str, str], chunks: Chunks, progress: Progress
) -> None:
    """Writes all files under temporary names, renames them when all are on the disk, and writes the index last.

    Args:
        files: The tensors of each file.
        tied: Names of one tensor; recorded as safetensors' own `load_model` expects them.
        chunks: The bytes of a tensor.
        progress: Is told how many bytes have been written.

    Raises:
        UserError: A file cannot be written; no new file is left.
    """
    folder = next(iter(files)).parent
    with _named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
    _require_space(folder, sum(entry.nbytes for entries in files.values() for entry in entries))
    temporaries = {path: _temporary(path) for path in files}
    try:
        for path, entries in files.items():
            with _named(path):
                _write_file(temporaries[path], entries, _metadata(entries, tied), chunks, progress)
        for path, temporary in temporaries.items():
            with _named(path):
                temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
    fsync_dir(folder)
    if len(files) > 1:
        write_json(folder / INDEX, _index(files, tied))


def _temporary(path: Path) -> Path:
    return beside(path, f"{os.uname().nodename}.{os.getpid()}.part")


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes of this host left; another host's may be alive."""
    for path in folder.glob(f".*.safetensors.*.{os.uname().nodename}.*.part"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)


def _require_space(folder: Path, needed: int) -> None:
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise UserError(f"{folder} has {free} bytes free, {needed} are needed\n  next: make room, or name another disk")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}. Nothing of it is left"
            "\n  next: make room, or name another disk"
        ) from error


def _metadata(entries: Sequence[Entry], tied: Mapping[str, str]) -> dict[str, str]:
    names = {entry.name for entry in entries}
    return {"format": "pt"} | {name: kept for name, kept in tied.items() if kept in names and name != "format"}


def _write_file(
    path: Path, entries: Sequence[Entry], metadata: Mapping[str, str], chunks: Chunks, progress: Progress
) -> None:
    header = _header(entries, metadata)
    size = len(header) + sum(entry.nbytes for entry in entries)
    with path.open("wb", buffering=0) as file:
        file.truncate(size)
        _write_all(file, header)
        for entry in entries:
            written = 0
            for chunk in chunks(entry):
                _write_all(file, chunk)
                written += len(chunk)
                progress(len(chunk))
            if written != entry.nbytes:
                raise ValueError(f"{entry.name!r} has {written} bytes, {entry.nbytes} were expected")
        os.fsync(file.fileno())


def _header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    position = 0
    for entry in entries:
        end = position + entry.nbytes
        table[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _index(files: Mapping[Path, Sequence[Entry]], tied: Mapping[str, str]) -> dict[str, object]:
    size = sum(entry.nbytes for entries in files.values() for entry in entries)
    return {
        "metadata": {"total_size": size, "tied": dict(tied)},
        "weight_map": {entry.name: path.name for path, entries in files.items() for entry in entries},
    }
