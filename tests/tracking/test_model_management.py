"""The interfaces that users have written down: weights of any module, and policies, by name."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from tracking import ExperimentTracker, UserError, read_journal
from tracking.artifacts import (
    create_artifact_metadata,
    download_checkpoint_from_wandb,
    list_checkpoints_from_wandb,
    upload_checkpoint_to_wandb,
)
from tracking.intents import pending_intents, read_intent
from tracking.model_management import (
    ModelManager,
    download_model_from_wandb,
    save_and_upload_best_model,
    upload_model_to_wandb,
)
from tracking.store import open_store

from model_store import save_bundle
from runs import TAGS


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "GILBRETH_"))] + ["RANK"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)


def module(seed: int = 0) -> Any:
    import torch

    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4))
    net[2].weight = net[0].weight  # tied, which safetensors refuses as it is
    return net


class TestPolicies:
    def test_old_names_become_names_and_aliases(self, tmp_path: Path) -> None:
        metadata = create_artifact_metadata("lerobot/lift", 0.95, 87.25, 10000, is_best=True, dataset_size=500)
        bundle = save_bundle(tmp_path / "bundle")
        done = upload_checkpoint_to_wandb(bundle, "act-lift-best-step-10000", metadata=metadata)
        assert str(done) == "act-lift:v0"
        assert open_store().state("act-lift").aliases == {"latest": 0, "best": 0, "step-10000": 0}
        for name in ("act-lift-best-step-10000:latest", "act-lift-best:latest", "act-lift", str(bundle)):
            assert (download_checkpoint_from_wandb(name) / "config.json").is_file()
        copied = download_checkpoint_from_wandb("act-lift:best", tmp_path / "here")
        assert copied == tmp_path / "here"
        (copied / "config.json").write_text("{}")
        assert (download_checkpoint_from_wandb("act-lift:best") / "config.json").read_text() != "{}"
        (copied / "model-00001-of-00002.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match=r"holds files of another model: model-00001-of-00002.safetensors"):
            download_checkpoint_from_wandb("act-lift:best", copied)
        (listed,) = list_checkpoints_from_wandb()
        assert (listed["name"], listed["version"], listed["metadata"]) == ("act-lift:v0", "v0", metadata)
        assert list_checkpoints_from_wandb("dataset") == []

    def test_numbers_stay_numbers(self) -> None:
        import numpy as np

        made = create_artifact_metadata("r", np.float32(0.5), 1, np.int64(7), checkpoint_index=2)  # type: ignore[arg-type]
        assert made == {
            "repo_id": "r", "success_rate": 0.5, "avg_reward": 1.0, "step": 7, "is_best": False, "dataset_size": 0,
            "checkpoint_index": 2,
        }  # fmt: skip
        assert [type(made[key]) for key in ("success_rate", "avg_reward", "step")] == [float, float, int]

    def test_what_is_nowhere(self) -> None:
        with pytest.raises(UserError, match=r"WANDB_MODE is offline\n  next: .* pull vla-lego/act-left:latest"):
            download_checkpoint_from_wandb("act-left")
        with pytest.raises(UserError, match="act-left:v3 is a number of the store, so W&B is not asked for it"):
            download_checkpoint_from_wandb("act-left:v3")


class TestWeights:
    def test_there_and_back(self, tmp_path: Path) -> None:
        import torch

        net = module()
        with ExperimentTracker(tags=TAGS, run_dir=tmp_path / "run", mode="offline") as tracker:
            manager = ModelManager(net, "ppo-lift", tracker=tracker)
            saved = manager.save_checkpoint(tmp_path / "checkpoint.pt", 1000, upload_to_wandb=True, wandb_alias="best")
        assert saved == tmp_path / "checkpoint.safetensors"
        state = open_store().state("ppo-lift")
        assert state.aliases == {"latest": 0, "best": 0, "step-1000": 0}
        assert (state.versions[0].type, state.versions[0].metadata["total_parameters"]) == ("model", 57)
        (row,) = read_journal(tmp_path / "run").rows
        assert (row.step, row.data["model/total_parameters"]) == (1000, 57)
        assert row.data["model/file_size_mb"] == saved.stat().st_size / 1e6
        waiting = [read_intent(path) for path in pending_intents(tmp_path / "run")]
        assert "ppo-lift" in [intent.name for intent in waiting]

        other = module(seed=1)
        ModelManager(other).load_from_wandb("ppo-lift:best")
        for key, value in net.state_dict().items():
            assert torch.equal(other.state_dict()[key], value)

    def test_other_weights_are_refused_and_change_nothing(self, tmp_path: Path) -> None:
        import torch

        upload_model_to_wandb(module().state_dict(), 1, name="m")
        net = torch.nn.Sequential(torch.nn.Linear(4, 5))
        before = net[0].weight.clone()
        with pytest.raises(UserError, match=r"the Sequential: 0.weight is \(4, 4\), the module's is \(5, 4\)"):
            ModelManager(net).load_from_wandb("m")
        assert torch.equal(net[0].weight, before)
        with pytest.raises(UserError, match="extra is a dict: only tensors"):
            upload_model_to_wandb({"extra": {}}, 1, name="m")
        assert sorted(path.name for path in (tmp_path / "models" / "incoming").iterdir()) == []

    def test_the_best_one(self, tmp_path: Path) -> None:
        """GIVEN returns below zero and NaN THEN the first finite one is the best so far, and only greater ones are."""
        best: dict[str, Any] = {}
        verdicts = []
        with ExperimentTracker(tags=TAGS, run_dir=tmp_path / "run", mode="offline") as tracker:
            for step, value in enumerate([math.nan, -5.0, -7.0, -5.0, 2.5]):
                given = {"mean_reward": value, "success_rate": 0.0}
                state = module(step).state_dict()
                verdicts.append(
                    save_and_upload_best_model(state, step, given, "mean_reward", best, name="m", tracker=tracker)
                )
        assert verdicts == [False, True, False, False, True]
        assert best == {"best_value": 2.5, "best_step": 4}
        found = open_store().state("m")
        assert found.aliases["best"] == 1 and found.versions[1].metadata["mean_reward"] == 2.5
        rows = [row for row in read_journal(tmp_path / "run").rows if "best_model/step" in row.data]
        assert [row.data["best_model/step"] for row in rows] == [1, 4]
        with pytest.raises(UserError, match=r"unknown metric 'mean_rewards'. Did you mean 'mean_reward'"):
            save_and_upload_best_model({}, 1, {"mean_reward": 1.0}, "mean_rewards", best)

    def test_a_name_with_a_point_stays_its_own(self, tmp_path: Path) -> None:
        manager = ModelManager(module())
        names = ["a.pt", "model-0.95", "model-0.97", "b.safetensors"]
        assert [manager.save_checkpoint(tmp_path / name, 1).name for name in names] == [
            "a.safetensors", "model-0.95.safetensors", "model-0.97.safetensors", "b.safetensors"
        ]  # fmt: skip

    def test_the_file_with_the_weights(self, tmp_path: Path) -> None:
        upload_model_to_wandb(module().state_dict(), 7, name="m")
        assert download_model_from_wandb("m:step-7").name == "model.safetensors"
        (tmp_path / "half.safetensors").write_bytes(download_model_from_wandb("m").read_bytes()[:99])
        copied = download_checkpoint_from_wandb("./half.safetensors", tmp_path / "copies")
        assert [path.name for path in copied.iterdir()] == ["half.safetensors"]
        with pytest.raises(UserError, match=r"half.safetensors is a file; expected a folder"):
            download_checkpoint_from_wandb("m", tmp_path / "half.safetensors")
        with pytest.raises(UserError, match=r"half.safetensors is not whole"):
            ModelManager(module()).load_from_wandb("./half.safetensors")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="expected one safetensors file with the weights"):
            download_model_from_wandb("./empty")

    def test_other_ranks_do_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "1")
        assert upload_model_to_wandb(module().state_dict(), 1) is None
        assert list(tmp_path.iterdir()) == []
