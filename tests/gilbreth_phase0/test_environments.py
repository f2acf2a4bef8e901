from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from pydantic import ValidationError

from gilbreth_phase0.environments import (
    OBJECT_STATE,
    PICTURE,
    PROPRIOCEPTION,
    EnvironmentArguments,
    RobosuiteEnv,
    numpy_seeded,
    part,
)
from gilbreth_phase0.videos import FilmedEnv, check_rendering

from support import refusal

SEED = 5


@pytest.fixture(scope="module")
def env() -> Iterator[RobosuiteEnv]:
    env = RobosuiteEnv(EnvironmentArguments(horizon=12))
    yield env
    env.close()


def trajectory(env: RobosuiteEnv | FilmedEnv, seed: int) -> np.ndarray:
    """Start and ten random steps of an episode, one row each: observations and reward."""
    observation, _ = env.reset(seed=seed)
    rows = [np.concatenate([*observation.values(), [0.0]])]
    actions = np.random.default_rng(1).uniform(-1, 1, (10, 7))
    for action in actions:
        observation, reward, *_ = env.step(action)
        rows.append(np.concatenate([*observation.values(), [reward]]))
    return np.stack(rows)


def test_arguments_survive_json() -> None:
    arguments = EnvironmentArguments(start_range=0.12, horizon=77)
    assert EnvironmentArguments.model_validate_json(arguments.model_dump_json()) == arguments


def test_the_start_range_is_the_tasks_where_none_is_given() -> None:
    assert EnvironmentArguments().start_range == 0.03
    assert EnvironmentArguments(task="Stack").start_range == 0.08


def test_what_was_stored_before_there_were_other_tasks_is_read() -> None:
    stored = (
        '{"task": "Lift", "robot": "Panda", "control_hz": 20, "horizon": 200, "start_range": 0.03, "build_seed": 0,'
        ' "robosuite_version": "1.5.1"}'
    )
    assert EnvironmentArguments.model_validate_json(stored) == EnvironmentArguments(robosuite_version="1.5.1")


def test_a_range_without_room_for_all_objects_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"Stack need at least 0\.05"):
        EnvironmentArguments(task="Stack", start_range=0.03)


@pytest.mark.parametrize("wrong", [{"task": "Lyft"}, {"horizon": 0}, {"start_range": -1.0}, {"colour": "red"}])
def test_wrong_arguments_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        EnvironmentArguments.model_validate(wrong)


def test_part_cuts_by_name() -> None:
    state = np.arange(sum(OBJECT_STATE["Lift"].values()))
    assert part(state, OBJECT_STATE["Lift"], "cube_quat").tolist() == [3, 4, 5, 6]
    with pytest.raises(KeyError, match="sphere"):
        part(state, OBJECT_STATE["Lift"], "sphere")


def test_numpy_seeded_restores_the_state_after_an_error() -> None:
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    with pytest.raises(RuntimeError), numpy_seeded(9):
        np.random.random(100)
        raise RuntimeError
    assert np.array_equal(np.random.random(4), expected)


@pytest.mark.sim
@pytest.mark.filterwarnings("ignore:.*A Box observation space")
def test_gymnasium_finds_no_fault(env: RobosuiteEnv) -> None:
    check_env(env, skip_render_check=True)


@pytest.mark.sim
def test_observations_are_what_robosuite_names(env: RobosuiteEnv) -> None:
    observation, info = env.reset(seed=SEED)
    raw = env._env._get_observations()
    assert np.array_equal(observation["agent_pos"], raw["robot0_proprio-state"].astype(np.float32))
    assert np.array_equal(observation["environment_state"], raw["object-state"].astype(np.float32))
    assert np.array_equal(
        part(observation["agent_pos"], PROPRIOCEPTION, "eef_pos"), raw["robot0_eef_pos"].astype(np.float32)
    )
    assert info == {"is_success": False}


@pytest.mark.sim
def test_an_episode_follows_from_its_seed_alone(env: RobosuiteEnv) -> None:
    first = trajectory(env, SEED)
    other = trajectory(env, SEED + 1)
    np.random.random(17)
    assert np.array_equal(trajectory(env, SEED), first)
    assert not np.array_equal(other[0], first[0])


@pytest.mark.sim
def test_another_process_simulates_the_same_bits(env: RobosuiteEnv) -> None:
    script = (
        "import sys, numpy as np\n"
        "np.random.seed(123)\n"  # what else drew from the global generator must not matter
        "from gilbreth_phase0.environments import EnvironmentArguments, RobosuiteEnv\n"
        "env = RobosuiteEnv(EnvironmentArguments(horizon=12))\n"
        f"observation, _ = env.reset(seed={SEED})\n"
        "rows = [np.concatenate([*observation.values(), [0.0]])]\n"
        "for action in np.random.default_rng(1).uniform(-1, 1, (10, 7)):\n"
        "    observation, reward, *_ = env.step(action)\n"
        "    rows.append(np.concatenate([*observation.values(), [reward]]))\n"
        "sys.stdout.buffer.write(np.stack(rows).tobytes())\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=True)
    assert finished.stdout == trajectory(env, SEED).tobytes()
    assert finished.stderr == b"", "robosuite's advice belongs in nobody's log"


@pytest.mark.sim
def test_numpys_global_generator_is_left_alone() -> None:
    np.random.seed(3)
    expected = np.random.random(4)
    np.random.seed(3)
    env = RobosuiteEnv(EnvironmentArguments())
    trajectory(env, SEED)
    assert np.array_equal(np.random.random(4), expected)


@pytest.mark.sim
def test_resets_without_a_seed_continue_a_sequence(env: RobosuiteEnv) -> None:
    def starts() -> list[bytes]:
        first = env.reset(seed=SEED)[0]["environment_state"].tobytes()
        return [first, *(env.reset()[0]["environment_state"].tobytes() for _ in range(2))]

    assert starts() == starts()
    assert len(set(starts())) == 3


@pytest.mark.sim
def test_the_horizon_truncates_and_does_not_terminate(env: RobosuiteEnv) -> None:
    env.reset(seed=SEED)
    ends = [env.step(np.zeros(7))[2:4] for _ in range(12)]
    assert ends == [(False, False)] * 11 + [(False, True)]


@pytest.mark.sim
def test_start_range_widens_the_placement() -> None:
    wide = RobosuiteEnv(EnvironmentArguments(start_range=0.12))
    starts = np.stack([wide.reset(seed=seed)[0]["environment_state"][:2] for seed in range(30)])
    # Of 60 uniform draws all within half the range has probability 2**-60.
    assert 0.06 < np.abs(starts).max() <= 0.12


@pytest.mark.sim
def test_what_is_filmed_is_the_same(env: RobosuiteEnv, tmp_path: Path) -> None:
    """GIVEN episodes that are filmed THEN their numbers are those of others; of one that is cut off no file stays."""
    before = dict(os.environ)
    assert env.render() is None
    filmed = FilmedEnv(RobosuiteEnv(EnvironmentArguments(horizon=12), "rgb_array"), tmp_path / "it's", (SEED,))
    assert np.array_equal(trajectory(filmed, SEED), trajectory(env, SEED))
    picture = filmed.render()
    assert picture.shape == (*PICTURE, 3) and picture.std() > 10  # it shows something
    while not filmed.step(np.zeros(7))[3]:
        pass
    filmed.reset(seed=SEED)
    filmed.step(np.zeros(7))
    filmed.close()
    assert [path.name for path in (tmp_path / "it's").iterdir()] == [f"seed-{SEED}-failure.mp4"]
    assert dict(os.environ) == before, "whatever renders, children choose for themselves"


def test_where_nothing_can_render_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    assert "--save-video: nothing can render here: MUJOCO_GL=vulkan: " in refusal(check_rendering)


@pytest.mark.sim
@pytest.mark.parametrize("start_range", [0.05, 0.08])
def test_stack_starts_with_both_cubes_apart_on_the_table(start_range: float) -> None:
    stack = RobosuiteEnv(EnvironmentArguments(task="Stack", start_range=start_range))
    starts = np.stack([stack.reset(seed=seed)[0]["environment_state"] for seed in range(40)])
    assert np.array_equal(starts[-1], stack._env._get_observations()["object-state"].astype(np.float32))
    upper, lower = (part(starts, OBJECT_STATE["Stack"], f"cube{name}_pos")[:, :2] for name in "AB")
    assert 0.8 * start_range < np.abs([upper, lower]).max() <= start_range
    assert np.linalg.norm(upper - lower, axis=1).min() > 0.06
    assert np.array_equal(trajectory(stack, SEED), trajectory(stack, SEED))


@pytest.mark.sim
def test_a_perturbation_follows_from_the_seed_alone_and_leaves_the_start_as_it_is(env: RobosuiteEnv) -> None:
    perturbed = RobosuiteEnv(EnvironmentArguments(horizon=12, action_noise=0.3))
    first = trajectory(perturbed, SEED)
    trajectory(perturbed, SEED + 1)
    assert np.array_equal(trajectory(perturbed, SEED), first)
    calm = trajectory(env, SEED)
    assert np.array_equal(calm[0], first[0])
    assert not np.array_equal(calm[1], first[1])


@pytest.mark.sim
def test_another_version_is_said() -> None:
    with pytest.warns(UserWarning, match=r"recorded with robosuite 1\.4\.0 and is rebuilt with 1\.5"):
        RobosuiteEnv(EnvironmentArguments(robosuite_version="1.4.0"))
