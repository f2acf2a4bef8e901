"""Uploads that wait for a network: one small file each, acknowledged when W&B has committed them.

```
RUN/intents/
  000-act_bc_lift-config.json       what is to be uploaded
  000-act_bc_lift-config.done.json  what W&B made of it
RUN/artifacts/                      the files that the tracker made for them
```
An intent names files; whoever removes files asks `pinned_files` first.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.exclusive import create_exclusive
from tracking.files import read_json, write_json
from tracking.names import check_name

_NAME = re.compile(r"(\d{3,})-.+(?<!\.done)\.json\Z")


@dataclass(frozen=True)
class Intent:
    """A W&B artifact that is to be made.

    Attributes:
        name: The artifact's name.
        type: Its type: `config`, `diff` or `model`.
        files: Where each file is, by its name in the artifact: relative to the run folder, or absolute.
        aliases: Names of this version beside `latest`.
        metadata: Plain values.
        created: Seconds since the epoch.
        stamps: Size and time of change of each file when it was put aside, by its name in the artifact; empty for
            files that are never written again.
        consolidate: The folder of a DeepSpeed checkpoint, relative to the run folder or absolute: its consolidated
            weights are uploaded in the place of the files, which are its shards.
        description: Free text.
    """

    name: str
    type: str
    files: Mapping[str, str]
    aliases: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    stamps: Mapping[str, list[int]] = field(default_factory=dict)
    consolidate: str | None = None
    description: str | None = None


def put_intent(run_dir: Path, intent: Intent) -> Path:
    """Puts an upload aside, once: what is there already, with the same files and aliases, is not put again.

    The same path with other contents is another upload, as the stamps tell.

    Args:
        run_dir: The run folder.
        intent: What to upload; its files exist.

    Returns:
        The intent's file.

    Raises:
        UserError: The name cannot be an artifact's.
        OSError: The folder cannot be written.
    """
    check_name("artifact", intent.name)
    folder = run_dir / "intents"
    folder.mkdir(exist_ok=True)
    number = 0
    for path in _intent_files(run_dir):
        number = int(path.name.split("-")[0]) + 1
        there = read_intent(path)
        if _content(there) == _content(intent):
            return path
    while True:
        path = folder / f"{number:03d}-{intent.name}.json"
        if create_exclusive(path, (json.dumps(asdict(intent), indent=2) + "\n").encode()):
            return path
        number += 1


def stamp(file: Path) -> list[int]:
    """Size in bytes and time of change in nanoseconds of a file."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def changed_file(run_dir: Path, intent: Intent) -> str | None:
    """The first file that is not what it was when the upload was put aside, or None."""
    for name, was in intent.stamps.items():
        file = run_dir / intent.files[name]
        if not file.is_file() or stamp(file) != was:
            return str(file)
    return None


def _content(intent: Intent) -> tuple[object, ...]:
    return intent.name, intent.type, dict(intent.files), intent.aliases, dict(intent.stamps), intent.consolidate


def read_intent(path: Path) -> Intent:
    """Reads an intent.

    Raises:
        UserError: The file is not one.
    """
    try:
        fields = read_json(path)
        return Intent(**{**fields, "aliases": tuple(fields["aliases"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not an upload intent: {error}\n  next: remove it") from error


def pending_intents(run_dir: Path) -> list[Path]:
    """The intents that nobody has acknowledged, oldest first."""
    return [path for path in _intent_files(run_dir) if not acknowledgement(path).exists()]


def acknowledge(path: Path, outcome: Mapping[str, Any]) -> None:
    """Records that W&B has committed an intent, or that nobody can upload it any more.

    Args:
        path: The intent's file.
        outcome: What W&B made of it, for example its version; `dropped` and why.
    """
    write_json(acknowledgement(path), {**outcome, "time": time.time()})


def acknowledgement(path: Path) -> Path:
    """What W&B made of an intent; the file is absent as long as the upload waits."""
    return path.with_suffix(".done.json")


def pinned_files(run_dir: Path) -> set[Path]:
    """The files that waiting intents need."""
    return {run_dir / file for path in pending_intents(run_dir) for file in read_intent(path).files.values()}


def _intent_files(run_dir: Path) -> list[Path]:
    return sorted(path for path in (run_dir / "intents").glob("*.json") if _NAME.match(path.name))
