"""Which run a folder holds: `run.json`, written once by the run's first segment."""

from __future__ import annotations

import json
import secrets
import string
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tracking.errors import UserError
from tracking.exclusive import create_exclusive
from tracking.files import read_json


@dataclass(frozen=True)
class Identity:
    """A run.

    Attributes:
        run_id: The id that all its segments share, eight letters and digits as W&B makes them.
        run_name: Its display name.
        project: The W&B project.
        entity: The W&B user or team, or None for the key's default.
        created: When it began, seconds since the epoch.
        adopted: Whether somebody named the run before there was a folder: W&B may have rows of it from elsewhere.
    """

    run_id: str
    run_name: str
    project: str
    entity: str | None
    created: float
    adopted: bool = False


def new_run_id() -> str:
    """Eight random lower-case letters and digits."""
    alphabet = string.ascii_lowercase + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(8))


def read_identity(run_dir: Path) -> Identity | None:
    """Reads `run.json`, or returns None where the folder holds no run yet.

    Raises:
        UserError: The file is there and is not what this package writes.
    """
    path = run_dir / "run.json"
    try:
        fields = read_json(path)
        return None if fields is None else Identity(**fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} does not describe a run: {error}\n  next: move it out of the run folder") from error


def claim_identity(run_dir: Path, run_id: str | None, run_name: str, project: str, entity: str | None) -> Identity:
    """Returns the run that a folder holds, and makes it one when it holds none.

    Args:
        run_dir: The run folder, which exists.
        run_id: The id that the caller wants to continue, or None for whatever is there.
        run_name: Display name of a new run.
        project: W&B project of a new run.
        entity: W&B entity of a new run.

    Raises:
        UserError: The folder holds another run than `run_id`.
        OSError: The folder cannot be written.
    """
    identity = read_identity(run_dir)
    if identity is None:
        adopted = run_id is not None
        made = Identity(run_id or new_run_id(), run_name, project, entity, time.time(), adopted)
        create_exclusive(run_dir / "run.json", (json.dumps(asdict(made), indent=2) + "\n").encode())
        # Read again: of two processes that begin at once, one has won.
        identity = read_identity(run_dir) or made
    if run_id is not None and run_id != identity.run_id:
        raise UserError(
            f"resume_id {run_id!r} is not the run in {run_dir}, which is {identity.run_id!r}.\n"
            "  next: leave resume_id out to continue the run that is there, or give the folder of the other run"
        )
    return identity


def rows_before(run_dir: Path, identity: Identity, there: int | None = None) -> int:
    """How many rows of a run W&B had before its journal began; the journal's rows come behind them.

    Args:
        run_dir: The run folder.
        identity: The run.
        there: How many rows the server has. Where that is not recorded yet, none of them is the journal's, and it is
            recorded now; None records nothing.

    Raises:
        OSError: The folder cannot be read or written.
        ValueError: The record is not one.
    """
    if not identity.adopted:
        return 0
    path = run_dir / "before.json"
    if there is not None:
        create_exclusive(path, (json.dumps({"rows": there}) + "\n").encode())
    record = read_json(path)
    return int(record["rows"]) if record is not None else 0


def find_run(runs: Path, run_id: str) -> Path | None:
    """Finds the folder of a run by its id among the folders in `runs`."""
    for path in sorted(runs.glob("*/run.json")):
        try:
            identity = read_identity(path.parent)
        except UserError:
            continue  # a broken neighbour is not the run that is looked for
        if identity is not None and identity.run_id == run_id:
            return path.parent
    return None
