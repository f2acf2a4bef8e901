"""Uploading what was put aside, while a run is online."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tracking.intents import acknowledge, changed_file, pending_intents, read_intent
from tracking.sync.bounded import Background


class Uploads:
    """The intents of one run on their way to the server. Nothing here waits but `wait`, and nothing here raises."""

    def __init__(self, run: Any, run_dir: Path) -> None:
        self._run = run
        self._run_dir = run_dir
        self._started: dict[Path, Background[Any]] = {}
        self._refused: dict[Path, str] = {}

    def advance(self) -> None:
        """Starts what is new, and acknowledges what the server has committed."""
        for path in pending_intents(self._run_dir):
            if path not in self._started and path not in self._refused:
                self._attempt(path, self._start)
        for path, call in list(self._started.items()):
            if call.is_done():
                del self._started[path]
                self._attempt(path, lambda path, call=call: self._acknowledge(path, call.result()))

    def wait(self, seconds: float) -> None:
        """Advances until nothing is on its way, at most so long; the rest stays put aside."""
        deadline = time.monotonic() + seconds
        self.advance()
        while self._started and time.monotonic() < deadline:
            time.sleep(0.1)
            self.advance()

    def failed(self) -> str | None:
        """What could not be uploaded, or was not in time; None where nothing is left."""
        late = [f"{path.name} is not uploaded yet" for path in self._started]
        return "; ".join([*self._refused.values(), *late]) or None

    def _attempt(self, path: Path, step: Any) -> None:
        try:
            step(path)
        except Exception as error:  # noqa: BLE001 - an artifact that fails must not hold the rows; it stays put aside
            print(f"{path.name} is not uploaded: {error!r}", flush=True)
            self._refused[path] = f"{path.name} is not uploaded: {error}"

    def _start(self, path: Path) -> None:
        import wandb

        intent = read_intent(path)
        if (changed := changed_file(self._run_dir, intent)) is not None:
            print(f"{path.name} is dropped: {changed} is not the file that was to be uploaded", flush=True)
            acknowledge(path, {"dropped": f"{changed} was changed or removed before it could be uploaded"})
            return
        artifact = wandb.Artifact(intent.name, intent.type, metadata=dict(intent.metadata))
        for name, file in intent.files.items():
            # Without these W&B copies every file into the home folder's cache.
            artifact.add_file(str(self._run_dir / file), name=name, policy="immutable", skip_cache=True)
        logged = self._run.log_artifact(artifact, aliases=list(dict.fromkeys(["latest", *intent.aliases])))
        # Waiting with a time limit would make W&B forget the answer.
        self._started[path] = Background(logged.wait)

    @staticmethod
    def _acknowledge(path: Path, artifact: Any) -> None:
        if artifact.state != "COMMITTED":
            raise RuntimeError(f"the server has it as {artifact.state}")
        acknowledge(path, {"version": artifact.version, "artifact": artifact.qualified_name})
