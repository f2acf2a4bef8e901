"""The model store of a job: which folder it is, and models by name, found and held before the job is queued."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.config import Config
from launch.spec import JobSpec
from tracking.errors import UserError
from tracking.store.root import VARIABLE, Store

if TYPE_CHECKING:
    from tracking.store import Resolved
    from tracking.store.reference import Reference

# A job may wait in the queue for long; once it has begun, it is a user of the model and lets go of the pin.
_PIN_S = 30 * 24 * 3600.0


def store_of(spec: JobSpec) -> Store | None:
    """The model store of a job; None for a stage that neither makes nor loads models."""
    folder = spec.environment.get(VARIABLE)
    return Store(Path(folder)) if folder is not None else None


@contextmanager
def held_model(config: Config, spec: JobSpec) -> Iterator[JobSpec]:
    """Finds the model that a stage asks for by name, from W&B if need be, and keeps it until the job has loaded it.

    The store is made where there is none yet.

    Yields:
        The job with the version's own number in place of what was asked for: a node needs no internet, and an alias
        that moves while the job waits changes nothing.

    Raises:
        UserError: There is no such model, or W&B cannot be asked for it.
    """
    argument, store = config.stage.inputs.bundle, store_of(spec)
    if store is not None:
        store.make()  # now, so that whoever pushes it can be told its folder before a job publishes
    given = config.arguments[argument] if argument is not None else None
    is_promised = given in spec.promised
    if argument is None or store is None or given is None or is_promised or folder_of(given, spec.root) is not None:
        yield spec
        return
    # What can ask W&B takes long to import, and most jobs name no model.
    from tracking.store.lineage import job_pin
    from tracking.store.resolve import pin, unpin

    found = find_policy(given, spec, pull=True)
    pin(store, found, job_pin(spec.name), _PIN_S)
    print(f"model {given} is {found} in {store.root}{f' ({found.note})' if found.note else ''}", flush=True)
    flag = f"--{argument.replace('_', '-')}="
    argv = tuple(f"{flag}{found}" if one == f"{flag}{given}" else one for one in spec.argv)
    try:
        yield replace(spec, argv=argv)
    except UserError:
        unpin(store, found, job_pin(spec.name))
        raise


def folder_of(given: str, root: Path) -> Path | None:
    """The folder that is asked for as a policy; None for a name."""
    folder = root / Path(given).expanduser()
    is_path = given.startswith(("/", ".", "~")) or ("/" in given and (root / Path(given).parts[0]).exists())
    return folder if is_path or (folder / "config.json").is_file() else None


def find_policy(given: str | Path, spec: JobSpec, *, pull: bool) -> Resolved:
    """Finds a policy by name.

    Args:
        given: A model's name, or a path.
        spec: A job that has a model store.
        pull: Whether W&B may be asked for it.

    Raises:
        UserError: There is none, or it is no policy.
    """
    from tracking.store.resolve import resolve

    found = resolve(given, _store(spec), pull=pull, project=_project(spec))
    _require_policy(found)
    return found


def check_policy(wanted: Reference, spec: JobSpec) -> None:
    """Looks for a policy by a bare name in the store, and whether W&B has what is not there; takes nothing from it.

    Raises:
        UserError: Neither has it, or what the store has is no policy.
    """
    from tracking.store.resolve import check

    found = check(wanted, _store(spec), project=_project(spec))
    if found is not None:
        _require_policy(found)


def _store(spec: JobSpec) -> Store:
    store = store_of(spec)
    assert store is not None
    return store


def _project(spec: JobSpec) -> str:
    """The W&B project of the job."""
    from tracking.store.publish import default_target

    return default_target({**os.environ, **spec.environment})


def _require_policy(found: Resolved) -> None:
    if not (found.path / "config.json").is_file():
        raise UserError(f"{found} is no policy: it has no config.json\n  next: python -m tracking.models show {found}")
