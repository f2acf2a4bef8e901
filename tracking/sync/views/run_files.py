"""The files of a W&B run that its pages read beside the rows: the console log, and what is known of the host."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracking.console import LOG_NAME
from tracking.errors import UserError
from tracking.files import write_atomic
from tracking.sync.views.origin import read_origin

_OVERVIEW_NAME = "wandb-metadata.json"

# The whole log goes up each time: once a minute, and a long log less often.
_PAUSE_S = 60.0
_BYTES_PER_S = 100_000


class RunFiles:
    """The files of one run. What cannot be read or copied now is said, and tried the next time.

    They are copied into W&B's own folder of the run. Its links to the run folder would lead nowhere when an offline
    folder is uploaded from somewhere else.
    """

    def __init__(self, run: Any, run_dir: Path) -> None:
        self._run = run
        self._run_dir = run_dir
        self._sent: dict[str, object] = {}
        self._due = 0.0

    def advance(self) -> None:
        """Uploads what has changed, now and then."""
        if time.monotonic() >= self._due:
            size = self.upload()
            self._due = time.monotonic() + max(_PAUSE_S, size / _BYTES_PER_S)

    def upload(self) -> int:
        """Uploads what has changed, now.

        Returns:
            The size of the console log in bytes.
        """
        try:
            overview = json.dumps(dict(read_origin(self._run_dir).overview), indent=2) + "\n"
            self._send(_OVERVIEW_NAME, overview, lambda path: write_atomic(path, overview, durable=False))
            return self._send_log()
        except (OSError, UserError) as error:
            print(f"{self._run_dir.name}: the console log is not uploaded now: {error}", flush=True)
            return 0

    def _send_log(self) -> int:
        source = self._run_dir / LOG_NAME
        try:
            status = source.stat()
        except FileNotFoundError:
            return 0
        self._send(LOG_NAME, (status.st_size, status.st_mtime_ns), lambda path: _copy(source, path))
        return status.st_size

    def _send(self, name: str, version: object, write: Callable[[Path], None]) -> None:
        if self._sent.get(name) == version:
            return
        target = Path(self._run.dir) / name
        write(target)
        self._run.save(str(target), base_path=self._run.dir, policy="now")
        self._sent[name] = version


def _copy(source: Path, target: Path) -> None:
    # W&B may be reading the copy that stands there.
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)
