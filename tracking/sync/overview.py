"""`status`: how far each run is, read from the run folders alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tracking.errors import UserError
from tracking.intents import pending_intents
from tracking.journal.lines import Row, Segment, parse, segment_path
from tracking.journal.tail import backwards
from tracking.store.pending import is_missing, needs_push
from tracking.store.root import Store
from tracking.sync.claims import Holder, Observer
from tracking.sync.daemon import DaemonState, read_daemons
from tracking.sync.plain.push import plain_folders, plain_state_folder
from tracking.sync.pushed import PushState, journal_position, read_push_state
from tracking.sync.scan import WANDB, find, is_store
from tracking.words import duration


@dataclass(frozen=True)
class Line:
    """One run, or one model store, in the table.

    Attributes:
        path: The run folder, W&B's offline folder, or the store.
        rows: How many rows the journal has; of an offline folder, as far as that was read; of a store, the versions.
        on_server: How many of them the server said it has.
        lag: For how many seconds the oldest row that the server lacks has been waiting; None where that is not known.
        waiting: How many uploads wait.
        state: What is being done, or how the run ended.
        by: Who pushes it now.
        error: The last fault in one line.
        next_try: When it is tried again, seconds since the epoch.
        url: The run's page.
    """

    path: Path
    rows: int | None
    on_server: int
    lag: float | None
    waiting: int
    state: str
    by: str | None
    error: str | None
    next_try: float | None
    url: str | None


def show_status(roots: Sequence[Path], *, as_json: bool) -> int:
    """Prints the table; returns the exit code.

    Args:
        roots: Existing folders.
        as_json: Print JSON.
    """
    now = time.time()
    lines = [line for path in find(roots) for line in _lines(path, now)]
    daemons = [state for root in roots for state in read_daemons(root)]
    if as_json:
        runs = [{**asdict(line), "path": str(line.path)} for line in lines]
        print(json.dumps({"runs": runs, "daemons": [asdict(state) for state in daemons]}, indent=2))
        return 0
    for state in daemons:
        print(_daemon_words(state, now))
    if not daemons:
        print("No daemon has looked after this root; `python -m tracking.sync` starts one.")
    if not lines:
        print(f"No run in {', '.join(map(str, roots))}.")
        return 0
    _print_table(lines, now)
    return 0


def _lines(path: Path, now: float) -> Iterator[Line]:
    observer = Observer()
    if is_store(path):
        yield _store_line(path, observer.holder(path))
        return
    if path.name != WANDB:
        holder = observer.holder(path)
        yield _run_line(path, str(holder) if holder is not None else None, now)
        return
    for folder in plain_folders(path):
        state = read_push_state(plain_state_folder(folder)) or PushState()
        rows = state.rows if state.failures else None
        yield Line(folder, rows, state.confirmed or 0, None, 0, "offline", None, state.error, state.next_try, None)


def _run_line(run_dir: Path, holder: str | None, now: float) -> Line:
    state = read_push_state(run_dir) or PushState()
    try:
        rows, error = count_rows(run_dir), state.error
    except UserError as fault:
        rows, error = 0, str(fault).splitlines()[0]
    confirmed = state.confirmed or 0
    word = state.closed or (f"{state.phase}" if holder is not None else "waiting")
    if state.closed is not None and state.seen != journal_position(run_dir):
        word = "waiting"
    lag = 0.0 if confirmed >= rows else _age(run_dir, confirmed, now)
    return Line(
        path=run_dir,
        rows=rows,
        on_server=confirmed,
        lag=lag,
        waiting=len(pending_intents(run_dir)),
        state="live" if word == "pushing" else word,
        by=holder,
        error=error,
        next_try=state.next_try,
        url=state.url,
    )


def _store_line(root: Path, holder: Holder | None) -> Line:
    store, state = Store(root), read_push_state(root) or PushState()
    wanted, there, error = 0, 0, state.error
    try:
        for name in store.names():
            known = store.state(name)
            targets = [version for version in known.versions.values() if version.target is not None]
            wanted += len(targets)
            there += sum(not is_missing(known, version) for version in targets)
        word = "models, waiting" if needs_push(store) or there < wanted else "models"
    except (UserError, OSError) as fault:
        word, error = "models", str(fault).splitlines()[0]
    by = str(holder) if holder is not None else None
    lag = 0.0 if there == wanted else None
    return Line(root, wanted, there, lag, wanted - there, word, by, error, state.next_try, None)


def count_rows(run_dir: Path) -> int:
    """How many rows a journal has, from the end of its newest file.

    Args:
        run_dir: The run folder.

    Raises:
        UserError: The newest file is no part of a journal.
    """
    position = journal_position(run_dir)
    if position is None:
        return 0
    path = segment_path(run_dir, position.segment)
    for event in backwards(path):
        if isinstance(event, Row):
            return event.n + 1
        if isinstance(event, Segment):
            return event.first_row
    raise UserError(f"{path} does not begin with a segment line\n  next: move it out of the run folder")


def _age(run_dir: Path, number: int, now: float) -> float | None:
    """How long ago a row was logged."""
    position = journal_position(run_dir)
    for segment in range(position.segment if position is not None else -1, -1, -1):
        try:
            with segment_path(run_dir, segment).open("rb") as file:
                header = _parsed(file.readline().rstrip(b"\n"))
                if not isinstance(header, Segment) or header.first_row > number:
                    continue
                for line in file:
                    if isinstance(row := _parsed(line), Row) and row.n >= number:
                        return max(0.0, now - row.time)
        except OSError:
            return None
    return None


def _parsed(line: bytes) -> object:
    try:
        return parse(line)
    except ValueError:
        return None


def _print_table(lines: Sequence[Line], now: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    # Of what may wrap, rich makes the columns narrower first; the names in it do not.
    table.add_column("run", ratio=1)
    for name in ("rows", "on server", "lag", "uploads"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for line in lines:
        rows = "?" if line.rows is None else str(line.rows)
        lag = "?" if line.lag is None else duration(line.lag)
        # Text, because a run's name may hold what rich takes for markup.
        run = Text(line.path.name, no_wrap=True, overflow="ellipsis")
        table.add_row(run, rows, str(line.on_server), lag, str(line.waiting or "-"), line.state)
    console = Console(highlight=False, markup=False)
    console.print(table)
    for line in lines:
        if line.error:
            pause = (line.next_try or 0.0) - now
            again = f"; next try in {duration(pause)}" if pause > 0 else ""
            console.print(f"{line.path.name}: {line.error}{again}", soft_wrap=True)


def _daemon_words(state: DaemonState, now: float) -> str:
    if state.ended is not None:
        return f"The daemon on {state.host} has ended: {state.ended}."
    silent = now - max(state.looked, state.started)
    if silent > 3 * state.interval + 60:
        return f"The daemon on {state.host} (process {state.pid}) has not been seen for {duration(silent)}."
    words = f"A daemon looks every {state.interval:g} s on {state.host} (process {state.pid})."
    if state.error:
        again = max(0.0, (state.next_try or now) - now)
        words += f" {state.error}; next try in {duration(again)}."
    return words
