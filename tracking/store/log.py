"""What happened to one name: numbered records, each written once, by whoever links its number first."""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.exclusive import create_exclusive

Record = Mapping[str, Any]

_NAME = re.compile(r"(\d{6,})\.json")
# How long a network file system may take to show a file whose name it has shown already.
_GAP_S = 5.0


class Log:
    """The records of one name.

    Args:
        folder: Where they are; made by the first record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: list[Record] = []

    def read(self) -> Sequence[Record]:
        """All records so far, in their order; what was read once is not read again.

        Raises:
            UserError: A record is missing or is not one.
        """
        try:
            found = [int(match[1]) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        except FileNotFoundError:
            found = []
        # A listing may be older than what this process knows.
        for number in range(len(self._records), max(found, default=-1) + 1):
            self._records.append(self._wait_for(number))
        return self._records

    def append(self, make: Callable[[Sequence[Record]], Record | None]) -> Record | None:
        """Adds a record behind all others.

        Args:
            make: Gets all records before it and returns the new one, or None where nothing is to be done. It is called
                again when another writer was faster.

        Returns:
            The record, or None.

        Raises:
            UserError: A record cannot be read.
            OSError: The folder cannot be written.
            Exception: Whatever `make` raises.
        """
        # The token tells this writer's record from one that says the same.
        by = {"time": time.time(), "by": f"{_user()}@{os.uname().nodename}", "token": secrets.token_hex(8)}
        while True:
            made = make(self.read())
            if made is None:
                return None
            record = {**made, **by}
            number = len(self._records)
            if self._create(number, (json.dumps(record, indent=2) + "\n").encode()):
                self._records.append(record)
                return record
            self._records.append(self._wait_for(number))

    def _create(self, number: int, content: bytes) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        return create_exclusive(self._path(number), content)

    def _wait_for(self, number: int) -> Record:
        deadline = time.monotonic() + _GAP_S
        while True:
            try:
                record = json.loads(self._path(number).read_bytes())
                if not isinstance(record, dict) or "kind" not in record:
                    raise ValueError("it has no kind")
                return record
            except FileNotFoundError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self._path(number)} is missing, and later records are there: the name cannot be read\n"
                        "  next: bring the file back from a copy (a snapshot of the disk)"
                    ) from error
                time.sleep(0.05)
            except ValueError as error:
                raise UserError(f"{self._path(number)} is not a record of the model store: {error}") from error

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())
