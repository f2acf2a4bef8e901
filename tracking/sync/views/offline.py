"""W&B's offline folders: one of a run under the documented pattern, whole or absent.

```
DIR/wandb/
  offline-run-20260131_120000-ab12cd34/   the run from row 0: what `wandb sync ./wandb/offline-run-*` uploads
  building/ab12cd34-node1-4711/           a folder that is being written
  superseded/offline-run-…-ab12cd34/      what earlier segments published
  pushed/offline-run-…-ab12cd34/          what the server has had from elsewhere meanwhile
```
A folder is published when it is finished, because W&B keeps up to 32 KiB of a run in memory: one that is cut short
holds less than the run, an empty one makes `wandb sync` give up on every folder of its list, and one that is uploaded
while it grows is marked as uploaded for ever. Two folders of one run would overwrite each other on the server. A file
in the folder, which W&B does not upload, says where the journal is that it was made of.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
from pathlib import Path

from tracking.errors import UserError
from tracking.files import fsync_dir, read_json, write_json
from tracking.identity import Identity
from tracking.journal import End
from tracking.labels import Labels
from tracking.sync.child.status import read_status
from tracking.sync.pushed import Position
from tracking.sync.views.engine import Replay, close_run, open_run
from tracking.sync.views.origin import read_origin
from tracking.sync.views.view import Shown

_ORIGIN = "journal.json"


class OfflineView:
    """A journal in W&B's offline folder, from row 0."""

    url: str | None = None

    def __init__(self, identity: Identity, labels: Labels, run_dir: Path, wandb_dir: Path) -> None:
        """Opens the run in a folder that nobody uploads yet.

        Raises:
            UserError: The folder cannot be written.
        """
        self._identity = identity
        self._run_dir = run_dir
        self._wandb_dir = wandb_dir
        self._building = make_building_folder(wandb_dir, identity.run_id)
        origin = read_origin(run_dir)
        run = open_run(identity, labels, mode="offline", directory=self._building, origin=origin)
        self.replay = Replay(run, run_dir)

    def given(self, seen: Position) -> None:
        """A folder is looked at when it is finished."""

    def check(self) -> None:
        """A folder takes everything."""

    def close(self, end: End | None) -> Shown:
        """Ends the run and publishes its folder."""
        self.replay.files.upload()
        close_run(self.replay.run, end)
        return Shown(folder=publish(self._building, self._wandb_dir, self._identity.run_id, self._run_dir))

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


def publish(building: Path, wandb_dir: Path, run_id: str, run_dir: Path) -> Path:
    """Moves a finished run to where `wandb sync ./wandb/offline-run-*` finds it, and earlier ones of the run away.

    Args:
        building: What `make_building_folder` returned, with the finished run in it.
        wandb_dir: The folder that holds `wandb`.
        run_id: The run.
        run_dir: The run folder.

    Returns:
        The published folder.
    """
    earlier = published(wandb_dir, run_id)
    made = _run_folders(building / "wandb", run_id)[-1]
    write_json(made / _ORIGIN, {"run_dir": str(run_dir)})
    # The new one first: were this the last act, both would be uploaded in order, and the new one holds everything.
    target = move_folder(made, wandb_dir / "wandb")
    supersede(earlier, wandb_dir)
    discard(wandb_dir, run_id)
    return target


def supersede(folders: list[Path], wandb_dir: Path) -> None:
    """Moves folders out of the documented pattern, because something holds all that they hold."""
    for folder in folders:
        move_folder(folder, wandb_dir / "wandb" / "superseded")
    if (wandb_dir / "wandb").exists():
        fsync_dir(wandb_dir / "wandb")


def set_aside(run_dir: Path, run_id: str) -> None:
    """Moves a run's folders out of the documented pattern, because the server has all that they hold.

    Args:
        run_dir: The run folder.
        run_id: The run.
    """
    status = read_status(run_dir)
    # Where the last segment's child has put it, and where W&B's folder is without WANDB_DIR.
    told = Path(status.folder).parent if status is not None and status.folder else run_dir / "wandb"
    for wandb in dict.fromkeys([told, run_dir / "wandb", run_dir.parent.parent / "wandb"]):
        for folder in _run_folders(wandb, run_id):
            move_folder(folder, wandb / "pushed")


def move_folder(folder: Path, to: Path) -> Path:
    """Moves one of W&B's offline folders out of the documented pattern, or into it.

    Args:
        folder: The offline folder.
        to: Where it goes; made where it is not there. A name that is taken gets a number.

    Returns:
        Where the folder is now.

    Raises:
        OSError: A folder cannot be written, or the offline folder is gone.
    """
    to.mkdir(parents=True, exist_ok=True)
    target, number = to / folder.name, 1
    while target.exists():
        target, number = to / f"{folder.name}-{number}", number + 1
    moved = folder.rename(target)
    fsync_dir(folder.parent)
    return moved


def run_dir_of(folder: Path) -> Path | None:
    """The run folder that an offline folder was made of; None where it is anybody's, or where the journal is gone."""
    try:
        origin = read_json(folder / _ORIGIN)
        run_dir = Path(origin["run_dir"]) if origin is not None else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return run_dir if run_dir is not None and (run_dir / "run.json").exists() else None


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
