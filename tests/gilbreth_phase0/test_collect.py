from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gilbreth_phase0 import collect
from gilbreth_phase0.arguments import parse
from gilbreth_phase0.collect import Arguments
from gilbreth_phase0.datasets import open_dataset, read_environment
from gilbreth_phase0.demonstrations import Demonstration
from gilbreth_phase0.environments import EnvironmentArguments
from gilbreth_phase0.rollout import Episode
from tracking.errors import UserError
from tracking.files import read_json

from support import wait_until

COLUMNS = ("observation.state", "observation.environment_state", "action")


def program(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "gilbreth_phase0.collect", *map(str, arguments)]


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program(*arguments), capture_output=True, text=True, timeout=200, check=False, env=os.environ | environment
    )


def values(root: Path) -> dict[str, np.ndarray]:
    frames = open_dataset(root, root.name).hf_dataset.with_format("numpy")
    return {key: np.asarray(frames[key]) for key in (*COLUMNS, "episode_index", "timestamp")}


def fake_tries(successes: list[bool]) -> list[Demonstration]:
    return [Demonstration(Episode(seed, success, 1, 0.0), {}) for seed, success in enumerate(successes)]


def folder_of(tmp_path: Path, asked: dict) -> Path:
    """A dataset's folder as far as `stands` looks at it."""
    meta = tmp_path / "lift" / "meta"
    meta.mkdir(parents=True)
    (meta / "info.json").write_text("{}")
    (meta / "collect.json").write_text(json.dumps({"arguments": asked}))
    return tmp_path / "lift"


@pytest.mark.parametrize(
    "wrong", [{"repo_id": "../lift"}, {"repo_id": ".lift"}, {"episodes": 0}, {"start_range": 3}, {"task": "Lyft"}]
)
def test_wrong_arguments_are_refused_by_flag(wrong: dict) -> None:
    with pytest.raises(UserError, match="--" + next(iter(wrong)).replace("_", "-")):
        parse(Arguments, wrong)


def test_it_stops_when_enough_succeeded() -> None:
    tries = iter(fake_tries([True, False, True, True]))
    assert [demonstration.episode.seed for demonstration in collect._enough(tries, 2)] == [0, 1, 2]
    assert next(tries).episode.seed == 3, "nothing was tried beyond need"


def test_an_expert_that_never_succeeds_ends_it() -> None:
    with pytest.raises(UserError, match="succeeded on 0 of 10 tries; 5 demonstrations were asked for"):
        list(collect._enough(iter(fake_tries([False] * 100)), 5))


def test_an_expert_that_seldom_succeeds_ends_it() -> None:
    with pytest.raises(UserError, match="succeeded on 1 of 18 tries"):
        list(collect._enough(iter(fake_tries([True] + [False] * 100)), 2))


def test_what_stands_already_is_compared(tmp_path: Path) -> None:
    asked = {"episodes": 3, "environment": {"horizon": 200, "action_noise": 0.0}}
    assert not collect.stands(tmp_path / "lift", asked)
    final = folder_of(tmp_path, asked)
    assert collect.stands(final, asked)
    with pytest.raises(UserError) as refused:
        collect.stands(final, {"episodes": 3, "environment": {"horizon": 100, "action_noise": 0.0}})
    assert "environment.horizon: 200 there, 100 asked for" in str(refused.value)
    assert "episodes" not in str(refused.value)


def test_a_dataset_of_before_there_were_perturbations_is_as_good(tmp_path: Path) -> None:
    asked = {"episodes": 3, "environment": {"horizon": 200, "action_noise": 0.0}}
    final = folder_of(tmp_path, {"episodes": 3, "environment": {"horizon": 200}})
    assert collect.stands(final, asked)
    with pytest.raises(UserError, match=r"environment\.action_noise: 0\.0 there, 0\.1 asked for"):
        collect.stands(final, {"episodes": 3, "environment": {"horizon": 200, "action_noise": 0.1}})


def test_the_start_range_is_the_tasks_or_refused_by_flag() -> None:
    assert Arguments().environment() == EnvironmentArguments()
    stack = Arguments(task="Stack", perturbation=0.1).environment()
    assert (stack.start_range, stack.action_noise) == (0.08, 0.1)
    with pytest.raises(UserError, match=r"--start-range 0.03: .*Stack need at least 0\.05"):
        parse(Arguments, {"task": "Stack", "start_range": 0.03})


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "lift").mkdir()
    with pytest.raises(UserError, match="not a dataset of this program"):
        collect.main(Arguments(root=tmp_path))
    assert list(tmp_path.rglob("*")) == [tmp_path / "lift"]


def test_a_data_root_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file.*--root"):
        collect.main(Arguments(root=tmp_path / "file"))


def test_only_the_first_task_of_a_step_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    collect.main(Arguments(root=tmp_path, run_dir=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_what_killed_collections_left_is_removed_and_what_lives_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = os.uname().nodename
    finished = subprocess.Popen(["true"])
    finished.wait(timeout=10)
    of_requeued_job = tmp_path / ".lift.job-77.partial"
    of_killed = tmp_path / f".lift.{host}-{finished.pid}.partial"
    others = [
        tmp_path / f".lift.{host}-{os.getpid()}.partial",
        tmp_path / ".lift.job-78.partial",
        tmp_path / f".lift.other-{finished.pid}.partial",
        tmp_path / f".can.{host}-{finished.pid}.partial",
    ]
    for folder in (of_requeued_job, of_killed, *others):
        (folder / "meta").mkdir(parents=True)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert collect._clear_place(tmp_path / "lift") == of_requeued_job
    assert sorted(tmp_path.iterdir()) == sorted(others)


@pytest.mark.sim
def test_a_collection_is_the_same_again_with_any_number_of_workers(tmp_path: Path) -> None:
    flags = ("--root", tmp_path, "--episodes", "3", "--seed", "4")
    first = run(*flags, "--repo-id", "one", "--run-dir", tmp_path / "run")
    assert first.returncode == 0, first.stderr
    assert "3 demonstrations" in first.stdout
    assert "succeeded on 3 of 3 seeds from 4 on" in first.stdout
    assert "warning" not in first.stderr.lower(), "a library's advice is in the log"
    second = run(*flags, "--repo-id", "two", "--num-workers", "2")
    assert second.returncode == 0, second.stderr

    one, two = values(tmp_path / "one"), values(tmp_path / "two")
    assert {key: one[key].dtype for key in COLUMNS} == dict.fromkeys(COLUMNS, np.dtype(np.float32))
    assert {key: one[key].shape[1] for key in COLUMNS} == dict(zip(COLUMNS, (43, 10, 7), strict=True))
    assert all(one[key].tobytes() == two[key].tobytes() for key in one)
    assert sorted(set(one["episode_index"].tolist())) == [0, 1, 2]
    assert read_environment(tmp_path / "one") == EnvironmentArguments()
    record = read_json(tmp_path / "one" / "meta" / "collect.json")
    assert record["seeds"] == [4, 5, 6]
    assert record["frames"] == len(one["action"])
    done = read_json(tmp_path / "run" / "done.json")
    assert (done["step"], done["outcome"]) == (3, "finished")

    before = (tmp_path / "one" / "meta" / "info.json").stat().st_mtime_ns
    again = run(*flags, "--repo-id", "one")
    assert (again.returncode, "already there" in again.stdout) == (0, True)
    other = run("--root", tmp_path, "--episodes", "2", "--seed", "4", "--repo-id", "one")
    assert (other.returncode, "episodes: 3 there, 2 asked for" in other.stderr) == (2, True)
    assert (tmp_path / "one" / "meta" / "info.json").stat().st_mtime_ns == before


@pytest.mark.sim
def test_stack_is_collected_too(tmp_path: Path) -> None:
    collected = run("--task", "Stack", "--repo-id", "stack", "--root", tmp_path, "--episodes", "2")
    assert collected.returncode == 0, collected.stderr
    assert "succeeded on 2 of 2 seeds" in collected.stdout
    assert values(tmp_path / "stack")["observation.environment_state"].shape[1] == 23
    assert read_environment(tmp_path / "stack") == EnvironmentArguments(task="Stack")


@pytest.mark.sim
def test_noise_moves_the_arm_and_is_not_recorded(tmp_path: Path) -> None:
    from gilbreth_phase0.demonstrations import Demonstrator

    clean, noisy = (Demonstrator(EnvironmentArguments(), noise)(3).columns for noise in (0.0, 0.2))
    assert np.array_equal(clean["action"][0], noisy["action"][0])
    assert not np.array_equal(clean["observation.state"][1], noisy["observation.state"][1])
    # The expert never turns the gripper; what was executed did.
    assert np.all(noisy["action"][:, 3:6] == 0)


@pytest.mark.sim
def test_a_killed_collection_leaves_no_dataset_and_the_next_one_completes(weird_root: Path) -> None:
    killed = subprocess.Popen(
        program("--root", weird_root, "--episodes", "500"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        frames = ".lift.*.partial/data/chunk-000/*.parquet"
        wait_until(lambda: list(weird_root.glob(frames)), 120, "the first recorded episode")
        assert killed.poll() is None
    finally:
        killed.kill()
        killed.wait(timeout=30)
    assert not (weird_root / "lift").exists()

    completed = run("--root", weird_root, "--episodes", "2")
    assert completed.returncode == 0, completed.stderr
    assert [path.name for path in weird_root.iterdir()] == ["lift"]
    assert open_dataset(weird_root / "lift", "lift").num_episodes == 2


@pytest.fixture
def weird_root(tmp_path: Path) -> Path:
    root = tmp_path / "da 'ta; echo foo"
    root.mkdir()
    return root
