"""One model out of the shards of a DeepSpeed checkpoint, by copying ranges of bytes.

The shards are neither loaded nor run: their zip directories say where each tensor's bytes lie, an allow-list unpickler
reads the rest, and the fp32 master weights are copied to their places in a safetensors file. It takes some tens of
megabytes of memory whatever the model's size, and no torch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tracking.consolidate.dtypes import output_dtype, torch_dtype
from tracking.consolidate.layout import UnprovenLayoutError, find_checkpoint
from tracking.consolidate.plan import Plan, make_plan
from tracking.consolidate.progress import shown_progress
from tracking.consolidate.reading import Reader
from tracking.consolidate.writing import Chunks, files_of, write_model

if TYPE_CHECKING:
    import torch

__all__ = ["Consolidated", "Engine", "UnprovenLayoutError", "consolidate", "consolidated_weights"]

Engine = Literal["stream", "deepspeed"]


@dataclass(frozen=True)
class Consolidated:
    """What was written.

    Attributes:
        files: The safetensors files, without the index.
        elements: Of all parameters and buffers, tied ones counted once.
        bytes: Of all tensors.
        tied: Names of one tensor: the name that is not stored, and the one that is.
        seconds: That it took.
        notices: What the user should know.
    """

    files: list[Path]
    elements: int
    bytes: int
    tied: dict[str, str]
    seconds: float
    notices: list[str]


def consolidate(
    checkpoint: Path,
    out: Path,
    *,
    engine: Engine = "stream",
    dtype: str = "fp32",
    max_shard_size: int | None = None,
    tag: str | None = None,
) -> Consolidated:
    """Writes the model of a DeepSpeed checkpoint as safetensors: parameters and persistent buffers.

    Args:
        checkpoint: The folder of a tag, or the one with the tags and `latest`.
        out: A name in `.safetensors` is the file; anything else is a folder, which gets `model.safetensors`, or shards
            and `model.safetensors.index.json`.
        engine: `deepspeed` lets DeepSpeed's own converter read the shards. It runs what their pickles say and takes the
            whole model's memory.
        dtype: `fp32`, `bf16` or `fp16`: what floating-point tensors are written as. Others keep their type.
        max_shard_size: Bytes of tensors a file.
        tag: Which checkpoint, where `checkpoint` holds several.

    Raises:
        UnprovenLayoutError: Tensor or pipeline parallelism, MoE, MiCS, hpZ or a universal checkpoint.
        UserError: The checkpoint is not whole or holds an unknown global, or the output cannot be written; the message
            names the file. Nothing new is left in `out`.
    """
    start = time.monotonic()
    folder = find_checkpoint(checkpoint, tag)
    element = output_dtype(dtype)
    with Reader() as reader:
        plan, chunks = _source(engine, folder, element, reader)
        files = files_of(plan.entries, out, max_shard_size)
        total = sum(entry.nbytes for entry in plan.entries)
        with shown_progress(total) as progress:
            write_model(files, plan.tied, chunks, progress)
    elements = sum(entry.numel for entry in plan.entries)
    return Consolidated(list(files), elements, total, plan.tied, time.monotonic() - start, plan.notices)


def _source(engine: Engine, folder: Path, dtype: str, reader: Reader) -> tuple[Plan, Chunks]:
    if engine == "deepspeed":
        from tracking.consolidate.reference import deepspeed_plan

        return deepspeed_plan(folder, dtype)
    return make_plan(folder, dtype), lambda entry: reader.converted(entry.parts, entry.dtype)


def consolidated_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Reads the fp32 weights of a whole checkpoint into memory.

    Args:
        checkpoint: The folder of a tag, or the one with the tags and `latest`.

    Returns:
        Parameters and persistent buffers by the model's names, on the CPU; tied names share one tensor.

    Raises:
        UserError: As `consolidate`.
    """
    import torch

    plan = make_plan(find_checkpoint(checkpoint), "F32")
    weights: dict[str, torch.Tensor] = {}
    with Reader() as reader:
        for entry in plan.entries:
            tensor = weights[entry.name] = torch.empty(entry.shape, dtype=torch_dtype(entry.dtype))
            # An empty tensor has no memory to write to.
            room = memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else memoryview(b"")
            for chunk in reader.converted(entry.parts, entry.dtype):
                room[: len(chunk)] = chunk
                room = room[len(chunk) :]
    return weights | {name: weights[kept] for name, kept in plan.tied.items()}
