"""The model store of a job: which folder it is, and models by name, found and held before the job is queued."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from launch.config import Config
from launch.spec import JobSpec
from tracking.errors import UserError
from tracking.store import Resolved, Store, resolve
from tracking.store.lineage import job_pin
from tracking.store.publish import default_target
from tracking.store.reference import Reference, parse
from tracking.store.resolve import check, pin, unpin
from tracking.store.root import VARIABLE

# A job may wait in the queue for long; once it has begun, it is a user of the model and lets go of the pin.
_PIN_S = 30 * 24 * 3600.0


def store_of(spec: JobSpec) -> Store | None:
    """The model store of a job; None for a stage that neither makes nor loads models."""
    folder = spec.environment.get(VARIABLE)
    return Store(Path(folder)) if folder is not None else None


def store_faults(config: Config, spec: JobSpec) -> Iterator[str]:
    """Yields what would keep the job from using the store, one line each."""
    store = store_of(spec)
    if store is None:
        return
    folder = store.root
    for local in spec.cluster.node_local:
        if folder.is_relative_to(local):
            yield f"cluster.store_root {str(folder)!r} is below {local}, which other nodes do not see; choose another"
    if store.exists and config.stage.models == "loads":
        return  # others' models will do: what cannot be recorded there is said, and the job runs
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield f"cluster.store_root {str(folder)!r} cannot be written ({existing}); choose another folder"
    elif others := store.strangers():
        yield (
            f"cluster.store_root {str(folder)!r} is no model store: it holds {', '.join(others[:3])}; "
            "choose another: --set cluster.store_root=FOLDER"
        )


def model_faults(config: Config, spec: JobSpec) -> Iterator[str]:
    """Yields why the model that a stage asks for cannot be loaded.

    W&B is asked for a bare name that the store does not have. Of W&B's own names only the submission can say.
    """
    argument = config.stage.inputs.bundle
    if argument is None:
        return
    key, given = f"{spec.stage}.{argument}", config.arguments[argument]
    if given is None:
        yield f"{key} is not set: --set {key}=runs/NAME/bundle, or a model by name: --set {key}=act-lift:best"
        return
    if (folder := _folder(given, spec.root)) is not None:
        if not (folder / "config.json").is_file():
            yield f"{key}={given!r}: {folder} has no config.json, so no policy; a bc run leaves one in runs/NAME/bundle"
        return
    try:
        wanted = parse(given)
        if not isinstance(wanted, Reference):
            _require_policy(resolve(wanted, _store(spec)))
        elif wanted.project is None:
            _require_policy(check(wanted, _store(spec), project=_project(spec)))
    except UserError as error:
        yield (
            f"{key}={given!r}: {spec.root / given} has no config.json, so no policy, and no model is found by that "
            f"name: {'; '.join(line.strip() for line in str(error).splitlines())}"
        )


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
    if argument is None or store is None or given is None or _folder(given, spec.root) is not None:
        yield spec
        return
    found = resolve(given, store, project=_project(spec))
    _require_policy(found)
    pin(store, found, job_pin(spec.name), _PIN_S)
    print(f"model {given} is {found} in {store.root}{f' ({found.note})' if found.note else ''}", flush=True)
    flag = f"--{argument.replace('_', '-')}="
    argv = tuple(f"{flag}{found}" if one == f"{flag}{given}" else one for one in spec.argv)
    try:
        yield replace(spec, argv=argv)
    except UserError:
        unpin(store, found, job_pin(spec.name))
        raise


def _folder(given: str, root: Path) -> Path | None:
    """The folder that is asked for; None for a name."""
    folder = root / Path(given).expanduser()
    is_path = given.startswith(("/", ".", "~")) or ("/" in given and (root / Path(given).parts[0]).exists())
    return folder if is_path or (folder / "config.json").is_file() else None


def _store(spec: JobSpec) -> Store:
    store = store_of(spec)
    assert store is not None
    return store


def _project(spec: JobSpec) -> str:
    """The W&B project of the job."""
    return default_target({**os.environ, **spec.environment})


def _require_policy(found: Resolved | None) -> None:
    if found is not None and not (found.path / "config.json").is_file():
        raise UserError(f"{found} is no policy: it has no config.json\n  next: python -m tracking.models show {found}")
