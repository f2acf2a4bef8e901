"""Trained policies by folder and by name: the same actions everywhere, and plain words where one cannot be loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gilbreth_phase0.load_pretrained import (
    check_device,
    list_available_bc_policies,
    load_bc_policy_for_dagger,
    load_policy_from_checkpoint,
)
from tracking.errors import UserError
from tracking.store import open_store, publish

from rank_pairs import ROOT
from tiny_dataset import ENVIRONMENT, SMALL, make_tiny_dataset

ACT = """
import sys, torch
from gilbreth_phase0 import load_pretrained

policy, preprocessor, postprocessor = getattr(load_pretrained, sys.argv[1])(sys.argv[2], device="cpu")
torch.manual_seed(0)
shapes = {name: feature.shape for name, feature in policy.config.input_features.items()}
batch = {name: torch.rand(1, *shape) for name, shape in shapes.items()}
with torch.inference_mode():
    print(postprocessor(policy.select_action(preprocessor(batch))).numpy().tobytes().hex())
"""


def actions(loader: str, source: Path | str, store: Path) -> str:
    """Actions of a policy that a process of its own has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", ACT, loader, str(source)],
        cwd=ROOT,
        env={**os.environ, "GILBRETH_STORE": str(store), "WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from gilbreth_phase0.datasets import open_metadata
    from gilbreth_phase0.policies import make_config, make_policy, save_bundle

    folder = tmp_path_factory.mktemp("made")
    data = make_tiny_dataset(folder)
    torch.manual_seed(1)
    policy = make_policy(
        make_config("act", "cpu", chunk_size=6, n_action_steps=3, **SMALL), open_metadata(data, "tiny")
    )
    (folder / "run").mkdir()
    save_bundle(policy, policy.model.state_dict(), ENVIRONMENT, folder / "run" / "bundle")
    return folder / "run" / "bundle"


@pytest.fixture
def bundle(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be broken, and a store of the test's own."""
    monkeypatch.setenv("GILBRETH_STORE", str(tmp_path / "models"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.mark.train
def test_the_actions_are_the_same_from_a_folder_a_run_and_a_name(made: Path, bundle: Path, tmp_path: Path) -> None:
    publish(open_store(), bundle, "act-tiny", "best", {"step": 6, "success_rate": 0.5}, mirror=False)
    first = actions("load_policy_from_checkpoint", bundle, tmp_path / "models")
    assert len(first) == 7 * 4 * 2 and len(set(first)) > 4
    assert actions("load_policy_from_checkpoint", made.parent, tmp_path / "models") == first, "a run folder"
    assert actions("load_policy_from_wandb", "act-tiny:best", tmp_path / "models") == first
    # As on another machine: the store alone is moved there.
    (tmp_path / "models").rename(tmp_path / "elsewhere")
    assert actions("load_bc_policy_for_dagger", "act-tiny:step-6", tmp_path / "elsewhere") == first


@pytest.mark.train
def test_policies_are_listed_newest_first(bundle: Path) -> None:
    assert list_available_bc_policies() == []
    publish(open_store(), bundle, "act-tiny", "best", {"step": 6, "success_rate": 0.5}, mirror=False)
    publish(open_store(), bundle, "other", type="dataset", mirror=False)
    publish(open_store(), bundle, "act-lift", mirror=False)
    newest, oldest = list_available_bc_policies()
    assert (newest["name"], newest["aliases"], newest["run"]) == ("act-lift:v0", ["latest"], None)
    assert (oldest["name"], oldest["step"], oldest["success_rate"]) == ("act-tiny:v0", 6, 0.5)
    assert (Path(oldest["path"]) / "config.json").is_file()


@pytest.mark.train
def test_a_device_that_is_not_there(bundle: Path) -> None:
    with pytest.raises(UserError, match=r"unknown device 'gpu'"):
        load_policy_from_checkpoint(bundle, device="gpu")
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r'device \'cuda\': PyTorch sees no GPU here\n  next: device="cpu"'):
            load_bc_policy_for_dagger(bundle)
    with pytest.raises(UserError, match="device 'cuda:99': PyTorch sees"):
        check_device("cuda:99")


@pytest.mark.train
def test_a_missing_file_and_what_is_no_bundle(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file or folder"):
        load_policy_from_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"model.safetensors is a file, expected the folder of a policy bundle"):
        load_policy_from_checkpoint(bundle / "model.safetensors")
    with pytest.raises(UserError, match="there is no model store in"):
        load_policy_from_checkpoint("act-lift:best")
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "mp_rank_00_model_states.pt").touch()
    with pytest.raises(UserError, match="is a DeepSpeed checkpoint, expected a policy bundle"):
        load_policy_from_checkpoint(tmp_path / "zero")
    (bundle / "policy_preprocessor.json").unlink()
    with pytest.raises(UserError, match=r"policy_preprocessor.json is missing"):
        load_policy_from_checkpoint(bundle)


@pytest.mark.train
def test_a_processor_names_no_class_that_would_be_run(bundle: Path, tmp_path: Path) -> None:
    """GIVEN a bundle of somebody else's whose JSON names a program THEN nothing of it runs, and the file is named."""
    file = bundle / "policy_postprocessor.json"
    processor = json.loads(file.read_text())
    processor["steps"].insert(0, {"class": "subprocess.Popen", "config": {"args": ["touch", str(tmp_path / "ran")]}})
    file.write_text(json.dumps(processor))
    with pytest.raises(UserError, match=r"policy_postprocessor.json names the class 'subprocess.Popen'"):
        load_policy_from_checkpoint(bundle)
    assert not (tmp_path / "ran").exists()
    for content in ("half", "[]", '{"steps": [1]}'):
        file.write_text(content)
        with pytest.raises(UserError, match=r"policy_postprocessor.json is no processor of LeRobot"):
            load_policy_from_checkpoint(bundle)


@pytest.mark.train
def test_another_feature_shape_is_said_with_what_was_expected(bundle: Path) -> None:
    policy, _, _ = load_policy_from_checkpoint(bundle)
    shapes = {name: list(feature.shape) for name, feature in policy.config.input_features.items()}
    load_policy_from_checkpoint(bundle, features=shapes)
    name = next(iter(shapes))
    expected = tuple(shapes[name])
    with pytest.raises(UserError) as error:
        load_policy_from_checkpoint(bundle, features={**shapes, name: [99]})
    assert f"{name} has shape (99,), expected {expected}" in str(error.value)
    with pytest.raises(UserError, match=f"{name} is missing, expected shape"):
        load_policy_from_checkpoint(bundle, features={})

    config = json.loads((bundle / "config.json").read_text())
    config["input_features"][name]["shape"] = [99]
    (bundle / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model.safetensors does not fit .*config.json: .* has shape .*expected .*99"):
        load_policy_from_checkpoint(bundle)
    config["input_features"] = {}
    (bundle / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json describes no policy that LeRobot can make: You must provide"):
        load_policy_from_checkpoint(bundle)


@pytest.mark.train
def test_strict_refuses_what_is_only_said_otherwise(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(bundle / "model.safetensors")
    gone = sorted(weights)[0]
    weights["theirs"] = weights.pop(gone)
    save_file(weights, bundle / "model.safetensors")
    load_policy_from_checkpoint(bundle)
    assert "1 weights of the model are not there, 1 are not the model's" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"{gone} is missing; theirs is not the model's"):
        load_policy_from_checkpoint(bundle, strict=True)
    (bundle / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"model.safetensors is not whole"):
        load_policy_from_checkpoint(bundle)
