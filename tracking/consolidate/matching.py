"""Master weights against the 16-bit weights that DeepSpeed made of them by rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracking.consolidate.dtypes import converter, numpy
from tracking.consolidate.masters import cut_to
from tracking.consolidate.reading import Reader
from tracking.consolidate.states import ModelStates
from tracking.consolidate.unpickle import Stored
from tracking.errors import UserError


def named_masters(model: ModelStates, reader: Reader) -> dict[str, list[Stored]]:
    """Names the master weights of 16-bit training without ZeRO, which are saved without names.

    The optimizer's groups hold them in the order of the parameters. A parameter belongs to the next ones of a group if
    these, rounded, are its weights bit for bit; one that belongs to none was frozen.

    Returns:
        The master weights by parameter; empty where there are none (training in fp32).

    Raises:
        UserError: Some master weights are no parameter's.
    """
    groups = _groups(model.optimizer)
    found: dict[str, list[Stored]] = {}
    for name, weight in model.module.items():
        if name in model.buffers or weight.numel == 0:
            continue
        for group in groups:
            candidate = _next_of(group, weight)
            if candidate is not None and same_weights(reader, [candidate], weight):
                found[name] = [candidate]
                _drop(group, weight.numel)
                break
    if left := sum(tensor.numel for group in groups for tensor in group):
        raise UserError(
            f"{model.path} holds master weights without names, and {left} of them are no parameter's when rounded"
            "\n  next: train with ZeRO stage 1 or above, whose checkpoints name them"
        )
    return found


def _groups(optimizer: Any) -> list[list[Stored]]:
    if not isinstance(optimizer, Mapping):
        return []
    groups = optimizer.get("fp32_groups", optimizer.get("fp32_groups_flat", []))
    listed = [group if isinstance(group, list) else [group] for group in groups]
    return [[tensor for tensor in group if isinstance(tensor, Stored)] for group in listed]


def _next_of(group: list[Stored], weight: Stored) -> Stored | None:
    if not group or group[0].numel < weight.numel:
        return None
    if group[0].shape == weight.shape:
        return group[0]
    # One flat tensor a group (FP16_Optimizer).
    return group[0].part(0, weight.numel) if len(group) == len(group[0].shape) == 1 else None


def _drop(group: list[Stored], count: int) -> None:
    first = group.pop(0)
    if first.numel > count:
        group.insert(0, first.part(count, first.numel - count))


def same_weights(reader: Reader, masters: list[Stored], weight: Stored, limit: int | None = None) -> bool:
    """Whether master weights, rounded, are a parameter's weights.

    Args:
        reader: Reads both.
        masters: Tensors one behind the other, as many elements as `weight` has.
        weight: What the module computed with.
        limit: How many elements from the beginning are compared; all by default.
    """
    if limit is not None and weight.contiguous:
        masters, weight = cut_to(masters, limit), weight.part(0, min(limit, weight.numel))
    np = numpy()
    rounded, widened = converter("F32", weight.dtype), converter(weight.dtype, "F32")
    with Reader() as other:
        theirs = other.converted([weight], weight.dtype)
        rest = b""
        for chunk in reader.converted(masters, "F32"):
            ours = bytes(rounded(memoryview(chunk)))
            while len(rest) < len(ours) and (more := next(theirs, b"")):
                rest += bytes(more)
            values = [np.frombuffer(widened(memoryview(part)), "<f4") for part in (ours, rest[: len(ours)])]
            if not np.array_equal(*values, equal_nan=True):
                return False
            rest = rest[len(ours) :]
    return True
