"""Whether every version is what was published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tracking.errors import UserError
from tracking.store.contents import file_digest
from tracking.store.root import Store


def verify(store: Store, names: Sequence[str], say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Reads every file of every version and compares it with the digest that was recorded.

    Args:
        store: The store.
        names: The names to look at.
        say: Is told of each version that is whole.

    Returns:
        What is wrong, one line each; each names a file.
    """
    faults: list[str] = []
    read: dict[tuple[int, int], str] = {}
    for name in names:
        try:
            state = store.state(name)
        except UserError as error:
            faults.append(f"{name}: {error}")
            continue
        for version in state.versions.values():
            folder = store.folder(name, version)
            found = [
                f"{name}:v{version.number}: {fault}"
                for file, entry in version.files.items()
                if (fault := _fault(folder / file, entry["size"], entry["sha256"], read))
            ]
            faults += found
            if not found:
                say(f"{name}:v{version.number}: {len(version.files)} files as published")
    return faults


def _fault(path: Path, size: int, digest: str, read: dict[tuple[int, int], str]) -> str | None:
    try:
        status = path.stat()
        if status.st_size != size:
            return f"{path} has {status.st_size} bytes, {size} were published"
        # Versions share contents: each is read once.
        key = (status.st_dev, status.st_ino)
        if key not in read:
            read[key] = file_digest(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return None if read[key] == digest else f"{path} does not have the contents that were published (SHA-256 differs)"
