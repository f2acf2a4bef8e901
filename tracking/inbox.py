"""Results of a run that somebody else found: an evaluation of one of its checkpoints, on another node, later.

```
RUN/inbox/report-step-00000300.json          waits
RUN/inbox/taken/report-step-00000300.json    stands in the journal
```
Whoever found something puts a file there. The journal has one writer, the run's segment, which appends what it finds;
after the end of the run a segment of its own does. What was taken when its writer was killed is looked for in the
journal, and is not appended a second time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.checkpoints import step_tag
from tracking.errors import UserError
from tracking.exclusive import create_exclusive
from tracking.files import fsync_dir, read_json
from tracking.names import check_name

FOLDER = "inbox"
_TAKEN = "taken"


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        path: Where it waits.
        step: The training step that it is of.
        metrics: Names and values.
    """

    path: Path
    step: int
    metrics: Mapping[str, float]

    def done(self) -> None:
        """Puts it where results are that stand in the journal."""
        folder = self.path.parent / _TAKEN
        folder.mkdir(exist_ok=True)
        self.path.replace(folder / self.path.name)
        fsync_dir(self.path.parent)


def put(run_dir: Path, kind: str, step: int, metrics: Mapping[str, float]) -> Path:
    """Hands a result to a run.

    Args:
        run_dir: Its folder.
        kind: What kind of result it is; a run takes one of a kind and step.
        step: The training step that it is of.
        metrics: Names (`namespace/name`) and numbers.

    Returns:
        The file.

    Raises:
        UserError: The folder holds no run or cannot be written, or the run has a result of this kind and step.
    """
    check_name("kind of result", kind)
    if step < 0:
        raise UserError(f"step {step}: a run's steps are counted from 0")
    if not (run_dir / "run.json").is_file():
        raise UserError(f"{run_dir} is not a tracked run: there is no run.json in it\n  next: give the run folder")
    folder = run_dir / FOLDER
    path = folder / f"{kind}-{step_tag(step)}.json"
    value = {"step": step, "metrics": {name: float(number) for name, number in metrics.items()}, "time": time.time()}
    try:
        folder.mkdir(exist_ok=True)
        known = (folder / _TAKEN / path.name).exists()
        if known or not create_exclusive(path, (json.dumps(value, indent=2) + "\n").encode()):
            raise UserError(f"{run_dir.name} has a result {kind!r} of step {step}: {path.name}\n  next: leave it so")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}\n  next: ask the run's owner") from error
    return path


def waiting(run_dir: Path) -> Iterator[Result]:
    """What waits for the run, in the order of the names; what cannot be read stays where it is."""
    for path in sorted((run_dir / FOLDER).glob("*.json")):
        try:
            found: dict[str, Any] = read_json(path)
            yield Result(path, int(found["step"]), {str(name): float(one) for name, one in found["metrics"].items()})
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            continue


def take_after_end(run_dir: Path) -> int:
    """Has a segment of its own append what waits for a run that has ended.

    Returns:
        How many results that were.
    """
    if next(waiting(run_dir), None) is None:
        return 0
    from tracking.journal import read_journal
    from tracking.tracker import ExperimentTracker

    last = read_journal(run_dir).segments[-1]
    with ExperimentTracker(
        run_dir=run_dir,
        tags=list(last.tags),
        group=last.group,
        job_type=last.job_type,
        notes=last.notes,
        console=False,
    ) as tracker:
        return tracker.take_inbox()
