"""Which folder the model store is, and where things are in it."""

from __future__ import annotations

import errno
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tracking.errors import UserError, unknown
from tracking.exclusive import create_exclusive
from tracking.files import read_json
from tracking.names import check_name
from tracking.store.log import Log
from tracking.store.state import State, Version

VARIABLE = "GILBRETH_STORE"
_DEFAULT = "models"
_MARK = "store.json"
# What a disk answers whoever may only read it: no permission, or mounted so.
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_said: set[Path] = set()


class Absent(UserError):
    """The store has no such name, version or alias; the message says what it has."""


def is_read_only(error: OSError) -> bool:
    """Whether a disk has refused a write because this user may only read there."""
    return error.errno in _READ_ONLY


class Store:
    """A model store.

    Args:
        root: Its folder, which need not exist as long as nothing is published.

    Attributes:
        root: Its folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._logs: dict[str, Log] = {}

    @property
    def exists(self) -> bool:
        """Whether anything can have been published here that this user may look at."""
        return os.access(self.root / _MARK, os.R_OK)

    @property
    def identity(self) -> str:
        """Eight letters and digits that tell this store from others."""
        return str((read_json(self.root / _MARK) or {}).get("id", ""))

    def make(self) -> None:
        """Makes the folder a store, where it is none yet.

        Raises:
            UserError: The folder holds something else, or cannot be written.
        """
        if self.exists:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if others := self.strangers():
                raise UserError(
                    f"{self.root} is no model store: it holds {', '.join(others[:3])}{' …' if others[3:] else ''}\n"
                    f"  next: name another folder with --store FOLDER or {VARIABLE}=FOLDER"
                )
            mark = {"format": 1, "id": secrets.token_hex(4), "created": time.time()}
            create_exclusive(self.root / _MARK, (json.dumps(mark, indent=2) + "\n").encode())
        except OSError as error:
            raise UserError(
                f"the model store cannot be made in {self.root}: {error.strerror}\n"
                f"  next: name a folder of yours with --store FOLDER or {VARIABLE}=FOLDER"
            ) from error

    def strangers(self) -> list[str]:
        """What is in the folder where it is no store; nothing in one that may become a store."""
        found = self.root.iterdir() if self.root.is_dir() else []
        names = sorted(path.name for path in found if not path.name.startswith("."))
        return [] if _MARK in names else names

    def names(self) -> list[str]:
        """The names that something was published under."""
        folder = self.root / "names"
        return sorted(path.name for path in folder.iterdir() if (path / "log").is_dir()) if folder.is_dir() else []

    def log(self, name: str) -> Log:
        """The records of a name.

        Raises:
            UserError: It cannot be a name.
        """
        if name not in self._logs:
            self._logs[name] = Log(self.root / "names" / check_name("model", name) / "log")
        return self._logs[name]

    def state(self, name: str) -> State:
        """What is there under a name; nothing for a name that nobody has used."""
        return State.of(self.log(name).read())

    def known(self, name: str) -> State:
        """What is there under a name.

        Raises:
            Absent: There is no such name, or no store.
        """
        if not self.exists:
            raise Absent(
                f"there is no model store in {self.root}\n"
                f"  next: name its folder with --store FOLDER or {VARIABLE}=FOLDER; publishing a model makes one"
            )
        state = self.state(name)
        if not state.next_number:
            raise Absent(str(unknown("model", name, self.names())))
        return state

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Goes on without a record that the disk does not take, as in a store of others, which is said once.

        Args:
            what: What is then not recorded.
        """
        try:
            yield
        except OSError as error:
            if self.root not in _said:
                _said.add(self.root)
                why = "may only be read here" if is_read_only(error) else f"cannot be written ({error.strerror})"
                print(f"note: the model store {self.root} {why}: {what} is not recorded there", file=sys.stderr)

    def folder(self, name: str, version: Version) -> Path:
        """The files of a version."""
        return self.root / "names" / name / "files" / version.folder

    def card(self, name: str, version: Version) -> Path:
        """The model card of a version."""
        return self.root / "names" / name / "cards" / f"{version.folder}.md"

    def object(self, digest: str) -> Path:
        """The content that has a digest."""
        return self.root / "objects" / digest[:2] / digest

    def incoming(self) -> Path:
        """A new folder for what is not published yet."""
        folder = self.root / "incoming" / f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        return folder


def open_store(root: Path | str | None = None, environ: Mapping[str, str] = os.environ) -> Store:
    """The store in the given folder, else in `GILBRETH_STORE`, else in `./models`, as runs are in `./runs`."""
    folder = Path(root or environ.get(VARIABLE) or _DEFAULT).expanduser().absolute()
    return Store(folder)
