"""W&B's offline folders of scripts that keep no journal: pushed with W&B's own sync, and checked on the server.

```
DIR/wandb/
  offline-run-20260131_120000-ab12cd34/   waits
  pushing/offline-run-…/                  what the server does not have of it, while that is being pushed
  pushed/offline-run-…/                   the server has every row
```
Whole folders that the server has nothing of go to W&B's sync as they are; of every other one it gets a copy
(`rest.py`): of killed and damaged runs, of what an interrupted push has left, of a later segment of the same run. Rows
are told apart by their time stamps, so that no row is pushed again, whoever pushed it before. Segments of one run are
pushed in the order of their beginning, the next one when the server has all of the one before; each brings its own
media and files, and where names agree, the later one holds on the server.

Row n of a folder goes to the same line of the server's history, whoever sends it: a push that is interrupted anywhere
is continued by the next one. Only what begins between the server's answer and the start of the sync can put rows there
twice; who calls this holds a claim on DIR/wandb, and no other push is then beginning.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.sync.plain.rest import There, holds_last, missing_rows, write_rest
from tracking.sync.plain.wandb_file import WandbFile, has_exit, read_wandb_file
from tracking.sync.plain.wandb_sync import Synced, sync_folders
from tracking.sync.probe import probe
from tracking.sync.views.offline import move_folder
from tracking.sync.views.shown_run import ShownRun, open_api, shown_run, what_is_there

_NAME = re.compile(r"run-(.+)\.wandb\Z")
_PROBE_S = 10.0
# How long the server may take to show what it was sent.
_SETTLE_S = 20.0
_WITHOUT_PROJECT = "uncategorized"
_GROWN = "it has grown meanwhile: the rest is pushed next time"

_DAMAGE = {
    "empty": "its .wandb file is empty: the job was killed before W&B wrote anything",
    "header only": "its .wandb file holds nothing but the header: the job was killed before W&B wrote anything",
    "foreign": "its .wandb file is not one of W&B's",
    "cut": "its .wandb file ends in the middle of the run's description",
    "checksum": "its .wandb file is damaged where the run is described",
    "unreadable": "its .wandb file is gone or cannot be read",
    None: "its .wandb file does not say which run it is",
}


@dataclass(frozen=True)
class PlainOutcome:
    """What became of a folder.

    Attributes:
        folder: The folder, where it was.
        run_id: Its run, as far as that is known.
        rows: How many rows it holds.
        confirmed: How many of them the server has.
        pushed: The server has every row, and the folder has moved to `pushed/`.
        reason: Why it was not pushed, in plain words.
        refused: The server does not take this user's key, or not for this run: trying again does not help.
    """

    folder: Path
    run_id: str | None
    rows: int = 0
    confirmed: int = 0
    pushed: bool = False
    reason: str | None = None
    refused: bool = False


@dataclass(frozen=True)
class _Job:
    """A folder on its way.

    Attributes:
        file: What it holds.
        run: `entity/project/run id`.
        closes: No later folder of the run is known: the run's state is this one's.
        source: What W&B's sync is given.
        missing: How many rows that holds.
        lines: How many rows the run must have afterwards.
    """

    file: WandbFile
    run: str
    closes: bool
    source: Path
    missing: int
    lines: int

    @property
    def folder(self) -> Path:
        return self.file.path.parent


def offline_folders(wandb_dir: Path) -> list[Path]:
    """The folders under the documented pattern that hold a `.wandb` file, by name; imports nothing of W&B.

    Args:
        wandb_dir: The folder `wandb` itself.
    """
    return sorted(folder for folder in wandb_dir.glob("offline-run-*") if _file_in(folder) is not None)


def run_id_of(folder: Path) -> str | None:
    """The run's id, from the name of the `.wandb` file; None without one."""
    file = _file_in(folder)
    return file.name.removeprefix("run-").removesuffix(".wandb") if file is not None else None


def is_quiet(folder: Path, seconds: float = 600.0) -> bool:
    """Tells whether nobody writes a folder any more: its run has ended, or its file has not changed for a while.

    Args:
        folder: The offline folder.
        seconds: How long a file that does not end must not have changed. W&B writes every 15 s while a run logs.
    """
    file = _file_in(folder)
    if file is None:
        return False
    with suppress(OSError):
        return time.time() - file.stat().st_mtime >= seconds or has_exit(file)
    return False


def push_folders(
    folders: Sequence[Path], *, timeout_s: float, say: Callable[[str], None] = print
) -> list[PlainOutcome]:
    """Pushes offline folders, all that can go together in one process, and moves those that have arrived.

    Args:
        folders: Folders that nobody writes any more.
        timeout_s: How long one sync process may take.
        say: Gets one line for each folder.

    Returns:
        An outcome for each folder, in the order in which they were settled.
    """
    outcomes: list[PlainOutcome] = []

    def settle(outcome: PlainOutcome) -> None:
        outcomes.append(outcome)
        words = f"{outcome.confirmed} of {outcome.rows} rows on the server"
        say(f"{outcome.folder.name}: {words}{f'; {outcome.reason}' if outcome.reason else ''}")

    files = []
    for folder in folders:
        path = _file_in(folder)
        file = read_wandb_file(path) if path is not None else WandbFile(folder / "run-.wandb", damage="unreadable")
        if file.run_id:
            files.append(file)
        else:
            settle(PlainOutcome(folder, run_id_of(folder), file.rows, reason=_DAMAGE[file.damage]))
    if not files:
        return outcomes
    try:
        api, reason = _api()
    except Exception as error:  # noqa: BLE001 - an outage has many names, and one meaning here
        api, reason = None, f"the server cannot be asked: {_line(error)}"
    if api is None:
        for file in files:
            settle(_outcome(file, reason=reason, refused="API key" in reason))
        return outcomes
    _push(api, _by_run(api, files), timeout_s, settle)
    return outcomes


def _file_in(folder: Path) -> Path | None:
    return min((path for path in folder.glob("run-*.wandb") if _NAME.match(path.name)), default=None)


def _api() -> tuple[Any, str]:
    """W&B's interface to the server, or why there is none."""
    verdict = probe(_PROBE_S)
    return (open_api(), "") if verdict.mode == "online" else (None, verdict.reason)


def _by_run(api: Any, files: Sequence[WandbFile]) -> dict[str, list[WandbFile]]:
    """The files of each run by `entity/project/run id`, in the order in which they began."""
    groups: dict[str, list[WandbFile]] = {}
    for file in sorted(files, key=lambda file: (file.started, file.path.parent.name)):
        run = f"{file.entity or api.default_entity}/{file.project or _WITHOUT_PROJECT}/{file.run_id}"
        groups.setdefault(run, []).append(file)
    return groups


def _push(
    api: Any, groups: dict[str, list[WandbFile]], timeout_s: float, settle: Callable[[PlainOutcome], None]
) -> None:
    """Pushes the first folder of each run together, then the second of each, and so on."""
    while groups:
        fronts = {run: (group[0], len(group) == 1) for run, group in groups.items()}
        for run, outcome in _push_together(api, fronts, timeout_s).items():
            settle(outcome)
            group = groups[run]
            group.pop(0)
            if not outcome.pushed:
                for file in group:
                    settle(_outcome(file, reason=f"it waits for {outcome.folder.name}, which comes before it"))
                group.clear()
        groups = {run: group for run, group in groups.items() if group}


def _push_together(api: Any, fronts: dict[str, tuple[WandbFile, bool]], timeout_s: float) -> dict[str, PlainOutcome]:
    """Pushes one folder of each run in one process, and once more alone what has not arrived."""
    plans = {run: _plan(api, file, run, closes) for run, (file, closes) in fronts.items()}
    jobs = [plan for plan in plans.values() if isinstance(plan, _Job)]
    outcomes = {run: plan for run, plan in plans.items() if isinstance(plan, PlainOutcome)}
    checked = _sync(api, jobs, timeout_s) if jobs else {}
    arrives = any(outcome.pushed for outcome in checked.values())
    for job in jobs:
        if checked[job.run].pushed or checked[job.run].refused:
            continue
        plan = _plan(api, job.file, job.run, job.closes)
        checked[job.run] = _sync(api, [plan], timeout_s)[job.run] if isinstance(plan, _Job) else plan
        arrives = arrives or checked[job.run].pushed
        if not arrives:
            break  # where nothing at all arrives, one more attempt tells as much as one for each
    return outcomes | checked


def _plan(api: Any, file: WandbFile, run: str, closes: bool) -> _Job | PlainOutcome:
    """Decides what is to be sent of a folder."""
    folder = file.path.parent
    try:
        there = shown_run(api, run)
        if file.path.stat().st_size != file.size:
            return _outcome(file, reason=_GROWN)
        run_there = what_is_there(there) if there is not None else There()
        missing = missing_rows(file, run_there)
        ends_it = not run_there.times or holds_last(file.path, run_there)
        if there is not None and missing == 0 and (not closes or not ends_it or _fits(there.state, file)):
            return _arrived(file)
        if there is not None and there.state == "running" and not ends_it and not _is_from_here(folder, run_there):
            return _outcome(file, file.rows - missing, "another process is writing the run: it is pushed after that")
        source = folder
        if there is not None or file.damage is not None or file.exit_code is None:
            source = folder.parent / "pushing" / folder.name
            write_rest(file, run_there, source)
    except Exception as error:  # noqa: BLE001 - an outage has many names, and one meaning here
        return _outcome(file, reason=f"what the server has cannot be told: {_line(error)}")
    return _Job(file, run, closes, source, missing, (there.lines if there is not None else 0) + missing)


def _is_from_here(folder: Path, there: There) -> bool:
    """Whether the last row on the server is of an earlier folder of the run, whose push was interrupted."""
    name = f"run-{run_id_of(folder)}.wandb"
    return any(holds_last(path, there) for path in folder.parent.glob(f"pushed/*/{name}"))


def _sync(api: Any, jobs: Sequence[_Job], timeout_s: float) -> dict[str, PlainOutcome]:
    """Sends folders of different runs in one process, and asks the server afterwards."""
    try:
        synced = sync_folders([job.source for job in jobs], timeout_s)
    except OSError as error:
        synced = Synced(False, says=f"W&B's sync cannot be started: {error}")
    deadline = time.monotonic() + _SETTLE_S
    outcomes = {}
    for job in jobs:
        # What W&B's own log calls refused is not going to arrive.
        outcomes[job.run] = _check(api, job, synced, 0.0 if job.file.run_id in synced.refusals else deadline)
        if job.source != job.folder:
            shutil.rmtree(job.source, ignore_errors=True)
            with suppress(OSError):
                job.source.parent.rmdir()
    return outcomes


def _check(api: Any, job: _Job, synced: Synced, deadline: float) -> PlainOutcome:
    """Asks the server until a folder has arrived or the time is over."""
    while True:
        try:
            there = shown_run(api, job.run)
        except Exception as error:  # noqa: BLE001 - an outage has many names, and one meaning here
            return _outcome(job.file, job.file.rows - job.missing, f"the server cannot be asked: {_line(error)}")
        lacking = min(job.missing, job.lines - there.lines) if there is not None else job.missing
        if there is not None and lacking <= 0 and (not job.closes or _fits(there.state, job.file)):
            return _arrived(job.file)
        if synced.timed_out or time.monotonic() >= deadline:
            break
        time.sleep(0.2)
    status = synced.refusals.get(job.file.run_id, synced.refusals.get("") if there is None else None)
    return _outcome(
        job.file,
        job.file.rows - max(0, lacking),
        _why(there, lacking, synced, status),
        refused=status in (401, 403),
    )


def _why(there: ShownRun | None, lacking: int, synced: Synced, status: int | None) -> str:
    if status is not None:
        return f"the server refused it with status {status}"
    if synced.timed_out:
        return "the server did not take it in time"
    if there is not None and lacking <= 0:
        return f"the server has every row and shows the run as {there.state}"
    return f"it did not arrive; W&B's sync says: {synced.says}"


def _fits(state: str, file: WandbFile) -> bool:
    """Whether the server shows a run as its file ends."""
    return state == "finished" if file.exit_code == 0 else state not in ("running", "pending", "finished")


def _arrived(file: WandbFile) -> PlainOutcome:
    """Moves a folder away of which the server has everything."""
    try:
        if file.path.stat().st_size != file.size:
            return _outcome(file, file.rows, _GROWN)
        move_folder(file.path.parent, file.path.parent.parent / "pushed")
    except FileNotFoundError:
        pass  # another host was faster, and moved it
    except OSError as error:
        return _outcome(file, file.rows, f"the server has every row, but the folder cannot be moved: {error.strerror}")
    return PlainOutcome(file.path.parent, file.run_id, file.rows, file.rows, pushed=True)


def _outcome(file: WandbFile, confirmed: int = 0, reason: str = "", refused: bool = False) -> PlainOutcome:
    return PlainOutcome(file.path.parent, file.run_id, file.rows, confirmed, reason=reason, refused=refused)


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
