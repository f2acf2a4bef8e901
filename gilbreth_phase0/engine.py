"""A model under DeepSpeed ZeRO, from one configuration for CPU (gloo) and GPU (NCCL, bf16 autocast)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.job import Job
from gilbreth_phase0.stop import signals_held_back

if TYPE_CHECKING:
    import torch

# Elements a bucket. DeepSpeed's default, as the ZeRO configurations of its documentation have it.
_BUCKET_ELEMENTS = int(5e8)


@dataclass(frozen=True)
class Optimisation:
    """How a policy is optimised.

    Attributes:
        lr: Peak learning rate, for a batch of any size (no scaling rule).
        weight_decay: AdamW's.
        warmup_steps: Linear warm-up, then cosine decay to `final_lr_fraction` of the peak at the last step.
        training_steps: Optimizer steps in all.
        clip_grad_norm: Greatest norm of the whole gradient; 0 for no clipping.
        zero_stage: DeepSpeed's ZeRO stage, 0 to 3.
        micro_batch_size: Samples a rank and micro-batch.
        gradient_accumulation: Micro-batches a step.
    """

    lr: float
    weight_decay: float
    warmup_steps: int
    training_steps: int
    clip_grad_norm: float
    zero_stage: int
    micro_batch_size: int
    gradient_accumulation: int
    final_lr_fraction: float = 0.01


def deepspeed_config(optimisation: Optimisation, world_size: int, device: str) -> dict[str, Any]:
    """Writes DeepSpeed's configuration; the keys are DeepSpeed's own."""
    config: dict[str, Any] = {
        "train_batch_size": optimisation.micro_batch_size * world_size * optimisation.gradient_accumulation,
        "train_micro_batch_size_per_gpu": optimisation.micro_batch_size,
        "gradient_accumulation_steps": optimisation.gradient_accumulation,
        "gradient_clipping": optimisation.clip_grad_norm,
        "steps_per_print": 2**31 - 1,
        # AdamW is PyTorch's, the same on both devices; DeepSpeed's own CPU Adam would be compiled at first use.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": optimisation.zero_stage,
            "overlap_comm": device == "cuda",
            "contiguous_gradients": True,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "allgather_bucket_size": _BUCKET_ELEMENTS,
        },
    }
    if device == "cuda":
        # `bf16.enabled` would cast the model, and ACT then multiplies float32 by bfloat16 and fails.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


def initialise(model: torch.nn.Module, optimisation: Optimisation, job: Job) -> Any:
    """Wraps a model in a DeepSpeed engine.

    Args:
        model: The same weights on every rank; those that require a gradient are trained, all at one rate.
        optimisation: How it is optimised.
        job: This rank and its job.

    Returns:
        A `deepspeed.DeepSpeedEngine`.
    """
    import deepspeed
    import torch
    from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=optimisation.lr, weight_decay=optimisation.weight_decay)
    scheduler = CosineDecayWithWarmupSchedulerConfig(
        num_warmup_steps=optimisation.warmup_steps,
        num_decay_steps=optimisation.training_steps,
        peak_lr=optimisation.lr,
        decay_lr=optimisation.lr * optimisation.final_lr_fraction,
    ).build(optimizer, optimisation.training_steps)
    with signals_held_back():  # a compiler may run in here
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            config=deepspeed_config(optimisation, job.ranks.world_size, job.device),
            dist_init_required=False,
        )
    return engine
