"""What W&B's server has of a run, through its public interface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tracking.sync.bounded import bounded
from tracking.sync.plain.rest import There

_API_TIMEOUT_S = 10
_ANSWER_S = 30.0
_WINDOW_ROWS = 500


class IncompleteError(Exception):
    """The server does not show as many rows as it says it has; the message says how many."""


@dataclass(frozen=True)
class ShownRun:
    """A run on the server.

    Attributes:
        lines: How many rows it has.
        state: `running`, `finished`, `failed`, `crashed`, …
        handle: W&B's own object.
    """

    lines: int
    state: str
    handle: Any


def open_api() -> Any:
    """A `wandb.Api` that does not wait for long.

    Raises:
        Exception: The server refused the key or did not answer.
    """
    import wandb

    return bounded(lambda: wandb.Api(timeout=_API_TIMEOUT_S), _ANSWER_S)


def shown_run(api: Any, path: str) -> ShownRun | None:
    """Asks the server for a run.

    Args:
        api: What `open_api` gave.
        path: `entity/project/run id`.

    Returns:
        None where the server has no such run.

    Raises:
        Exception: The server refused or did not answer.
    """

    def ask() -> Any:
        import wandb

        api.flush()
        try:
            return api.run(path)
        except (ValueError, wandb.Error) as error:
            if "Could not find run" in str(error):
                return None
            raise

    run = bounded(ask, _ANSWER_S)
    return None if run is None else ShownRun(int(run.historyLineCount or 0), run.state, run)


def what_is_there(run: ShownRun) -> There:
    """What a later push of the run must know.

    Raises:
        IncompleteError: The server shows fewer rows than it says it has.
        Exception: The server refused or did not answer.
    """
    if run.lines == 0:
        return There(config=run.handle.config, summary=run.handle.summary_metrics, tags=tuple(run.handle.tags))
    last_step = int(run.handle.lastHistoryStep)
    # W&B thins out what does not fit on a page, and rows of several uploads may share their `_step`.
    window = max(1, math.ceil(_WINDOW_ROWS * (last_step + 1) / run.lines))
    size = max(window, 2 * _WINDOW_ROWS)
    times: list[float | None] = []
    for begin in range(0, last_step + 1, window):
        scan = run.handle.scan_history(
            keys=["_timestamp"], page_size=size, min_step=begin, max_step=min(begin + window, last_step + 1)
        )
        times += [row["_timestamp"] for row in bounded(lambda scan=scan: list(scan), _ANSWER_S)]  # type: ignore[misc]
    if len(times) != run.lines:
        raise IncompleteError(f"the server shows {len(times)} of the {run.lines} rows that it has")
    return There(tuple(times), last_step, run.handle.config, run.handle.summary_metrics, tuple(run.handle.tags))
