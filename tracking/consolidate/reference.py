"""DeepSpeed's own converter as the reader of the shards, for comparison. It runs what their pickles say."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.consolidate.dtypes import TORCH, torch_dtype
from tracking.consolidate.plan import Entry, Plan
from tracking.consolidate.writing import Chunks
from tracking.errors import UserError

if TYPE_CHECKING:
    import torch


def deepspeed_plan(checkpoint: Path, dtype: str) -> tuple[Plan, Chunks]:
    """Reads the whole model into memory by DeepSpeed's converter.

    Args:
        checkpoint: The folder of the shards.
        dtype: Element type of all tensors of floating-point numbers, by safetensors' name.

    Returns:
        The tensors without places in files, and their bytes.

    Raises:
        UserError: DeepSpeed's converter fails.
    """
    try:
        # It prints its progress, and standard output is for the result.
        with redirect_stdout(sys.stderr):
            state = _read(checkpoint)
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, NotImplementedError) as error:
        raise UserError(
            f"{checkpoint}: DeepSpeed's converter fails on it ({type(error).__name__}: {error})"
            "\n  next: --engine stream"
        ) from error
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    entries: list[Entry] = []
    for name, tensor in state.items():
        kept = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
        if kept != name and tensor.numel():
            tied[name] = kept
            continue
        written = dtype if tensor.is_floating_point() else TORCH[str(tensor.dtype).removeprefix("torch.")]
        entries.append(Entry(name, written, tuple(tensor.shape), []))

    def chunks(entry: Entry) -> list[memoryview]:
        return [_bytes(state[entry.name].to(torch_dtype(entry.dtype)))]

    return Plan(entries, tied, []), chunks


def _read(checkpoint: Path) -> dict[str, torch.Tensor]:
    model = checkpoint / "mp_rank_00_model_states.pt"
    if model.exists() and not any(checkpoint.glob("*_optim_states.pt")):
        # Without ZeRO nothing is sharded, and the converter fails with a TypeError.
        import torch

        return dict(torch.load(model, map_location="cpu", weights_only=False)["module"])
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name))


def _bytes(tensor: torch.Tensor) -> memoryview:
    import torch

    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
