"""How far a run is, from the end of its journal, its pace and its push state: a list reads no journal as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.jobs.folders import RunFolder
from tracking.journal.lines import End, Row, Segment, segment_path
from tracking.journal.tail import backwards
from tracking.pace import read_pace, total_steps
from tracking.sync.pushed import read_push_state

# Enough for a rate that does not jump; metrics that are logged rarely need more.
_ROWS, _MORE_ROWS = 20, 400
_LIMIT_BYTES = 2**22


@dataclass(frozen=True)
class Round:
    """The round that a run of DAgger is at.

    Attributes:
        number: From 1 on.
        of: How many were asked for; None where nothing tells.
        made: Roll-outs that are there; None once the round is past them.
        episodes: How many it is to have; None where nothing tells.
    """

    number: int
    of: int | None
    made: int | None
    episodes: int | None

    def __str__(self) -> str:
        rollouts = "/".join(str(one) for one in (self.made, self.episodes) if one is not None)
        return f"{self.number}{f' of {self.of}' if self.of else ''}" + (
            f", roll-outs {rollouts}" if self.made is not None else ""
        )


@dataclass(frozen=True)
class Progress:
    """How far a run is; None and empty where nothing tells.

    Attributes:
        segments: How many jobs have written to the journal so far.
        step: The last step that was logged.
        total: The steps that were asked for.
        rate: Steps a second, over the last rows of the present segment.
        logged: When the last row was logged, in seconds since the epoch.
        metrics: The newest value of each metric.
        further_segments: About how many jobs the steps that are left need, the one under way included.
        rows: How many rows the journal has.
        on_server: How many of them W&B had when it was asked last; None where nobody has pushed the run.
        lag: Seconds that the oldest row that W&B lacks has waited; None where that is too long ago to tell quickly.
        url: The page of the W&B run.
        sync_error: The last fault of pushing.
        ended: How the last segment ended; None while it runs, or when it was killed.
        round: The round that it is at; None for a run without rounds, or one that is complete.
    """

    segments: int = 0
    step: int | None = None
    total: int | None = None
    rate: float | None = None
    logged: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    further_segments: float | None = None
    rows: int = 0
    on_server: int | None = None
    lag: float | None = None
    url: str | None = None
    sync_error: str | None = None
    ended: str | None = None
    round: Round | None = None

    @property
    def seconds_left(self) -> float | None:
        """Seconds of training that are left at this rate; None too where roll-outs come between."""
        if self.step is None or self.total is None or not self.rate or self.round is not None:
            return None
        return max(0, self.total - self.step) / self.rate


def read_progress(run: RunFolder, now: float, *, in_full: bool = False) -> Progress:
    """Reads how far a run is.

    Args:
        run: Its folder.
        now: Seconds since the epoch.
        in_full: Look further back, for metrics that are logged rarely.
    """
    pace = read_pace(run.path) if "pace.json" in run.names else None
    total, at_round = _total(run), _round(run)
    if pace is not None:
        # A program of several parts measures the part that it is at.
        total = total if total is not None else pace.total
        pace = replace(pace, total=total)
    numbers = [int(name[8:-6]) for name in run.names if name.startswith("journal-") and name[8:-6].isdigit()]
    if not numbers:
        return Progress(total=total, round=at_round)
    rows, header, end = _tail(run.path, max(numbers), _MORE_ROWS if in_full else _ROWS)
    push = read_push_state(run.path) if "push.json" in run.names else None
    last = rows[0] if rows else None
    count = last.n + 1 if last is not None else header.first_row if header is not None else 0
    on_server = (push.confirmed or 0) if push is not None else None
    step = last.step if last is not None else header.resumed_step if header is not None else None
    further = None
    measured = pace is not None and pace.steps_per_second > 0 and at_round is None
    if run.done is None and pace is not None and measured and run.time_limit is not None:
        further = pace.segments(run.time_limit)
    metrics: dict[str, float] = {}
    for row in rows:
        for key, value in row.data.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                metrics.setdefault(key, float(value))
    return Progress(
        segments=max(numbers) + 1,
        step=step,
        total=total,
        rate=_rate(rows[:_ROWS]),
        logged=last.time if last is not None else None,
        metrics=metrics,
        further_segments=further,
        rows=count,
        on_server=on_server,
        lag=_lag(rows, count, on_server, now),
        url=push.url if push is not None else None,
        sync_error=push.error if push is not None else None,
        ended=end.state if end is not None else None,
        round=at_round,
    )


def _total(run: RunFolder) -> int | None:
    if isinstance(run.submission.get("steps"), int):
        return int(run.submission["steps"])
    return total_steps(_arguments(run))


def _arguments(run: RunFolder) -> dict[str, Any]:
    arguments = run.config.get(run.stage) if run.stage else None
    return arguments if isinstance(arguments, dict) else {}


def _round(run: RunFolder) -> Round | None:
    """The newest round whose roll-outs have begun (written by `gilbreth_phase0.dagger`)."""
    if "rounds" not in run.names or run.done is not None:
        return None
    newest = max((folder.parent for folder in run.path.glob("rounds/[0-9]*/rollouts")), default=None)
    if newest is None:
        return None
    asked = [value if isinstance(value := _arguments(run).get(key), int) else None for key in ("rounds", "episodes")]
    is_over = (newest / "round.json").is_file()
    made = None if is_over else sum(1 for _ in newest.glob("rollouts/seed-*.npz"))
    return Round(int(newest.name), asked[0], made, asked[1])


def _tail(run_dir: Path, newest: int, count: int) -> tuple[list[Row], Segment | None, End | None]:
    """The last rows of the newest segment, the last one first; its first line where there are fewer; its end."""
    rows: list[Row] = []
    end: End | None = None
    try:
        for event in backwards(segment_path(run_dir, newest), _LIMIT_BYTES):
            match event:
                case Row():
                    rows.append(event)
                case Segment():
                    return rows, event, end
                case End() if not rows:
                    end = event
            if len(rows) == count:
                break
    except OSError:
        pass  # it went away meanwhile
    return rows, None, end


def _rate(rows: list[Row]) -> float | None:
    # Rows of a later evaluation have the step of the training that they belong to.
    if len(rows) < 2:
        return None
    steps, seconds = rows[0].step - rows[-1].step, rows[0].time - rows[-1].time
    return steps / seconds if steps > 0 and seconds > 0 else None


def _lag(rows: list[Row], count: int, on_server: int | None, now: float) -> float | None:
    if on_server is None or on_server >= count:
        return 0.0 if on_server is not None else None
    return next((max(0.0, now - row.time) for row in rows if row.n == on_server), None)
