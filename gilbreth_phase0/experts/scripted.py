"""Scripted demonstrators: each acts on the observation alone, as the policy that learns from it must.

They have no memory of what phase they are in: an expert with phases does different things in the same place, which
behaviour cloning cannot learn as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gilbreth_phase0.environments import ACTION, OBJECT_STATE, PROPRIOCEPTION, Observation, Vector, part

# OSC_POSE moves the gripper by this much for an action of 1, m, and turns it by this much, rad.
FULL_STEP, FULL_TURN = 0.05, 0.5
OPEN, CLOSE = -1.0, 1.0

# How far from a cube's middle the fingers may close, sideways and in height, m.
_NEAR, _LEVEL = 0.012, 0.012
# The fingers hold a cube when they have left their open position (7.8 cm apart; Lift's cube is 4.0 to 6.2 cm wide and
# Stack's 4.0 to 5.7 cm, by how they lie) and have come to rest, m and m/s. A gap alone cannot say it: lifting before
# they rest slips.
_CLOSING_GAP, _AT_REST = 0.07, 0.02
# Above a cube the gripper waits until it is centred; the allowed height grows with the distance sideways.
_HOVER, _SLOPE = 0.08, 3.0
_GAIN = 0.8


@dataclass(frozen=True)
class _Reach:
    """Where the gripper is on its way to a cube.

    Attributes:
        offset: From the gripper to the cube's middle, m.
        sideways: How much of that is horizontal, m.
        at_cube: Whether the fingers may close.
        held: Whether they hold it.
    """

    offset: Vector
    sideways: float
    at_cube: bool
    held: bool


def _reach(observation: Observation, cube: Vector) -> _Reach:
    gripper = part(observation["agent_pos"], PROPRIOCEPTION, "eef_pos")
    fingers = part(observation["agent_pos"], PROPRIOCEPTION, "gripper_qpos")
    speed = part(observation["agent_pos"], PROPRIOCEPTION, "gripper_qvel")
    offset = cube - gripper
    sideways = float(np.linalg.norm(offset[:2]))
    at_cube = sideways < _NEAR and abs(float(offset[2])) < _LEVEL
    held = at_cube and float(fingers[0] - fingers[1]) < _CLOSING_GAP and float(abs(speed).max()) < _AT_REST
    return _Reach(offset, sideways, at_cube, held)


def _move(displacement: Vector, gripper: float) -> Vector:
    """The action that goes there (m) without turning."""
    action = np.zeros(len(ACTION), dtype=np.float32)
    action[:3] = np.clip(_GAIN * displacement / FULL_STEP, -1.0, 1.0)
    action[6] = gripper
    return action


class LiftExpert:
    """Reaches over the cube, descends, closes and lifts."""

    def action(self, observation: Observation) -> Vector:
        """What to do in this state.

        Args:
            observation: Of `RobosuiteEnv` with the task Lift.

        Returns:
            Shape (7,), float32, within ±1; the rotation is zero.
        """
        reach = _reach(observation, part(observation["environment_state"], OBJECT_STATE["Lift"], "cube_pos"))
        target = reach.offset.copy()
        target[2] += np.clip(_SLOPE * (reach.sideways - _NEAR), 0.0, _HOVER)
        action = _move(target, CLOSE if reach.at_cube else OPEN)
        if reach.held:
            action[2] = 1.0
        return action


class StackExpert:
    """Grasps the red cube (A) as `LiftExpert` does, carries it over the green one (B), lowers it and lets go.

    Where B lies in the way of a finger, the gripper turns before it descends until its fingers pass B.
    """

    # From B's middle to A's when A lies on it (they are 5 and 4 cm high), m.
    stacked = 0.045
    # Of A from its place on B: where it counts as lying there, sideways and in height (a tilted one lies higher), m.
    over, rests = 0.02, 0.008
    # A is carried this much over its place on B while it is not above it, and moves sideways only when it passes B's
    # edge by so much, m. It is lowered as it comes closer than `aligned`, m.
    carry, passes, aligned = 0.06, 0.02, 0.008
    # A finger meets B when B's middle is within this of A's, along the table and across it (the fingers' own line), m.
    in_the_way = (0.045, 0.085)
    # The gripper may descend when it is turned but for this, rad.
    turned = 0.5

    def action(self, observation: Observation) -> Vector:
        """What to do in this state.

        Args:
            observation: Of `RobosuiteEnv` with the task Stack.

        Returns:
            Shape (7,), float32, within ±1; of the rotation only yaw is ever used.
        """
        cube, below = (
            part(observation["environment_state"], OBJECT_STATE["Stack"], f"cube{name}_pos") for name in "AB"
        )
        reach = _reach(observation, cube)
        place = below - cube
        place[2] += self.stacked
        from_place = float(np.linalg.norm(place[:2]))
        if reach.at_cube and from_place < self.over and abs(float(place[2])) < self.rests:
            return _move(np.zeros(3, dtype=np.float32), OPEN)
        if reach.held:
            if from_place > self.over and float(place[2]) > -self.passes:
                place[:2] = 0.0
            place[2] += np.clip(_SLOPE * (from_place - self.aligned), 0.0, self.carry)
            return _move(place, CLOSE)
        turn = 0.0 if reach.at_cube else self._turn(observation, below - cube)
        target = reach.offset.copy()
        target[2] += np.clip(max(_SLOPE * (reach.sideways - _NEAR), abs(turn) - self.turned), 0.0, _HOVER)
        action = _move(target, CLOSE if reach.at_cube else OPEN)
        action[5] = np.clip(turn / FULL_TURN, -1.0, 1.0)
        return action

    def _turn(self, observation: Observation, between: Vector) -> float:
        """How far the gripper must yaw until its fingers pass B, rad within ±pi/2; 0 where B is in nobody's way.

        Args:
            observation: Of the environment.
            between: From A to B, m.
        """
        if abs(between[0]) > self.in_the_way[0] or abs(between[1]) > self.in_the_way[1]:
            return 0.0
        x, y, z, w = part(observation["agent_pos"], PROPRIOCEPTION, "eef_quat").astype(float)
        fingers = np.arctan2(1 - 2 * (x * x + z * z), 2 * (x * y - w * z))
        across = np.arctan2(between[0], -between[1])
        return float((across - fingers + np.pi / 2) % np.pi - np.pi / 2)
