"""DAgger from the command line: what is refused, and a whole run of two rounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gilbreth_phase0.dagger.rounds import Ledger
from gilbreth_phase0.datasets import open_dataset
from gilbreth_phase0.train_dagger import Arguments, check
from tracking import read_journal
from tracking.errors import UserError
from tracking.files import read_json
from tracking.store import open_store

from rank_pairs import PROGRAMS, rank_environment
from tiny_dataset import make_tiny_dataset

ROOT = Path(__file__).parents[2]


def refused(tmp_path: Path, **given: object) -> str:
    values = {"run_dir": tmp_path / "run", "repo_ids": "tiny", "root": tmp_path, "policy_artifact": "act-tiny:best"}
    with pytest.raises(UserError) as caught:
        check(Arguments(**{**values, **given}))
    return str(caught.value)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def dataset(self, tmp_path: Path) -> None:
        make_tiny_dataset(tmp_path)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"from_checkpoint": "bundle"}, "--policy-artifact act-lift:best or --from-checkpoint"),
            ({"policy_artifact": None}, "which policy is to be corrected?"),
            ({"expert": "recorded", "rounds": 1}, "--expert recorded needs --corrections"),
            ({"expert": "policy"}, "--expert policy needs --expert-policy"),
            ({"gate": "ensemble"}, "--gate ensemble needs --ensemble"),
            ({"expert": "recorded", "corrections": "tiny", "rounds": 2}, "--rounds 1"),
            ({"rollout_seed": 100_000}, "--rollout-seed 100000"),
            ({"repo_ids": "tiny,absent"}, "absent"),
        ],
    )
    def test_what_does_not_go_together(self, tmp_path: Path, given: dict[str, object], said: str) -> None:
        assert said in refused(tmp_path, **given)
        assert not (tmp_path / "run").exists()


@pytest.mark.train
@pytest.mark.sim
def test_a_policy_in_hand_is_corrected(tmp_path: Path) -> None:
    """GIVEN a policy that was never trained WHEN it is corrected in Python, as users have it written down
    THEN a round rolls it out, the expert takes over, and what came of it has a dataset, a name and a cost curve."""
    place = tmp_path / "it's here"
    environment = {
        **os.environ,
        "GILBRETH_STORE": str(place / "store"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, PROGRAMS / "dagger_in_hand.py", place]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    run = place / "run"
    (found,) = Ledger(run).rounds()
    assert (found.roll_outs, found.takeovers) == (2, 2)  # the budget
    assert found.is_trained
    assert found.trials == 2
    columns = open_dataset(place / "data" / "run" / "round-01", "run/round-01").hf_dataset.with_format("numpy")[:]
    assert int(columns["intervention"].sum()) == found.expert_executed
    version = open_store(place / "store").state("dagger-lift").versions[0]
    assert version.metadata["round"] == 0
    assert (run / "bundle" / "model.safetensors").is_file()
    rows = read_journal(run).rows
    assert {row.data["dagger/expert_frames"] for row in rows if "dagger/expert_frames" in row.data} == {
        found.expert_frames
    }
    curve = json.loads((run / "dagger.json").read_text())["curve"]
    assert [point["expert_frames"] for point in curve] == [0, found.expert_frames]
    another = subprocess.run(
        [*command, "1"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert "is a run that began from another policy" in another.stderr, another.stdout + another.stderr


@pytest.mark.train
@pytest.mark.sim
def test_a_round_with_nothing_to_correct_is_not_the_last_one(tmp_path: Path) -> None:
    """GIVEN a first round whose roll-outs all succeeded alone
    THEN the second one rolls the same policy out from other starts, and all that it logs has steps of its own."""
    data, policy, run = (tmp_path / "it's here" / name for name in ("data", "policy", "run"))
    for command in (
        ["-m", "gilbreth_phase0.collect", "--repo-id=lift", f"--root={data}", "--episodes=2"],
        [PROGRAMS / "fresh_policy.py", data / "lift", policy],
        [PROGRAMS / "dagger_lucky_round.py", data, policy, run],
    ):
        environment = rank_environment() | {"GILBRETH_STORE": str(tmp_path / "store")}
        ended = subprocess.run(
            [sys.executable, *command],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    first, second = Ledger(run).rounds()
    assert (first.is_trained, second.is_trained) == (False, True)
    assert second.expert_frames > 0
    weights = "policy/model.safetensors"
    assert (run / "rounds/02" / weights).read_bytes() == (run / "rounds/01" / weights).read_bytes()
    assert sorted(path.stem for path in (run / "rounds/02/rollouts").glob("seed-*")) == ["seed-5000002", "seed-5000003"]
    rows = read_journal(run).rows
    assert [row.step for row in rows if "dagger/round" in row.data] == [20]
    logged = [row.step for row in rows if "loss/total" in row.data]
    assert logged[0] > 20 and logged[-1] == 40
    assert read_json(run / "done.json")["step"] == 40
