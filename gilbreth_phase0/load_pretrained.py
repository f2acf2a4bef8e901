"""Trained policies for whoever goes on with them: from a folder, from the model store or from W&B, ready to act.

Each function that loads returns `(policy, preprocessor, postprocessor)`; on every machine they give the same actions:

    action = postprocessor(policy.select_action(preprocessor(batch)))
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.policies import Policy, load_bundle
from tracking.errors import UserError, unknown

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline

    Loaded = tuple[PreTrainedPolicy, PolicyProcessorPipeline[Any, Any], PolicyProcessorPipeline[Any, Any]]

BUNDLE = "bundle"
"""The folder in a run folder that the trained policy ends up in."""

_SHOWN = 3


def load_policy_from_checkpoint(
    checkpoint_path: Path | str,
    device: str = "cpu",
    strict: bool = False,
    *,
    features: Mapping[str, Sequence[int]] | None = None,
) -> Loaded:
    """Loads a policy bundle.

    Args:
        checkpoint_path: The bundle's folder, the folder of the `bc` run that made it, or a name (`act-lift:best`):
            what the model store does not have is taken from W&B.
        device: `cpu`, `cuda` or `cuda:N`.
        strict: Refuse weights that do not fill the whole model, or hold more than it; without it that is said.
        features: Shapes of what will be given to the policy, by LeRobot's names (`observation.state`); checked.

    Returns:
        Policy (in evaluation mode), preprocessor, postprocessor.

    Raises:
        UserError: The device is not there, a file is missing, or weights or features have other shapes; the message
            says what was expected.
    """
    from tracking.store import open_store, resolve

    check_device(device)
    found = resolve(checkpoint_path, open_store())
    if found.note:
        print(f"note: {found.note}", file=sys.stderr)
    policy = _load(found.path, device, strict=strict)
    if features is not None:
        check_features(policy, features)
    return policy.model, policy.preprocessor, policy.postprocessor


def load_policy_from_wandb(artifact_identifier: str, device: str = "cpu", strict: bool = False) -> Loaded:
    """Loads a policy by `name:alias` or `entity/project/name:alias`: from the model store, else from W&B.

    Args:
        artifact_identifier: As `tracking.artifacts.download_checkpoint_from_wandb` takes it.
        device: `cpu`, `cuda` or `cuda:N`.
        strict: As in `load_policy_from_checkpoint`.

    Returns:
        Policy, preprocessor, postprocessor.

    Raises:
        UserError: As in `load_policy_from_checkpoint`; there is no such policy, or W&B cannot be asked.
    """
    from tracking.artifacts import download_checkpoint_from_wandb

    check_device(device)
    return load_policy_from_checkpoint(download_checkpoint_from_wandb(artifact_identifier), device, strict)


def load_bc_policy_for_dagger(checkpoint_source: Path | str, device: str = "cuda", from_wandb: bool = False) -> Loaded:
    """Loads the policy that DAgger goes on with.

    Args:
        checkpoint_source: A folder or a name, as in `load_policy_from_checkpoint`.
        device: `cuda`, `cuda:N` or `cpu`.
        from_wandb: Take it as `load_policy_from_wandb` does.

    Returns:
        Policy (in evaluation mode: call `policy.train()` to go on training), preprocessor, postprocessor.

    Raises:
        UserError: As there.
    """
    if from_wandb:
        return load_policy_from_wandb(str(checkpoint_source), device)
    return load_policy_from_checkpoint(checkpoint_source, device)


def list_available_bc_policies() -> list[dict[str, Any]]:
    """The policies of the model store, newest first: `name` (to load it by), `aliases`, `step`, `success_rate`, `path`,
    `run`.
    """  # noqa: D205
    from tracking.store import open_store
    from tracking.store.publish import POLICY

    store = open_store()
    found = []
    for name in store.names():
        state = store.state(name)
        for number, version in state.versions.items():
            if version.type == POLICY:
                facts = {
                    "name": f"{name}:v{number}",
                    "aliases": state.aliases_of(number),
                    "step": version.step,
                    "success_rate": version.metadata.get("success_rate"),
                    "path": str(store.folder(name, version)),
                    "run": version.run["name"] if version.run else None,
                }
                found.append((version.time, facts))
    return [facts for _, facts in sorted(found, key=lambda one: one[0], reverse=True)]


def check_device(device: str) -> None:
    """Refuses a device that is not there.

    Raises:
        UserError: It is none of PyTorch's, or this machine does not have it.
    """
    import torch

    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise unknown("device", device, ("cpu", "cuda", "cuda:0"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cuda" and int(index or 0) >= count:
        there = f"GPUs 0 to {count - 1}" if count else "no GPU"
        raise UserError(f'device {device!r}: PyTorch sees {there} here\n  next: device="cpu", or a node with a GPU')


def check_features(policy: Policy, given: Mapping[str, Sequence[int]]) -> None:
    """Refuses shapes that are not those that a policy was trained with.

    Args:
        policy: The policy.
        given: Shape of each feature, by LeRobot's name; features that the policy does not know are passed over.

    Raises:
        UserError: Names each feature, what was expected and what was given.
    """
    config = policy.config
    _check_shapes(
        config.type,
        {name: tuple(feature.shape) for name, feature in config.input_features.items()},
        {name: tuple(feature.shape) for name, feature in config.output_features.items()},
        given,
    )


def check_bundle(bundle: Path, given: Mapping[str, Sequence[int]]) -> None:
    """As `check_features`, by the configuration of a bundle alone; nothing is loaded.

    Raises:
        UserError: As there, or the configuration cannot be read.
    """
    try:
        config = json.loads((bundle / "config.json").read_text())
        inputs, outputs = (
            {name: tuple(feature["shape"]) for name, feature in (config.get(kind) or {}).items()}
            for kind in ("input_features", "output_features")
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{bundle / 'config.json'} is no LeRobot configuration: {error!r}") from error
    _check_shapes(str(config.get("type", "")), inputs, outputs, given)


def _check_shapes(
    kind: str,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, tuple[int, ...]],
    given: Mapping[str, Sequence[int]],
) -> None:
    faults = [f"{name} is missing, expected shape {shape}" for name, shape in inputs.items() if name not in given]
    faults += [
        f"{name} has shape {tuple(given[name])}, expected {shape}"
        for name, shape in {**inputs, **outputs}.items()
        if name in given and tuple(given[name]) != shape
    ]
    if faults:
        raise UserError(
            f"this {kind} policy was trained with other features: {'; '.join(faults)}\n"
            "  next: use it in the environment that it was trained for (environment.json in its folder)"
        )


def _load(path: Path, device: str, *, strict: bool) -> Policy:
    bundle = path / BUNDLE if (path / BUNDLE / "config.json").is_file() else path
    if not bundle.is_dir():
        raise UserError(
            f"{bundle} is a file, expected the folder of a policy bundle: weights alone do not say how observations are"
            " normalised\n  next: give the folder that it is in"
        )
    if not (bundle / "config.json").is_file() and any(bundle.rglob("*model_states.pt")):
        raise UserError(
            f"{bundle} is a DeepSpeed checkpoint, expected a policy bundle\n"
            "  next: load RUN/bundle, which a finished bc run leaves"
        )
    _check_weights(bundle, strict=strict)
    return load_bundle(bundle, device, strict=strict)


def _check_weights(bundle: Path, *, strict: bool) -> None:
    """Compares the shapes in the weights' header with the model that the configuration describes."""
    if not all((bundle / name).is_file() for name in ("config.json", "model.safetensors")):
        return  # load_bundle says what is missing
    import torch
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(bundle / "model.safetensors", framework="pt") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        config = PreTrainedConfig.from_pretrained(bundle, local_files_only=True)
    except SafetensorError as error:
        raise UserError(f"{bundle / 'model.safetensors'} is not whole: {error}\n  next: copy it again") from error
    except Exception as error:  # LeRobot's parser raises what it likes
        raise UserError(f"{bundle / 'config.json'} is no LeRobot configuration: {error}") from error
    config.device = "cpu"
    try:
        with torch.random.fork_rng(devices=[]):
            model = get_policy_class(config.type)(config)
    except ValueError as error:
        raise UserError(f"{bundle / 'config.json'} describes no policy that LeRobot can make: {error}") from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    other = [f"{name} has shape {there[name]}, expected {shape}" for name, shape in expected.items()
             if name in there and there[name] != shape]  # fmt: skip
    absent, surplus = sorted(expected.keys() - there.keys()), sorted(there.keys() - expected.keys())
    if other or (strict and (absent or surplus)):
        words = other[:_SHOWN] + [f"{name} is missing" for name in absent[:_SHOWN]]
        words += [f"{name} is not the model's" for name in surplus[:_SHOWN]]
        raise UserError(
            f"{bundle / 'model.safetensors'} does not fit {bundle / 'config.json'}: {'; '.join(words)}\n"
            f"  it was made for inputs {_shapes(bundle)}; next: load the weights with the configuration beside them"
        )
    if absent or surplus:
        print(f"{bundle}: {len(absent)} weights of the model are not there, {len(surplus)} are not the model's")


def _shapes(bundle: Path) -> str:
    inputs = json.loads((bundle / "config.json").read_text()).get("input_features", {})
    return ", ".join(f"{name} {tuple(feature['shape'])}" for name, feature in inputs.items())
