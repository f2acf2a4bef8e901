"""What a run's checkpoints will take on the disk, estimated from its arguments, against what is free there."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.config import Config
from launch.preflight import rules
from launch.preflight.arguments import policy_values
from launch.preflight.finding import Finding
from launch.preflight.folders import existing_part
from launch.preflight.inputs import bundle_of, datasets_of, features_of
from launch.spec import JobSpec
from tracking.pace import total_steps
from tracking.words import number, size

# fp32 masters and AdamW's two moments, and the weights themselves, which are at most fp32.
_CHECKPOINT_BYTES = 16
# The run's bundle and the model store's copy of it, both fp32.
_BUNDLE_BYTES = 8
# Parameters up to layer 4 without batch norm's, which LeRobot freezes (torchvision.models.resnet).
_BACKBONES = {"resnet18": 11_166_912, "resnet34": 21_267_648, "resnet50": 23_454_912}
_BACKBONE_OUT = {"resnet18": 512, "resnet34": 512, "resnet50": 2048}
_HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class Estimate:
    """What a run will need at most.

    Attributes:
        parameters: Of the policy.
        checkpoint: Bytes of one checkpoint.
        count: Checkpoints that stand at once: those that stay, the best, and the one that is being written.
        needed: Bytes of all of them and of the bundle.
        free: Bytes that are free where the run folder will be.
    """

    parameters: int
    checkpoint: int
    count: int
    needed: int
    free: int

    def __str__(self) -> str:
        return (
            f"{number(self.parameters)} parameters, {self.count} checkpoints of {size(self.checkpoint)}: "
            f"{size(self.needed)}, {size(self.free)} are free"
        )


def disk_findings(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Yields whether the run's checkpoints do not fit on the disk; a quota is not seen."""
    found = estimate(config, spec)
    if found is not None and found.needed > found.free:
        yield rules.DISK_SPACE(
            f"cluster.run_root {str(spec.run_dir.parent)!r}: {found}",
            f"--set {spec.stage}.keep_last_n=1 --set {spec.stage}.keep_every=0, or a larger disk: "
            "--set cluster.run_root=FOLDER",
        )


def estimate(config: Config, spec: JobSpec) -> Estimate | None:
    """Estimates a run's need; None for a stage that saves no checkpoints, or a policy that is not known."""
    arguments = config.arguments
    steps = total_steps(arguments)
    if steps is None or not all(isinstance(arguments.get(name), int) for name in ("save_freq", "keep_last_n")):
        return None
    parameters = _parameters(config, spec)
    if parameters is None or arguments["save_freq"] < 1:
        return None
    saves = -(-steps // arguments["save_freq"])
    every = arguments.get("keep_every") or 0
    staying = arguments["keep_last_n"] + (steps // every if every > 0 else 0) + 1
    count = min(saves, staying + 1)
    checkpoint = parameters * _CHECKPOINT_BYTES
    disk = os.statvfs(existing_part(spec.run_dir.parent))
    needed = count * checkpoint + parameters * _BUNDLE_BYTES
    return Estimate(parameters, checkpoint, count, needed, disk.f_bavail * disk.f_frsize)


def _parameters(config: Config, spec: JobSpec) -> int | None:
    bundle = bundle_of(config, spec)
    if bundle is not None and (bundle / "model.safetensors").is_file():
        return weights_in(bundle / "model.safetensors")
    values = policy_values(config)
    folder = next(iter(datasets_of(config, spec)), None)
    if config.arguments.get("policy") != "act" or not values or folder is None:
        return None
    features = features_of(folder)
    try:
        return act_parameters(values, features) if features else None
    except (KeyError, TypeError):  # a setting of a wrong type, of which another finding speaks
        return None


def weights_in(file: Path) -> int | None:
    """Counts the weights in a safetensors file by its header; None where it is not one."""
    with file.open("rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else _HEADER_LIMIT + 1
        if length > _HEADER_LIMIT:
            return None
        try:
            header = json.loads(opened.read(length))
        except ValueError:
            return None
    return sum(int(math.prod(tensor["shape"])) for name, tensor in header.items() if name != "__metadata__")


def act_parameters(values: Mapping[str, Any], features: Mapping[str, tuple[int, ...]]) -> int:
    """Counts the parameters of LeRobot 0.4.4's ACT (lerobot/policies/act/modeling_act.py).

    Args:
        values: Fields of `ACTConfig`.
        features: Shapes of a dataset's columns.
    """
    width, inner = values["dim_model"], values["dim_feedforward"]
    action = math.prod(features["action"])
    states = ("observation.state", "observation.environment_state")
    low = [math.prod(features[key]) for key in states if key in features]
    cameras = [name for name in features if name.startswith("observation.image")]

    def linear(inputs: int, outputs: int) -> int:
        return (inputs + 1) * outputs

    attention, norm = 4 * linear(width, width), 2 * width
    encoder_layer = attention + linear(width, inner) + linear(inner, width) + 2 * norm
    decoder_layer = encoder_layer + attention + norm
    encoder_norm = norm if values["pre_norm"] else 0
    total = values["n_encoder_layers"] * encoder_layer + encoder_norm
    total += values["n_decoder_layers"] * decoder_layer + norm
    total += sum(linear(one, width) for one in low) + linear(values["latent_dim"], width)
    total += (1 + len(low)) * width + values["chunk_size"] * width + linear(width, action)
    if values["use_vae"]:
        total += values["n_vae_encoder_layers"] * encoder_layer + encoder_norm + width + linear(action, width)
        total += linear(width, 2 * values["latent_dim"])
        if "observation.state" in features:
            total += linear(math.prod(features["observation.state"]), width)
    if cameras:
        backbone = values["vision_backbone"]
        total += _BACKBONES[backbone] + linear(_BACKBONE_OUT[backbone], width)
    return int(total)
