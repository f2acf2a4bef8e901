"""The gate behind a stage: what it finds, and the name that a model gets."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gilbreth_phase0.attempt import Outcome
from gilbreth_phase0.promotion import app, conditions_of, examine, promote
from gilbreth_phase0.run_folder import write_done
from tracking.errors import UserError
from tracking.files import read_json, write_json
from tracking.gate import Condition
from tracking.identity import claim_identity
from tracking.store import Store, publish

from job_runs import end_attempt
from model_store import save_bundle
from report_runs import save_checkpoint
from tiny_dataset import EPISODES, make_tiny_dataset


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is complete at step 20, with an evaluation."""
    folder = tmp_path / "it's a run"
    write_done_at(folder, 20)
    result = {"success_rate": 0.25, "interval_95": [0.1, 0.5], "mean_length": 90.0, "episodes": []}
    write_json(folder / "evaluation.json", {"trained": result})
    save_checkpoint(folder / "checkpoints", 20)
    return folder


def write_done_at(folder: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    write_done(folder, step)


def test_a_run_that_is_as_it_should_be(run: Path) -> None:
    found = examine(run, conditions_of(["success_rate=0.2", "success_rate_low=0.1"], ["mean_length=100"]))
    assert found.line == (
        "passed: the run is complete at step 20; checkpoint step-00000020 is whole; success_rate is 0.25; "
        "success_rate_low is 0.1; mean_length is 90"
    )


def test_every_condition_that_is_not_met_is_named(run: Path) -> None:
    found = examine(run, [Condition(metric="success_rate", min=0.5), Condition(metric="reward_per_step", min=0)])
    assert found.faults == ["success_rate is 0.25, at least 0.5 is asked for", "reward_per_step was not measured"]
    several = {"act-lift:x": {"success_rate": 0.2}, "dagger-lift:x": {"success_rate": 0.9}}
    write_json(run / "evaluation.json", {**several, "untrained": {"success_rate": 0.0}})
    assert examine(run, [Condition(metric="success_rate", min=0.8)]).faults == [], "what was made last is meant"
    (run / "evaluation.json").unlink()
    assert examine(run, [Condition(metric="success_rate", min=0)]).faults == ["success_rate was not measured"]


def test_a_run_that_is_not_complete_says_how_its_last_attempt_ended(tmp_path: Path) -> None:
    assert examine(tmp_path).faults == ["the run is not complete: no attempt of it has ended by itself"]
    end_attempt(tmp_path, "12-000", Outcome.REQUEUE)
    end_attempt(tmp_path, "12-001", Outcome.END)
    assert examine(tmp_path).faults == ["the run is not complete: exit code 1"]


def test_a_checkpoint_that_is_not_whole_or_not_the_last(run: Path) -> None:
    newest = save_checkpoint(run / "checkpoints", 30)
    assert examine(run).faults == ["the newest checkpoint is of step 30, and the run of step 20"]
    (newest / "mp_rank_00_model_states.pt").write_bytes(b"y" * 5000)
    (fault,) = examine(run).faults
    assert fault.startswith("the newest checkpoint is not whole:") and "mp_rank_00_model_states.pt" in fault


@pytest.mark.train
def test_a_dataset_and_a_bundle_are_opened(run: Path, tmp_path: Path) -> None:
    folder = make_tiny_dataset(tmp_path / "data")
    assert f"has {EPISODES} episodes" in examine(run, dataset=folder, episodes=EPISODES).line
    assert examine(run, dataset=folder, episodes=9).faults == [
        f"the dataset {folder} has {EPISODES} episodes, 9 were asked for"
    ]
    shutil.rmtree(folder / "data")
    (fault,) = examine(run, dataset=folder, episodes=EPISODES).faults
    assert fault
    save_bundle(run / "bundle")
    (fault,) = examine(run).faults
    assert "is not a policy bundle: policy_preprocessor.json is missing" in fault or "policy_preprocessor" in fault


def test_the_version_that_the_run_published_gets_the_name(run: Path, tmp_path: Path) -> None:
    """GIVEN a newer version of another run THEN it is not that one; the same files count, whoever published them.

    Nor is it what the run published on the way to its last bundle.
    """
    store = Store(tmp_path / "models")
    with pytest.raises(UserError):
        promote(run, store, "act-lift", "mine")
    publish(store, save_bundle(run / "bundle", 1.0), "act-lift", mirror=False)
    publish(store, save_bundle(tmp_path / "other", 2.0), "act-lift", mirror=False)
    assert promote(run, store, "act-lift", "mine") == "act-lift:v0"
    assert store.state("act-lift").aliases == {"latest": 1, "mine": 0}
    shutil.rmtree(run / "bundle")
    save_bundle(run / "bundle", 3.0)
    claim_identity(run, "ab12cd34", "act_bc", "p", None)
    publish(store, save_bundle(tmp_path / "on the way", 4.0), "act-lift", run_dir=run, mirror=False)
    with pytest.raises(UserError, match="has not published its bundle as a version of act-lift"):
        promote(run, store, "act-lift", "mine")


def test_the_command_leaves_its_verdict_and_one_line(run: Path) -> None:
    given = [f"--run-dir={run}", "--gate=0a", "--pipeline=mine", "--min=success_rate=0.5"]
    done = CliRunner().invoke(app, given)
    assert (done.exit_code, done.stdout) == (1, "failed: success_rate is 0.25, at least 0.5 is asked for\n")
    verdict = read_json(run / "promotion.json")
    assert (verdict["gate"], verdict["passed"], verdict["metrics"]["success_rate"]) == ("0a", False, 0.25)
    assert CliRunner().invoke(app, [*given[:3], "--gate=0b"]).exit_code == 0
    assert read_json(run / "promotion.json")["passed"] is True
    refused = CliRunner().invoke(app, [*given[:3], "--max=success_rate"])
    assert refused.exit_code == 2 and "expected METRIC=NUMBER" in refused.stderr
