"""LeRobot policies: their configuration, their processors, and the bundle that other stages load.

A bundle is LeRobot's own folder (config.json, model.safetensors, policy_preprocessor*.json, policy_postprocessor*.json)
with the environment's arguments beside it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.datasets import ENVIRONMENT_FILE, write_environment
from gilbreth_phase0.policy_kinds import POLICIES
from tracking.errors import UserError, unknown
from tracking.files import fsync_dir, fsync_file

if TYPE_CHECKING:
    import torch
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline

    from gilbreth_phase0.environments import EnvironmentArguments

# A dimension that hardly varies in the demonstrations (rotation actions are constant zero) would be divided by its tiny
# deviation or range and drown the others. Observations need the higher floor: noise in them reaches the policy unasked.
_OBSERVATION_STD_FLOOR = 1e-2
_ACTION_STD_FLOOR = 1e-6


@dataclass(frozen=True)
class Policy:
    """A policy with what must stand before and behind it.

    Attributes:
        model: The LeRobot policy, a `torch.nn.Module`.
        preprocessor: Normalises a batch and moves it to the device.
        postprocessor: Brings an action back to the environment's units, on the CPU.
    """

    model: PreTrainedPolicy
    preprocessor: PolicyProcessorPipeline[Any, Any]
    postprocessor: PolicyProcessorPipeline[Any, Any]

    @property
    def config(self) -> PreTrainedConfig:
        """LeRobot's configuration of the policy."""
        return self.model.config


def make_config(policy: str, device: str, /, **settings: Any) -> PreTrainedConfig:
    """Makes LeRobot's configuration of a policy.

    Args:
        policy: LeRobot's name of the policy type.
        device: `cpu` or `cuda`.
        **settings: Fields of the configuration class.

    Raises:
        UserError: The policy is not one of `POLICIES`, or LeRobot refuses a setting.
    """
    if policy not in POLICIES:
        raise unknown("policy", policy, POLICIES)
    from lerobot.policies.factory import make_policy_config

    try:
        config = make_policy_config(policy, device=device, push_to_hub=False, **settings)
    except (ValueError, TypeError) as error:
        raise UserError(f"LeRobot refuses this {policy} configuration: {error}") from error
    if hasattr(config, "pretrained_backbone_weights"):
        # Compute nodes may have no internet, and the download would be waited for.
        config.pretrained_backbone_weights = None
    # LeRobot's defaults have no entry for the object state, which would then reach the policy as it is.
    modes = config.normalization_mapping
    config.normalization_mapping = {**modes, "ENV": modes.get("ENV", modes["STATE"])}
    return config


def floored(stats: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns dataset statistics in which no standard deviation, and no range, is too small to divide by."""
    import numpy as np

    result = {}
    for key, values in stats.items():
        floor = _ACTION_STD_FLOOR if key == "action" else _OBSERVATION_STD_FLOOR
        result[key] = {name: np.maximum(value, floor) if name == "std" else value for name, value in values.items()}
        if {"min", "max"} <= values.keys():
            # As wide as a deviation of the floor to each side; LeRobot maps what lies between to -1 … 1.
            missing = np.maximum(floor - (values["max"] - values["min"]) / 2, 0.0)
            result[key] |= {"min": values["min"] - missing, "max": values["max"] + missing}
    return result


def make_policy(
    config: PreTrainedConfig, meta: LeRobotDatasetMetadata, stats: dict[str, dict[str, Any]] | None = None
) -> Policy:
    """Makes an untrained policy whose features and normalisation are a dataset's.

    Args:
        config: Its configuration.
        meta: The dataset's features.
        stats: What it normalises by, in place of the dataset's own statistics.

    Raises:
        UserError: LeRobot cannot make this policy for this dataset.
    """
    from lerobot.policies.factory import make_policy as make_model
    from lerobot.policies.factory import make_pre_post_processors

    try:
        model = make_model(cfg=config, ds_meta=meta)
    except ValueError as error:
        raise UserError(f"LeRobot cannot make a {config.type} policy for {meta.root}: {error}") from error
    preprocessor, postprocessor = make_pre_post_processors(
        config, dataset_stats=floored(meta.stats if stats is None else stats)
    )
    return Policy(model, preprocessor, postprocessor)


def save_bundle(
    policy: Policy, weights: dict[str, torch.Tensor], environment: EnvironmentArguments, bundle: Path
) -> None:
    """Saves a policy as a LeRobot bundle, whole or not at all.

    Args:
        policy: What the weights belong to.
        weights: Consolidated fp32 weights, by the model's own names.
        environment: What the demonstrations were recorded in; evaluation rebuilds it from here.
        bundle: Where; an earlier bundle there is replaced.
    """
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "template"
        save_template(policy, environment, template)
        fill_template(template, weights, bundle)


def save_template(policy: Policy, environment: EnvironmentArguments, folder: Path) -> None:
    """Saves what a bundle holds beside the weights; arguments as in `save_bundle`."""
    policy.config.save_pretrained(folder)
    policy.preprocessor.save_pretrained(folder)
    policy.postprocessor.save_pretrained(folder)
    write_environment(folder / ENVIRONMENT_FILE, environment)


def fill_template(template: Path, weights: dict[str, torch.Tensor], bundle: Path) -> None:
    """Saves a policy as a LeRobot bundle, whole or not at all.

    Args:
        template: What `save_template` saved of the policy.
        weights: Consolidated fp32 weights, by the model's own names.
        bundle: Where; an earlier bundle there is replaced.
    """
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class

    temporary, replaced = (bundle.with_name(f".{bundle.name}.{suffix}") for suffix in ("tmp", "old"))
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(template, temporary)
    config = PreTrainedConfig.from_pretrained(template, local_files_only=True)
    # A fresh model: the trained one's parameters are views into DeepSpeed's buffers, or shards of them.
    model = get_policy_class(config.type)(config)
    model.load_state_dict(weights, strict=True)
    model.save_pretrained(temporary)
    for path in temporary.iterdir():
        fsync_file(path)
    fsync_dir(temporary)
    if bundle.exists():
        bundle.rename(replaced)
    temporary.rename(bundle)
    fsync_dir(bundle.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _needed_files(bundle: Path) -> Iterator[str]:
    yield from ("config.json", "model.safetensors")
    for processor in ("policy_preprocessor.json", "policy_postprocessor.json"):
        yield processor
        # The names of these files hold the step's number, which differs between policies.
        yield from (step["state_file"] for step in _steps(bundle / processor) if "state_file" in step)


def _steps(processor: Path) -> list[dict[str, Any]]:
    """The steps of a processor; of those that LeRobot does not know by name it would import and call any class."""
    try:
        steps: list[dict[str, Any]] = json.loads(processor.read_text())["steps"]
        foreign = [str(step["class"]) for step in steps if "registry_name" not in step]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{processor} is no processor of LeRobot: {error!r}\n  next: copy the bundle again") from error
    if foreign:
        raise UserError(
            f"{processor} names the class {foreign[0]!r}, which is none of LeRobot's registered steps: whoever loads it"
            " runs what its maker put in. Nothing of it was run\n  next: take another bundle, or register the step"
        )
    return steps


def load_bundle(bundle: Path, device: str = "cpu", *, strict: bool = True) -> Policy:
    """Loads a bundle; only safetensors and JSON are read.

    Args:
        bundle: Its folder.
        device: Where the policy will be.
        strict: Refuse weights that are not exactly the model's.

    Raises:
        UserError: The folder is not a bundle, or names code to run; the message names the file.
    """
    for name in _needed_files(bundle):
        if not (bundle / name).is_file():
            raise UserError(
                f"{bundle} is not a policy bundle: {name} is missing."
                " Expected the `bundle` folder of a finished bc run (python -m launch.submit --stage bc)"
            )
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(bundle, local_files_only=True)
    config.device = device
    model = get_policy_class(config.type).from_pretrained(bundle, config=config, local_files_only=True, strict=strict)
    preprocessor, postprocessor = make_pre_post_processors(
        config,
        pretrained_path=str(bundle),
        preprocessor_overrides={"device_processor": {"device": device}},
    )
    return Policy(model, preprocessor, postprocessor)
