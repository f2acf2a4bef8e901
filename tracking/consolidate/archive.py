"""The zip directory of a file that `torch.save` wrote: where each storage's bytes lie.

torch stores without compression, so that the bytes of a tensor are a range of the file.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from tracking.errors import UserError

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_NEXT = "take another checkpoint, or copy the file again from where it was saved"


class Archive:
    """One shard.

    Args:
        path: The file.

    Raises:
        UserError: It is not a whole zip file as torch writes them; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._size = path.stat().st_size
            with zipfile.ZipFile(path) as directory:
                entries = directory.infolist()
        except FileNotFoundError as error:
            raise self.broken("it is missing") from error
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self.broken(f"its zip directory cannot be read ({error})") from error
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) != len(entries):
            raise self.broken("its zip directory names a file twice")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise self.broken(f"{entry.filename} in it is compressed, which torch.save does not do")
            if entry.header_offset + _LOCAL_HEADER.size + entry.file_size > self._size:
                raise self.broken(f"{entry.filename} in it ends behind the end of the file")
        pickles = [name for name in self._entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise self.broken("it holds no data.pkl, so that torch.save did not write it")
        self._root = pickles[0].removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in self._entries and self._read(order) != b"little":
            raise self.broken("it was written by a machine with another byte order")

    def pickle(self) -> bytes:
        """The pickle that names the storages."""
        return self._read(f"{self._root}data.pkl")

    def storage(self, key: str, size: int) -> int:
        """Where the bytes of a storage begin in the file.

        Raises:
            UserError: The storage is missing or has another size.
        """
        name = f"{self._root}data/{key}"
        if name not in self._entries:
            raise self.broken(f"{name} in it is missing")
        if self._entries[name].file_size != size:
            raise self.broken(f"{name} in it has {self._entries[name].file_size} bytes, {size} were saved")
        return self._begin(name)

    def broken(self, fault: str) -> UserError:
        """The error that names this file."""
        return UserError(f"{self.path} is not a whole shard: {fault}\n  next: {_NEXT}")

    def _begin(self, name: str) -> int:
        entry = self._entries[name]
        with self.path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise self.broken(f"{name} in it does not begin where the zip directory says")
        _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        begin: int = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if begin + entry.file_size > self._size:
            raise self.broken(f"{name} in it ends behind the end of the file")
        return begin

    def _read(self, name: str) -> bytes:
        begin = self._begin(name)
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.read(self._entries[name].file_size)
