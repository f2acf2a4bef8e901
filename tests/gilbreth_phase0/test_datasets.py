from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gilbreth_phase0.datasets import (
    add_episode,
    create_dataset,
    features,
    open_dataset,
    open_metadata,
    read_environment,
    write_environment,
)
from gilbreth_phase0.environments import EnvironmentArguments
from tracking.errors import UserError

ENVIRONMENT = EnvironmentArguments(start_range=0.07)


def test_features_name_every_number() -> None:
    shapes = {key: feature["shape"] for key, feature in features(ENVIRONMENT).items()}
    assert shapes == {"observation.state": (43,), "observation.environment_state": (10,), "action": (7,)}
    assert all(len(feature["names"]) == feature["shape"][0] for feature in features(ENVIRONMENT).values())
    assert features(ENVIRONMENT)["observation.environment_state"]["names"][:3] == [
        "cube_pos.0",
        "cube_pos.1",
        "cube_pos.2",
    ]


@pytest.mark.parametrize("opener", [open_dataset, open_metadata])
def test_a_missing_dataset_is_refused_with_the_command_that_makes_it(opener, weird_tmp_path: Path) -> None:
    root = weird_tmp_path / "lift"
    with pytest.raises(UserError) as refused:
        opener(root, "lift")
    assert f"no dataset at {root}" in str(refused.value)
    assert "gilbreth_phase0.collect --repo-id lift --root" in str(refused.value)
    assert not root.exists(), "refusing must not make the folder"


@pytest.mark.parametrize("place", ["meta/environment.json", "environment.json"])
def test_the_environment_is_read_from_a_dataset_and_from_a_bundle(place: str, weird_tmp_path: Path) -> None:
    path = weird_tmp_path / place
    path.parent.mkdir(exist_ok=True)
    write_environment(path, ENVIRONMENT)
    assert read_environment(weird_tmp_path) == ENVIRONMENT


def test_a_missing_environment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say which environment"):
        read_environment(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"task": "Lift", "gravity": 3}'])
def test_an_unreadable_environment_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(content)
    with pytest.raises(UserError, match="does not describe an environment"):
        read_environment(tmp_path)


@pytest.mark.sim
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    root = tmp_path / "da ta" / "lift"
    random = np.random.default_rng(0)
    episodes = [
        {
            key: random.standard_normal((length, *feature["shape"]), dtype=np.float32)
            for key, feature in features(ENVIRONMENT).items()
        }
        for length in (3, 5)
    ]
    dataset = create_dataset(root, "lift", ENVIRONMENT)
    for columns in episodes:
        add_episode(dataset, ENVIRONMENT, columns)
    dataset.finalize()

    read = open_dataset(root, "lift", {"action": [0.0, 0.05]})
    assert (read.num_episodes, len(read), read.fps) == (2, 8, 20)
    assert read[0]["task"] == "lift the cube"
    for key in features(ENVIRONMENT):
        column = np.stack([np.asarray(row) for row in read.hf_dataset[key]])
        assert column.dtype == np.float32
        assert np.array_equal(column, np.concatenate([columns[key] for columns in episodes]))
    # The chunk at an episode's end repeats its last action and says that it is padding.
    assert np.array_equal(read[2]["action"][1], episodes[0]["action"][2])
    assert read[2]["action_is_pad"].tolist() == [False, True]
    assert read_environment(root) == ENVIRONMENT
