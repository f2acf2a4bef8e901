from __future__ import annotations

import numpy as np
import pytest

from gilbreth_phase0.environments import (
    OBJECT_STATE,
    PROPRIOCEPTION,
    EnvironmentArguments,
    Observation,
    RobosuiteEnv,
    part,
)
from gilbreth_phase0.experts import EXPERTS, LiftExpert, StackExpert
from gilbreth_phase0.rollout import run_episode

OPEN, CLOSE = -1.0, 1.0
CUBE = (0.02, -0.01, 0.82)
BELOW = (0.02, 0.11, 0.825)
# Where cube A lies on cube B.
STACKED = (0.02, 0.11, 0.87)


def observation(gripper: tuple[float, float, float], gap: float = 0.078, speed: float = 0.0) -> Observation:
    """The gripper at a place, with a gap between the fingers (m) that closes at a speed (m/s a finger)."""
    agent = np.zeros(sum(PROPRIOCEPTION.values()), dtype=np.float32)
    part(agent, PROPRIOCEPTION, "eef_pos")[:] = gripper
    part(agent, PROPRIOCEPTION, "gripper_qpos")[:] = (gap / 2, -gap / 2)
    part(agent, PROPRIOCEPTION, "gripper_qvel")[:] = (-speed, speed)
    objects = np.zeros(sum(OBJECT_STATE["Lift"].values()), dtype=np.float32)
    part(objects, OBJECT_STATE["Lift"], "cube_pos")[:] = CUBE
    return {"agent_pos": agent, "environment_state": objects}


def stack_observation(
    gripper: tuple[float, float, float],
    cube: tuple[float, float, float] = CUBE,
    below: tuple[float, float, float] = BELOW,
    gap: float = 0.078,
) -> Observation:
    """The same with two cubes, and the fingers in line with y."""
    agent = observation(gripper, gap)["agent_pos"]
    part(agent, PROPRIOCEPTION, "eef_quat")[:] = (1.0, 0.0, 0.0, 0.0)
    objects = np.zeros(sum(OBJECT_STATE["Stack"].values()), dtype=np.float32)
    part(objects, OBJECT_STATE["Stack"], "cubeA_pos")[:] = cube
    part(objects, OBJECT_STATE["Stack"], "cubeB_pos")[:] = below
    return {"agent_pos": agent, "environment_state": objects}


def test_it_reaches_sideways_with_open_fingers_and_stays_above() -> None:
    action = LiftExpert().action(observation((-0.1, -0.01, CUBE[2] + 0.08)))
    assert action[0] == 1.0
    assert action[1:6] == pytest.approx(np.zeros(5), abs=1e-5)
    assert action[6] == OPEN


def test_it_descends_over_the_cube() -> None:
    action = LiftExpert().action(observation((CUBE[0], CUBE[1], CUBE[2] + 0.08)))
    assert action[2] == -1.0
    assert action[6] == OPEN


@pytest.mark.parametrize(("gap", "speed"), [(0.078, 0.0), (0.055, 0.06)])
def test_it_closes_at_the_cube_and_waits_for_the_fingers(gap: float, speed: float) -> None:
    action = LiftExpert().action(observation(CUBE, gap, speed))
    assert action[:3] == pytest.approx(np.zeros(3), abs=1e-5)
    assert action[6] == CLOSE


@pytest.mark.parametrize("gap", [0.042, 0.0589])
def test_it_lifts_what_it_holds_however_the_cube_lies(gap: float) -> None:
    action = LiftExpert().action(observation(CUBE, gap))
    assert action[2] == 1.0
    assert action[6] == CLOSE


def test_actions_are_float32_within_one() -> None:
    action = LiftExpert().action(observation((-2.0, 3.0, 4.0)))
    assert (action.dtype, action.shape) == (np.float32, (7,))
    assert np.abs(action).max() <= 1.0


def test_stacking_begins_with_the_red_cube() -> None:
    action = StackExpert().action(stack_observation((CUBE[0], CUBE[1], CUBE[2] + 0.08)))
    assert (action[2], action[5], action[6]) == (-1.0, 0.0, OPEN)


def test_the_gripper_turns_where_the_other_cube_is_in_a_fingers_way_and_descends_when_it_has() -> None:
    above = (CUBE[0], CUBE[1], CUBE[2] + 0.03)
    beside = (CUBE[0] + 0.02, CUBE[1] + 0.066, CUBE[2])
    action = StackExpert().action(stack_observation(above, below=beside))
    assert abs(action[5]) == 1.0
    assert action[2] > 0.0, "it waits at a height that fingers clear"
    turned = stack_observation(above, below=beside)
    angle = np.pi / 2 if action[5] > 0 else -np.pi / 2
    part(turned["agent_pos"], PROPRIOCEPTION, "eef_quat")[:] = (np.cos(angle / 2), np.sin(angle / 2), 0.0, 0.0)
    action = StackExpert().action(turned)
    assert abs(action[5]) < 0.7
    assert action[2] < 0.0


def test_it_carries_high_and_only_then_sideways() -> None:
    low = StackExpert().action(stack_observation(CUBE, gap=0.042))
    assert low[:2] == pytest.approx(np.zeros(2))
    assert (low[2], low[6]) == (1.0, CLOSE)
    place = (CUBE[0], CUBE[1], 0.91)
    high = StackExpert().action(stack_observation(place, cube=place, gap=0.042))
    assert (high[1], high[6]) == (1.0, CLOSE)
    over = (STACKED[0], STACKED[1], 0.91)
    action = StackExpert().action(stack_observation(over, cube=over, gap=0.042))
    assert (action[2], action[6]) == (pytest.approx(-0.64, abs=1e-3), CLOSE)


def test_it_lets_go_of_what_lies_on_the_other_cube() -> None:
    action = StackExpert().action(stack_observation(STACKED, cube=STACKED, gap=0.042))
    assert action.tolist() == [0.0] * 6 + [OPEN]


def test_stack_actions_are_float32_within_one() -> None:
    action = StackExpert().action(stack_observation((-2.0, 3.0, 4.0), below=(CUBE[0], CUBE[1] + 0.07, 0.8)))
    assert (action.dtype, action.shape) == (np.float32, (7,))
    assert np.abs(action).max() <= 1.0


@pytest.mark.sim
def test_it_stacks_from_starts_in_all_positions() -> None:
    """On fresh seeds, and where the cubes lie so close in line with the fingers that a gripper cannot go straight."""
    env = RobosuiteEnv(EnvironmentArguments(task="Stack"))
    expert = EXPERTS["Stack"]()
    episodes = [
        run_episode(env, expert.action, seed) for seed in (*range(10_000_000, 10_000_006), 10_000_042, 10_000_125)
    ]
    assert all(episode.success for episode in episodes), episodes
    assert max(episode.length for episode in episodes) < 100


@pytest.mark.sim
@pytest.mark.parametrize("start_range", [0.03, 0.12])
def test_it_lifts_from_ten_of_ten_seeds(start_range: float) -> None:
    env = RobosuiteEnv(EnvironmentArguments(start_range=start_range))
    expert = LiftExpert()
    episodes = [run_episode(env, expert.action, seed) for seed in range(10)]
    assert all(episode.success for episode in episodes), episodes
    assert max(episode.length for episode in episodes) < 100
