"""A `bc` run on two ranks that evaluates on its way, and is killed in the middle of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracking import checkpoints, read_journal
from tracking.files import read_json
from tracking.gate import Gate, ModelManagement
from tracking.store import Store

from rank_pairs import ROOT, rank_environment, run_pair
from support import free_port, wait_until
from tiny_dataset import SMALL, make_tiny_dataset

pytestmark = [pytest.mark.train, pytest.mark.sim, pytest.mark.timeout(900)]

RULES = """
model_management:
  best_model_metric: reward_per_step
  upload_periodic_every: 4
  keep_last_n: 2
"""


def test_killed_in_an_evaluation_it_ends_with_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN two ranks killed behind step 4, decided or not THEN each step is evaluated and published once.

    Three episodes cannot make a policy better beyond chance, whatever it gets: the first one stays the best, also where
    another looks better and both are tried again on fresh seeds.
    """
    make_tiny_dataset(tmp_path / "data")
    run, store = tmp_path / "it's a run", Store(tmp_path / "models")
    (tmp_path / "rules.yaml").write_text(RULES)
    monkeypatch.setenv("GILBRETH_STORE", str(store.root))
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "osmesa"))
    command: list[str | Path] = [
        *("-m", "gilbreth_phase0.train_policy", f"--run-dir={run}", f"--root={tmp_path / 'data'}", "--repo-ids=tiny"),
        f"--policy-settings={json.dumps(SMALL)}",
        *(
            "--batch-size=8",
            "--training-steps=6",
            "--save-freq=100",
            "--log-interval=1",
            "--keep-last-n=1",
            "--max-steps=0",
        ),
        *(
            "--num-workers=0",
            "--eval-episodes=3",
            "--eval-freq=2",
            f"--model-management={tmp_path / 'rules.yaml'}",
            "--device=cpu",
        ),
    ]
    port = free_port()
    ranks = [
        subprocess.Popen([sys.executable, *command], cwd=ROOT, env=rank_environment(rank, 2, port)) for rank in range(2)
    ]
    try:
        # As soon as the second evaluation is on the disk: before or behind its verdict, its confirmation or its name.
        wait_until((run / "evaluations" / "step-00000004.json").exists, 400, "the evaluation of step 4")
    finally:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.wait()
    assert not (run / "done.json").exists()
    evaluated = (run / "evaluations" / "step-00000002.json").stat().st_mtime_ns

    ended = run_pair(command, timeout=400)
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].output + ended[1].output
    assert (run / "done.json").is_file()
    assert (run / "evaluations" / "step-00000002.json").stat().st_mtime_ns == evaluated

    plain = tmp_path / "plain"
    alone = [f"--run-dir={plain}" if str(part).startswith("--run-dir") else part for part in command]
    ended = run_pair([*alone, "--eval-freq=0", "--eval-episodes=0"], timeout=400)
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].output + ended[1].output
    weights = [(folder / "bundle" / "model.safetensors").read_bytes() for folder in (run, plain)]
    assert weights[0] == weights[1], "evaluations, and the kill, change nothing of the training"

    state = store.state("act-tiny")
    named = {version.step: state.aliases_of(number) for number, version in state.versions.items()}
    assert named == {2: ["best", "step-2"], 4: ["step-4"], 6: ["latest", "final", "step-6"]}
    assert Gate(ModelManagement(), run).best_step == 2
    assert [path.name for path in (run / "best").iterdir()] == ["step-00000002"]
    saved = {path.name for path in checkpoints.candidates(run / "checkpoints")}
    assert saved == {"step-00000002", "step-00000006"}, "the best one stays beside the newest"
    for number, step in enumerate((2, 4, 6)):
        record = read_json(run / "evaluations" / f"step-{step:08d}.json")
        assert (record["complete"], record["model"]) == (True, f"act-tiny:v{number}")
        facts = state.versions[number].metadata
        assert facts["eval_seeds"] == [100_000, 100_001, 100_002] and facts["keep_last_n"] == 2
        episodes = record["trained"]["episodes"]
        assert facts["eval_outcomes"] == [episode["reward"] / episode["length"] for episode in episodes]
    journal = read_journal(run).rows
    rows = [row for row in journal if "eval/success_rate" in row.data]
    assert [row.step for row in rows] == [2, 4, 6]
    after = next(row for row in journal if row.step == 3)
    assert after.n < rows[0].n, "training went on while step 2 was evaluated"
    assert not (run / "behind").exists()
