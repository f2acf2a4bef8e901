"""One fp32 model out of the shards of a ZeRO checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tracking.checkpoints import Manifest

if TYPE_CHECKING:
    import torch


def consolidated_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Reads the fp32 weights of a whole checkpoint by DeepSpeed's own converter.

    The checkpoint must be one of the run's own: DeepSpeed's shards are pickles.

    Args:
        checkpoint: A folder with a manifest.

    Returns:
        Parameters and persistent buffers by the model's names, on the CPU.
    """
    import torch

    stage = Manifest.read(checkpoint).zero_stage
    if stage == 0:
        # Nothing is sharded, and DeepSpeed's converter fails on it with a TypeError.
        saved = torch.load(checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        return {name: value.float() if value.is_floating_point() else value for name, value in saved["module"].items()}
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    weights: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(
        str(checkpoint.parent), tag=checkpoint.name
    )
    return {name: weight.clone() for name, weight in weights.items()}
