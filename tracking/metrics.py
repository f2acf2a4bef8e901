"""Numbers that a training loop has at hand: gradient norm, learning rate, loss scale."""

from __future__ import annotations

from typing import Any


def compute_grad_norm(model: Any) -> float | None:
    """Computes the 2-norm of all gradients. Reading it waits for the device.

    Args:
        model: A DeepSpeed engine, which has computed the norm in its last step (its gradients are gone by then), or a
            module between `backward()` and `zero_grad()`.

    Returns:
        The norm, before clipping; None where there are no gradients.
    """
    if hasattr(model, "get_global_grad_norm"):
        norm = model.get_global_grad_norm()
        return None if norm is None else float(norm)
    parameters = model.parameters() if hasattr(model, "parameters") else ()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return None
    import torch

    # Norms stay on their devices until there is one number to read.
    norms = [torch.linalg.vector_norm(gradient.detach().float()) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms])))


def get_learning_rate(optimizer: Any) -> float | None:
    """Reads the learning rate of the first parameter group.

    Args:
        optimizer: A torch optimizer, or a DeepSpeed engine or optimizer.

    Returns:
        The rate, or None where there is no parameter group.
    """
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        groups = getattr(getattr(optimizer, "optimizer", None), "param_groups", None)
    return float(groups[0]["lr"]) if groups else None


def get_amp_scale(scaler: Any) -> float | None:
    """Reads the loss scale of mixed precision.

    Args:
        scaler: A `torch.amp.GradScaler`, or a DeepSpeed engine.

    Returns:
        The scale; None without one, as in fp32 and bf16.
    """
    if hasattr(scaler, "get_scale"):
        return float(scaler.get_scale()) if scaler.is_enabled() else None
    if hasattr(scaler, "fp16_enabled") and scaler.fp16_enabled():
        scale = getattr(scaler.optimizer, "cur_scale", None)
        return None if scale is None else float(scale)
    return None
