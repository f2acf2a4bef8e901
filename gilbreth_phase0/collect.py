"""Stage program `collect`: demonstrations of a scripted expert, recorded as a LeRobotDataset.

The dataset is written beside its final place and renamed when it is whole. Which episodes it holds follows from the
arguments alone: the seeds from --seed on, in order, of which those are kept on which the expert succeeds.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from gilbreth_phase0.arguments import StageArguments, command
from gilbreth_phase0.datasets import add_episode, create_dataset, is_dataset, publish_dataset
from gilbreth_phase0.demonstrations import Demonstration, Demonstrator
from gilbreth_phase0.environments import START_RANGE, EnvironmentArguments, Task, check_start_range
from gilbreth_phase0.progress import progress
from gilbreth_phase0.ranks import Ranks
from gilbreth_phase0.run_folder import make_run_folder, write_done
from gilbreth_phase0.seeds import DEMONSTRATIONS
from gilbreth_phase0.statistics import wilson_interval
from gilbreth_phase0.workers import ordered_map
from tracking.errors import UserError
from tracking.files import read_json, write_json

COLLECT_FILE = "collect.json"

# An expert that fails this often in a row at the start is broken, not unlucky.
_HOPELESS_TRIES = 10
_TRIES_AN_EPISODE = 4


class Arguments(StageArguments):
    """Arguments of the stage program."""

    repo_id: str = Field(
        "lift", pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)?$", description="name of the dataset; its folder is ROOT/REPO_ID"
    )
    root: Path = Field(Path("data"), description="folder of all datasets")
    episodes: int = Field(30, ge=1, description="successful demonstrations to record")
    seed: int = Field(
        0, ge=0, lt=DEMONSTRATIONS.stop, description="seed of the first episode tried; the next ones follow"
    )
    task: Task = Field("Lift", description="robosuite task")
    start_range: float | None = Field(
        None, gt=0, le=0.25, description="cubes start within ± this of the table's centre, m; Lift 0.03, Stack 0.08"
    )
    horizon: int = Field(200, gt=0, description="steps after which a try has failed")
    action_noise: float = Field(
        0.0, ge=0, le=1, description="standard deviation of noise on executed actions; the clean action is recorded"
    )
    perturbation: float = Field(
        0.0, ge=0, le=1, description="the same, but as part of the task: policies are evaluated under it too"
    )
    num_workers: int = Field(1, ge=1, description="processes that simulate; the dataset is the same with any number")
    run_dir: Path | None = Field(None, description="run folder to write done.json to")

    @field_validator("start_range")
    @classmethod
    def _has_room(cls, start_range: float | None, info: ValidationInfo) -> float | None:
        if start_range is None or "task" not in info.data:
            return start_range
        return check_start_range(info.data["task"], start_range)

    def environment(self) -> EnvironmentArguments:
        """What is demonstrated in."""
        return EnvironmentArguments(
            task=self.task,
            start_range=START_RANGE[self.task] if self.start_range is None else self.start_range,
            horizon=self.horizon,
            action_noise=self.perturbation,
        )


def main(arguments: Arguments) -> None:
    """Records demonstrations of the scripted expert as a LeRobotDataset with its environment's arguments."""
    if Ranks.from_environment().rank > 0:
        return
    if arguments.run_dir is not None:
        make_run_folder(arguments.run_dir)
    environment = arguments.environment()
    final = arguments.root / arguments.repo_id
    asked = {
        "episodes": arguments.episodes,
        "seed": arguments.seed,
        "action_noise": arguments.action_noise,
        "environment": environment.model_dump(),
    }
    if stands(final, asked):
        print(f"{final} is already there, whole and collected with the same arguments: nothing to do", flush=True)
    else:
        collect(arguments, environment, asked, final)
    if arguments.run_dir is not None:
        write_done(arguments.run_dir, arguments.episodes, dataset=str(final))


def stands(final: Path, asked: dict[str, Any]) -> bool:
    """Whether the dataset that is asked for is there already.

    Raises:
        UserError: Something else is in its place.
    """
    if not final.exists():
        return False
    record = read_json(final / "meta" / COLLECT_FILE) if is_dataset(final) else None
    if record is None:
        raise UserError(
            f"{final} exists and is not a dataset of this program. Choose another --repo-id, or move it away"
        )
    # A dataset of before knows nothing of an argument that came later, and has its default.
    defaults = {"action_noise": 0.0}
    there = record["arguments"]
    differences = _differences({**there, "environment": defaults | there["environment"]}, asked)
    if differences:
        raise UserError(
            f"{final} was collected with other arguments:\n  "
            + "\n  ".join(differences)
            + "\n  Choose another --repo-id, or move it away"
        )
    return True


def _differences(there: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted(there.keys() | asked.keys()):
        old, new = there.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} asked for")
    return lines


def collect(arguments: Arguments, environment: EnvironmentArguments, asked: dict[str, Any], final: Path) -> None:
    """Collects into a folder beside the final one and renames it.

    Raises:
        UserError: The data root cannot be written, or the expert fails too often.
    """
    started = time.monotonic()
    partial_root = _clear_place(final)
    make_worker = partial(Demonstrator, environment, arguments.action_noise)
    kept: list[int] = []
    failed: list[int] = []
    frames = 0
    try:
        with ordered_map(make_worker, count(arguments.seed), arguments.num_workers) as tries:
            # LeRobot is imported here, while the workers build their simulations.
            dataset = create_dataset(partial_root, arguments.repo_id, environment)
            with progress("demonstrations", arguments.episodes) as advance:
                for demonstration in _enough(tries, arguments.episodes):
                    if not demonstration.episode.success:
                        failed.append(demonstration.episode.seed)
                        continue
                    add_episode(dataset, environment, demonstration.columns)
                    kept.append(demonstration.episode.seed)
                    frames += demonstration.episode.length
                    advance(f"{len(kept)} of {len(kept) + len(failed)} tries succeeded")
            dataset.finalize()
        record = {"arguments": asked, "frames": frames, "seeds": kept, "failed_seeds": failed}
        write_json(partial_root / "meta" / COLLECT_FILE, record)
        publish_dataset(partial_root, final)
    finally:
        shutil.rmtree(partial_root, ignore_errors=True)
    tried = len(kept) + len(failed)
    low, high = wilson_interval(len(kept), tried)
    print(
        f"{final}: {len(kept)} demonstrations, {frames} frames, {time.monotonic() - started:.1f} s\n"
        f"the expert succeeded on {len(kept)} of {tried} seeds from {arguments.seed} on"
        f" (95 % interval {100 * low:.0f}-{100 * high:.0f} %)" + (f"; it failed on {failed}" if failed else ""),
        flush=True,
    )


def _enough(tries: Iterator[Demonstration], wanted: int) -> Iterator[Demonstration]:
    """Passes tries on until enough of them succeeded.

    Raises:
        UserError: The expert never succeeds, or too seldom.
    """
    limit = _TRIES_AN_EPISODE * wanted + _HOPELESS_TRIES
    successes = 0
    for tried, demonstration in enumerate(tries, start=1):
        yield demonstration
        successes += demonstration.episode.success
        if successes == wanted:
            return
        if tried == limit or (tried == _HOPELESS_TRIES and successes == 0):
            raise UserError(
                f"the expert succeeded on {successes} of {tried} tries; {wanted} demonstrations were asked for."
                " Lower --action-noise, raise --horizon or narrow --start-range"
            )


def _clear_place(final: Path) -> Path:
    """Removes what killed collections left and names the folder that this one writes into.

    Raises:
        UserError: The data root cannot be written.
    """
    host = os.uname().nodename
    job = os.environ.get("SLURM_JOB_ID")
    # A requeued job takes over what its earlier attempt left, on whatever node that was.
    own = f".{final.name}.job-{job}.partial" if job else f".{final.name}.{host}-{os.getpid()}.partial"
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for folder in final.parent.glob(f".{final.name}.{host}-*.partial"):
            pid = folder.name.removesuffix(".partial").rpartition("-")[2]
            if not Path("/proc", pid).exists():
                shutil.rmtree(folder)
        if (final.parent / own).exists():
            shutil.rmtree(final.parent / own)
        # LeRobot makes the folder itself; this asks, before anything is computed, whether it may.
        (final.parent / own).mkdir()
        (final.parent / own).rmdir()
    except OSError as error:
        raise UserError(
            f"cannot write to {final.parent}: {error.strerror}. Give a --root that you may write to"
        ) from error
    return final.parent / own


app = command(Arguments, main)

if __name__ == "__main__":
    app()
