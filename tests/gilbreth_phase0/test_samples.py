from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import DataLoader

from gilbreth_phase0.datasets import add_episode, create_dataset, features, open_dataset
from gilbreth_phase0.environments import EnvironmentArguments
from gilbreth_phase0.samples import SamplesInMemory, in_memory

ENVIRONMENT = EnvironmentArguments()
LENGTHS = (5, 1, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of random numbers, one of them a single frame."""
    root = tmp_path_factory.mktemp("data") / "numbers"
    random = np.random.default_rng(0)
    dataset = create_dataset(root, root.name, ENVIRONMENT)
    for length in LENGTHS:
        columns = {key: random.random((length, *feature["shape"])) for key, feature in features(ENVIRONMENT).items()}
        add_episode(dataset, ENVIRONMENT, {key: values.astype(np.float32) for key, values in columns.items()})
    dataset.finalize()
    return root


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        (left[key].dtype, left[key].shape) == (right[key].dtype, right[key].shape)
        and torch.equal(left[key], right[key])
        if isinstance(right[key], torch.Tensor)
        else left[key] == right[key]
        for key in right
    )


@pytest.mark.parametrize(
    "moments",
    [None, {"action": [0.0, 0.05, 0.1]}, {"observation.state": [-0.05, 0.0], "action": [-0.1, 0.0, 0.5]}],
    ids=["one moment", "a chunk", "past and future"],
)
def test_samples_are_those_of_lerobot(root: Path, moments: dict[str, list[float]] | None) -> None:
    dataset = open_dataset(root, root.name, moments)
    samples = in_memory(dataset)
    assert isinstance(samples, SamplesInMemory)
    assert len(samples) == len(dataset) == sum(LENGTHS)
    for index in range(len(dataset)):
        assert same(samples[index], dataset[index]), f"sample {index} differs"


def test_batches_of_the_loader_are_those_of_lerobot(root: Path) -> None:
    dataset = open_dataset(root, root.name, {"action": [0.0, 0.05]})
    order = [[9, 0, 4], [5, 5, 6]]
    loaders = [DataLoader(source, batch_sampler=order) for source in (in_memory(dataset), dataset)]
    pairs = list(zip(*loaders, strict=True))
    assert len(pairs) == len(order)
    assert all(same(mine, theirs) for mine, theirs in pairs)


def test_a_dataset_with_a_camera_stays_on_disk(tmp_path: Path) -> None:
    image = {"observation.images.top": {"dtype": "image", "shape": (8, 8, 3), "names": ["height", "width", "channel"]}}
    dataset = LeRobotDataset.create("seen", 20, {**features(ENVIRONMENT), **image}, tmp_path / "seen", use_videos=False)
    assert in_memory(dataset) is dataset
