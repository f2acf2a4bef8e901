"""Whether datasets can be trained together: the same features, rate and environment, else a table of what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.datasets import ANNOTATIONS
from gilbreth_phase0.environments import EnvironmentArguments
from tracking.errors import UserError

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

_ENVIRONMENT = ("task", "robot", "control_hz")
_ABSENT = "-"


@dataclass(frozen=True)
class Described:
    """A dataset, as far as it must be like another.

    Attributes:
        name: Its name.
        meta: Its features and rate.
        environment: What it was recorded in.
    """

    name: str
    meta: LeRobotDatasetMetadata
    environment: EnvironmentArguments


def check_alike(datasets: Sequence[Described], say: Callable[[str], None]) -> None:
    """Refuses datasets that differ in what a policy sees or does.

    Args:
        datasets: At least one.
        say: Gets a warning where only robosuite's version differs.

    Raises:
        UserError: With a table of the differences.
    """
    rows = [row for row in _rows(datasets) if len(set(row[1:])) > 1]
    if rows:
        table = _table([("", *(dataset.name for dataset in datasets)), *rows])
        raise UserError(
            f"these datasets differ, so that no policy can be trained on all of them:\n{table}\n"
            "  next: --repo-ids with those that are alike"
        )
    versions = {dataset.name: dataset.environment.robosuite_version for dataset in datasets}
    if len(set(versions.values())) > 1:
        told = ", ".join(f"{name} with {version}" for name, version in versions.items())
        say(f"warning: recorded with different versions of robosuite: {told}")


def _rows(datasets: Sequence[Described]) -> list[tuple[str, ...]]:
    """What is compared, a value for each dataset."""
    features = [_features(dataset.meta) for dataset in datasets]
    rows: list[tuple[str, ...]] = []
    for key in dict.fromkeys(key for each in features for key in each):
        given = [each.get(key) for each in features]
        rows += [
            (f"{key} {part}", *(_ABSENT if one is None else str(one.get(part)) for one in given))
            for part in ("dtype", "shape")
        ]
        rows.append((f"{key} names", *_names([None if one is None else one.get("names") for one in given])))
    rows.append(("frames a second", *(str(dataset.meta.fps) for dataset in datasets)))
    rows += [(name, *(str(getattr(dataset.environment, name)) for dataset in datasets)) for name in _ENVIRONMENT]
    return rows


def _features(meta: LeRobotDatasetMetadata) -> Mapping[str, Mapping[str, Any]]:
    # JSON has lists where a dataset that was just written has tuples.
    return {
        key: {**feature, "shape": tuple(feature["shape"])}
        for key, feature in meta.features.items()
        if key not in ANNOTATIONS
    }


def _names(given: Sequence[Any]) -> list[str]:
    """Names of a feature's numbers, from the first one on that is not everywhere the same."""
    lists = [list(one) if one is not None else [] for one in given]
    place = next(
        (place for place, names in enumerate(zip(*lists, strict=False)) if len(set(map(str, names))) > 1), None
    )
    if place is None:
        place = min(map(len, lists)) if len({len(one) for one in lists}) > 1 else 0
    return [f"{place}: {one[place]}" if place < len(one) else _ABSENT for one in lists]


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line.rstrip()}" for line in lines)
