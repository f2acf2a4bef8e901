"""Which bytes of which shards make up each tensor of the model."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from tracking.consolidate.dtypes import FLOATS, SIZES
from tracking.consolidate.layout import find_shards, version_notices
from tracking.consolidate.masters import cut_to, rank_share, sharded_masters
from tracking.consolidate.matching import named_masters, same_weights
from tracking.consolidate.reading import Reader
from tracking.consolidate.states import States, read_states
from tracking.consolidate.unpickle import Stored
from tracking.errors import UserError

# Elements of each parameter that tell one step's weights from another's.
_SAMPLE = 1024


@dataclass(frozen=True)
class Entry:
    """One tensor of the consolidated model.

    Attributes:
        name: By the model's `state_dict`.
        dtype: Element type that is written, by safetensors' name.
        shape: Its shape.
        parts: Where it lies: tensors one behind the other.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: list[Stored]

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that are written."""
        return self.numel * SIZES[self.dtype]


@dataclass(frozen=True)
class Plan:
    """The consolidated model.

    Attributes:
        entries: Its tensors, each once.
        tied: Names of one tensor: the name that is not stored, and the one that is.
        notices: What the user should know.
    """

    entries: list[Entry]
    tied: dict[str, str]
    notices: list[str]


def make_plan(checkpoint: Path, dtype: str) -> Plan:
    """Checks a checkpoint and finds every tensor of the model in it.

    Args:
        checkpoint: The folder of the shards.
        dtype: Element type of all tensors of floating-point numbers, by safetensors' name.

    Raises:
        UserError: The checkpoint is not whole, or in a layout that is not read; the message names the file.
    """
    states = read_states(find_shards(checkpoint))
    model = states.models[0]
    with Reader() as reader:
        if model.groups is None:
            masters = named_masters(model, reader)
            shapes = {name: model.module[name].shape for name in masters}
        else:
            masters = sharded_masters(states, model.groups)
            shapes = {name: shape for group in model.groups for name, shape in group.items()}
        notices = version_notices(model.version) + _compare_weights(states, masters, reader)
    tied = _tied(states)
    tensors = _other_tensors(states, {*masters, *tied})
    tensors |= {name: (shapes[name], parts) for name, parts in masters.items()}
    if lost := [name for name, kept in tied.items() if kept not in tensors]:
        raise UserError(
            f"{model.path} ties {lost[0]!r} to {tied[lost[0]]!r}, which it does not hold"
            "\n  next: take another checkpoint"
        )
    order = dict.fromkeys([*model.module, *tensors])
    entries = [
        Entry(name, _written(parts[0].dtype if parts else "F32", dtype), shape, parts)
        for name, (shape, parts) in ((name, tensors[name]) for name in order if name in tensors and name not in tied)
    ]
    return Plan(entries, tied, notices)


def _written(source: str, dtype: str) -> str:
    return dtype if source in FLOATS else source


def _tied(states: States) -> dict[str, str]:
    """Parameters under several names; DeepSpeed names them with ZeRO, else their place in the file tells."""
    model = states.models[0]
    if model.groups is not None:
        # DeepSpeed compares addresses, and every empty tensor has the same one.
        empty = {name for name, shape in model.frozen.items() if not prod(shape)}
        empty |= {name for name, tensor in model.module.items() if not tensor.numel and states.stage < 3}
        return {
            name: kept
            for name, kept in model.shared.items()
            if isinstance(name, str) and isinstance(kept, str) and not {name, kept} & empty
        }
    first: dict[Stored, str] = {}
    return {
        name: kept
        for name, tensor in model.module.items()
        if name not in model.buffers and tensor.numel and (kept := first.setdefault(tensor, name)) != name
    }


def _other_tensors(states: States, done: set[str]) -> dict[str, tuple[tuple[int, ...], list[Stored]]]:
    """Buffers and frozen parameters, which no optimizer has: shape and parts by name."""
    found: dict[str, tuple[tuple[int, ...], list[Stored]]] = {}
    model = states.models[0]
    for name, tensor in model.module.items():
        if name in done or (name in model.frozen and states.stage == 3):
            continue
        if states.stage == 3 and name not in model.buffers:
            raise UserError(
                f"{model.path} has no weights of {name!r}: it is neither trained, frozen nor a buffer"
                "\n  next: take another checkpoint"
            )
        found[name] = (tensor.shape, [tensor])
    if states.stage == 3:
        for name, shape in model.frozen.items():
            if name not in done:
                found[name] = (shape, _frozen_parts(states, name, prod(shape)))
    return found


def _frozen_parts(states: States, name: str, count: int) -> list[Stored]:
    share = rank_share(count, len(states.models))
    parts = []
    for model in states.models:
        part = model.fragments.get(name)
        if not isinstance(part, Stored) or not part.contiguous or part.numel != share:
            given = f"{part.numel} elements" if isinstance(part, Stored) else "none"
            raise UserError(
                f"{model.path} holds {given} of the frozen {name!r}, {share} were expected"
                "\n  next: take another checkpoint"
            )
        parts.append(part)
    return cut_to(parts, count)


def _compare_weights(states: States, masters: dict[str, list[Stored]], reader: Reader) -> list[str]:
    """Where step counts do not prove that the shards belong together, the weights do: masters round to the module's.

    Raises:
        UserError: They do not.
    """
    if states.same_step_is_proven:
        return []
    model = states.models[0]
    if states.stage == 3:
        step = states.optimizers[0].step
        return [
            f"the optimizer counts {'no' if step is None else step} steps, the model states {model.applied};"
            " with ZeRO 3 nothing else tells whether they belong together"
        ]
    for name, parts in masters.items():
        if name in model.module and not same_weights(reader, parts, model.module[name], _SAMPLE):
            raise UserError(
                f"{parts[0].path} holds other weights of {name!r} than {model.path.name}: they are of different steps"
                "\n  next: take another checkpoint"
            )
    return []
