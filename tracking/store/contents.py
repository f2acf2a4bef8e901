"""What is taken into the store: safetensors, JSON and a model card, and nothing that runs code when it is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.files import fsync_dir, named
from tracking.store.root import Store

PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".th", ".model", ".npy", ".npz"}
_CHUNK = 4 * 2**20
# The safetensors library reads no longer header.
_MAX_HEADER = 100_000_000


def refuse_names(names: Iterable[str], caller: str) -> None:
    """Refuses files by their names, before they are fetched or read.

    Raises:
        UserError: One is not of a kind that is loaded from other people.
    """
    for name in names:
        suffix = Path(name).suffix.lower()
        if suffix in PICKLES:
            raise _pickle(caller, name)
        if suffix not in (".safetensors", ".json", ".md"):
            raise UserError(
                f"{caller}: {name} is neither safetensors, JSON nor a model card (README.md), and others could not "
                "rely on it\n  next: leave it out of the folder"
            )


def check_contents(files: Mapping[str, Path], caller: str) -> None:
    """Refuses files that are not what their names say.

    Raises:
        UserError: Names the file, what is wrong with it and what to do.
    """
    refuse_names(files, caller)
    for name, path in files.items():
        if _is_pickle(path):
            raise _pickle(caller, name)
        fault = None
        if path.suffix.lower() == ".safetensors":
            fault = _safetensors_fault(path)
        elif path.suffix.lower() == ".json":
            try:
                json.loads(path.read_bytes())
            except ValueError as error:
                fault = f"is not JSON: {error}"
        if fault:
            raise UserError(f"{caller}: {name} {fault}\n  next: save it again; a save may have been cut short")


def take(store: Store, files: Mapping[str, Path], folder: Path, caller: str) -> dict[str, dict[str, Any]]:
    """Copies files into a folder of the store; contents that the store has already become links to them.

    Args:
        store: The store.
        files: Where each file is, by its name.
        folder: Where they go; on the store's disk.
        caller: Who asks, for the message.

    Returns:
        Size and digest of each file, by its name.

    Raises:
        UserError: A file was changed meanwhile.
        OSError: The disk is full, or the folder cannot be written.
    """
    taken: dict[str, dict[str, Any]] = {}
    for name in sorted(files):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = file_digest(files[name])
        known = store.object(digest)
        if not _linked(known, target):
            if _copy(files[name], target) != digest:
                raise UserError(
                    f"{caller}: {files[name]} was changed while it was read\n  next: publish it after it was saved"
                )
            known.parent.mkdir(parents=True, exist_ok=True)
            if not _linked(target, known):
                _use_theirs(known, target)
        taken[name] = {"size": target.stat().st_size, "sha256": digest}
        fsync_dir(target.parent)
    return taken


def folder_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One digest of all files: two versions that have the same one are the same."""
    listing = "".join(f"{files[name]['sha256']}  {name}\n" for name in sorted(files))
    return hashlib.sha256(listing.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _linked(source: Path, target: Path) -> bool:
    """Gives a content a second name; False where there is no such content, or the name is taken."""
    try:
        os.link(source, target)
    except (FileNotFoundError, FileExistsError, PermissionError):
        return False  # Linux lets nobody link another user's read-only file: such contents are there once a user
    return True


def _use_theirs(known: Path, target: Path) -> None:
    """Puts the contents that another publication was faster with in the place of one's own."""
    link = target.with_name(f".{target.name}.link")
    if _linked(known, link):
        link.replace(target)


def _copy(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with named(target), source.open("rb") as reader, target.open("xb") as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        # Nobody may write into what others have linked; who may read is the user's umask.
        os.fchmod(writer.fileno(), os.fstat(writer.fileno()).st_mode & 0o444)
        os.fsync(writer.fileno())
    return digest.hexdigest()


def discard(folder: Path) -> None:
    """Removes a folder of links; contents that others link stay."""
    shutil.rmtree(folder, ignore_errors=True)


def _safetensors_fault(path: Path) -> str | None:
    """What is wrong with a safetensors file, by its header; the weights are not read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            return f"is not safetensors: its {size} bytes are fewer than its header needs"
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            return "is not safetensors: its header cannot be read"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"is not whole: it has {size} bytes, its header says {expected}"


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    # Protocols 2 and later begin so; torch.save puts the pickle into a zip archive.
    return (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05") or zipfile.is_zipfile(path)


def _pickle(caller: str, name: str) -> UserError:
    return UserError(
        f"{caller}: {name} is a pickle: whoever loads it runs what its maker put in\n"
        "  next: where it was made, save the weights as safetensors\n"
        "        (safetensors.torch.save_file(model.state_dict(), 'model.safetensors')),\n"
        "        or for a DeepSpeed checkpoint: python -m tracking.consolidate CKPT_DIR OUT"
    )
