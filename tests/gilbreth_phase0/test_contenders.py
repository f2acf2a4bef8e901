from __future__ import annotations

import json
from pathlib import Path

import pytest

from gilbreth_phase0.arguments import repeated
from gilbreth_phase0.contenders import agreed_environment, find_contenders
from gilbreth_phase0.datasets import features, write_environment
from gilbreth_phase0.environments import EnvironmentArguments

from support import refusal

LIFT = EnvironmentArguments(horizon=40)


def bundle(folder: Path, environment: EnvironmentArguments = LIFT, **shapes: list[int]) -> str:
    """The part of a bundle that is looked at before anything is loaded."""
    folder.mkdir(parents=True)
    columns = {name: {"shape": shapes.get(name, feature["shape"])} for name, feature in features(environment).items()}
    outputs = {"action": columns.pop("action")}
    config = {"type": "act", "input_features": columns, "output_features": outputs}
    (folder / "config.json").write_text(json.dumps(config))
    write_environment(folder / "environment.json", environment)
    return str(folder)


def test_several_are_called_by_their_runs_and_one_alone_trained(weird_tmp_path: Path) -> None:
    first, second = bundle(weird_tmp_path / "a" / "bundle"), bundle(weird_tmp_path / "b" / "bundle")
    assert [one.name for one in find_contenders([first])] == ["trained"]
    assert [one.name for one in find_contenders([first, second])] == ["a", "b"]
    third = bundle(weird_tmp_path / "c" / "a" / "bundle")
    assert [one.name for one in find_contenders([first, third])] == [first, third]
    assert "are the same policy" in refusal(lambda: find_contenders([first, f"{first}/"]))
    assert "next: --policy act-lift:best" in refusal(lambda: find_contenders([]))


def test_an_environment_is_agreed_before_anything_runs(tmp_path: Path) -> None:
    """GIVEN policies for other starts, or with other features than the environment THEN that is said, by numbers."""
    near = bundle(tmp_path / "near")
    far = bundle(tmp_path / "far", EnvironmentArguments(horizon=60, start_range=0.12))
    other = bundle(tmp_path / "other", **{"observation.state": [50]})
    both = find_contenders([near, far])
    said = refusal(lambda: agreed_environment(both, None, None))
    assert "near and far were trained for different environments" in said
    assert "horizon 40 and 60; start_range 0.03 and 0.12" in said and "--dataset FOLDER" in said
    assert "horizon" not in refusal(lambda: agreed_environment(both, None, 30))

    dataset = tmp_path / "wide"
    (dataset / "meta").mkdir(parents=True)
    (dataset / "meta" / "info.json").touch()
    write_environment(dataset / "meta" / "environment.json", EnvironmentArguments(start_range=0.12))
    assert agreed_environment(both, dataset, 30) == EnvironmentArguments(start_range=0.12, horizon=30)
    said = refusal(lambda: agreed_environment(find_contenders([other]), None, None))
    assert "observation.state has shape (43,), expected (50,)" in said
    # Nothing was loaded, nor simulated, for that.
    assert "robosuite" not in said and not any(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["--policies", "a b", "c", "--episodes", "3"], ["--policies", "a b", "--policies", "c", "--episodes", "3"]),
        (["--policies=a,b", "--starts", "fresh"], ["--policies=a,b", "--starts", "fresh"]),
        (["--episodes", "3", "--policies", "a"], ["--episodes", "3", "--policies", "a"]),
        (["--policies", "a", "--policies", "b", "c"], ["--policies", "a", "--policies", "b", "--policies", "c"]),
    ],
)
def test_a_flag_takes_several_values(given: list[str], read: list[str]) -> None:
    assert repeated(given, "--policies") == read
