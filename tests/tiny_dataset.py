"""A dataset that is only good for being read: numbers drawn from a seed."""

from __future__ import annotations

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
