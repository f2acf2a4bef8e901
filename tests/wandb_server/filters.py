"""The query language of `wandb.Api().runs(filters=…, order=…)`: the part of MongoDB's that W&B documents."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from wandb_server.runs import Run, timestamp
from wandb_server.store import RefusedError

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda value, wanted: wanted in value if isinstance(value, list) else value == wanted,
    "$ne": lambda value, wanted: wanted not in value if isinstance(value, list) else value != wanted,
    "$in": lambda value, wanted: any(one in wanted for one in value) if isinstance(value, list) else value in wanted,
    "$nin": lambda value, wanted: value not in wanted,
    "$gt": lambda value, wanted: value is not None and value > wanted,
    "$gte": lambda value, wanted: value is not None and value >= wanted,
    "$lt": lambda value, wanted: value is not None and value < wanted,
    "$lte": lambda value, wanted: value is not None and value <= wanted,
    "$exists": lambda value, wanted: (value is not None) == wanted,
    "$regex": lambda value, wanted: value is not None and re.search(wanted, value) is not None,
}


def matches(run: Run, filters: dict[str, Any]) -> bool:
    """Whether the run passes all filters."""
    for key, wanted in filters.items():
        if key == "$and":
            passed = all(matches(run, one) for one in wanted)
        elif key == "$or":
            passed = any(matches(run, one) for one in wanted)
        elif key == "$not":
            passed = not matches(run, wanted)
        else:
            passed = _compare(field_value(run, key), wanted)
        if not passed:
            return False
    return True


def _compare(value: Any, wanted: Any) -> bool:
    if not (isinstance(wanted, dict) and any(key.startswith("$") for key in wanted)):
        return _COMPARE["$eq"](value, wanted)
    unknown = wanted.keys() - _COMPARE.keys()
    if unknown:
        raise RefusedError(f"unknown filter {sorted(unknown)}, expected one of {sorted(_COMPARE)}")
    return all(_COMPARE[operator](value, operand) for operator, operand in wanted.items())


def field_value(run: Run, key: str) -> Any:
    """The value of a run that a filter or an order names, such as `config.lr` or `summary_metrics.loss`."""
    head, _, rest = key.partition(".")
    if head in ("config", "summary_metrics", "summaryMetrics"):
        parts = rest.removesuffix(".value").split(".")
        value: Any = run.config if head == "config" else run.summary
        for part in parts:
            value = value.get(part) if isinstance(value, dict) else None
        return value
    known: dict[str, Any] = {
        "name": run.name,
        "state": run.state,
        "tags": run.tags,
        "createdAt": timestamp(run.created),
        "created_at": run.created,
        "heartbeatAt": timestamp(run.heartbeat),
        "heartbeat_at": run.heartbeat,
        "group": run.values.get("groupName"),
    }
    return known[key] if key in known else run.values.get(key)


def ordered(runs: list[Run], order: str | None) -> list[Run]:
    """The runs in the order asked for, such as `-created_at`; those without the value last."""
    key = (order or "+created_at").lstrip("+-")
    having = [run for run in runs if field_value(run, key) is not None]
    having.sort(key=lambda run: field_value(run, key), reverse=(order or "").startswith("-"))
    return having + [run for run in runs if field_value(run, key) is None]
