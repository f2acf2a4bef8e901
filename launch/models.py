"""The model store of a job: which folder it is, and models by name, found and held before the job is queued."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.config import Config, listed
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


def policies_of(config: Config, root: Path, arguments: Sequence[str]) -> list[tuple[str, str]]:
    """The policies that arguments of a stage name: the argument, and the name or the folder."""
    return [(one, name) for one in arguments for name in policies_in(config.arguments[one], root)]


def policies_in(value: Any, root: Path) -> list[str]:
    """The policies in an argument; a folder may have a comma in its name."""
    texts = map(str, value if isinstance(value, list) else [] if value is None else [value])
    return [name for text in texts for name in ([text] if _is_folder(text, root) else listed(text))]


def _is_folder(text: str, root: Path) -> bool:
    return os.path.isdir(root / Path(text).expanduser())  # noqa: PTH112 - no error where it may not be looked at


@contextmanager
def held_models(config: Config, spec: JobSpec) -> Iterator[JobSpec]:
    """Finds the models that a stage asks for by name, from W&B if need be, and keeps them until the job loads them.

    The store is made where there is none yet.

    Yields:
        The job with the versions' own numbers in place of what was asked for: a node needs no internet, and an alias
        that moves while the job waits changes nothing.

    Raises:
        UserError: There is no such model, or W&B cannot be asked for it.
    """
    store, inputs = store_of(spec), config.stage.inputs
    if store is not None:
        store.make()  # now, so that whoever pushes it can be told its folder before a job publishes
    arguments = (*inputs.policies, *inputs.others)
    given = dict.fromkeys(name for _, name in policies_of(config, spec.root, arguments))
    wanted = [name for name in given if name not in spec.promised and folder_of(name, spec.root) is None]
    if store is None or not wanted:
        yield spec
        return
    # What can ask W&B takes long to import, and most jobs name no model.
    from tracking.store.lineage import job_pin
    from tracking.store.resolve import pin, unpin

    found: dict[str, Resolved] = {}
    try:
        for name in wanted:
            found[name] = one = find_policy(name, spec, pull=True)
            pin(store, one, job_pin(spec.name), _PIN_S)
            print(f"model {name} is {one} in {store.root}{f' ({one.note})' if one.note else ''}", flush=True)
        yield replace(spec, argv=_with_versions(spec, arguments, found))
    except UserError:
        for one in found.values():
            unpin(store, one, job_pin(spec.name))
        raise


def _with_versions(spec: JobSpec, arguments: Sequence[str], found: Mapping[str, Resolved]) -> tuple[str, ...]:
    """The job's arguments with versions in place of names."""
    flags = {f"--{argument.replace('_', '-')}" for argument in arguments}

    def with_version(one: str) -> str:
        flag, equals, value = one.partition("=")
        if flag not in flags:
            return one
        names = policies_in(value, spec.root)
        return f"{flag}{equals}{','.join(str(found.get(name, name)) for name in names)}"

    return tuple(map(with_version, spec.argv))


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
