"""Roll-outs as a LeRobotDataset: each stretch that one of the two acted in is an episode of its own.

So no chunk of actions reaches from the policy's frames into the expert's. Where all frames were relabelled, the
expert's labels are one more episode, and `samples` cuts its chunks behind each frame that the policy executed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gilbreth_phase0.annotations import DaggerFilter
from gilbreth_phase0.dagger.rollout import RollOut
from gilbreth_phase0.datasets import (
    INTERVENTION,
    SOURCE,
    SUCCESS,
    add_episode,
    create_dataset,
    publish_dataset,
)
from gilbreth_phase0.environments import EnvironmentArguments
from tracking.errors import UserError
from tracking.files import read_json, write_json

POLICY, EXPERT = 0, 1
ROUND_FILE = "dagger.json"
"""In a dataset's `meta`: the run and the round that made it, and what its episodes are."""

Column = npt.NDArray[Any]


@dataclass(frozen=True)
class Stretch:
    """One episode of the dataset.

    Attributes:
        source: Whose labels `action` holds: 0 the policy's, 1 the expert's.
        success: Whether it ended well: the task was solved in it, or the expert handed back. Labels of the expert on a
            relabelled roll-out are right whatever came of that.
        columns: A row a frame, by feature, with the annotations.
    """

    source: int
    success: bool
    columns: Mapping[str, Column]


def stretches(roll_out: RollOut) -> Iterator[Stretch]:
    """Cuts a roll-out where the controls change hands.

    Yields:
        The stretches in order; of a relabelled roll-out the policy's, then the whole with the expert's labels.
    """
    if roll_out.discarded:
        return
    borders = np.flatnonzero(np.diff(roll_out.by_expert.astype(np.int8))) + 1
    ends = [0, *borders.tolist(), roll_out.length]
    for start, end in pairwise(ends):
        source = EXPERT if roll_out.by_expert[start] else POLICY
        if roll_out.relabelled and source == EXPERT:
            continue
        success = roll_out.success if end == roll_out.length else source == EXPERT
        yield _stretch(roll_out, roll_out.executed, slice(start, end), source, success)
    if roll_out.relabelled:
        yield _stretch(roll_out, roll_out.labels, slice(None), EXPERT, success=True)


def _stretch(roll_out: RollOut, actions: Column, frames: slice, source: int, success: bool) -> Stretch:
    chosen = actions[frames]

    def constant(value: int) -> Column:
        return np.full((len(chosen), 1), value, dtype=np.int64)

    columns = {
        "observation.state": roll_out.agent_pos[frames],
        "observation.environment_state": roll_out.environment_state[frames],
        "action": chosen,
        SOURCE: constant(source),
        SUCCESS: constant(int(success)),
        INTERVENTION: roll_out.by_expert[frames].astype(np.int64)[:, None],
    }
    return Stretch(source, success, columns)


def write_dataset(
    final: Path,
    repo_id: str,
    environment: EnvironmentArguments,
    roll_outs: Iterable[RollOut],
    *,
    facts: Mapping[str, Any],
    check_ownership: Callable[[], None] = lambda: None,
) -> dict[DaggerFilter, int]:
    """Writes the roll-outs of a round as a dataset, which is there whole or not at all.

    Args:
        final: Its folder; a dataset of the same facts there already is left as it is.
        repo_id: Its name.
        environment: What the roll-outs were made in.
        roll_outs: In the order in which they are to stand.
        facts: Which run, round and roll-outs it is of.
        check_ownership: Raises where this attempt may not write any more; called before the dataset gets its name.

    Returns:
        How many of its episodes each filter keeps.

    Raises:
        UserError: Something else is in its place.
    """
    there = dataset_of(final)
    if there is not None and there["of"] == dict(facts):
        return dict(there["kept"])
    check_place(final, facts)
    temporary = final.with_name(f".{final.name}.{os.uname().nodename}-{os.getpid()}.partial")
    for leftover in final.parent.glob(f".{final.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    dataset = create_dataset(temporary, repo_id, environment, annotated=True)
    kept: dict[DaggerFilter, int] = {"all": 0, "success": 0, "corrections": 0}
    for roll_out in roll_outs:
        for stretch in stretches(roll_out):
            add_episode(dataset, environment, stretch.columns)
            kept["all"] += 1
            kept["success"] += stretch.success
            kept["corrections"] += stretch.success and stretch.source == EXPERT
    dataset.finalize()
    write_json(temporary / "meta" / ROUND_FILE, {"of": dict(facts), "kept": kept})
    check_ownership()
    publish_dataset(temporary, final)
    return kept


def dataset_of(folder: Path) -> dict[str, Any] | None:
    """What the dataset of a round says about itself; None where there is none."""
    found: dict[str, Any] | None = read_json(folder / "meta" / ROUND_FILE)
    return found


def check_place(final: Path, facts: Mapping[str, Any]) -> None:
    """Refuses the place of a round's dataset where something of another run is.

    Args:
        final: The dataset's folder.
        facts: Which run it is of; the dataset there may be that of an earlier attempt.

    Raises:
        UserError: Says how to name it otherwise.
    """
    if not final.exists():
        return
    there = (dataset_of(final) or {}).get("of", {})
    if any(there.get(key) != facts.get(key) for key in ("run_id", "round")) or "roll_outs" in facts:
        raise UserError(
            f"{final} exists and is not of this run. Name the datasets of this run otherwise: --dagger-repo-id NAME"
        )
