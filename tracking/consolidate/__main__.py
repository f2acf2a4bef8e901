"""`python -m tracking.consolidate CKPT_DIR OUT`: one safetensors model out of a DeepSpeed checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tracking.consolidate import consolidate
from tracking.consolidate.writing import parse_size
from tracking.errors import exit_on_user_error


def main(arguments: Sequence[str] | None = None) -> None:
    """Consolidates a checkpoint and says what was written."""
    given = _parser().parse_args(arguments)
    with exit_on_user_error():
        done = consolidate(
            given.checkpoint,
            given.out,
            engine=given.engine,
            dtype=given.dtype,
            max_shard_size=parse_size(given.max_shard_size) if given.max_shard_size else None,
            tag=given.tag,
        )
    for notice in done.notices:
        print(f"note: {notice}", file=sys.stderr)
    where = done.files[0] if len(done.files) == 1 else f"{len(done.files)} files in {done.files[0].parent}"
    tied = f", {len(done.tied)} tied" if done.tied else ""
    print(
        f"{where}: {done.elements:,} elements{tied}, {done.bytes / 1e9:.3f} GB in {done.seconds:.1f} s"
        f" ({done.bytes / 1e6 / max(done.seconds, 1e-9):.0f} MB/s)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tracking.consolidate",
        description="Writes the fp32 model of a DeepSpeed checkpoint (ZeRO 0 to 3) as safetensors."
        " Takes some ten megabytes of memory, imports no torch and runs nothing of the checkpoint's pickles.",
    )
    parser.add_argument(
        "checkpoint", metavar="CKPT_DIR", type=Path, help="the folder of a tag, or the one with the tags and `latest`"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="a name in .safetensors, or a folder")
    parser.add_argument(
        "--engine",
        choices=("stream", "deepspeed"),
        default="stream",
        help="deepspeed: by its own converter, which loads the whole model and runs the pickles (default: stream)",
    )
    parser.add_argument("--dtype", default="fp32", help="fp32, bf16 or fp16 (default: fp32)")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="bytes a file, such as 5GB; default: one file")
    parser.add_argument("--tag", help="which checkpoint in CKPT_DIR (default: what `latest` names)")
    return parser


if __name__ == "__main__":
    main()
