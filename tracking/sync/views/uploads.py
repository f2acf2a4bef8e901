"""Uploading what was put aside, while a run is online; consolidating first what is to be consolidated."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.consolidate import Consolidated, consolidate
from tracking.consolidate.writing import MODEL
from tracking.intents import Intent, pending_intents, read_intent
from tracking.sync.bounded import Background
from tracking.sync.views.client import confirm, drop_changed, log_files


class Uploads:
    """The intents of one run on their way to the server. Nothing here waits but `wait`, and nothing here raises."""

    def __init__(self, run: Any, run_dir: Path) -> None:
        self._run = run
        self._run_dir = run_dir
        self._made: dict[Path, Background[Consolidated | None]] = {}
        self._started: dict[Path, Background[Any]] = {}
        self._refused: dict[Path, str] = {}

    def advance(self) -> None:
        """Starts what is new, and acknowledges what the server has committed."""
        for path in pending_intents(self._run_dir):
            if path not in self._made and path not in self._started and path not in self._refused:
                self._attempt(path, self._start)
        for path, call in list(self._made.items()):
            if call.is_done():
                del self._made[path]
                self._attempt(path, lambda path, call=call: self._upload_weights(path, call))
        for path, call in list(self._started.items()):
            if call.is_done():
                del self._started[path]
                self._attempt(path, lambda path, call=call: self._acknowledge(path, call.result()))

    def wait(self, seconds: float) -> None:
        """Advances until nothing is on its way, at most so long; the rest stays put aside."""
        deadline = time.monotonic() + seconds
        self.advance()
        while (self._made or self._started) and time.monotonic() < deadline:
            time.sleep(0.1)
            self.advance()

    def failed(self) -> str | None:
        """What could not be uploaded, or was not in time; None where nothing is left."""
        late = [f"{path.name} is not uploaded yet" for path in (*self._made, *self._started)]
        return "; ".join([*self._refused.values(), *late]) or None

    def _attempt(self, path: Path, step: Any) -> None:
        try:
            step(path)
        except Exception as error:  # noqa: BLE001 - an artifact that fails must not hold the rows; it stays put aside
            print(f"{path.name} is not uploaded: {error!r}", flush=True)
            self._refused[path] = f"{path.name} is not uploaded: {error}"

    def _start(self, path: Path) -> None:
        intent = read_intent(path)
        if self._is_dropped(path, intent):
            return
        if intent.consolidate is None:
            self._upload(path, intent, {name: self._run_dir / file for name, file in intent.files.items()})
        elif not self._made:  # one at a time: it is the disk that they wait for
            checkpoint, weights = self._run_dir / intent.consolidate, self._scratch(path) / MODEL
            # What was made and not uploaded in time is uploaded by the next one.
            self._made[path] = Background(lambda: None if weights.exists() else consolidate(checkpoint, weights))

    def _upload_weights(self, path: Path, call: Background[Consolidated | None]) -> None:
        if (done := call.result()) is not None:
            print(f"{path.name}: {done.bytes} bytes consolidated in {done.seconds:.1f} s", flush=True)
        intent = read_intent(path)
        if not self._is_dropped(path, intent):
            self._upload(path, intent, {MODEL: self._scratch(path) / MODEL})

    def _is_dropped(self, path: Path, intent: Intent) -> bool:
        if (changed := drop_changed(self._run_dir, path, intent)) is None:
            return False
        print(f"{path.name} is dropped: {changed} is not the file that was to be uploaded", flush=True)
        shutil.rmtree(self._scratch(path), ignore_errors=True)
        return True

    def _upload(self, path: Path, intent: Intent, files: Mapping[str, Path]) -> None:
        # Waiting with a time limit would make W&B forget the answer.
        self._started[path] = Background(log_files(self._run, intent, files).wait)

    def _acknowledge(self, path: Path, artifact: Any) -> None:
        confirm(path, artifact)
        shutil.rmtree(self._scratch(path), ignore_errors=True)

    def _scratch(self, path: Path) -> Path:
        """Where the weights of a checkpoint lie until they are uploaded; the home folder may be small."""
        return self._run_dir / "artifacts" / "consolidated" / path.stem
