"""The replay of a journal into a W&B run, through W&B's public interface.

Row n of the journal is logged as `_step` n and nothing else logs history to the run, so that every replay of a row says
the same thing. `train/step` is in every row and is the axis of every chart.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tracking.identity import Identity
from tracking.journal import Config, End, Event, Metadata, Row, Segment
from tracking.labels import Labels
from tracking.sync.views.client import foreign_settings
from tracking.sync.views.media import shown
from tracking.sync.views.origin import Origin
from tracking.sync.views.run_files import RunFiles

PREEMPTED_EXIT_CODE = 143

_OWN_VALUES = ("_step", "_timestamp", "train/step")

SyncMode = Literal["online", "offline"]


def open_run(
    identity: Identity, labels: Labels, *, mode: SyncMode, directory: Path, origin: Origin | None = None
) -> Any:
    """Opens the W&B run of a journal.

    Args:
        identity: Which run.
        labels: Tags, group, job type and notes.
        mode: `offline` writes a folder that holds the run from row 0; `online` continues what the server has.
        directory: Where W&B makes its `wandb` folder; it must be writable, or W&B would silently use `/tmp`.
        origin: Where the run was made; without it W&B shows this host and this program.

    Returns:
        A `wandb.Run`.

    Raises:
        wandb.Error: The server refused or did not answer.
    """
    import wandb

    origin = origin or Origin()
    settings = foreign_settings(
        git_commit=origin.commit, git_remote_url=origin.remote, host=origin.host, program=origin.program
    )
    run = wandb.init(
        id=identity.run_id,
        name=identity.run_name,
        project=identity.project,
        entity=identity.entity,
        tags=list(labels.tags),
        group=labels.group,
        job_type=labels.job_type,
        notes=labels.notes,
        mode=mode,
        dir=directory,
        # An offline folder begins at row 0: with "allow", a second upload of it would append instead of replace.
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=settings,
    )
    run.define_metric("*", step_metric="train/step")
    return run


def replay(run: Any, run_dir: Path, rows: Iterable[Row], start: int, before: int = 0) -> int:
    """Logs the rows from `start` on.

    Args:
        run: A `wandb.Run`.
        run_dir: Where the files are that rows refer to.
        rows: Rows in the order of their number.
        start: The number of the first row that the run does not have.
        before: How many rows the run has that are not the journal's.

    Returns:
        The number of the first row that the run does not have now.
    """
    for row in rows:
        if row.n >= start:
            # W&B takes the time of a row from the row, so that the wall-clock axis shows when it was trained.
            data = {**shown(run_dir, row), "train/step": row.step, "_timestamp": row.time}
            run.log(data, step=before + row.n, commit=True)
            start = row.n + 1
    return start


def close_run(run: Any, end: End | None) -> None:
    """Ends the W&B run as the segment ended.

    Args:
        run: A `wandb.Run`.
        end: The journal's last word; None means that the process was killed, which counts as crashed.
    """
    if end is None:
        run.finish(exit_code=1)
    elif end.state == "preempted":
        run.mark_preempting()
        run.finish(exit_code=PREEMPTED_EXIT_CODE)
    else:
        run.finish(exit_code=end.exit_code)


class Replay:
    """A W&B run that is being fed from a journal's events.

    Configurations are merged into the run's config. What is known of the first segment's process stands there as
    `metadata`, of later ones under `segments`.

    Attributes:
        run: The `wandb.Run`.
        next_row: The number of the first row that the run does not have.
        files: The console log and the host's description; whoever has the run open says when they are uploaded.
    """

    def __init__(self, run: Any, run_dir: Path, start: int = 0, before: int = 0) -> None:
        self.run = run
        self._before = before
        self.next_row = start
        self.files = RunFiles(run, run_dir)
        self._run_dir = run_dir
        self._segment = 0
        self._segments: dict[str, Any] = {}
        # The last values of what the server has already, as far as nothing newer was logged.
        self._earlier: dict[str, Any] = {}

    def apply(self, events: Iterable[Event]) -> None:
        """Logs rows, and puts configuration and metadata into the run's config."""
        for event in events:
            match event:
                case Row():
                    self._remember(event)
                    self.next_row = replay(self.run, self._run_dir, [event], self.next_row, self._before)
                case Config():
                    self._configure(event.config)
                case Segment():
                    self._segment = event.segment
                case Metadata() if self._segment == 0:
                    self._configure({"metadata": event.metadata})
                case Metadata():
                    self._segments[str(self._segment)] = event.metadata
                    self._configure({"segments": dict(self._segments)})

    def restore_summary(self) -> None:
        """Sets the summary where an upload by hand of an earlier state has put it back."""
        there = self.run.summary
        if stale := {name: value for name, value in self._earlier.items() if there.get(name) != value}:
            there.update(stale)

    def _remember(self, row: Row) -> None:
        if row.n >= self.next_row:
            for name in (*row.data, *_OWN_VALUES):
                self._earlier.pop(name, None)
            return
        values = {name: value for name, value in row.data.items() if isinstance(value, int | float | str)}
        # NaN is not equal to itself and would be set again each time.
        self._earlier |= {name: value for name, value in values.items() if value == value}  # noqa: PLR0124
        self._earlier |= zip(_OWN_VALUES, (self._before + row.n, row.time, row.step), strict=True)

    def _configure(self, config: dict[str, Any]) -> None:
        self.run.config.update(config, allow_val_change=True)
