"""A dataset that is only good for being read: numbers drawn from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gilbreth_phase0.environments import EnvironmentArguments

EPISODES, FRAMES = 2, 30
ENVIRONMENT = EnvironmentArguments(horizon=20)

SMALL = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 64, "n_encoder_layers": 1, "use_vae": False}
"""Fields that make ACT small."""


def make_tiny_dataset(root: Path, repo_id: str = "tiny") -> Path:
    """Writes two short episodes below a folder of datasets and returns the dataset's folder."""
    import numpy as np

    from gilbreth_phase0.datasets import add_episode, create_dataset, features

    random = np.random.default_rng(0)
    folder = root / repo_id
    dataset = create_dataset(folder, repo_id, ENVIRONMENT)
    for _ in range(EPISODES):
        columns = {
            key: random.uniform(-1, 1, (FRAMES, *feature["shape"])).astype(np.float32)
            for key, feature in features(ENVIRONMENT).items()
        }
        columns["action"][:, 3:6] = 0.0  # as in real demonstrations: rotations are constant
        add_episode(dataset, ENVIRONMENT, columns)
    dataset.finalize()
    return folder


@dataclass(frozen=True)
class Written:
    """An episode that a test writes down.

    Attributes:
        length: Its frames.
        source: 0 policy or 1 expert.
        success: Whether it ended well.
        relabelled: Those of its frames whose action somebody else executed.
    """

    length: int
    source: int = 1
    success: int = 1
    relabelled: tuple[int, ...] = ()


def write_dataset(
    root: Path,
    repo_id: str,
    episodes: Sequence[Written],
    *,
    columns: Sequence[str] = (),
    environment: EnvironmentArguments = ENVIRONMENT,
    first: int = 0,
) -> Path:
    """Writes episodes whose every number is the frame's, counted on over all of them from `first`.

    Args:
        root: Folder of datasets.
        repo_id: Its name there.
        episodes: What to write.
        columns: Which annotations each frame has.
        environment: What it says that it was recorded in.
        first: Number of the first frame.
    """
    import numpy as np
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from gilbreth_phase0.datasets import ANNOTATIONS, ENVIRONMENT_FILE, add_episode, features, write_environment

    folder = root / repo_id
    given = features(environment)
    annotations = {name: ANNOTATIONS[name] for name in columns}
    dataset = LeRobotDataset.create(repo_id, environment.control_hz, given | annotations, folder, use_videos=False)
    write_environment(folder / "meta" / ENVIRONMENT_FILE, environment)
    for episode in episodes:
        numbers = np.arange(first, first + episode.length)
        first += episode.length
        values = {
            key: np.tile(numbers[:, None], (1, *feature["shape"])).astype(np.float32) for key, feature in given.items()
        }
        flags = {
            "source": np.full(episode.length, episode.source),
            "success": np.full(episode.length, episode.success),
            "intervention": np.array([episode.source and n not in episode.relabelled for n in range(episode.length)]),
        }
        add_episode(
            dataset, environment, values | {key: flags[key].astype(np.int64).reshape(-1, 1) for key in annotations}
        )
    dataset.finalize()
    return folder
