"""W&B's offline folders: one of a run under the documented pattern, whole or absent.

```
DIR/wandb/
  offline-run-20260131_120000-ab12cd34/   the run from row 0: what `wandb sync ./wandb/offline-run-*` uploads
  building/ab12cd34-node1-4711/           a folder that is being written
  superseded/offline-run-…-ab12cd34/      what earlier segments published
```
A folder is published when it is finished, because W&B keeps up to 32 KiB of a run in memory: one that is cut short
holds less than the run, an empty one makes `wandb sync` give up on every folder of its list, and one that is uploaded
while it grows is marked as uploaded for ever. Two folders of one run would overwrite each other on the server.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
from pathlib import Path

from tracking.errors import UserError
from tracking.files import fsync_dir
from tracking.identity import Identity
from tracking.journal import End
from tracking.labels import Labels
from tracking.sync.engine import Replay, close_run, open_run
from tracking.sync.view import Shown


class OfflineView:
    """A journal in W&B's offline folder, from row 0."""

    url: str | None = None

    def __init__(self, identity: Identity, labels: Labels, run_dir: Path, wandb_dir: Path) -> None:
        """Opens the run in a folder that nobody uploads yet.

        Raises:
            UserError: The folder cannot be written.
        """
        self._identity = identity
        self._wandb_dir = wandb_dir
        self._building = make_building_folder(wandb_dir, identity.run_id)
        self.replay = Replay(open_run(identity, labels, mode="offline", directory=self._building), run_dir)

    def check(self) -> None:
        """A folder takes everything."""

    def close(self, end: End | None) -> Shown:
        """Ends the run and publishes its folder."""
        close_run(self.replay.run, end)
        return Shown(folder=publish(self._building, self._wandb_dir, self._identity.run_id))

    def abandon(self) -> None:
        """Removes the folder: the successor writes all of it."""
        shutil.rmtree(self._building, ignore_errors=True)


def make_building_folder(wandb_dir: Path, run_id: str) -> Path:
    """Makes an empty folder in which this process writes the run.

    Args:
        wandb_dir: The folder that holds `wandb`.
        run_id: The run.

    Raises:
        UserError: The folder cannot be written.
    """
    folder = _building(wandb_dir) / f"{run_id}-{socket.gethostname()}-{os.getpid()}"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"W&B's folder cannot be written: {folder}: {error.strerror}\n  next: set WANDB_DIR to a folder of yours"
        ) from error
    return folder


def publish(building: Path, wandb_dir: Path, run_id: str) -> Path:
    """Moves a finished run to where `wandb sync ./wandb/offline-run-*` finds it, and earlier ones of the run away.

    Args:
        building: What `make_building_folder` returned, with the finished run in it.
        wandb_dir: The folder that holds `wandb`.
        run_id: The run.

    Returns:
        The published folder.
    """
    earlier = published(wandb_dir, run_id)
    made = _run_folders(building / "wandb", run_id)[-1]
    # The new one first: were this the last act, both would be uploaded in order, and the new one holds everything.
    target = _move(made, wandb_dir / "wandb")
    supersede(earlier, wandb_dir)
    discard(wandb_dir, run_id)
    return target


def supersede(folders: list[Path], wandb_dir: Path) -> None:
    """Moves folders out of the documented pattern, because something holds all that they hold."""
    for folder in folders:
        _move(folder, wandb_dir / "wandb" / "superseded")
    if (wandb_dir / "wandb").exists():
        fsync_dir(wandb_dir / "wandb")


def published(wandb_dir: Path, run_id: str) -> list[Path]:
    """The folders of a run that stand under the documented pattern, oldest first."""
    return _run_folders(wandb_dir / "wandb", run_id)


def discard(wandb_dir: Path, run_id: str) -> None:
    """Removes what processes of this run, dead ones too, were building: the journal holds all of it."""
    for folder in _building(wandb_dir).glob(f"{run_id}-*"):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        _building(wandb_dir).rmdir()
    except OSError:
        return  # another run is being built there


def sync_command(wandb_dir: Path, run_id: str) -> str:
    """The command that uploads the run, ready to be pasted into a shell."""
    folder = "./wandb" if wandb_dir.resolve() == Path.cwd() else shlex.quote(str(wandb_dir / "wandb"))
    return f"wandb sync {folder}/offline-run-*-{run_id}*"


def _building(wandb_dir: Path) -> Path:
    return wandb_dir / "wandb" / "building"


def _run_folders(folder: Path, run_id: str) -> list[Path]:
    return sorted(file.parent for file in folder.glob(f"offline-run-*/run-{run_id}.wandb"))


def _move(folder: Path, to: Path) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    target, number = to / folder.name, 1
    while target.exists():
        target, number = to / f"{folder.name}-{number}", number + 1
    return folder.rename(target)
