"""Where the fp32 master weights of each parameter lie in the flat groups that ZeRO spread over the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from math import prod

from tracking.consolidate.states import OptimizerStates, Shapes, States
from tracking.consolidate.unpickle import Stored
from tracking.errors import UserError

# The flat groups of ZeRO 1 and 2 are padded to a multiple of this times the number of ranks.
_ALIGNMENT = 2


def sharded_masters(states: States, groups: list[Shapes]) -> dict[str, list[Stored]]:
    """Finds each parameter's master weights, as tensors one behind the other.

    Args:
        states: All shards of a checkpoint of ZeRO 1, 2 or 3.
        groups: Shapes of the parameters, by optimizer group, in their order.

    Raises:
        UserError: A shard does not hold exactly as many elements as the shapes ask for; the message names it.
    """
    if states.stage == 3:
        return dict(_of_zero_3(states.optimizers, groups))
    masters: dict[str, list[Stored]] = {}
    for optimizer in states.optimizers:
        if len(optimizer.flat) != len(groups):
            raise _wrong_count(optimizer, f"{len(optimizer.flat)} groups of master weights", str(len(groups)))
    for number, shapes in enumerate(groups):
        masters |= _of_group(states.optimizers, number, shapes)
    return masters


def _of_group(optimizers: list[OptimizerStates], number: int, shapes: Shapes) -> Iterator[tuple[str, list[Stored]]]:
    """ZeRO 1 and 2: the parameters one behind the other, cut into equal parts."""
    counts = [prod(shape) for shape in shapes.values()]
    paddings = optimizers[0].parameter_paddings[number] if optimizers[0].parameter_paddings else [0] * len(counts)
    if len(paddings) != len(counts):
        raise _wrong_count(optimizers[0], f"paddings of {len(paddings)} parameters", str(len(counts)))
    ends = list(accumulate(count + padding for count, padding in zip(counts, paddings, strict=True)))
    block = _ALIGNMENT * len(optimizers)
    part = -(-(ends[-1] if ends else 0) // block) * _ALIGNMENT
    for optimizer in optimizers:
        given = optimizer.flat[number].numel
        # What is left of the part after the padding at its end, by the rule by which DeepSpeed cuts it off.
        lean = len(range(part)[: part - optimizer.group_paddings[number]])
        if given not in (part, lean):
            raise _wrong_count(optimizer, f"{given} master weights in group {number}", f"{lean} or {part}")
    for name, count, end, padding in zip(shapes, counts, ends, paddings, strict=True):
        yield name, list(_range(optimizers, number, part, end - padding - count, count))


def _range(optimizers: list[OptimizerStates], number: int, part: int, first: int, count: int) -> Iterator[Stored]:
    while count:
        rank, begin = divmod(first, part)
        taken = min(count, part - begin)
        flat = optimizers[rank].flat[number]
        if begin + taken > flat.numel:
            raise _wrong_count(optimizers[rank], f"{flat.numel} master weights in group {number}", str(begin + taken))
        yield flat.part(begin, taken)
        first, count = first + taken, count - taken


def _of_zero_3(optimizers: list[OptimizerStates], groups: list[Shapes]) -> Iterator[tuple[str, list[Stored]]]:
    """ZeRO 3: each parameter cut into equal parts, and each rank's parts one behind the other."""
    world_size = len(optimizers)
    shapes = {name: shape for group in groups for name, shape in group.items()}
    wanted = sum(rank_share(prod(shape), world_size) for shape in shapes.values())
    for optimizer in optimizers:
        given = sum(flat.numel for flat in optimizer.flat)
        if given != wanted:
            # With the optimizer offloaded to NVMe the shard holds none at all.
            raise _wrong_count(optimizer, f"{given} master weights", str(wanted))
    position = 0
    for name, shape in shapes.items():
        share = rank_share(prod(shape), world_size)
        yield (
            name,
            cut_to(
                [piece for optimizer in optimizers for piece in _slice(optimizer.flat, position, share)], prod(shape)
            ),
        )
        position += share


def rank_share(count: int, world_size: int) -> int:
    """Elements of a parameter that each rank holds in ZeRO 3, the last ones' padding included."""
    return -(-count // world_size)


def _slice(tensors: list[Stored], first: int, count: int) -> Iterator[Stored]:
    for tensor in tensors:
        taken = min(count, tensor.numel - first)
        if taken > 0:
            yield tensor.part(first, taken)
            count -= taken
        first = max(0, first - tensor.numel)


def cut_to(tensors: list[Stored], count: int) -> list[Stored]:
    """The first elements of tensors that lie one behind the other."""
    taken = []
    for tensor in tensors:
        if count > 0:
            taken.append(tensor.part(0, min(count, tensor.numel)))
            count -= tensor.numel
    return taken


def _wrong_count(optimizer: OptimizerStates, given: str, expected: str) -> UserError:
    return UserError(
        f"{optimizer.path} holds {given}, the model's shapes ask for {expected}\n  next: take another checkpoint"
    )
