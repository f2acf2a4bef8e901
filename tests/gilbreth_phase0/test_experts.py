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
from gilbreth_phase0.experts import LiftExpert
from gilbreth_phase0.rollout import run_episode

OPEN, CLOSE = -1.0, 1.0
CUBE = (0.02, -0.01, 0.82)


def observation(gripper: tuple[float, float, float], gap: float = 0.078, speed: float = 0.0) -> Observation:
    """The gripper at a place, with a gap between the fingers (m) that closes at a speed (m/s a finger)."""
    agent = np.zeros(sum(PROPRIOCEPTION.values()), dtype=np.float32)
    part(agent, PROPRIOCEPTION, "eef_pos")[:] = gripper
    part(agent, PROPRIOCEPTION, "gripper_qpos")[:] = (gap / 2, -gap / 2)
    part(agent, PROPRIOCEPTION, "gripper_qvel")[:] = (-speed, speed)
    objects = np.zeros(sum(OBJECT_STATE["Lift"].values()), dtype=np.float32)
    part(objects, OBJECT_STATE["Lift"], "cube_pos")[:] = CUBE
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


@pytest.mark.sim
@pytest.mark.parametrize("start_range", [0.03, 0.12])
def test_it_lifts_from_ten_of_ten_seeds(start_range: float) -> None:
    env = RobosuiteEnv(EnvironmentArguments(start_range=start_range))
    expert = LiftExpert()
    episodes = [run_episode(env, expert.action, seed) for seed in range(10)]
    assert all(episode.success for episode in episodes), episodes
    assert max(episode.length for episode in episodes) < 100
