"""W&B's own offline folders of scripts without a journal, on their way to the server."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tracking.sync.claims import Claim
from tracking.sync.plain.folders import PlainOutcome, is_quiet, offline_folders, push_folders
from tracking.sync.push import Tools, Visit, held
from tracking.sync.pushed import PushState, read_push_state, write_push_state
from tracking.sync.views.offline import run_dir_of

# One sync process takes a third of a second a folder; what it uploads takes as long as a slow line needs.
_SYNC_S = 120.0
_BYTES_PER_S = 1e6
_GROWING_S = 60.0


def plain_folders(wandb_dir: Path) -> list[Path]:
    """The offline folders that belong to no journal.

    Args:
        wandb_dir: The folder `wandb` itself.
    """
    return [folder for folder in offline_folders(wandb_dir) if run_dir_of(folder) is None]


def plain_state_folder(folder: Path) -> Path:
    """Where the state of one of W&B's offline folders is kept."""
    return folder.parent / ".sync" / folder.name


class PlainPush:
    """The offline folders in one `wandb` folder.

    Attributes:
        path: The `wandb` folder.
        bytes_read: Nothing: there is no journal.
    """

    bytes_read = 0

    def __init__(self, path: Path, tools: Tools, only: Path | None = None) -> None:
        """Looks at nothing yet.

        Args:
            path: The `wandb` folder.
            tools: What all pushes of the process share.
            only: The folder that is wanted; None for all that nobody writes any more.
        """
        self.path = path
        self._tools = tools
        self._only = only

    def visit(self) -> Visit:
        """Pushes all of them.

        Raises:
            OSError: The disk.
            PlainError: Some could not be pushed; the message says which and why.
        """
        (self.path / ".sync").mkdir(exist_ok=True)
        claim = Claim.take(self.path / ".sync", self._tools.holder.role, self._tools.observer)
        if claim is None:
            return held(self.path / ".sync", self._tools.observer)
        self._tools.heart.keep(claim)
        try:
            folders = [self._only] if self._only else plain_folders(self.path)
            quiet = [folder for folder in folders if self._only or is_quiet(folder)]
            size = sum(file.stat().st_size for folder in quiet for file in folder.rglob("*") if file.is_file())
            timeout = _SYNC_S + size / _BYTES_PER_S
            outcomes = push_folders(quiet, timeout_s=timeout, say=self._tools.say) if quiet else []
            failed = [outcome for outcome in outcomes if not outcome.pushed]
            for outcome in outcomes:
                self._note(outcome)
            for folder in set(folders) - set(quiet):
                _look_again(folder)
        finally:
            self._tools.heart.release(claim)
        if failed:
            raise PlainError("; ".join(f"{outcome.folder.name}: {outcome.reason}" for outcome in failed))
        return Visit("done" if len(quiet) == len(folders) else "later")

    def fail(self, error: str) -> PushState:
        """Every folder has a state of its own; this one is for the caller alone."""
        return PushState().failed(error)

    @staticmethod
    def _note(outcome: PlainOutcome) -> None:
        folder = plain_state_folder(outcome.folder)
        if outcome.pushed:
            with suppress(OSError):
                (folder / "push.json").unlink(missing_ok=True)
                folder.rmdir()
            return
        folder.mkdir(exist_ok=True)
        state = read_push_state(folder) or PushState()
        state = replace(state, rows=outcome.rows, confirmed=outcome.confirmed)
        write_push_state(folder, state.failed(outcome.reason or "not pushed"))


def _look_again(folder: Path) -> None:
    plain_state_folder(folder).mkdir(exist_ok=True)
    state = PushState(error="it may still be written", next_try=time.time() + _GROWING_S)
    write_push_state(plain_state_folder(folder), state)


class PlainError(Exception):
    """Some of W&B's own folders could not be pushed."""
