"""What DAgger's datasets say about their episodes and frames, and which of them training keeps.

`source` (0 policy, 1 expert) and `success` are the same in a whole episode. `intervention` is 1 at the frames whose
action the expert itself executed; the others of its episodes are relabelled: its action for a state that the policy
led to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from gilbreth_phase0.datasets import INTERVENTION, SOURCE, SUCCESS
from tracking.errors import UserError

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

DaggerFilter = Literal["corrections", "success", "all"]

Flags = npt.NDArray[np.bool_]
GROUPS = {(1, 1): "expert, success", (1, 0): "expert, failure", (0, 1): "policy, success", (0, 0): "policy, failure"}
"""What an account calls the episodes of a source and a success."""


@dataclass(frozen=True)
class Annotations:
    """Of one dataset.

    Attributes:
        source: For each episode, 0 policy or 1 expert.
        success: For each episode, whether it ended well.
        relabelled: For each frame, whether the state behind it follows from another action than its own.
    """

    source: npt.NDArray[np.int64]
    success: npt.NDArray[np.int64]
    relabelled: Flags

    def kept(self, dagger_filter: DaggerFilter) -> Flags:
        """Which episodes training keeps."""
        if dagger_filter == "all":
            return np.ones(len(self.source), dtype=np.bool_)
        succeeded: Flags = self.success == 1
        return succeeded & (self.source == 1) if dagger_filter == "corrections" else succeeded

    def group(self, source: int, success: int) -> Flags:
        """The episodes of a source and a success."""
        found: Flags = (self.source == source) & (self.success == success)
        return found


def check_columns(name: str, columns: Mapping[str, object]) -> bool:
    """Whether a dataset is annotated.

    Raises:
        UserError: It has one of the columns `source` and `success` and not the other.
    """
    there = [key for key in (SOURCE, SUCCESS) if key in columns]
    if len(there) == 1:
        missing = next(key for key in (SOURCE, SUCCESS) if key not in there)
        raise UserError(
            f"dataset {name} has the column {there[0]!r} and not {missing!r}: which episodes are corrections cannot be"
            " told. Expected both, or neither for plain demonstrations"
        )
    return bool(there)


def read_annotations(name: str, dataset: LeRobotDataset) -> Annotations | None:
    """Reads the annotations of a dataset; None where it has none.

    Raises:
        UserError: A column is missing, holds anything but 0 and 1, or changes within an episode.
    """
    if not check_columns(name, dataset.features):
        return None
    there = [key for key in (SOURCE, SUCCESS, INTERVENTION) if key in dataset.features]
    columns = {
        key: np.asarray(values).reshape(-1)
        for key, values in dataset.hf_dataset.select_columns(there).with_format("numpy")[:].items()
    }
    starts, ends = (np.asarray(dataset.meta.episodes[f"dataset_{end}_index"]) for end in ("from", "to"))
    for key, values in columns.items():
        strange = values[~np.isin(values, (0, 1))]
        if strange.size:
            raise UserError(f"dataset {name}: the column {key!r} holds {strange[0]}; expected 0 and 1")
    for key in (SOURCE, SUCCESS):
        changed = [
            episode
            for episode, (start, end) in enumerate(zip(starts, ends, strict=True))
            if len(set(columns[key][start:end])) > 1
        ]
        if changed:
            raise UserError(
                f"dataset {name}: {key!r} changes within episode {changed[0]}; expected the same at all of its frames:"
                " what the policy did and what the expert did are episodes of their own"
            )
    relabelled = np.zeros(len(dataset.hf_dataset), dtype=np.bool_)
    if INTERVENTION in columns:
        relabelled = (columns[SOURCE] == 1) & (columns[INTERVENTION] == 0)
    return Annotations(columns[SOURCE][starts], columns[SUCCESS][starts], relabelled)
