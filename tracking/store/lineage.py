"""Which run used which model: kept with the model and with the run, and shown on W&B when both are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tracking.errors import UserError
from tracking.exclusive import create_exclusive
from tracking.identity import read_identity
from tracking.store.log import Record
from tracking.store.resolve import Resolved, unpin
from tracking.store.root import Store
from tracking.store.state import State


def job_pin(run_name: str) -> str:
    """Why a version is pinned that a queued job will load."""
    return f"queued job {run_name}"


def record_use(store: Store, found: Resolved, run_dir: Path) -> None:
    """Records that a run uses a model, which is then not pruned; a path leaves no trace.

    A store that this user may only read goes without the record, which is said.

    Args:
        store: The store.
        found: The model.
        run_dir: The run folder.

    Raises:
        UserError: The folder holds no run.
    """
    if found.name is None or found.version is None:
        return
    identity = read_identity(run_dir)
    if identity is None:
        raise UserError(f"{run_dir} holds no run: there is no run.json in it\n  next: begin the run before its inputs")
    number = found.version.number
    run = {
        "id": identity.run_id,
        "name": identity.run_name,
        "project": identity.project,
        "entity": identity.entity,
        "folder": str(run_dir.absolute()),
    }

    def make(records: Sequence[Record]) -> Record | None:
        if any(known["id"] == identity.run_id for known in State.of(records).uses.get(number, [])):
            return None
        return {"kind": "use", "version": number, "run": run}

    with store.noting(f"the use of {found}"):
        store.log(found.name).append(make)
    # The use holds it from here on.
    if job_pin(identity.run_name) in store.state(found.name).pins.get(number, {}):
        unpin(store, found, job_pin(identity.run_name))
    inputs = run_dir / "inputs"
    inputs.mkdir(exist_ok=True)
    value = {"store": str(store.root), "name": found.name, "version": number}
    create_exclusive(inputs / f"{found.name}-v{number}.json", (json.dumps(value, indent=2) + "\n").encode())
