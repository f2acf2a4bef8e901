"""Videos of episodes: `seed-1000003-success.mp4`, written while the episode runs, with no effect on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium
import numpy.typing as npt

from gilbreth_phase0.environments import PICTURE, Observation, RobosuiteEnv
from tracking.errors import UserError
from tracking.files import beside

FOLDER = "videos"
"""Below a run folder."""

_TRY = "import mujoco; context = mujoco.GLContext(8, 8); context.make_current(); context.free(); print('ready')"
_TRY_SECONDS = 60.0


class FilmedEnv(gymnasium.Wrapper[Observation, Any, Observation, Any]):
    """An environment whose episodes from some seeds are filmed; what happens in it is the same.

    Args:
        env: With the render mode `rgb_array`.
        folder: Where the videos go; made where it is missing.
        seeds: Which episodes.
    """

    def __init__(self, env: RobosuiteEnv, folder: Path, seeds: Collection[int]) -> None:
        super().__init__(env)
        self._render = env.render
        self.task_description = env.task_description
        self._folder, self._seeds = folder, seeds
        self._film: Film | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Starts an episode, and a film where its seed is one of those."""
        self.drop()
        observation, info = self.env.reset(seed=seed, options=options)
        if seed in self._seeds:
            self._film = Film(self._folder / f"seed-{seed}.mp4", int(self.env.metadata["render_fps"]))
            self._film.add(self._render())
        return observation, info

    def step(self, action: npt.NDArray[Any]) -> tuple[Observation, float, bool, bool, dict]:
        """Applies one action; the last one of an episode gives the film its name."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._film is not None:
            self._film.add(self._render())
            if terminated or truncated:
                self._film.finish("success" if info["is_success"] else "failure")
                self._film = None
        return observation, float(reward), terminated, truncated, info

    def close(self) -> None:
        """Frees the simulation; a film that did not come to its end goes."""
        self.drop()
        super().close()

    def drop(self) -> None:
        """Removes a film that did not come to its end."""
        if self._film is not None:
            self._film.drop()
            self._film = None


class Film:
    """An mp4 (H.264) that grows by a frame at a time, under a hidden name until it is whole.

    Args:
        path: Its name without what came of it.
        frames_a_second: As simulated time goes.
    """

    def __init__(self, path: Path, frames_a_second: int) -> None:
        import av

        self._path, self._temporary = path, beside(path, "mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(self._temporary), "w")
        self._stream: Any = self._container.add_stream("libx264", Fraction(frames_a_second))
        self._stream.height, self._stream.width = PICTURE
        self._stream.pix_fmt = "yuv420p"  # what browsers and W&B play
        # The policy has the cores; and results must not depend on who else computes.
        self._stream.codec_context.thread_count = 1

    def add(self, frame: npt.NDArray[Any] | None) -> None:
        """Appends a picture, shape (height, width, 3), uint8."""
        import av

        assert frame is not None, "the environment has no render mode"
        self._write(av.VideoFrame.from_ndarray(frame, "rgb24"))

    def finish(self, outcome: str) -> Path:
        """Closes the file and names it by what came out, in place of an earlier film of this seed."""
        self._write(None)
        self._container.close()
        final = self._path.with_stem(f"{self._path.stem}-{outcome}")
        for earlier in self._path.parent.glob(f"{self._path.stem}-*{self._path.suffix}"):
            earlier.unlink(missing_ok=True)
        self._temporary.replace(final)
        return final

    def drop(self) -> None:
        """Closes and removes what there is."""
        self._container.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, frame: Any) -> None:
        for packet in self._stream.encode(frame):
            self._container.mux(packet)


def film(env: RobosuiteEnv, folder: Path | None, seeds: Collection[int]) -> RobosuiteEnv | FilmedEnv:
    """The environment itself where no folder is given."""
    return env if folder is None else FilmedEnv(env, folder, seeds)


def check_rendering(asked_by: str = "--save-video") -> None:
    """Refuses to film where nothing can render, and chooses what can where `MUJOCO_GL` leaves it open.

    Tried in a process of its own, which a broken driver may take with it.

    Args:
        asked_by: The flag that wants pictures.

    Raises:
        UserError: Neither a GPU (EGL) nor the CPU (OSMesa) can render here; the message has what they said.
    """
    chosen = os.environ.get("MUJOCO_GL", "")
    faults = []
    for backend in [chosen] if chosen else ["egl", "osmesa"]:
        fault = _fault_of(backend)
        if fault is None:
            os.environ["MUJOCO_GL"] = backend
            return
        faults.append(f"MUJOCO_GL={backend}: {fault}")
    raise UserError(
        f"{asked_by}: nothing can render here: {'; '.join(faults)}\n"
        f"  next: unset MUJOCO_GL, install libosmesa6 (CPU) or libegl1 (GPU), or leave {asked_by} out"
    )


def _fault_of(backend: str) -> str | None:
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _TRY],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TRY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_TRY_SECONDS:.0f} s"
    if "ready" in tried.stdout:
        return None
    said = tried.stderr.strip().splitlines()
    return said[-1] if said else f"exit code {tried.returncode}"
