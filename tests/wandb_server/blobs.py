"""Contents that clients upload: run files, manifests and artifact files, one file on disk each."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20


@dataclass(frozen=True)
class Blob:
    """One uploaded content.

    Attributes:
        path: Where the bytes lie.
        size: Length in bytes.
        md5: Base64 of the MD5, as W&B writes digests.
        time: When the upload ended, in seconds since 1970.
    """

    path: Path
    size: int
    md5: str
    time: float


class Blobs:
    """Uploaded contents by key; a second upload to a key replaces the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._blobs: dict[str, Blob] = {}
        self._written = 0

    def put(self, key: str, chunks: Iterator[bytes], now: float) -> Blob:
        """Stores the chunks under the key; the key is not visible before the last chunk is written."""
        with self._lock:
            self._written += 1
            path = self._folder / f"{self._written:06d}"
        digest, size = hashlib.md5(usedforsecurity=False), 0
        with path.open("wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
        blob = Blob(path, size, base64.b64encode(digest.digest()).decode(), now)
        with self._lock:
            replaced = self._blobs.get(key)
            self._blobs[key] = blob
        if replaced:
            replaced.path.unlink()
        return blob

    def get(self, key: str) -> Blob | None:
        """The content under the key, if it was uploaded."""
        return self._blobs.get(key)

    def read(self, key: str) -> bytes:
        """The bytes under the key; KeyError when nothing was uploaded."""
        return self._blobs[key].path.read_bytes()

    def remove(self, key: str) -> None:
        """Forgets the key and deletes its bytes."""
        with self._lock:
            blob = self._blobs.pop(key, None)
        if blob:
            blob.path.unlink()

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with the prefix, in the order of their first upload."""
        with self._lock:
            return [key for key in self._blobs if key.startswith(prefix)]
