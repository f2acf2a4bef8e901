"""What `python -m tracking.models` prints of the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tracking.store.push import on_wandb
from tracking.store.resolve import Resolved
from tracking.store.root import Store
from tracking.store.state import State, Version, is_step
from tracking.words import NOTHING, size, when

_WIDTH = 80


def console(*, stderr: bool = False) -> Console:
    """Prints in 80 columns, or fewer where the terminal has fewer."""
    made = Console(stderr=stderr, highlight=False)
    return Console(stderr=stderr, highlight=False, width=min(made.width, _WIDTH))


def names_table(store: Store) -> Table:
    """One row a name."""
    table = _table(("name", "left"), ("versions", "right"), ("latest", "left"), ("best", "left"), ("newest", "left"))
    for name in store.names():
        state = store.state(name)
        newest = max((version.time for version in state.versions.values()), default=None)
        table.add_row(
            Text(name, overflow="fold"),
            str(len(state.versions)),
            *(f"v{state.aliases[alias]}" if alias in state.aliases else NOTHING for alias in ("latest", "best")),
            when(newest)[:16] if newest is not None else NOTHING,
        )
    return table


def versions_table(state: State) -> Table:
    """One row a version, newest first."""
    table = _table(("", "left"), ("aliases", "left"), ("step", "right"), ("size", "right"), ("published", "left"))
    table.add_column("W&B")
    for number in sorted(state.versions, reverse=True):
        version = state.versions[number]
        words = [alias for alias in state.aliases_of(number) if not is_step(alias)]
        known = [project.artifacts[number] for project in state.projects.values() if number in project.artifacts]
        table.add_row(
            f"v{number}",
            Text(", ".join(words), overflow="fold"),
            f"{version.step:,}" if version.step is not None else NOTHING,
            size(version.bytes),
            when(version.time)[:16],
            ", ".join(artifact.rpartition(":")[2] for artifact in known) or _not_there(state, version),
        )
    return table


def version_facts(store: Store, found: Resolved) -> dict[str, Any]:
    """Everything that is known of a version, as plain values."""
    if found.name is None or found.version is None:
        return {"path": str(found.path)}
    state, version = store.state(found.name), found.version
    return {
        "name": found.name,
        "version": f"v{version.number}",
        "path": str(found.path),
        "aliases": state.aliases_of(version.number),
        "type": version.type,
        "published": version.time,
        "by": version.by,
        "description": version.description,
        "wandb": on_wandb(store, found),
        "run": dict(version.run) if version.run else None,
        "inputs": list(version.inputs),
        "used_by": [dict(run) for run in state.uses.get(version.number, [])],
        "pins": state.pins.get(version.number, {}),
        "metadata": dict(version.metadata),
        "digest": version.digest,
        "files": {name: dict(entry) for name, entry in version.files.items()},
    }


def facts_table(facts: Mapping[str, Any]) -> Table:
    """The facts of a version for people, but for its path; nothing that is empty."""
    table = _table(("", "left"), ("", "left"))
    table.show_header = False
    shown = {key: value for key, value in facts.items() if key != "path" and value not in (None, [], {})}
    shown["published"] = f"{when(facts['published'])}, by {facts['by']}"
    shown.pop("by")
    for key in ("run", "used_by"):
        runs = [facts[key]] if isinstance(facts[key], Mapping) else facts[key] or []
        if runs:
            shown[key] = ", ".join(f"{run['name']} ({run['id']})" for run in runs)
    shown["files"] = "\n".join(f"{size(entry['size']):>9}  {name}" for name, entry in facts["files"].items())
    for key, value in shown.items():
        table.add_row(key.replace("_", " "), Text(_text(value), overflow="fold"))
    return table


def _not_there(state: State, version: Version) -> str:
    if version.target is None:
        return "not wanted" if not state.waiting.get(version.number) else "waits"
    return "waits"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _table(*columns: tuple[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in columns:
        table.add_column(name, justify=justify, no_wrap=justify == "right")
    return table
