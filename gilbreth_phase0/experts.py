"""Scripted demonstrators: each acts on the observation alone, as the policy that learns from it must."""

from __future__ import annotations

import numpy as np

from gilbreth_phase0.environments import ACTION, OBJECT_STATE, PROPRIOCEPTION, Observation, Vector, part

# OSC_POSE moves the gripper by this much for an action of 1, m.
FULL_STEP = 0.05


class LiftExpert:
    """Reaches over the cube, descends, closes and lifts.

    It has no memory of what phase it is in: an expert with phases does different things in the same place, which
    behaviour cloning cannot learn as well.
    """

    # How far from the cube's middle the fingers may close, sideways and in height, m.
    near, level = 0.012, 0.012
    # The fingers hold the cube when they have left their open position (7.8 cm apart; the cube is 4.0 to 6.2 cm wide,
    # by how it lies) and have come to rest, m and m/s. A gap alone cannot say it: lifting before they rest slips.
    closing_gap, at_rest = 0.07, 0.02
    # Above the cube the gripper waits until it is centred; the allowed height grows with the distance sideways.
    hover, slope = 0.08, 3.0
    gain = 0.8

    def action(self, observation: Observation) -> Vector:
        """What to do in this state.

        Args:
            observation: Of `RobosuiteEnv` with the task Lift.

        Returns:
            Shape (7,), float32, within ±1; the rotation is zero.
        """
        gripper = part(observation["agent_pos"], PROPRIOCEPTION, "eef_pos")
        fingers = part(observation["agent_pos"], PROPRIOCEPTION, "gripper_qpos")
        cube = part(observation["environment_state"], OBJECT_STATE["Lift"], "cube_pos")
        speed = part(observation["agent_pos"], PROPRIOCEPTION, "gripper_qvel")
        offset = cube - gripper
        sideways = float(np.linalg.norm(offset[:2]))
        at_cube = sideways < self.near and abs(float(offset[2])) < self.level
        held = at_cube and float(fingers[0] - fingers[1]) < self.closing_gap and float(abs(speed).max()) < self.at_rest

        action = np.zeros(len(ACTION), dtype=np.float32)
        target = offset.copy()
        target[2] += np.clip(self.slope * (sideways - self.near), 0.0, self.hover)
        action[:3] = np.clip(self.gain * target / FULL_STEP, -1.0, 1.0)
        if held:
            action[2] = 1.0
        action[6] = 1.0 if at_cube else -1.0
        return action


EXPERTS = {"Lift": LiftExpert}
