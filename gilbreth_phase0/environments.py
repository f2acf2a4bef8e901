"""Our gymnasium view of robosuite: seeded bit for bit, truncated at the horizon, success in `info`."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Literal

import gymnasium
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Vector = npt.NDArray[np.float32]
Observation = dict[str, Vector]
Task = Literal["Lift", "Stack"]

# Named keys in a fixed order, because `robot0_proprio-state` itself differs between robosuite versions (43 numbers in
# 1.5.1, 50 in 1.5.2). This is what 1.5.1 puts there for a Panda with its default gripper. Units: rad, rad/s, m.
PROPRIOCEPTION = {
    "joint_pos": 7,
    "joint_pos_cos": 7,
    "joint_pos_sin": 7,
    "joint_vel": 7,
    "eef_pos": 3,
    "eef_quat": 4,
    "eef_quat_site": 4,
    "gripper_qpos": 2,
    "gripper_qvel": 2,
}
# What the simulator knows of a task's objects: positions in the world (m), orientations as quaternions (x, y, z, w).
OBJECT_STATE = {
    "Lift": {"cube_pos": 3, "cube_quat": 4, "gripper_to_cube_pos": 3},
    "Stack": {
        "cubeA_pos": 3,
        "cubeA_quat": 4,
        "cubeB_pos": 3,
        "cubeB_quat": 4,
        "cubeA_to_cubeB": 3,
        "gripper_to_cubeA": 3,
        "gripper_to_cubeB": 3,
    },
}
TASK_DESCRIPTION = {"Lift": "lift the cube", "Stack": "stack the red cube on the green cube"}
PICTURE = (256, 256)
"""Height and width of what `RobosuiteEnv.render` gives, in pixels."""
ACTION = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
ARM = slice(0, 6)
"""What of an action moves the arm; the gripper's comes after it."""

START_RANGE: dict[Task, float] = {"Lift": 0.03, "Stack": 0.08}
"""Within what objects start where nobody says otherwise, ± m."""
# The cubes are 6.4 cm apart at least; in a narrower range the second one may find no place.
_LEAST_START_RANGE: dict[Task, float] = {"Stack": 0.05}


def installed_robosuite() -> str:
    """The version of robosuite in this environment (without importing it)."""
    return metadata.version("robosuite")


def check_start_range(task: Task, start_range: float) -> float:
    """Returns the range if all objects of the task find a place in it.

    Raises:
        ValueError: They may not.
    """
    if start_range < (least := _LEAST_START_RANGE.get(task, 0.0)):
        raise ValueError(f"the objects of {task} need at least {least}")
    return start_range


class EnvironmentArguments(BaseModel):
    """All that is needed to build the same environment again; stored as JSON with every dataset and bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Task = Field(default="Lift", description="robosuite task")
    robot: Literal["Panda"] = Field(
        default="Panda", description="robosuite robot, with its default gripper, under OSC_POSE"
    )
    control_hz: int = Field(default=20, gt=0, description="actions a second")
    horizon: int = Field(default=200, gt=0, description="steps after which an episode is truncated")
    start_range: float = Field(
        default_factory=lambda data: START_RANGE[data["task"]],
        gt=0,
        le=0.25,
        description="objects start within ± this of the table's centre, m",
    )
    build_seed: int = Field(
        default=0, ge=0, lt=2**32, description="seed of what is drawn once, at construction (cube's size)"
    )
    action_noise: float = Field(
        default=0.0, ge=0, le=1, description="standard deviation of noise on the arm's executed actions (perturbation)"
    )
    robosuite_version: str = Field(default_factory=installed_robosuite, description="version it was recorded with")

    @field_validator("start_range")
    @classmethod
    def _has_room(cls, start_range: float, info: ValidationInfo) -> float:
        return check_start_range(info.data["task"], start_range) if "task" in info.data else start_range


def part(vector: npt.NDArray[Any], layout: dict[str, int], name: str) -> npt.NDArray[Any]:
    """Cuts one named piece out of a concatenated state.

    Args:
        vector: Shape (..., sum of the layout's sizes).
        layout: `PROPRIOCEPTION` or `OBJECT_STATE[task]`.
        name: Which piece.

    Returns:
        A view of shape (..., layout[name]).
    """
    start = 0
    for key, size in layout.items():
        if key == name:
            return vector[..., start : start + size]
        start += size
    raise KeyError(name)


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seeds NumPy's global generator within the block and puts its state back after it.

    robosuite 1.5.1 draws from that generator, and whoever else uses it must not notice.
    """
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


@contextmanager
def _renderer_s_variables_kept() -> Iterator[None]:
    """Puts MUJOCO_GL and PYOPENGL_PLATFORM back, which robosuite and MuJoCo set as they are imported and first render.

    A child that inherits `egl` cannot import mujoco where EGL is not installed or where it is to use OSMesa.
    """
    before = {name: os.environ.get(name) for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    if before["MUJOCO_GL"] in ("egl", "osmesa"):
        os.environ["PYOPENGL_PLATFORM"] = before["MUJOCO_GL"]  # another value would be refused
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def import_robosuite() -> Any:
    """Imports robosuite without its advice about private macros and robots that we do not use."""
    # robosuite sets the level of its logger while it is imported; a filter stays.
    logger = logging.getLogger("robosuite_logs")
    if not logger.filters:
        logger.addFilter(lambda record: record.levelno >= logging.ERROR)
    with _renderer_s_variables_kept():
        import robosuite

    return robosuite


class RobosuiteEnv(gymnasium.Env[dict[str, Any], Vector]):
    """A robosuite task with low-dimensional observations; needs no display.

    Observations (float32): `agent_pos`, shape (43,), the pieces of `PROPRIOCEPTION` in that order, and
    `environment_state`, the pieces of `OBJECT_STATE[task]` (Lift: shape (10,), Stack: (23,)). LeRobot's
    `preprocess_observation` makes `observation.state` and `observation.environment_state` of them.

    Actions: shape (7,), each within ±1, named in `ACTION`: displacement of the gripper (±1 is 0.05 m) and rotation
    (±1 is 0.5 rad) for one step, and the gripper (-1 opens, +1 closes).

    An episode terminates at success and is truncated at the horizon; `info["is_success"]` is in every step. The reward
    is robosuite's shaped one, at most 1 a step. The start (placement of objects, noise on the robot's joints) follows
    from the seed alone, whatever was simulated or drawn before; so does the noise that `action_noise` asks for.
    """

    def __init__(self, arguments: EnvironmentArguments, render_mode: Literal["rgb_array"] | None = None) -> None:
        """Builds the simulation.

        Args:
            arguments: What to build.
            render_mode: `rgb_array` where `render` will be called; what is simulated is the same, bit for bit.
        """
        robosuite = import_robosuite()
        from robosuite.utils.placement_samplers import UniformRandomSampler

        if (installed := installed_robosuite()) != arguments.robosuite_version:
            warnings.warn(
                f"this environment was recorded with robosuite {arguments.robosuite_version} and is rebuilt with "
                f"{installed}: the same seed may start elsewhere. Install robosuite=={arguments.robosuite_version} "
                "for results that compare.",
                stacklevel=2,
            )
        self.arguments = arguments
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": arguments.control_hz}
        self.render_mode = render_mode
        self.task = arguments.task
        self.task_description = TASK_DESCRIPTION[arguments.task]
        # LeRobot's rollout asks for it by this name.
        self._max_episode_steps = arguments.horizon
        self._steps = 0
        self._noise = np.random.default_rng()
        self._objects = OBJECT_STATE[arguments.task]
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (len(ACTION),), np.float32)
        sizes = {"agent_pos": sum(PROPRIOCEPTION.values()), "environment_state": sum(self._objects.values())}
        boxes: dict[str, gymnasium.Space[Any]] = {
            key: gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in sizes.items()
        }
        self.observation_space = gymnasium.spaces.Dict(boxes)
        half = arguments.start_range
        placement = UniformRandomSampler(
            name="ObjectSampler",
            x_range=[-half, half],
            y_range=[-half, half],
            rotation=None,
            ensure_object_boundary_in_range=False,
            ensure_valid_placement=True,
            reference_pos=np.array((0, 0, 0.8)),
            z_offset=0.01,
        )
        with numpy_seeded(arguments.build_seed), _renderer_s_variables_kept():
            self._env = robosuite.make(
                arguments.task,
                robots=arguments.robot,
                placement_initializer=placement,
                has_renderer=False,
                has_offscreen_renderer=render_mode is not None,
                use_camera_obs=False,
                reward_shaping=True,
                control_freq=arguments.control_hz,
                horizon=arguments.horizon,
                ignore_done=True,
                # A hard reset compiles the model anew (0.7 s); a soft one takes milliseconds and draws the same start.
                hard_reset=False,
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Starts an episode; without a seed, the next one of the sequence that the last seed began."""
        super().reset(seed=seed, options=options)
        start = int(self.np_random.integers(2**32))
        self._noise = np.random.default_rng((start, 1))
        # Later versions of robosuite draw from generators of their own.
        for owner in (self._env, self._env.placement_initializer):
            if hasattr(owner, "rng"):
                owner.rng = np.random.default_rng(start)
        with numpy_seeded(start):
            raw = self._env.reset()
        self._steps = 0
        return self._observe(raw), {"is_success": False}

    def step(self, action: npt.NDArray[Any]) -> tuple[Observation, float, bool, bool, dict]:
        """Applies one action, shape (7,), for 1/control_hz seconds."""
        executed = np.array(action, dtype=np.float64)
        if self.arguments.action_noise:
            executed[ARM] += self.arguments.action_noise * self._noise.standard_normal(len(executed[ARM]))
            executed = np.clip(executed, -1.0, 1.0)
        raw, reward, _, _ = self._env.step(executed)
        self._steps += 1
        success = bool(self._env._check_success())
        truncated = not success and self._steps >= self.arguments.horizon
        return self._observe(raw), float(reward), success, truncated, {"is_success": success}

    def render(self) -> npt.NDArray[np.uint8] | None:
        """What a camera that looks at robot and table sees now, shape `PICTURE` + (3,); None without a render mode."""
        if self.render_mode is None:
            return None
        height, width = PICTURE
        upside_down = self._env.sim.render(width=width, height=height, camera_name="agentview")
        return np.ascontiguousarray(upside_down[::-1])

    def close(self) -> None:
        """Frees the simulation."""
        self._env.close()

    @property
    def simulation(self) -> Any:
        """The environment of robosuite beneath, as its devices want it."""
        return self._env

    def _observe(self, raw: dict[str, Any]) -> Observation:
        robot = [raw[f"robot0_{key}"] for key in PROPRIOCEPTION]
        objects = [raw[key] for key in self._objects]
        return {
            "agent_pos": np.concatenate(robot).astype(np.float32),
            "environment_state": np.concatenate(objects).astype(np.float32),
        }
