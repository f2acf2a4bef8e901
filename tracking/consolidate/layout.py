"""Which files a DeepSpeed checkpoint consists of, and which layouts are not read because nothing has proven them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.checkpoints import LATEST, MANIFEST, Manifest
from tracking.errors import UserError

_MODEL = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_MODEL_SHARD = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_PIPELINE = re.compile(r"layer_\d+-model_.*states\.pt")
_EXPERT = re.compile(r"(?:layer_\d+_)?expert_.*states\.pt|expp_rank_.*states\.pt")
# The newer and the older name.
_EXPERT_LAYERS = ("ds_autoep_layers", "autoep_layers")

# Whose checkpoints were compared with the live engines that wrote them (docs/checkpoints.md).
_PROVEN = ("0.14", "0.16", "0.17", "0.18", "0.19")


@dataclass(frozen=True)
class Layout:
    """The shards of a checkpoint.

    Attributes:
        checkpoint: Its folder.
        models: Model states by rank: one of all ranks in ZeRO 0 to 2, one a rank in ZeRO 3.
        optimizers: Optimizer states by rank; empty in ZeRO 0.
    """

    checkpoint: Path
    models: dict[int, Path]
    optimizers: dict[int, Path]

    @property
    def sharded(self) -> bool:
        """Whether the model states are one a rank, as ZeRO 3 has them."""
        return bool(_MODEL_SHARD.fullmatch(self.models[0].name))


class UnprovenLayoutError(UserError):
    """A layout that this was never compared with a live engine in."""

    def __init__(self, path: Path, layout: str) -> None:
        super().__init__(
            f"{path}: {layout} is a layout that consolidation does not read: it has not been proven.\n"
            "  next: --engine deepspeed, where DeepSpeed's own converter reads it, or its ds_to_universal"
        )


def find_checkpoint(folder: Path, tag: str | None = None) -> Path:
    """Finds the folder of shards: the one given, the one that `latest` names in it, or the one of a tag.

    Raises:
        UserError: There is none; the message lists the tags that there are.
    """
    if not folder.is_dir():
        fault = "is a file" if folder.exists() else "does not exist"
        raise UserError(
            f"{folder} {fault}; expected a DeepSpeed checkpoint, or the folder with its tags and `{LATEST}`"
            f"\n  next: ls {folder.parent}"
        )
    if tag is None and _holds_shards(folder):
        return folder
    if tag is None:
        try:
            tag = (folder / LATEST).read_text().strip()
        except FileNotFoundError:
            raise _no_tag(folder, f"{folder / LATEST} is missing, and there is no *_states.pt beside it") from None
        except (OSError, ValueError) as error:
            raise _no_tag(folder, f"{folder / LATEST} cannot be read ({error})") from error
        if not tag.strip(".") or "/" in tag or not (folder / tag).is_dir():
            raise _no_tag(folder, f"{folder / LATEST} names {tag!r}, which is not there")
    if not (folder / tag).is_dir():
        raise _no_tag(folder, f"{folder / tag} does not exist")
    return folder / tag


def _holds_shards(folder: Path) -> bool:
    return any(folder.glob("*_states.pt")) or (folder / MANIFEST).exists() or (folder / "zero").is_dir()


def _no_tag(folder: Path, fault: str) -> UserError:
    if (inner := folder / "checkpoints").is_dir():  # a run's folder
        return UserError(f"{fault}\n  next: python -m tracking.consolidate {shlex.quote(str(inner))} OUT")
    tags = sorted(path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*_states.pt")))
    return UserError(f"{fault}\n  next: --tag with one of: {', '.join(tags) or '(no checkpoint is here)'}")


def find_shards(checkpoint: Path) -> Layout:
    """Finds the shards of a checkpoint by their names.

    Raises:
        UnprovenLayoutError: The names are those of another kind of parallelism.
        UserError: There are no model states, or a file that the manifest lists is missing or has another size.
    """
    _compare_with_manifest(checkpoint)
    models: dict[int, Path] = {}
    shards: dict[int, Path] = {}
    optimizers: dict[int, Path] = {}
    if (checkpoint / "zero").is_dir():
        raise UnprovenLayoutError(checkpoint / "zero", "a universal checkpoint")
    for path in sorted(checkpoint.glob("*_states.pt")):
        if _PIPELINE.fullmatch(path.name):
            raise UnprovenLayoutError(path, "pipeline parallelism")
        if _EXPERT.fullmatch(path.name):
            raise UnprovenLayoutError(path, "MoE (expert parallelism)")
        for pattern, files in ((_MODEL, models), (_MODEL_SHARD, shards), (_OPTIMIZER, optimizers)):
            if not (found := pattern.fullmatch(path.name)):
                continue
            *ranks, model_rank = (int(number) for number in found.groups())
            if model_rank != 0:
                raise UnprovenLayoutError(path, "tensor or pipeline parallelism (mp_rank above 00)")
            rank = ranks[0] if ranks else 0
            if rank in files:
                raise UserError(
                    f"{path} and {files[rank].name} are both of rank {rank}\n  next: keep those of one save"
                )
            files[rank] = path
    if models and shards:
        raise UserError(
            f"{models[0]} and {shards[min(shards)].name} are of different ZeRO stages\n  next: keep those of one save"
        )
    found_models = models or shards
    if 0 not in found_models:
        name = "zero_pp_rank_0_mp_rank_00_model_states.pt" if shards else "mp_rank_00_model_states.pt"
        raise missing(checkpoint / name)
    return Layout(checkpoint, found_models, optimizers)


def _compare_with_manifest(checkpoint: Path) -> None:
    if not (checkpoint / MANIFEST).exists():
        return
    try:
        manifest = Manifest.read(checkpoint)
    except ValueError as error:
        raise UserError(f"{error}\n  next: take another checkpoint") from error
    for name, record in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            raise missing(path)
        if path.stat().st_size != record.size:
            raise UserError(
                f"{path} has {path.stat().st_size} bytes, {record.size} were saved\n  next: take another checkpoint"
            )


def missing(path: Path) -> UserError:
    """The error for a shard that is not there."""
    return UserError(f"{path} is missing: the checkpoint is not whole\n  next: take another checkpoint")


def require_ranks(files: Mapping[int, Path], world_size: int) -> None:
    """Refuses a checkpoint in which a rank's file is missing, or that holds one of a rank that there was not."""
    example = files[min(files)]
    for rank in range(world_size):
        if rank not in files:
            raise missing(example.with_name(example.name.replace(f"_rank_{min(files)}_", f"_rank_{rank}_", 1)))
    if len(files) > world_size:
        raise UserError(
            f"{files[max(files)]} is of rank {max(files)}, but {world_size} ranks saved this checkpoint: files of two"
            " saves are mixed\n  next: take another checkpoint"
        )


def refuse_unproven(path: Path, states: Mapping[str, Any]) -> None:
    """Refuses what the model states say about the layout and the file names do not show.

    Raises:
        UnprovenLayoutError: It is not one that was compared with a live engine.
    """
    config = _mapping(states.get("ds_config"))
    zero = _mapping(config.get("zero_optimization"))
    dimensions = _mapping(states.get("checkpoint_parallel_dimensions"))
    tensor_parallel = _mapping(config.get("tensor_parallel"))
    layouts = {
        "tensor parallelism": _above(1, dimensions.get("tp_degree"), tensor_parallel.get("autotp_size")),
        "pipeline parallelism": _above(1, dimensions.get("pp_degree")),
        "model parallelism": _above(1, states.get("mp_world_size")),
        "MoE (expert parallelism)": any(states.get(key) for key in _EXPERT_LAYERS) or "num_experts" in states,
        "MiCS (zero_optimization.mics_shard_size)": _above(0, zero.get("mics_shard_size")),
        "ZeRO++ hpZ (zero_optimization.zero_hpz_partition_size)": _above(1, zero.get("zero_hpz_partition_size")),
        "ZenFlow (zero_optimization.zenflow)": bool(zero.get("zenflow")),
        "elastic ZeRO (zero_optimization.elastic_checkpoint)": bool(zero.get("elastic_checkpoint")),
    }
    for name, found in layouts.items():
        if found:
            raise UnprovenLayoutError(path, name)


def version_notices(version: Any) -> list[str]:
    """What the user should know about the DeepSpeed that wrote the shards.

    Its layouts are told apart by what the shards hold; the number only says whether anybody has compared.

    Args:
        version: As the shards give it.
    """
    found = re.match(r"\d+\.\d+", version) if isinstance(version, str) else None
    if found and found[0] in _PROVEN:
        return []
    return [
        f"the shards were written by {f'DeepSpeed {version}' if found else 'an unknown version of DeepSpeed'};"
        f" {', '.join(_PROVEN)} were compared with live engines"
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _above(limit: int, *degrees: Any) -> bool:
    return any(isinstance(degree, int) and degree > limit for degree in degrees)
