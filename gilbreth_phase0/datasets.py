"""Demonstrations as LeRobotDatasets (v3.0), with the environment that they were recorded in beside them.

DATA_ROOT/REPO_ID/
data/chunk-000/file-000.parquet      the frames
meta/info.json, stats.json, …        LeRobot's own
meta/environment.json                `EnvironmentArguments`: rebuilds the environment
meta/collect.json                    how it was collected (see collect.py)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gilbreth_phase0.environments import (
    ACTION,
    OBJECT_STATE,
    PROPRIOCEPTION,
    TASK_DESCRIPTION,
    EnvironmentArguments,
    Vector,
)
from tracking.errors import UserError
from tracking.files import fsync_dir, fsync_file, write_atomic

# Nothing may wait for a hub on a compute node without internet. LeRobot reads this when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata

ENVIRONMENT_FILE = "environment.json"

SOURCE, SUCCESS, INTERVENTION = "source", "success", "intervention"
ANNOTATIONS = {name: {"dtype": "int64", "shape": (1,), "names": None} for name in (SOURCE, SUCCESS, INTERVENTION)}
"""What DAgger's datasets hold beside the features of a policy: whose label `action` is (0 policy, 1 expert) and whether
it ended well, both the same in a whole episode, and for each frame whether the expert executed the action."""


def features(environment: EnvironmentArguments) -> dict[str, dict[str, Any]]:
    """The columns of a low-dimensional dataset.

    Returns:
        `observation.state` (43,), `observation.environment_state` (Lift: (10,), Stack: (23,)) and `action` (7,), all
        float32.
    """
    state = [f"{key}.{index}" for key, size in PROPRIOCEPTION.items() for index in range(size)]
    objects = [f"{key}.{index}" for key, size in OBJECT_STATE[environment.task].items() for index in range(size)]
    columns = {"observation.state": state, "observation.environment_state": objects, "action": list(ACTION)}
    return {key: {"dtype": "float32", "shape": (len(names),), "names": names} for key, names in columns.items()}


def create_dataset(
    root: Path, repo_id: str, environment: EnvironmentArguments, *, annotated: bool = False
) -> LeRobotDataset:
    """Starts an empty dataset; add frames and episodes, then call its `finalize()`.

    Args:
        root: The dataset's folder; must not exist.
        repo_id: Its name.
        environment: What it is recorded in; stored with it.
        annotated: Whether each frame has `ANNOTATIONS` too.
    """
    from datasets import disable_progress_bars
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    # One bar an episode from the library beneath would bury our own progress.
    disable_progress_bars()
    dataset = LeRobotDataset.create(
        repo_id,
        fps=environment.control_hz,
        features=features(environment) | (ANNOTATIONS if annotated else {}),
        root=root,
        robot_type=environment.robot,
        use_videos=False,
    )
    write_environment(root / "meta" / ENVIRONMENT_FILE, environment)
    return dataset


def add_episode(dataset: LeRobotDataset, environment: EnvironmentArguments, columns: Mapping[str, Vector]) -> None:
    """Appends one episode.

    Args:
        dataset: From `create_dataset`.
        environment: The same as there; says what the task is called.
        columns: For each feature, an array with one row a step.
    """
    for row in zip(*columns.values(), strict=True):
        dataset.add_frame({**dict(zip(columns, row, strict=True)), "task": TASK_DESCRIPTION[environment.task]})
    dataset.save_episode()


def publish_dataset(folder: Path, final: Path) -> None:
    """Makes a dataset durable and gives it its name.

    Raises:
        UserError: Somebody else has made a dataset of this name meanwhile.
    """
    for path in folder.rglob("*"):
        fsync_dir(path) if path.is_dir() else fsync_file(path)
    fsync_dir(folder)
    try:
        folder.rename(final)
    except OSError as error:
        raise UserError(
            f"{final} was made by somebody else meanwhile ({error.strerror}); run again to compare"
        ) from error
    fsync_dir(final.parent)


def is_dataset(root: Path) -> bool:
    """Whether a LeRobotDataset stands in this folder."""
    return (root / "meta" / "info.json").is_file()


def require_dataset(root: Path) -> None:
    """Refuses a folder without a dataset.

    Raises:
        UserError: With the command that makes one.
    """
    if not is_dataset(root):
        raise UserError(
            f"no dataset at {root} (meta/info.json is missing). Collect one:\n"
            f"  python -m gilbreth_phase0.collect --repo-id {root.name} --root {root.parent}"
        )


def open_dataset(root: Path, repo_id: str, delta_timestamps: dict[str, list[float]] | None = None) -> LeRobotDataset:
    """Opens a dataset that is on disk.

    Args:
        root: The dataset's folder, DATA_ROOT/REPO_ID.
        repo_id: Its name.
        delta_timestamps: Which other moments belong to an item, s, by feature.

    Raises:
        UserError: There is none; LeRobot would go and ask the hub.
    """
    require_dataset(root)
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset(repo_id, root=root, delta_timestamps=delta_timestamps)


def open_metadata(root: Path, repo_id: str) -> LeRobotDatasetMetadata:
    """Opens a dataset's features and statistics without its frames.

    Args:
        root: The dataset's folder, DATA_ROOT/REPO_ID.
        repo_id: Its name.

    Raises:
        UserError: There is none.
    """
    require_dataset(root)
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    return LeRobotDatasetMetadata(repo_id, root=root)


def write_environment(path: Path, environment: EnvironmentArguments) -> None:
    """Stores an environment's arguments as JSON."""
    write_atomic(path, environment.model_dump_json(indent=2) + "\n")


def read_environment(root: Path) -> EnvironmentArguments:
    """Reads the environment that a dataset was recorded in, or that a bundle was trained for.

    Args:
        root: The folder of a dataset (meta/environment.json) or of a bundle (environment.json).

    Raises:
        UserError: Neither file is there, or it does not describe an environment.
    """
    paths = [root / "meta" / ENVIRONMENT_FILE, root / ENVIRONMENT_FILE]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{root} does not say which environment it belongs to: neither {paths[0]} nor {paths[1]} is there.\n"
            "  Datasets that gilbreth_phase0.collect makes have it; for a policy from elsewhere add --dataset ROOT"
        )
    try:
        return EnvironmentArguments.model_validate_json(path.read_text())
    except ValidationError as error:
        raise UserError(f"{path} does not describe an environment: {error}") from error
