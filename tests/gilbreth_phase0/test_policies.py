"""Policies, their statistics, and the bundle that other stages load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest

from gilbreth_phase0.policies import floored, load_bundle, make_config, make_policy, save_bundle
from gilbreth_phase0.policy_kinds import POLICIES, PolicyName, settings_of
from tracking.errors import UserError

from tiny_dataset import ENVIRONMENT, SMALL, make_tiny_dataset

if TYPE_CHECKING:
    from gilbreth_phase0.policies import Policy


def test_an_unknown_policy_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown policy 'atc'. Did you mean 'act'\?\n  valid: act, diffusion"):
        make_config("atc", "cpu")


def test_statistics_are_floored_and_nothing_else_is_touched() -> None:
    tiny = np.array([0.0, 1e-9, 0.5])
    stats = {
        "action": {"std": tiny, "mean": tiny, "min": tiny, "count": np.array([3])},
        "observation.state": {"std": tiny, "mean": tiny},
    }
    result = floored(stats)
    assert result["action"]["std"].tolist() == [1e-6, 1e-6, 0.5]
    assert result["observation.state"]["std"].tolist() == [1e-2, 1e-2, 0.5]
    assert result["action"]["mean"] is tiny and result["action"]["min"] is tiny
    assert result["observation.state"]["mean"] is tiny
    assert tiny.tolist() == [0.0, 1e-9, 0.5], "the dataset's own statistics stay"


def test_a_range_is_floored_about_its_middle() -> None:
    low, high = np.array([-1.0, 0.2, 0.3]), np.array([1.0, 0.2, 0.304])
    result = floored({"action": {"min": low, "max": high}, "observation.state": {"min": low, "max": high}})
    assert result["action"]["min"] == pytest.approx([-1.0, 0.2 - 1e-6, 0.3], abs=1e-12)
    assert result["action"]["max"] == pytest.approx([1.0, 0.2 + 1e-6, 0.304], abs=1e-12)
    assert result["observation.state"]["min"] == pytest.approx([-1.0, 0.19, 0.292])
    assert result["observation.state"]["max"] == pytest.approx([1.0, 0.21, 0.312])
    assert (low.tolist(), high.tolist()) == ([-1.0, 0.2, 0.3], [1.0, 0.2, 0.304])


@pytest.mark.train
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim_modell": 64}, "dim_modell"),
        ({"chunk_size": 4, "n_action_steps": 8}, "n_action_steps"),
        # Names that our own function uses too are LeRobot's to refuse, not Python's.
        ({"device": "cuda"}, "device"),
        ({"policy": "act"}, "policy"),
    ],
)
def test_a_setting_that_lerobot_does_not_take_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"LeRobot refuses this act configuration: .*{message}"):
        make_config("act", "cpu", **settings)


@pytest.mark.parametrize(
    ("policy", "given", "message"),
    [
        ("act", {"n_action_steps": 11}, r"--n-action-steps 11: only the 10 actions of a chunk"),
        (
            "diffusion",
            {"action_chunk_size": 12},
            r"--action-chunk-size 12: .* 3 times .* multiple of 8, for example 16",
        ),
        ("diffusion", {"n_action_steps": 16}, r"only the 15 actions .*; 1 of its 16 belong to the past .*-obs-steps 2"),
        ("diffusion", {"horizon": "16"}, r"--policy-settings horizon='16': expected a whole number"),
    ],
)
def test_a_chunk_that_does_not_come_out(policy: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_of(policy, given)


def test_settings_that_follow_from_others() -> None:
    """The frames that begin no chunk are those behind which fewer actions are left than are executed."""
    given = {"action_chunk_size": 8, "n_action_steps": 3, "n_obs_steps": None, "down_dims": [16, 32]}
    assert settings_of("diffusion", given)["drop_n_last_frames"] == 8 - 3 - 2 + 1
    assert settings_of("diffusion", {**given, "drop_n_last_frames": 0})["drop_n_last_frames"] == 0
    assert settings_of("act", {"action_chunk_size": None}) == {"n_obs_steps": 1, "chunk_size": 10, "n_action_steps": 5}


@pytest.mark.train
def test_what_is_known_of_policies_is_what_lerobot_says() -> None:
    """Diffusion's defaults are LeRobot's; and every policy has the fields that its row names."""
    from lerobot.policies.factory import make_policy_config

    assert tuple(POLICIES) == get_args(PolicyName)
    for name, kind in POLICIES.items():
        config = make_policy_config(name, device="cpu", push_to_hub=False)
        assert hasattr(config, kind.chunk)
        assert kind.loss_mask is None or getattr(config, kind.loss_mask) is False
        assert hasattr(make_config(name, "cpu", **settings_of(name, {})), "n_action_steps")
        assert kind.starts_in_the_past == (name == "diffusion")  # ACT takes one observation alone
    config = make_policy_config("diffusion", device="cpu", push_to_hub=False)
    found = settings_of("diffusion", {})
    assert {field: getattr(config, field) for field in found} == found


@pytest.mark.train
def test_the_object_state_is_normalised_as_the_state_is() -> None:
    assert make_config("diffusion", "cpu").normalization_mapping["ENV"].value == "MIN_MAX"
    assert make_config("act", "cpu").normalization_mapping["ENV"].value == "MEAN_STD"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A small untrained ACT for the tiny dataset."""
    import torch

    from gilbreth_phase0.datasets import open_metadata

    root = make_tiny_dataset(tmp_path_factory.mktemp("data"))
    torch.manual_seed(0)
    config = make_config("act", "cpu", chunk_size=6, n_action_steps=3, **SMALL)
    return make_policy(config, open_metadata(root, "tiny"))


@pytest.fixture
def bundle(policy: Policy, tmp_path: Path) -> Path:
    save_bundle(policy, policy.model.state_dict(), ENVIRONMENT, tmp_path / "bundle")
    return tmp_path / "bundle"


def actions(policy: Policy) -> np.ndarray:
    """What a policy does in five states that follow one another, shape (5, 7)."""
    import torch

    generator = torch.Generator().manual_seed(1)
    policy.model.eval()
    policy.model.reset()
    done = []
    with torch.no_grad():
        for _ in range(5):
            observation = {
                "observation.state": torch.randn(43, generator=generator),
                "observation.environment_state": torch.randn(10, generator=generator),
            }
            chosen = policy.model.select_action(policy.preprocessor(observation))
            done.append(policy.postprocessor(chosen).squeeze(0))
    return torch.stack(done).numpy()


@pytest.mark.train
def test_a_bundle_acts_as_what_was_saved(policy: Policy, weird_tmp_path: Path) -> None:
    folder = weird_tmp_path / "bundle"
    save_bundle(policy, policy.model.state_dict(), ENVIRONMENT, folder)
    loaded = load_bundle(folder)
    assert actions(policy).shape == (5, 7)
    assert np.array_equal(actions(loaded), actions(policy)), "bit for bit"
    assert np.abs(actions(policy)[:, :3]).max() > 0, "and that is not nothing"
    assert loaded.config.pretrained_backbone_weights is None
    suffixes = {path.suffix for path in folder.iterdir()}
    assert suffixes == {".json", ".safetensors"}, "nothing that is executed when it is read"
    assert [path.name for path in weird_tmp_path.iterdir()] == ["bundle"], "no temporary folder is left"


@pytest.mark.train
def test_the_weights_are_the_given_ones(policy: Policy, tmp_path: Path) -> None:
    weights = {name: value + 0.25 for name, value in policy.model.state_dict().items()}
    save_bundle(policy, weights, ENVIRONMENT, tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle").model.state_dict()
    assert all(loaded[name].equal(value) for name, value in weights.items())


@pytest.mark.train
def test_whatever_is_missing_is_named(bundle: Path) -> None:
    names = sorted(path.name for path in bundle.iterdir())
    assert any("normalizer" in name for name in names)
    for name in names:
        if name == "environment.json":
            continue  # a bundle from elsewhere has none
        kept = (bundle / name).read_bytes()
        (bundle / name).unlink()
        with pytest.raises(UserError, match=rf"is not a policy bundle: {name} is missing"):
            load_bundle(bundle)
        (bundle / name).write_bytes(kept)
    load_bundle(bundle)


def test_a_folder_that_is_not_there_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.train
def test_a_replaced_bundle_is_moved_aside_whole_before_it_is_deleted(
    policy: Policy, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a bundle WHEN it is replaced THEN under its name stands the old one, the new one or nothing."""
    whole = sorted(path.name for path in bundle.iterdir())
    deleted: list[str] = []
    real = shutil.rmtree

    def rmtree(path: Path | str, **options: Any) -> None:
        folder = Path(path)
        if folder.is_dir() and folder.parent == bundle.parent:
            deleted.append(folder.name)
            assert sorted(entry.name for entry in bundle.iterdir()) == whole, "the other one stands already"
        real(path, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    save_bundle(policy, policy.model.state_dict(), ENVIRONMENT, bundle)
    assert deleted == [".bundle.old"]


@pytest.mark.train
def test_what_a_killed_save_left_is_cleared(policy: Policy, bundle: Path) -> None:
    for leftover in (".bundle.tmp", ".bundle.old"):
        (bundle.parent / leftover).mkdir()
        (bundle.parent / leftover / "model.safetensors").write_text("half")
    save_bundle(policy, policy.model.state_dict(), ENVIRONMENT, bundle)
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert json.loads((bundle / "config.json").read_text())["type"] == "act"
