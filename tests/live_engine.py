"""What a live DeepSpeed engine holds, to be compared with what a checkpoint gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import deepspeed
import torch


def gathered(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter as the module computes with it, whole also with ZeRO 3; every rank must call it."""
    with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
        return parameter.detach().clone()


def digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Of tensors with their names, types and shapes."""
    sha = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        data = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + data)
    return sha.hexdigest()
