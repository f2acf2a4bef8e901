"""Converts a DeepSpeed checkpoint into one that any number of ranks can load: `python -m … CHECKPOINT OUT`.

A process of its own: DeepSpeed's converter forks workers, and runs what the shards' pickles say. It is therefore for
the run's own checkpoints only, after their digests were compared.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError

if TYPE_CHECKING:
    import torch

REST = "rest.safetensors"
"""Frozen parameters and persistent buffers, in their own types: DeepSpeed's converter loses them."""

ROUND_ROBIN = "with round_robin_gradients DeepSpeed's converter cuts the wrong weights out of the shards"

REFUSED = "refused: "
"""What the reason of a refusal stands behind in this program's output."""

_WORKERS = 4


def convert(checkpoint: Path, out: Path) -> None:
    """Converts a checkpoint.

    Args:
        checkpoint: The folder of a tag.
        out: A folder that is not there yet.

    Raises:
        UserError: The checkpoint is not whole, or of a layout that is not converted rightly.
    """
    rest = _rest(checkpoint)
    from deepspeed.checkpoint import ds_to_universal
    from safetensors.torch import save_file

    out.mkdir()
    workers = min(_WORKERS, len(os.sched_getaffinity(0)))
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(checkpoint),
            output_folder=str(out),
            num_extract_workers=workers,
            num_merge_workers=workers,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
    save_file(rest, out / REST)


def _rest(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Frozen parameters and persistent buffers of a checkpoint, each in its own type."""
    from tracking.consolidate.layout import find_shards
    from tracking.consolidate.plan import make_plan
    from tracking.consolidate.reading import Reader
    from tracking.consolidate.states import read_states
    from tracking.consolidate.unpickle import read_shard

    states = read_states(find_shards(checkpoint))
    model = states.models[0]
    if _round_robin(read_shard(model.path).get("ds_config")):
        raise UserError(ROUND_ROBIN)
    trained = {name for group in model.groups or () for name in group}
    with Reader() as reader:
        return {
            entry.name: _tensor(entry.shape, reader, entry.parts)
            for entry in make_plan(checkpoint, "F32").entries
            if entry.name not in trained and entry.parts
        }


def _round_robin(config: Any) -> bool:
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    return isinstance(zero, dict) and bool(zero.get("round_robin_gradients"))


def _tensor(shape: tuple[int, ...], reader: Any, parts: list[Any]) -> torch.Tensor:
    import torch

    from tracking.consolidate.dtypes import torch_dtype

    content = b"".join(bytes(chunk) for chunk in reader.converted(parts, parts[0].dtype))
    if not content:
        return torch.empty(shape, dtype=torch_dtype(parts[0].dtype))
    return torch.frombuffer(bytearray(content), dtype=torch_dtype(parts[0].dtype)).reshape(shape)


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        sys.exit(f"{REFUSED}{error}")
