"""`dagger` jobs in a real Slurm, killed in collection and in training, against an undisturbed one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from launch.lab import Lab
from tracking.files import read_json

from rank_pairs import PROGRAMS, rank_environment
from training_jobs import BcRun, submit

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.sim, pytest.mark.timeout(900)]

ROUNDS, EPISODES, STEPS, SAVE_FREQ = 2, 4, 120, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations, and a policy that has learnt nothing."""
    folder = tmp_path_factory.mktemp("it's dagger")
    data = folder / "data"
    collect = ["-m", "gilbreth_phase0.collect", "--repo-id", "lift", "--root", data, "--episodes", "3"]
    for command in (collect, [PROGRAMS / "fresh_policy.py", data / "lift", folder / "fresh"]):
        subprocess.run([sys.executable, *command], check=True, timeout=300, capture_output=True, env=rank_environment())
    return folder


def start(lab: Lab, folder: Path) -> BcRun:
    given = {
        "cluster.run_root": folder / "runs",
        "cluster.data_root": folder / "data",
        "dagger.from_checkpoint": folder / "fresh",
        "dagger.rounds": ROUNDS,
        "dagger.episodes": EPISODES,
        "dagger.rollout_workers": 1,
        "dagger.max_steps": 70,
        "dagger.near_timeout": 50,
        "dagger.training_steps": STEPS,
        "dagger.save_freq": SAVE_FREQ,
        "dagger.log_interval": 1,
        "dagger.eval_episodes": 0,
        "tracking.mode": "offline",
    }
    return submit(lab, "dagger", given)


def rollouts(run: BcRun, number: int) -> dict[str, float]:
    """The roll-outs of a round that are there, with the times at which they were written."""
    return {path.name: path.stat().st_mtime for path in run.run_dir.glob(f"rounds/{number:02d}/rollouts/seed-*.npz")}


def frames(folder: Path, run: BcRun, number: int) -> pyarrow.Table:
    parts = sorted((folder / "data" / run.run_dir.name / f"round-{number:02d}" / "data").rglob("*.parquet"))
    return pyarrow.concat_tables([pyarrow.parquet.read_table(part) for part in parts])


def test_killed_in_collection_and_in_training(lab: Lab, folder: Path) -> None:
    """THEN nothing that was collected is lost or made twice: datasets, rounds and weights are those of the other."""
    disturbed, undisturbed = (start(lab, folder) for _ in range(2))
    disturbed.wait_until(lambda: rollouts(disturbed, 1), 300, "the first roll-out")
    disturbed.kill_rank(1)
    disturbed.wait_until(lambda: len(disturbed.attempts()) == 1, 120, "the end of the first attempt")
    kept = rollouts(disturbed, 1)
    assert 0 < len(kept) < EPISODES
    disturbed.wait_for_step(STEPS + SAVE_FREQ * 3 // 2)
    assert kept.items() <= rollouts(disturbed, 1).items(), "what there was is not made again"
    made = rollouts(disturbed, 2)
    disturbed.kill_rank(0)
    for run in (disturbed, undisturbed):
        run.wait_until_done(400)

    assert rollouts(disturbed, 2) == made
    for number in range(1, ROUNDS + 1):
        one, other = (frames(folder, run, number) for run in (disturbed, undisturbed))
        assert one.num_rows > 0 and one.equals(other)
    one, other = (
        [read_json(path) for path in sorted(run.run_dir.glob("rounds/*/round.json"))]
        for run in (disturbed, undisturbed)
    )
    assert len(one) == ROUNDS
    for mine, theirs in zip(one, other, strict=True):
        assert mine | {"dataset": None} == theirs | {"dataset": None}
    assert disturbed.weights() == undisturbed.weights()
    assert [(record["outcome"], record["collected"]) for record in disturbed.attempts()] == [
        ("requeue", len(kept)),
        ("requeue", ROUNDS * (EPISODES + 1)),
        ("done", ROUNDS * (EPISODES + 1)),
    ]
    rows = disturbed.journal().rows
    assert [row.step for row in rows if "loss/total" in row.data] == list(range(1, ROUNDS * STEPS + 1))
    assert [row.data["dagger/round"] for row in rows if "dagger/round" in row.data] == [1, 2]
