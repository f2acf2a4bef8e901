"""Shards in DeepSpeed's layout of ZeRO 2, made without DeepSpeed: what they hold is known and they may be large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_zero_2(
    checkpoint: Path,
    weights: dict[str, torch.Tensor],
    world: int = 2,
    step: int = 3,
    config: dict[str, Any] | None = None,
    **states: Any,
) -> Path:
    """Saves fp32 weights as the master weights of one group, with the Adam states that take the most of a real shard.

    Args:
        checkpoint: The folder; its parents need not exist.
        weights: fp32, by name.
        world: Ranks.
        step: Optimizer steps done.
        config: DeepSpeed's configuration.
        **states: More model states, or others in their place.
    """
    checkpoint.mkdir(parents=True)
    flat = torch.cat([weight.reshape(-1) for weight in weights.values()])
    part = -(-len(flat) // (2 * world)) * 2
    for rank in range(world):
        own = flat[rank * part : (rank + 1) * part].clone()
        adam = {"step": torch.tensor(float(step)), "exp_avg": own * 0, "exp_avg_sq": own * 0}
        optimizer = {
            "single_partition_of_fp32_groups": [own],
            "base_optimizer_state": {"state": {0: adam}, "param_groups": [{"lr": 0.1, "params": [0]}]},
            "group_paddings": [part - len(own)],
            "partition_count": [world],
            "zero_stage": 2,
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer, "ds_config": config}, checkpoint / name)
    model = {
        "module": dict(weights),
        "buffer_names": [],
        "param_shapes": [{name: weight.shape for name, weight in weights.items()}],
        "frozen_param_shapes": {},
        "frozen_param_fragments": {},
        "shared_params": {},
        "global_steps": step,
        "skipped_steps": 0,
        "dp_world_size": world,
        "mp_world_size": 1,
        "ds_config": config,
        "ds_version": "0.19.8",
    }
    torch.save(model | states, checkpoint / "mp_rank_00_model_states.pt")
    return checkpoint


def some_weights(count: int = 5) -> dict[str, torch.Tensor]:
    """Small weights of sizes that no number of ranks divides."""
    generator = torch.Generator().manual_seed(0)
    return {f"layer{n}.weight": torch.randn(3 + n, 5, generator=generator) for n in range(count)}


def same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether the names, types and values are the same."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )
