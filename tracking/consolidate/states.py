"""What the shards of a checkpoint say: names, shapes, and where the fp32 master weights lie."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.consolidate.layout import Layout, UnprovenLayoutError, refuse_unproven, require_ranks
from tracking.consolidate.unpickle import Stored, read_shard
from tracking.errors import UserError

Shapes = dict[str, tuple[int, ...]]

_STEP_FORMATS = {"F32": "<f", "F64": "<d", "I64": "<q", "I32": "<i"}


@dataclass(frozen=True)
class ModelStates:
    """One file of model states.

    Attributes:
        path: The file.
        module: The tensors of the module's `state_dict`, by name; in ZeRO 3 the parameters are empty placeholders.
        buffers: Names of the persistent buffers.
        groups: Shapes of the trained parameters, by optimizer group, in the order of the flat master weights; None in
            ZeRO 0.
        frozen: Shapes of the frozen parameters; DeepSpeed says them from ZeRO 2 on.
        fragments: Frozen parameters: whole in ZeRO 2, this rank's part in ZeRO 3.
        shared: Tied parameters: the name that is not stored, and the one that is.
        steps: Optimizer steps done, None where the file does not say it.
        applied: The same without the steps that were skipped for an overflow.
        optimizer: State of an optimizer that is not sharded.
        version: Of the DeepSpeed that wrote it.
    """

    path: Path
    module: dict[str, Stored]
    buffers: frozenset[str]
    groups: list[Shapes] | None
    frozen: Shapes
    fragments: dict[str, Stored]
    shared: dict[str, str]
    steps: int | None
    applied: int | None
    optimizer: Any
    version: Any


@dataclass(frozen=True)
class OptimizerStates:
    """One rank's optimizer states.

    Attributes:
        path: The file.
        stage: ZeRO stage; None where BF16_Optimizer wrote it, which does not say it.
        world_size: Ranks that the master weights are spread over.
        flat: This rank's part of the master weights, by group.
        group_paddings: Elements that are missing at this rank's end, by group.
        parameter_paddings: Elements behind each parameter, by group; empty where there are none.
        step: Steps that the optimizer counts, None where it counts none.
    """

    path: Path
    stage: int | None
    world_size: int
    flat: list[Stored]
    group_paddings: list[int]
    parameter_paddings: list[list[int]]
    step: int | None


@dataclass(frozen=True)
class States:
    """All shards of a checkpoint, of the same step as far as they say it.

    Attributes:
        models: One in ZeRO 0 to 2, one a rank in ZeRO 3.
        optimizers: One a rank; empty in ZeRO 0.
        stage: ZeRO stage.
    """

    models: list[ModelStates]
    optimizers: list[OptimizerStates]
    stage: int

    @property
    def same_step_is_proven(self) -> bool:
        """Whether the optimizer counted its steps, and as many as the model states say."""
        return not self.optimizers or self.optimizers[0].step == self.models[0].applied is not None


def read_states(layout: Layout) -> States:
    """Reads all shards and compares them with one another.

    Raises:
        UnprovenLayoutError: The layout is not one that was compared with a live engine.
        UserError: A shard is missing, broken, or of another save; the message names it.
    """
    first = _model_states(layout.models[0])
    if first.groups is None and not layout.optimizers:
        return States([first], [], 0)
    if not layout.optimizers:
        raise UserError(
            f"{layout.checkpoint} holds no *_optim_states.pt, but {first.path.name} belongs to a checkpoint whose fp32"
            " weights are in those (DeepSpeed 0.17 does not save them in bf16 without ZeRO)"
            "\n  next: take another checkpoint"
        )
    if first.groups is None:
        raise UserError(
            f"{first.path} does not name the parameters of {layout.optimizers[min(layout.optimizers)].name}:"
            " they are of different saves\n  next: take another checkpoint"
        )
    optimizers = {rank: _optimizer_states(path) for rank, path in layout.optimizers.items()}
    world_size = optimizers[min(optimizers)].world_size
    require_ranks(layout.optimizers, world_size)
    models = {0: first}
    if layout.sharded:
        require_ranks(layout.models, world_size)
        models |= {rank: _model_states(layout.models[rank]) for rank in range(1, world_size)}
    ordered = [optimizers[rank] for rank in range(world_size)]
    stage = 3 if layout.sharded else ordered[0].stage or 1
    states = States([models[rank] for rank in range(len(models))], ordered, stage)
    _require_one_save(states)
    return states


def _require_one_save(states: States) -> None:
    for optimizer in states.optimizers:
        if optimizer.stage != states.optimizers[0].stage or optimizer.world_size != len(states.optimizers):
            raise UserError(
                f"{optimizer.path} was saved by {optimizer.world_size} ranks with ZeRO stage {optimizer.stage},"
                f" {states.optimizers[0].path.name} by {states.optimizers[0].world_size} with stage"
                f" {states.optimizers[0].stage}\n  next: take another checkpoint"
            )
    expected = states.models[0].applied
    _require_same_step([(model.path, model.steps) for model in states.models], states.models[0].steps)
    _require_same_step([(optimizer.path, optimizer.step) for optimizer in states.optimizers], expected)


def _require_same_step(files: list[tuple[Path, int | None]], expected: int | None) -> None:
    counted = Counter(step for _, step in files)
    if len(counted) == 1:
        return
    right = expected if expected in counted else counted.most_common(1)[0][0]
    path, step = next((path, step) for path, step in files if step != right)
    raise UserError(f"{path} is of step {step}, the other shards are of step {right}\n  next: take another checkpoint")


def _model_states(path: Path) -> ModelStates:
    states = read_shard(path)
    refuse_unproven(path, states)
    take = _Taker(path, states)
    shapes = take("param_shapes", list, optional=True)
    steps, skipped = states.get("global_steps"), states.get("skipped_steps", 0)
    module = take("module", dict)
    return ModelStates(
        path=path,
        module={name: value for name, value in module.items() if isinstance(value, Stored)},
        buffers=frozenset(take("buffer_names", list)),
        groups=None if shapes is None else [_shapes(path, group) for group in shapes],
        frozen=_shapes(path, take("frozen_param_shapes", dict, optional=True) or {}),
        fragments=take("frozen_param_fragments", dict, optional=True) or {},
        shared=take("shared_params", dict, optional=True) or {},
        steps=steps,
        applied=steps - skipped if isinstance(steps, int) and isinstance(skipped, int) else None,
        optimizer=states.get("optimizer"),
        version=states.get("ds_version"),
    )


def _shapes(path: Path, group: Any) -> Shapes:
    if not isinstance(group, Mapping) or not all(
        isinstance(shape, tuple) and all(isinstance(size, int) and size >= 0 for size in shape)
        for shape in group.values()
    ):
        raise UserError(f"{path}: a shape in it is none\n  next: take another checkpoint")
    return dict(group)


def _optimizer_states(path: Path) -> OptimizerStates:
    outer = read_shard(path)
    refuse_unproven(path, outer)
    states = _Taker(path, outer)("optimizer_state_dict", dict)
    take = _Taker(path, states)
    if "ds_zero_partition_groups" in states:
        raise UnprovenLayoutError(path, "MoE (expert parallelism)")
    stage = take("zero_stage", int, optional=True)
    counts = states.get("partition_count")
    counts = counts if isinstance(counts, list) else [counts]
    if len(set(counts)) != 1:
        raise UnprovenLayoutError(path, f"MoE (groups spread over {counts} ranks)")
    if not isinstance(counts[0], int) or counts[0] < 1:
        raise UserError(f"{path} does not say how many ranks saved it\n  next: take another checkpoint")
    flat = take("fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups", list)
    if not all(isinstance(part, Stored) and part.contiguous for part in flat):
        raise UserError(f"{path}: its master weights are not flat tensors\n  next: take another checkpoint")
    return OptimizerStates(
        path=path,
        stage=stage,
        world_size=counts[0],
        flat=flat,
        group_paddings=take("group_paddings", list, optional=True) or [0] * len(flat),
        parameter_paddings=take("param_alignment_paddings", list, optional=True) or [],
        step=_optimizer_step(states),
    )


def _optimizer_step(states: Mapping[str, Any]) -> int | None:
    inner = states.get("base_optimizer_state", states.get("optimizer_state_dict"))
    return max(_steps(inner), default=None)


def _steps(inner: Any) -> Iterator[int]:
    """Steps that an optimizer of torch's interface counts, by parameter or by group."""
    if not isinstance(inner, Mapping):
        return
    entries = inner.get("state")
    groups = inner.get("param_groups")
    for entry in [*(entries.values() if isinstance(entries, Mapping) else ()), *(groups or ())]:
        step = entry.get("step") if isinstance(entry, Mapping) else None
        if isinstance(step, Stored):
            step = _scalar(step)
        if isinstance(step, int | float):
            yield int(step)


def _scalar(stored: Stored) -> int | float | None:
    code = _STEP_FORMATS.get(stored.dtype)
    if code is None or stored.numel != 1:
        return None
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        value: int | float = struct.unpack(code, file.read(struct.calcsize(code)))[0]
    return value


class _Taker:
    """Takes values of an expected type out of the states of one file."""

    def __init__(self, path: Path, states: Mapping[str, Any]) -> None:
        self._path = path
        self._states = states

    def __call__(self, key: str, kind: type, *, optional: bool = False) -> Any:
        value = self._states.get(key)
        if isinstance(value, kind) or (optional and value is None):
            return value
        raise UserError(
            f"{self._path} is no shard of DeepSpeed's: {key!r} is "
            + (f"a {type(value).__name__}" if key in self._states else "missing")
            + "\n  next: give the folder that engine.save_checkpoint wrote"
        )
