"""`verify`: every row of a journal against what W&B's server holds."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.identity import read_identity, rows_before
from tracking.journal import Row, read_journal
from tracking.sync.probe import probe
from tracking.sync.scan import WANDB, find, is_store
from tracking.sync.services import forget_foreign_settings
from tracking.sync.views.shown_run import open_api, shown_run

_PROBE_S = 10.0
_PAGE_ROWS = 1000
_SHOWN = 3


@dataclass(frozen=True)
class Comparison:
    """A run's rows, here and there.

    Attributes:
        path: The run folder.
        rows: How many rows the journal has.
        on_server: How many rows the server has.
        missing: Numbers of rows that the server lacks.
        twice: Numbers of rows that it has more than once.
        different: What differs, one sentence a row.
        extra: Numbers of rows that the journal does not have.
    """

    path: Path
    rows: int
    on_server: int
    missing: list[int] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    extra: list[int] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        """Whether the server holds exactly the journal."""
        return not (self.missing or self.twice or self.different or self.extra)


def verify(paths: Sequence[Path], *, as_json: bool) -> int:
    """Compares runs and prints what was found; returns the exit code, 1 where a run differs or cannot be read.

    Args:
        paths: Run folders, or folders that hold some.
        as_json: Print JSON.

    Raises:
        UserError: There is no run, or the server cannot be used.
    """
    found_paths = find([path.absolute() for path in paths])
    runs = [path for path in found_paths if path.name != WANDB and not is_store(path)]
    if not runs:
        raise UserError(f"no run folder in {', '.join(map(str, paths))}\n  next: give one, or --root FOLDER")
    forget_foreign_settings()
    verdict = probe(_PROBE_S)
    if verdict.mode == "offline":
        raise UserError(f"{verdict.reason}\n  next: the same command where there is internet")
    found = []
    for run in runs:
        try:
            comparison = compare(run)
        except UserError as error:
            print(f"error: {run}: {error}", file=sys.stderr)
            continue
        found.append(comparison)
        if not as_json:
            print(_words(comparison), flush=True)
    if as_json:
        print(json.dumps([{**asdict(one), "path": str(one.path), "equal": one.is_equal} for one in found], indent=2))
    return 0 if len(found) == len(runs) and all(comparison.is_equal for comparison in found) else 1


def compare(run_dir: Path) -> Comparison:
    """Fetches a run's rows and compares each with the journal's.

    Args:
        run_dir: The run folder.

    Raises:
        UserError: The folder holds no run.
        Exception: The server refused or did not answer.
    """
    rows = {row.n: row for row in read_journal(run_dir).rows}
    there = list(_server_rows(run_dir))
    counts = Counter(number for number, _ in there)
    different = [
        f"row {number}: {words}"
        for number, row in there
        if number in rows and (words := _difference(rows[number], row)) is not None
    ]
    return Comparison(
        path=run_dir,
        rows=len(rows),
        on_server=len(there),
        missing=sorted(set(rows) - set(counts)),
        twice=sorted(number for number, count in counts.items() if count > 1),
        different=different,
        extra=sorted(set(counts) - set(rows)),
    )


def _server_rows(run_dir: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    identity = read_identity(run_dir)
    if identity is None:
        raise UserError(f"{run_dir} holds no run: there is no run.json in it")
    api = open_api()
    run = shown_run(api, f"{identity.entity or api.default_entity}/{identity.project}/{identity.run_id}")
    if run is None:
        return
    before = rows_before(run_dir, identity)
    for row in run.handle.scan_history(page_size=_PAGE_ROWS):
        if (number := int(row["_step"]) - before) >= 0:
            yield number, row


def _difference(row: Row, there: Mapping[str, Any]) -> str | None:
    """What the server shows otherwise; media are compared by their presence."""
    expected = {**row.data, "train/step": row.step, "_timestamp": row.time}
    for name, value in expected.items():
        if name not in there:
            # A row's media is left out where its file was lost before it could be uploaded.
            if isinstance(value, Mapping):
                continue
            return f"{name} is missing, {value!r} in the journal"
        if not isinstance(value, Mapping) and not _is_same(value, there[name]):
            return f"{name} is {there[name]!r}, {value!r} in the journal"
    return None


def _is_same(here: Any, there: Any) -> bool:
    if isinstance(here, float) and isinstance(there, str):
        there = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}.get(there, there)
    if isinstance(here, float) and isinstance(there, float) and math.isnan(here):
        return math.isnan(there)
    return bool(here == there)


def _words(comparison: Comparison) -> str:
    name = comparison.path.name
    if comparison.is_equal:
        return f"{name}: {comparison.rows} rows, every one equal on the server"
    parts = []
    for what, numbers in (("missing", comparison.missing), ("twice", comparison.twice), ("extra", comparison.extra)):
        if numbers:
            shown = ", ".join(map(str, numbers[:_SHOWN])) + (", …" if len(numbers) > _SHOWN else "")
            parts.append(f"{len(numbers)} {what} ({shown})")
    if comparison.different:
        parts.append(f"{len(comparison.different)} different ({comparison.different[0]})")
    return f"{name}: {comparison.rows} rows, {comparison.on_server} on the server: {'; '.join(parts)}"
